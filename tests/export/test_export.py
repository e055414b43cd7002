from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from c3tools import Pipeline, Store, preset
from c3tools.errors import C3Error
from c3tools.export import FORMATS, ExportReport, export_store
from c3tools.export.export import ExportWork
from c3tools.seeds import keyed_normal
from c3tools.store.rows import embedding_matrix
from c3tools.store.split import split_store
from tests.stores import gap_store, make_vectors, unit


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small synthetic store in c3-store."""
    monkeypatch.chdir(tmp_path)
    return gap_store(tmp_path / "c3-store").parent


def ok(store: str = "c3-store", **options: Any) -> ExportReport:
    return export_store(store, **options)


def refused(**options: Any) -> str:
    with pytest.raises(C3Error) as caught:
        ok(**options)
    return str(caught.value)


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if (p.is_file() and "part-" not in p.name) or "parquet" in p.name]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def expected_text(store: Store, sigma: float) -> np.ndarray:
    """C3 in float64: noise on the train rows, none on the test rows."""
    rows = store.load("text")
    x = unit(rows.embeddings.astype(np.float64))
    train = np.array([split == "train" for split in rows.column("split")])
    stored = rows.embeddings.astype(np.float64)  # the store's moments are of what is stored, float16
    centred = x - stored[train].mean(axis=0)
    noise = keyed_normal(0, 0, rows.keys, x.shape[1]).astype(np.float64)
    return unit(centred + sigma * noise * train[:, None])


def test_without_options(here: Path) -> None:
    report = ok()
    store = Store.open("c3-store")
    table = read(here / "c3-export" / "text")
    assert table.column("key").to_pylist() == store.load("text").keys
    assert table.column("caption").to_pylist() == store.load("text").column("caption")
    got = embedding_matrix(table, np.float64)
    np.testing.assert_allclose(got, expected_text(store, 0.016**0.5), atol=1e-3)  # float16
    assert report.to_dict()["rows"]["text"] == {"training": 120, "inference": 60}
    assert (report.output, report.parts, report.kept) == (Path("c3-export"), 6, 0)
    images = read(here / "c3-export" / "image")
    assert set(images.column("input_role").to_pylist()) == {"inference"}
    loaded = Pipeline.load("c3-export")
    again = loaded.transform(store.load("image").embeddings, modality="image")
    np.testing.assert_allclose(embedding_matrix(images, np.float32), again, atol=1e-3)


def test_every_preset_of_the_ablation(here: Path) -> None:
    for name in ("c1", "c2-collapse", "c2-corrupt", "c3"):
        ok(preset=name, sigma=0.1, output=name, dtype="float32")
    text = {p: embedding_matrix(read(here / p / "text"), np.float64) for p in ("c1", "c2-collapse", "c2-corrupt", "c3")}
    store = Store.open("c3-store")
    x = unit(store.load("text").embeddings.astype(np.float64))
    np.testing.assert_allclose(text["c1"], x, atol=1e-6)
    np.testing.assert_allclose(text["c3"], expected_text(store, 0.1), atol=1e-6)
    np.testing.assert_allclose(text["c2-collapse"], expected_text(store, 0.0), atol=1e-6)
    assert not np.allclose(text["c2-corrupt"], x, atol=0.01)


@pytest.mark.parametrize("name", ["decap", "clipre", "realign", "ridge", "procrustes", "c3-covariance", "whiten"])
def test_presets_that_are_fitted_on_rows(here: Path, name: str) -> None:
    ok(preset=name)
    norms = np.linalg.norm(embedding_matrix(read(here / "c3-export" / "image"), np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_training_rows_do_not_retrieve_their_own_item(here: Path, format: str) -> None:
    ok(preset="c3-retrieval", sigma=0.1, dtype="float32", format=format)
    texts = Store.open("c3-store").load("text")
    parts = sorted((here / "c3-export" / "text").rglob("*.npy"))
    got = np.concatenate([np.load(p) for p in parts]) if parts else embedding_matrix(read(here / "c3-export" / "text"))
    pipeline = Pipeline.load("c3-export")
    for split in ("train", "test"):
        rows = np.flatnonzero(np.array(texts.splits) == split)
        own = texts.select(rows)
        training: dict[str, Any] = {"training": True, "keys": own.keys, "items": own.items} if split == "train" else {}
        expected = pipeline.transform(own.embeddings, modality="text", **training)
        np.testing.assert_allclose(got[rows], expected, atol=1e-6)


def test_provenance_is_in_every_file(here: Path) -> None:
    ok(seed=3, epoch=2)
    schema = pq.read_schema(here / "c3-export" / "text" / "part-00001.parquet")
    provenance = json.loads(schema.metadata[b"c3"])
    assert provenance["store"]["model"]["name"] == "synthetic"
    assert provenance["transform"]["provenance"]["n"] == {"image": 60, "text": 120}
    assert provenance["transform"]["provenance"]["split"] == "train"
    assert (provenance["settings"]["seed"], provenance["settings"]["epoch"]) == (3, 2)
    record = json.loads((here / "c3-export" / "export.json").read_text())
    assert record["complete"] is True
    assert record["rows"] == {"image": {"training": 0, "inference": 90}, "text": {"training": 120, "inference": 60}}


def test_npy_layout(here: Path) -> None:
    ok(format="npy", modality=["text"], role="inference", dtype="float32")
    folder = here / "c3-export" / "text"
    arrays = [np.load(path, allow_pickle=False) for path in sorted((folder / "embeddings").glob("*.npy"))]
    tables = [pq.read_table(path) for path in sorted((folder / "metadata").glob("*.parquet"))]
    assert [len(array) for array in arrays] == [table.num_rows for table in tables] == [60, 60, 60]
    assert "embedding" not in tables[0].column_names
    np.testing.assert_allclose(np.concatenate(arrays), expected_text(Store.open("c3-store"), 0.0), atol=1e-6)
    assert not (here / "c3-export" / "image").exists()


def test_safetensors_layout(here: Path) -> None:
    ok(format="safetensors", role="inference")
    with safe_open(here / "c3-export" / "text" / "part-00002.safetensors", framework="numpy") as file:
        tensor = file.get_tensor("embedding")
        assert json.loads(file.metadata()["c3"])["settings"]["format"] == "safetensors"
    assert (tensor.shape, tensor.dtype) == ((60, 16), np.float16)
    np.testing.assert_allclose(tensor, expected_text(Store.open("c3-store"), 0.0)[120:], atol=1e-3)


def test_hf_layout_has_a_folder_per_split(here: Path) -> None:
    ok(format="hf")
    folder = here / "c3-export"
    counts = {split: read(folder / "text" / split).num_rows for split in ("train", "test")}
    assert counts == {"train": 120, "test": 60}
    card = (folder / "README.md").read_text()
    assert "config_name: text" in card
    assert "path: image/test/*.parquet" in card


def test_a_modality_that_is_exported_later_joins_the_others(here: Path) -> None:
    for modality in ("text", "image"):
        assert list(ok(format="hf", modality=[modality]).rows) == [modality]
    ok(format="hf", output="whole")
    assert digests(here / "c3-export") == digests(here / "whole")
    ok(preset="c1", format="hf", modality=["image"], overwrite=True)
    assert list(json.loads((here / "c3-export" / "export.json").read_text())["rows"]) == ["image"]
    assert "config_name: text" not in (here / "c3-export" / "README.md").read_text()


def test_same_bytes_with_one_worker_and_four(here: Path) -> None:
    ok(output="one", workers=1)
    ok(output="four", workers=4)
    assert digests(here / "one") == digests(here / "four")


def test_interrupted_export_is_continued(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok(output="whole")
    real, calls = ExportWork._block, []

    def failing(self: ExportWork, modality: str, *rest: object) -> object:
        calls.append(modality)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, modality, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ExportWork, "_block", failing)
    with pytest.raises(KeyboardInterrupt):
        ok(workers=1)
    finished = sorted(path.name for path in (here / "c3-export").glob("*/_part-*.json"))
    assert len(finished) == 4
    assert not list((here / "c3-export").rglob("*.tmp"))
    monkeypatch.setattr(ExportWork, "_block", real)
    assert ok().kept == 4
    assert digests(here / "c3-export") == digests(here / "whole")


KILLED = """
import os, signal, sys
import c3tools.export.part_writers as parts
from c3tools.export import export_store

