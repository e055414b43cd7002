"""Exports: their rows by the formula, their files for other programs, and what is kept, made again
and refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, MagicMock, Mock, call, patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from c3tools import Calibration, Pipeline, Store, TransformModule, preset
from c3tools.choices import ExportFormat, NumberFormat
from c3tools.errors import C3Error, OutputError, StoreError, TransformError
from c3tools.export import FORMATS, ExportReport, export_store
from c3tools.io.locations import location
from c3tools.seeds import keyed_normal
from c3tools.store import Rows
from c3tools.store.rows import embedding_matrix
from c3tools.store.shards import write_rows
from c3tools.store.verify import verify_store
from c3tools.transforms.presets import TrainingPipeline, open_pipeline
from tests.conftest import build_store, contents, contents_at_url
from tests.crashes import kill_at
from tests.servers import Faults
from tests.stores import assert_close, gap_store, make_vectors, unit


@pytest.fixture(autouse=True)
def here(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with a small synthetic store in c3-store."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(store.path, tmp_path / "c3-store")


def same(one: str, other: str = "c3-export") -> bool:
    return contents(Path(one)) == contents(Path(other))


def ok(store: str = "c3-store", **options: Any) -> ExportReport:
    return export_store(store, **options)


def expected_text(store: Store, sigma: float) -> np.ndarray:
    """C3 in float64: noise on the train rows, none on the test rows."""
    rows = store.load("text")
    train = np.array([split == "train" for split in rows.column("split")])
    # the store's moments are of what is stored, float16
    stored = rows.embeddings.astype(np.float64)
    noise = keyed_normal(0, 0, rows.keys, 16).astype(np.float64)
    return unit(unit(stored) - stored[train].mean(axis=0) + sigma * noise * train[:, None])


def test_an_export_is_a_store_of_rows_that_went_through_the_pipeline() -> None:
    told = MagicMock()
    report, source = ok(reporter=told), Store.open("c3-store")
    assert told.progress.call_args == call("Exporting c3", 270)
    assert sum(each.args[0] for each in told.progress().__enter__().advance.call_args_list) == 270
    assert [each.args[0].split(":")[0] for each in told.message.call_args_list] == [
        "Fitted c3 on the train split"
    ]
    assert report.rows == {
        "image": {"training": 0, "inference": 90},
        "text": {"training": 120, "inference": 60},
    }
    assert (report.output, report.parts, report.kept) == (OUT, 6, 0)
    assert report.bytes == sum(path.stat().st_size for path in OUT.glob("*/part-*.parquet"))
    store = Store.open(OUT)
    text, image = store.load("text"), store.load("image")
    assert_close(text.embeddings, expected_text(source, 0.016**0.5), 1e-3)  # float16
    for name in ("key", "caption", "image_key", "split"):
        assert text.column(name) == source.load("text").column(name)
    roles = [("inference", "training")[split == "train"] for split in text.column("split")]
    assert text.column("role") == roles and set(image.column("role")) == {"inference"}
    pipeline = Pipeline.load(OUT)
    again = pipeline.transform(source.load("image").embeddings, modality="image")
    assert_close(image.embeddings, again, 1e-3)
    transform = json.loads(json.dumps(pipeline.record()))
    exported = store.info.exported["transform"]
    assert exported == {name: transform[name] for name in ("name", "steps", "dim", "tensors")}
    found = verify_store("c3-export")
    assert found.whole and not found.defects
    train = store.load("text", "train").embeddings
    assert_close(store.moments("text", "train").mean, train.mean(0))
    # DuckDB reads no other encoding
    with pq.ParquetFile(OUT / "text" / "part-00000.parquet") as file:
        columns = [
            file.metadata.row_group(0).column(number) for number in range(file.metadata.num_columns)
        ]
    assert not any("BYTE_STREAM_SPLIT" in column.encodings for column in columns)
    assert preset("c2-collapse").fit(store).provenance["n"] == {"image": 60, "text": 120}
    with pytest.raises(C3Error, match="c3 export"):
        build_store(OUT, Rows.of("image", ["new"], np.eye(16)[:1]), model=source.info.model)


def test_all_rows_can_be_training_inputs() -> None:
    report = ok(
        role="training", modality=["image"], preset="c2-corrupt", sigma=0.3, dtype="float32"
    )
    assert report.to_dict()["rows"] == {"image": {"training": 90, "inference": 0}}
    source, made = Store.open("c3-store").load("image"), Store.open(OUT).load("image")
    expected = unit(unit(source.embeddings) + 0.3 * keyed_normal(0, 0, source.keys, 16))
    assert_close(made.embeddings, expected)
    assert set(made.column("role")) == {"training"}


def test_presets() -> None:
    sigmas = {"c1": None, "c3": 0.1, "decap": None, "ridge": None, "c3-retrieval": 0.1}
    for name, sigma in sigmas.items():
        ok(preset=name, sigma=sigma, dtype="float32", output=name)
        source, store, pipeline = Store.open("c3-store"), Store.open(name), Pipeline.load(name)
        if name == "c3":
            assert_close(store.load("text").embeddings, expected_text(source, 0.1))
        for split in ("train", "test"):  # in training, rows do not retrieve their own item
            own = source.load("text", split)
            names = (
                {"training": True, "keys": own.keys, "items": own.items} if split == "train" else {}
            )
            expected = pipeline.transform(own.embeddings, modality="text", **names)  # type: ignore[arg-type]
            assert_close(store.load("text", split).embeddings, expected)


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_files_for_other_programs(format: str) -> None:
    report = ok(format=format, modality=["text"], role="inference", dtype="float32", seed=3)
    assert list(report.rows) == ["text"] and not (OUT / "image").exists()
    folder, expected = OUT / "text", expected_text(Store.open("c3-store"), 0.0)
    match format:
        case "npy":
            rows = np.concatenate(
                [np.load(path) for path in sorted((folder / "embeddings").glob("*.npy"))]
            )
        case "safetensors":
            tensors = []
            for path in sorted(folder.glob("*.safetensors")):
                with safe_open(path, framework="numpy") as file:
                    tensors.append(file.get_tensor("embedding"))
                    assert (
                        json.loads(file.metadata()["c3"])["extra"]["exported"]["settings"]["seed"]
                        == 3
                    )
            rows = np.concatenate(tensors)
        case "hf":
            tables = [pq.read_table(folder / split) for split in ("train", "test")]
            assert [*map(len, tables)] == [120, 60]
            card = (OUT / "README.md").read_text()
            assert (
                "config_name: text" in card
                and "path: text/test/*.parquet" in card
                and "image" not in card
            )
            rows = embedding_matrix(pa.concat_tables(tables).sort_by("key"))
            expected = expected[np.argsort(Store.open("c3-store").load("text").keys)]
        case _:
            rows = Store.open(OUT).load("text").embeddings
    assert_close(rows, expected)
    if format in ("npy", "safetensors"):
        beside = [pq.read_table(path) for path in sorted((folder / "metadata").glob("*.parquet"))]
        assert [table.num_rows for table in beside] == [60, 60, 60]
        assert "embedding" not in beside[0].column_names
    if format != "parquet":
        on_disk = contents(OUT)
        record = json.loads(on_disk.pop("manifest.json"))
        assert record["files"] == {
            name: hashlib.sha256(content).hexdigest() for name, content in on_disk.items()
        }
        exported = json.loads((OUT / "store.json").read_text())["extra"]["exported"]
        assert exported["store"]["model"]["name"] == "test-model"
        assert Pipeline.load(OUT).provenance["n"] == {"image": 60, "text": 120}


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_the_same_bytes_however_it_came_about(format: str) -> None:
    ok(format=format, output="whole", workers=4)
    for modality in ("text", "image"):
        assert list(ok(format=format, modality=[modality], workers=1).rows) == [modality]
    assert same("whole")
    cut = next(path for path in sorted(OUT.glob("text/**/*")) if path.name == "part-00001.parquet")
    cut.write_bytes(cut.read_bytes()[:100])
    assert ok(format=format).kept == 5
    assert same("whole")


@pytest.mark.parametrize(
    ("format", "operation"), [("parquet", 27), ("parquet", 47), ("npy", 35), ("hf", 41)]
)
def test_a_killed_export_is_continued_to_the_same_bytes(format: str, operation: int) -> None:
    ok(output="whole", format=format)
    assert kill_at(OUT.absolute(), operation, lambda: ok(format=format, workers=1))
    assert ok(format=format).kept > 0
    assert same("whole")


def test_another_export_is_replaced_only_if_asked() -> None:
    ok()
    with pytest.raises(C3Error, match=r"its format is parquet, not npy[\s\S]*--overwrite"):
        ok(format="npy")
    with pytest.raises(C3Error, match=r"its pipeline changed[\s\S]*--refit"):
        ok(preset="c1")
    (OUT / "text" / "notes.txt").write_text("of the user")
    ok(preset="c1", overwrite=True, format="npy")
    assert Pipeline.load(OUT).name == "c1"
    assert not list((OUT).glob("*/part-*")) and (OUT / "text" / "notes.txt").exists()
    ok(preset="c1", format="npy", output="fresh")
    (OUT / "text" / "notes.txt").unlink()
    assert same("fresh")


@pytest.mark.parametrize("damage", ["{", '{"checksum": ""}'])
def test_an_export_with_a_damaged_manifest_is_replaced_if_asked(damage: str) -> None:
    ok()
    whole = contents(OUT)
    (OUT / "manifest.json").write_text(damage)
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
        ok()
    ok(overwrite=True)
    assert contents(OUT) == whole


def test_pipelines_of_files_and_of_exports() -> None:
    Path("p.yaml").write_text("name: mine\nsteps: [normalize, standardize, normalize]\n")
    ok(pipeline="p.yaml", output="a")
    ok(pipeline="a", output="b")
    assert Pipeline.load("b").name == "mine"
    described = ("store.json", "manifest.json")
    first, second = (contents(Path(name)) for name in "ab")
    assert all(first[name] == second[name] for name in first if name not in described)


def test_a_store_that_keeps_norms() -> None:
    gap_store(Path("raw"), dtype="float32", normalised=False)
    ok(store="raw", role="inference", dtype="float32")
    x = unit(make_vectors()[1].astype(np.float64))
    expected = unit(x - x[np.arange(180) // 2 % 3 > 0].mean(axis=0))
    store = Store.open(OUT)
    assert store.info.normalised
    assert_close(store.load("text").embeddings, expected)


def test_what_is_refused() -> None:
    moments = {"text": Store.open("c3-store").moments("text")}
    preset("c3").fit(moments, provenance={"model": {"name": "ViT-B-32/openai"}}).save("other")
    preset("c3").fit(rows={"text": np.tile(np.eye(8), (3, 1))}).save("small")
    Path("file").write_text("")
    shutil.copytree("c3-store", "cut")
    path = Path("cut/text/part-00002.parquet")
    path.write_bytes(path.read_bytes()[:200])
    for options, words in (
        ({"pipeline": "other"}, "ViT-B-32/openai.*test-model"),
        ({"pipeline": "small"}, "8 dimensions.* 16"),
        ({"output": "file"}, "file"),
        ({"output": "cut"}, "cut is a store"),
        ({"modality": ["audio"]}, "audio"),
        ({"role": "test"}, "role must be auto or .*, not 'test'"),
        ({"workers": 1, "store": "cut"}, r"part-00002\.parquet"),
    ):
        with pytest.raises(C3Error, match=words):
            ok(**options)
        assert len([*OUT.glob("*/part-*")]) == (5 if "workers" in options else 0)


OUT, URL = Path("c3-export"), "s3://bucket/runs/export"


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_an_export_at_a_url(store: Store, tmp_path: Path, s3: Faults, format: ExportFormat) -> None:
    disk = export_store(store, output=tmp_path / "disk", format=format)
    s3.every = 7
    cut = Mock(wraps=write_rows, side_effect=[DEFAULT] * 3 + [KeyboardInterrupt])
    with patch("c3tools.export.formats.write_rows", cut), pytest.raises(KeyboardInterrupt):
        export_store(store, output=URL, format=format, workers=1)
    there = export_store(store, output=URL, format=format)
    assert (there.parts, there.kept, there.rows, there.bytes) == (3, 3, disk.rows, disk.bytes)
    assert contents_at_url(location(URL)) == contents(tmp_path / "disk")
    assert s3.failed > 3
    with pytest.raises(OutputError, match="its pipeline changed"):
        export_store(store, output=URL, preset="c1", format=format)
    export_store(store, output=URL, preset="c1", format=format, overwrite=True)
    export_store(store, output=tmp_path / "other", preset="c1", format=format)
    assert contents_at_url(location(URL)) == contents(tmp_path / "other")


def test_for_rows_is_what_is_left_to_do() -> None:
    ok(preset="c3", sigma=0.3, before_noise=True)
    rows = Store.open(OUT).load("text", "train")
    rest = Pipeline.for_rows("c3-export")
    assert [step.kind for step in rest.steps] == ["gaussian-noise", "normalize"]
    finished = rest.transform(rows.embeddings, modality="text", training=True, keys=rows.keys)
    ok(preset="c3", sigma=0.3, dtype="float32", overwrite=True)
    export = Store.open(OUT)
    assert_close(finished, export.load("text", "train").embeddings)
    images = export.load("image").embeddings
    whole, rest = Pipeline.load("c3-export"), Pipeline.for_rows(export)
    assert len(whole.steps) == 4 and repr(rest) == "Pipeline('c3': no steps)"
    assert_close(rest.transform(images, modality="image"), images)
    with pytest.raises(C3Error, match="have not gone through a pipeline"):
        Pipeline.for_rows("c3-store")


def test_rows_that_are_centred_already_are_warned_of_once() -> None:
    ok(preset="c2-collapse")
    raw = Store.open("c3-store").load("image").embeddings
    images = Store.open(OUT).load("image").embeddings.astype(np.float32)
    pipeline = Pipeline.load("c3-export")
    module = TransformModule(pipeline, "image").eval()

    # In batches, whose first 100 rows are needed to tell
    pipeline.transform(images, modality="image")
    with pytest.warns(UserWarning, match="The first 180 image rows seem to be centred already"):
        pipeline.transform(images, modality="image")
    pipeline.transform(images, modality="image")
    module(torch.from_numpy(images))
    with pytest.warns(UserWarning, match=r"180 image rows .*TransformModule.for_rows"):
        module(torch.from_numpy(images))
    module(torch.from_numpy(images))

    # After 2,000 rows, none are looked at
    pipeline = Pipeline.load("c3-export")
    pipeline.transform(np.tile(raw, (23, 1)), modality="image")
    pipeline.transform(np.tile(images, (230, 1)), modality="image")


def test_a_module_for_rows_has_what_is_left_to_do() -> None:
    ok(preset="c3", sigma=0.3, before_noise=True)
    rows = Store.open(OUT).load("text", "train")
    module = TransformModule.for_rows("c3-export", "text", seed=3)
    expected = Pipeline.for_rows("c3-export").transform(
        rows.embeddings, modality="text", training=True, keys=rows.keys, seed=3
    )
    assert_close(module(torch.from_numpy(rows.embeddings), rows.keys).numpy(), expected)


@pytest.mark.parametrize("format", FORMATS)
def test_the_calibration_of_an_export_is_that_of_its_store(format: ExportFormat) -> None:
    ok(preset="gr-clip", format=format)
    fitted = Calibration.fit("c3-store", pipeline=Pipeline.load("c3-export"))
    whole = contents(OUT)
    for _ in range(2):
        loaded = Calibration.load("c3-export")
        assert loaded.pipeline.record() == fitted.pipeline.record()
        for name, moments in fitted.moments.items():
            assert (loaded.moments[name].mean == moments.mean).all()
            assert (loaded.moments[name].scatter == moments.scatter).all()
        (OUT / "calibration.safetensors").unlink()
        found = verify_store(OUT)
        assert [(f.check, f.file) for f in found.findings] == [("files", "calibration.safetensors")]
        ok(preset="gr-clip", format=format)
        assert contents(OUT) == whole


def test_files_of_another_export_are_refused() -> None:
    ok(preset="gr-clip")
    whole = contents(OUT)
    ok(preset="c1", output="other")
    for name in ("transform.json", "transform.safetensors", "calibration.safetensors"):
        shutil.copy(Path("other", name), OUT / name)
    for load in (Pipeline.load, Calibration.load):
        with pytest.raises(TransformError, match=r"(?s)transform\.json is not .*manifest\.json"):
            load(OUT)
    for name, content in whole.items():
        (OUT / name).write_bytes(content)
    (OUT / "calibration.safetensors").unlink()
    (OUT / "calibration.safetensors").mkdir()
    with pytest.raises(TransformError, match=r"no calibration at .* is no file"):
        Calibration.load(OUT)


def test_a_calibration_needs_only_numpy() -> None:
    ok(preset="gr-clip")
    code = (
        "import sys; sys.modules['pyarrow'] = sys.modules['torch'] = None\n"
        "from c3tools import Calibration; print(sorted(Calibration.load('c3-export').moments))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert printed.stdout == "['image', 'text']\n", printed.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "The training inputs among them contain noise.*--role inference"),
        ({"before_noise": True}, "not gone through the whole pipeline.*--before-noise"),
        ({"preset": "decap"}, "memory-projection changes moments.*c3 index"),
    ],
)
def test_rows_that_cannot_be_calibrated_are_refused(options: dict[str, Any], words: str) -> None:
    ok(**options)
    with pytest.raises(TransformError, match=f"(?s){words}"):
        Calibration.load("c3-export")


@pytest.mark.parametrize("options", [{}, {"before_noise": True}, {"fuse": True}])
def test_an_export_of_an_export_is_refused(options: dict[str, Any]) -> None:
    ok(preset="gr-clip" if "fuse" in options else "c3", **options)
    with pytest.raises(StoreError, match=r"(?s)c3-export is an export\..*that was exported"):
        export_store("c3-export", output="twice", preset="c1")
    assert not Path("twice").exists()


def test_images_of_a_noisy_pipeline_can_be_calibrated() -> None:
    ok(modality=["image"])
    assert sorted(Calibration.load("c3-export").moments) == ["image", "text"]


def test_the_rows_of_an_export_go_through_no_second_pipeline() -> None:
    ok(preset="gr-clip")
    for pipeline in (None, Pipeline.load("c3-export")):
        with pytest.raises(TransformError, match=r"(?s)already.*Calibration.load\(.c3-export.\)"):
            Calibration.fit("c3-export", pipeline=pipeline)
    shutil.copytree("c3-store", "no-export")
    with pytest.raises(TransformError, match=r"(?s)no calibration.*Calibration.fit"):
        Calibration.load("no-export")
    ok(preset="whiten", output="other")
    shutil.copy("other/calibration.safetensors", OUT)
    with pytest.raises(TransformError, match="does not belong to the pipeline"):
        Calibration.load("c3-export")


def test_a_damaged_calibration_is_refused() -> None:
    ok(preset="gr-clip")
    path = OUT / "calibration.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 64]) + whole[-1:])  # one bit of a covariance
    with pytest.raises(StoreError, match="is damaged: its checksum"):
        Calibration.load("c3-export")
    ok(preset="gr-clip")
    assert path.read_bytes() == whole


def test_the_pipeline_and_the_calibration_of_an_export_are_read_at_a_url() -> None:
    pytest.importorskip("upath", reason="the extra url is not installed")
    ok(preset="gr-clip")
    url = OUT.absolute().as_uri()
    assert sorted(Calibration.load(url).moments) == ["image", "text"]
    assert Pipeline.load(url).record() == open_pipeline(url).record()
    assert not Pipeline.for_rows(url).steps


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_l2_and_cosine_give_the_order_of_the_inner_product(dtype: NumberFormat) -> None:
    ok(preset="fair", dtype=dtype)
    info = json.loads(Path("c3-export/transform.json").read_text())
    assert info["metric"] == Store.open(OUT).info.exported["settings"]["metric"] == "ip"
    ok(preset="fair", dtype=dtype, metric="l2", output="l2")
    assert verify_store("l2").whole
    plain, padded = (Store.open(Path(name)) for name in ("c3-export", "l2"))
    rows = np.concatenate([padded.load(name).embeddings for name in ("image", "text")])
    expected = np.concatenate([plain.load(name).embeddings for name in ("image", "text")])
    assert (rows[:, :-1] == expected).all() and rows.shape[1] == 17
    assert np.ptp(np.linalg.norm(rows.astype(np.float64), axis=1)) < 1e-2
    queries = stored("text").embeddings[:9]
    query = Pipeline.load("l2").transform(queries, modality="text")
    assert (query[:, -1] == 0).all()
    module = TransformModule(Pipeline.load("l2"), "text").eval()
    assert_close(module(torch.from_numpy(queries)).numpy(), query, 1e-5)
    products = query[:, :-1] @ expected.T.astype(np.float32)
    distances = np.linalg.norm(query[:, None] - rows.astype(np.float32), axis=2)
    cosines = query @ unit(rows.astype(np.float64)).T
    order = np.argsort(-products)[:, :10]
    tolerance = 1e-2 if dtype == "float16" else 1e-4
    for scores in (-distances, cosines):
        found = np.take_along_axis(products, np.argsort(-scores)[:, :10], axis=1)
        assert_close(found, np.take_along_axis(products, order, axis=1), tolerance)
    assert Calibration.load("l2").moments["image"].dim == 17


def test_the_moments_of_an_export_for_l2_have_its_dimensions() -> None:
    ok(preset="c1", metric="l2")
    moments = Calibration.load("c3-export").moments["image"]
    assert moments.mean[-1] == 0 and moments.covariance.shape == (17, 17)
    assert not moments.covariance[-1].any() and moments.covariance[0].any()


def test_the_pipeline_of_an_export_for_l2_is_taken_without_the_one_more_dimension() -> None:
    ok(preset="fair", metric="l2")
    rows = Store.open(OUT).load("text").embeddings
    assert (Pipeline.for_rows("c3-export").transform(rows, modality="text") == rows).all()
    pipeline = Pipeline.load("c3-export")
    store = Store.open(Path("c3-store"))
    chosen = TrainingPipeline.choose(store, pipeline, None, None).given
    assert chosen is not None and chosen.metric == "ip"
    for source in (pipeline, "c3-export"):
        assert open_pipeline(source).metric == "ip"
    assert ok(pipeline="c3-export", metric="l2", output="again").pipeline.metric == "l2"
    ok(preset="fair", output="plain")
    of_export = TrainingPipeline.choose(Store.open("plain"), None, None, None)
    assert (of_export.preset, of_export.sigma) == ("fair", 0)
    shutil.copy(OUT / "transform.json", "plain")  # the same tensors
    with pytest.raises(TransformError, match=r"(?s)not the file that manifest.json lists.*--refit"):
        ok(preset="fair", output="plain")


def test_rows_without_a_largest_norm_cannot_be_filled_up() -> None:
    with pytest.raises(TransformError, match=r"(?s)no largest norm.*metric ip"):
        ok(metric="l2", before_noise=True)
    ok(preset="fair", metric="l2")
    with pytest.raises(TransformError, match=r"(?s)an extra dimension.*--metric ip"):
        TrainingPipeline.choose(Store.open(OUT), None, None, None)
    with (
        patch.object(Pipeline, "longest", 0.5),
        pytest.raises(TransformError, match=r"(?s)row img.* has norm .*above 0.5.*--refit"),
    ):
        ok(preset="fair", metric="l2", output="other")


def test_one_table_has_the_rows_of_all_modalities() -> None:
    with pytest.raises(C3Error, match="--one-table"):
        ok(one_table=True, format="npy")
    ok(preset="gr-clip", one_table=True)
    table = pq.read_table(OUT / "rows").to_pydict()
    keys = [f"{name}/{key}" for name in ("image", "text") for key in stored(name).keys]
    assert sorted(table["key"]) == sorted(keys) and len({*keys}) == 270
    assert all(
        key.startswith(f"{name}/")
        for key, name in zip(table["key"], table["modality"], strict=True)
    )
    assert verify_store(OUT).whole and Calibration.load("c3-export").moments
    with pytest.raises(StoreError, match=r"(?s)one table.*without --one-table"):
        Store.open(OUT)
    whole = contents(OUT)
    (OUT / "rows" / "text-00001.parquet").unlink()
    assert not verify_store(OUT).whole
    assert ok(preset="gr-clip", one_table=True).parts == 1
    assert contents(OUT) == whole
    for name in ("image", "text"):
        ok(preset="gr-clip", one_table=True, modality=[name], output="by-modality")
    assert same("by-modality")


def stored(modality: str) -> Rows:
    return Store.open("c3-store").load(modality)