place, count = sys.argv[1], int(sys.argv[2])
owner = {"write": parts.ParquetPart, "finish": parts.ParquetPart, "replace": parts.Path}[place]
real, calls = getattr(owner, place), []

def dying(*arguments):
    calls.append(place)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

setattr(owner, place, dying)
export_store("c3-store", workers=1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize(
    ("place", "count"), [("write", 1), ("write", 4), ("finish", 3), *[("replace", i) for i in range(1, 9)]]
)
def test_a_killed_export_is_continued_to_the_same_bytes(here: Path, place: str, count: int) -> None:
    ok(output="whole")
    command = [sys.executable, "-c", KILLED, place, str(count)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    ok()
    assert digests(here / "c3-export") == digests(here / "whole")
    assert not list((here / "c3-export").rglob("*.tmp"))
    assert json.loads((here / "c3-export" / "export.json").read_text())["complete"] is True


def test_a_damaged_part_is_made_again(here: Path) -> None:
    ok()
    path = here / "c3-export" / "text" / "part-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert ok().kept == 5
    assert path.read_bytes() == whole


@pytest.mark.parametrize("format_", FORMATS)
def test_parts_that_the_store_no_longer_has_go(here: Path, format_: str) -> None:
    ok(preset="c1", format=format_)
    split_store(
        here / "other", "c3-store", fractions=(1, 0, 0)
    )  # every part changes; of hf, the files have other names
    shutil.rmtree(here / "c3-store" / "text")
    shutil.rmtree(here / "c3-store" / "image")
    (here / "c3-store" / "manifest.json").unlink()
    shutil.copytree(here / "other" / "image", here / "c3-store" / "image")
    for file in (here / "c3-store" / "image").glob("*part-00002*"):
        file.unlink()
    assert ok(preset="c1", format=format_).parts == 2
    ok("c3-store", preset="c1", format=format_, output="fresh")
    names = [
        sorted(str(path.relative_to(here / folder)) for path in (here / folder).rglob("*") if path.is_file())
        for folder in ("c3-export", "fresh")
    ]
    assert names[0] == names[1]


def test_another_recipe_does_not_replace_an_export_silently(here: Path) -> None:
    ok()
    message = refused(preset="c1")
    assert "c3-export contains another export (c3)" in message
    assert "--overwrite" in message
    ok(preset="c1", overwrite=True)
    assert Pipeline.load("c3-export").name == "c1"
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("keep")
    assert "contains other files" in refused(output="mine")


def test_yaml_pipeline_and_saved_pipeline(here: Path) -> None:
    (here / "p.yaml").write_text("name: mine\nsteps: [normalize, standardize, normalize]\n")
    ok(pipeline="p.yaml", output="a")
    ok(pipeline="a", output="b")
    assert Pipeline.load("b").name == "mine"
    assert (here / "a" / "text" / "part-00000.parquet").read_bytes() == (
        here / "b" / "text" / "part-00000.parquet"
    ).read_bytes()
    assert "sigma can only be set for a preset" in refused(pipeline="p.yaml", sigma=0.1)


def test_store_that_is_not_normalised(here: Path) -> None:
    gap_store(here / "raw", dtype="float32", normalised=False)
    ok(store="raw", role="inference", output="out", dtype="float32")
    x = unit(make_vectors()[1].astype(np.float64))
    train = np.arange(180) // 2 % 3 > 0
    expected = unit(x - x[train].mean(axis=0))
    np.testing.assert_allclose(embedding_matrix(read(here / "out" / "text"), np.float64), expected, atol=1e-6)


class TestBadInput:
    def test_unknown_names(self, here: Path) -> None:
        assert "no preset 'c4'" in refused(preset="c4")
        assert "There is no export format 'hdf5'" in refused(format="hdf5")
        assert "no modality 'audio'" in refused(modality=["audio"])
        assert "There is no export role" in refused(role="both")

    def test_pipeline_of_another_model(self, here: Path) -> None:
        moments = {"text": Store.open("c3-store").moments("text")}
        preset("c3").fit(moments, provenance={"model": {"name": "ViT-B-32/openai"}}).save(here / "p")
        message = refused(pipeline="p")
        assert "ViT-B-32/openai" in message and "synthetic" in message

    def test_pipeline_of_another_dimension(self, here: Path) -> None:
        preset("c3").fit(rows={"text": np.eye(8)}).save(here / "p")
        assert "8 dimensions, but these have 16" in refused(pipeline="p")

    def test_output_is_a_file(self, here: Path) -> None:
        (here / "file").write_text("")
        assert "is a file" in refused(output="file")

    def test_truncated_shard_names_itself_and_keeps_the_rest(self, here: Path) -> None:
        path = here / "c3-store" / "text" / "part-00002.parquet"
        path.write_bytes(path.read_bytes()[:200])
        message = refused(workers=1)
        assert "part-00002.parquet cannot be read" in message
        assert (here / "c3-export" / "text" / "_part-00001.json").exists()
        assert not (here / "c3-export" / "text" / "part-00002.parquet").exists()


def test_an_export_of_an_early_version_is_continued_under_the_names_of_today(here: Path) -> None:
    ok()
    before = {path.relative_to(here): path.read_bytes() for path in (here / "c3-export").rglob("*") if path.is_file()}
    for path in (here / "c3-export").glob("*/_part-*.json"):
        path.rename(path.with_name(path.name.removeprefix("_")))
    assert ok().kept == 6
    after = {path.relative_to(here): path.read_bytes() for path in (here / "c3-export").rglob("*") if path.is_file()}
    assert after == before


def test_overwriting_removes_no_file_that_a_changed_marker_names(tmp_path: Path) -> None:
    ok(output="made")
    kept = tmp_path / "kept.txt"
    kept.write_text("of the user")
    marker = min((tmp_path / "made" / "text").glob("_part-*.json"))
    value = json.loads(marker.read_text())
    for name in ("../kept.txt", str(kept)):
        value["files"][name] = {"sha256": "0", "bytes": 11}
    marker.write_text(json.dumps(value))
    ok(output="made", preset="c1", overwrite=True)
    assert kept.read_text() == "of the user"
