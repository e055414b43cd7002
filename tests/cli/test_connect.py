from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from c3tools.connect import ConnectedHeads
from c3tools.encoders import load_encoder, load_network
from c3tools.store import Store
from tests.conftest import C3

from ..conftest import make_store
from ..connect.photos import save_photos, save_tiny_clip
from ..connect.test_gradients import two_processes
from ..connect.worlds import write_files
from ..corpus.packing import photos_of, webdataset, write_tar
from ..servers import Faults, web_server

HEADS = ["--dim", "16", "--hidden", "32", "--batch-size", "40", "--learning-rate", "0.003", "--precision", "fp32"]
HEADS += ["--epochs", "6", "--logit-scale", "20"]
TOWERS = ["--batch-size", "16", "--chunk", "6", "--epochs", "12", "--learning-rate", "0.01", "--precision", "fp32"]
TOWERS += ["--patience", "0", "--logit-scale", "learned:14"]


def options_of(files: Mapping[str, Path]) -> list[str]:
    return [part for name, path in files.items() for part in (f"--{name}", str(path))]


def state(name: str) -> dict[str, npt.NDArray[np.float32]]:
    return {key: value.numpy() for key, value in load_network(name).model.state_dict().items()}


def test_heads_connect_two_files_and_apply_makes_a_store(c3: C3, tmp_path: Path) -> None:
    files = options_of(write_files(tmp_path / "features"))
    result = c3("connect", "heads", *files, *HEADS, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["features"] == {"image": 20, "text": 12}
    assert record["pairs"] == {"train": 168, "val": 36}
    assert record["outcome"] == "finished"
    assert set(record["scores"]) == {"val", "test"}
    assert record["scores"]["test"]["recall"]["image_to_text"]["recall@1"] > 0.5
    folder = tmp_path / "c3-heads"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "connect.json",
        "geometry.json",
        "geometry.svg",
        "heads.safetensors",
    }
    log = json.loads((folder / "geometry.json").read_text())
    assert [point["step"] for point in log["points"]] == [0, 4, 8, 12, 16, 20, 24]
    assert log["kept_step"] == record["kept_step"]
    kept = next(point for point in log["points"] if point["step"] == record["kept_step"])
    assert kept["gap"] == pytest.approx(record["scores"]["val"]["gap"], rel=1e-4)
    card = (folder / "README.md").read_text()
    assert "168 for training" in card
    assert f"{record['scores']['test']['gap']:.3f}" in card
    assert not list(tmp_path.glob(".c3-heads*"))

    made = c3("connect", "apply", "c3-heads", *files, "-o", "connected")
    assert made.exit_code == 0, made.stderr
    store = Store.open(tmp_path / "connected")
    heads = ConnectedHeads.load(folder)
    assert store.info.model == {"name": "connected-heads", "weights_sha256": heads.sha256}
    images, texts = store.load("image"), store.load("text", split="test")
    expected = heads.embed("image", np.load(tmp_path / "features" / "image.npy"))
    np.testing.assert_allclose(images.embeddings, expected, atol=1e-3)
    assert images.keys[:2] == ["photo000", "photo001"]
    assert texts.column("caption")[0] == f"caption {2 * 102}"
    assert texts.column("image_key")[0] == "photo102"

    report = c3("gap-report", "connected", "--split", "test", "--json", "gap.json")
    assert report.exit_code == 0, report.stderr
    measured = json.loads((tmp_path / "gap.json").read_text())
    assert measured["gap"]["length"] == pytest.approx(record["scores"]["test"]["gap"], abs=2e-3)
    assert measured["retrieval"]["raw"]["text_to_image"]["recall@1"] == pytest.approx(
        record["scores"]["test"]["recall"]["text_to_image"]["recall@1"], abs=0.06
    )


def test_finished_heads_are_replaced_only_if_asked(c3: C3, tmp_path: Path) -> None:
    files = options_of(write_files(tmp_path / "features"))
    quick = ["connect", "heads", *files, *HEADS, "--epochs", "2"]
    assert c3(*quick).exit_code == 0
    first = ConnectedHeads.load(tmp_path / "c3-heads")
    same = c3(*quick, "--json", "run.json")
    assert same.exit_code == 0
    assert "c3-heads already contains this pair of heads; there is nothing to do." in same.stderr
    assert json.loads((tmp_path / "run.json").read_text()) == first.record
    other = c3(*quick, "--seed", "1")
    assert other.exit_code == 1
    said = " ".join(other.stderr.split())
    assert "c3-heads already contains a finished pair of heads: 168 pairs, finished 20" in said
    assert "It was made with seed 0, not 1." in said
    assert {path.name for path in tmp_path.iterdir()} == {"features", "c3-heads", "run.json"}
    replaced = c3(*quick, "--seed", "1", "--overwrite")
    assert replaced.exit_code == 0, replaced.stderr
    assert "was kept as c3-heads.previous" in replaced.stderr
    assert ConnectedHeads.load(tmp_path / "c3-heads.previous").sha256 == first.sha256
    assert ConnectedHeads.load(tmp_path / "c3-heads").sha256 != first.sha256
    (tmp_path / "c3-heads.previous" / "heads.safetensors").write_bytes(b"cut short")
    damaged = ["-o", "c3-heads.previous"]
    assert "c3 connect heads --overwrite" in c3(*quick, *damaged).stderr
    assert c3(*quick, *damaged, "--overwrite").exit_code == 0
    assert ConnectedHeads.load(tmp_path / "c3-heads.previous").sha256 == first.sha256
    mine = c3(*quick, "--overwrite", "-o", "features")
    assert "features contains other files (image.npy, meta.jsonl, text.npy), not a former pair of heads" in mine.stderr


def test_finished_heads_are_found_without_a_val_split(c3: C3, tmp_path: Path) -> None:
    files = options_of(write_files(tmp_path / "features"))
    meta = tmp_path / "features" / "meta.jsonl"
    meta.write_text(meta.read_text().replace('"split": "val"', '"split": "train"'))
    quick = ["connect", "heads", *files, *HEADS, "--epochs", "1"]
    assert c3(*quick).exit_code == 0
    assert set(ConnectedHeads.load(tmp_path / "c3-heads").record["scores"]) == {"test"}
    same = c3(*quick)
    assert same.exit_code == 0, same.stderr
    assert "there is nothing to do" in same.stderr
    assert "finished pair of heads: " in " ".join(c3(*quick, "--seed", "1").stderr.split())


def test_a_finished_model_is_replaced_only_if_asked_and_never_by_its_own_training(c3: C3, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", 4)
    quick = ["connect", "lit", "photos", *TOWERS, "--epochs", "1", "--json", "run.json"]
    start = ["--model", save_tiny_clip(tmp_path / "tiny")]
    assert c3(*quick, *start).exit_code == 0
    first = json.loads((tmp_path / "run.json").read_text())
    before = state(f"local-dir:{tmp_path / 'c3-model'}")
    same = c3(*quick, *start)
    assert same.exit_code == 0, same.stderr
    assert "c3-model already contains this model; there is nothing to do." in same.stderr
    assert json.loads((tmp_path / "run.json").read_text()) == first
    assert "with half False, not True" in " ".join(c3(*quick, *start, "--half").stderr.split())
    own = c3(*quick, "--model", "local-dir:c3-model", "--overwrite")
    assert own.exit_code == 1
    assert "starts from c3-model, but the new model in c3-model would replace it" in own.stderr
    assert c3(*quick, *start, "--seed", "1", "--overwrite").exit_code == 0
    kept = state(f"local-dir:{tmp_path / 'c3-model.previous'}")
    assert all(np.array_equal(kept[name], before[name]) for name in before)


def test_options_that_would_be_ignored_are_refused(c3: C3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = options_of(write_files(tmp_path / "features"))
    make_store(tmp_path / "X", np.eye(4), np.eye(4))
    for command in (["heads", "-o", "out"], ["apply", "c3-heads", "-o", "out"]):
        for option in (["--store", "X"], ["--second-store", "X"], ["--modalities", "image,text"]):
            refused = c3("connect", *command, *files, *option)
            assert refused.exit_code == 1
            assert f"{option[0]} cannot be used here: the features come from the files" in refused.stderr
        refused = c3("connect", *command, "--store", "X", "--meta", "features/meta.jsonl")
        assert refused.exit_code == 1
        assert "--meta describes a file of vectors, but no file is given" in refused.stderr
    assert not (tmp_path / "out").exists()
    # a store of the environment is nobody's wish for this run
    monkeypatch.setenv("C3_STORE", "X")
    assert c3("connect", "heads", *files, *HEADS, "--epochs", "1").exit_code == 0


def test_without_two_sides_or_heads_there_is_a_remedy(c3: C3, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(4))
    one = c3("connect", "heads", "--image", "a.npy")
    assert one.exit_code == 1
    assert "Two modalities are needed, not 1 (image)" in one.stderr
    none = c3("connect", "apply", "nowhere", "--image", "a.npy", "--text", "a.npy")
    assert none.exit_code == 1
    assert "c3 connect heads" in none.stderr
    make_store(tmp_path / "store", np.eye(4), np.eye(4))
    names = c3("connect", "heads", "--store", "store", "--modalities", "image")
    assert names.exit_code == 1
    assert "Two modalities are needed, not 1 (image)" in names.stderr


@pytest.mark.parametrize("mode", ["lit", "full"])
def test_a_trained_model_is_used_like_any_other(c3: C3, tmp_path: Path, mode: str) -> None:
    save_photos(tmp_path / "photos")
    tiny = save_tiny_clip(tmp_path / "tiny")
    result = c3("connect", mode, "photos", "--model", tiny, *TOWERS, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["pairs"] == {"train": 64, "val": 16}
    assert record["mode"] == mode
    assert record["false_negatives"]["batches"] > 0  # captions such as "a dark red square" stand under four photos
    log = json.loads((tmp_path / "c3-model" / "geometry.json").read_text())["points"]
    assert log[-1]["loss"] < 0.8 * log[1]["loss"]
    assert record["scores"]["test"]["recall"]["image_to_text"]["recall@5"] > 0.6
    folder = tmp_path / "c3-model"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "connect.json",
        "geometry.json",
        "geometry.svg",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    before, after = state(tiny), state(f"local-dir:{folder}")
    moved = {key for key in before if not np.array_equal(before[key], after[key])}
    assert "logit_scale" in moved
    assert np.exp(after["logit_scale"]) == pytest.approx(record["logit_scale"], rel=0.05)
    assert any(key.startswith("transformer") for key in moved)
    assert any(key.startswith("visual") for key in moved) == (mode == "full")

    options = ("--store", "store", "--backend", "torch", "--precision", "fp32")
    made = c3("embed", "photos", "--model", f"local-dir:{folder}", *options)
    assert made.exit_code == 0, made.stderr
    texts = Store.open(tmp_path / "store").load("text", split="test")
    images = Store.open(tmp_path / "store").load("image", split="test")
    gap = np.linalg.norm(images.embeddings.mean(axis=0) - texts.embeddings.mean(axis=0))
    assert gap == pytest.approx(record["scores"]["test"]["gap"], abs=3e-3)


def test_a_model_is_trained_on_a_tar_at_a_url(c3: C3, tmp_path: Path) -> None:
    pytest.importorskip("upath", reason="the extra url is not installed")
    write_tar(tmp_path / "packed" / "x.tar", webdataset(photos_of(save_photos(tmp_path / "photos", 4))))
    options = ["--model", save_tiny_clip(tmp_path / "tiny"), *TOWERS, "--epochs", "1", "--json", "run.json"]
    with web_server(tmp_path / "packed", Faults()) as base:
        result = c3("connect", "lit", f"{base}/x.tar", *options)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["photos"], record["unreadable"]) == (32, 0)


@pytest.mark.timeout(600)
def test_two_processes_train_the_model_of_one(c3: C3, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", 4)
    tiny = save_tiny_clip(tmp_path / "tiny")
    options = ["photos", "--model", tiny, *TOWERS, "--epochs", "1", "--no-augment"]
    alone = c3("connect", "full", *options, "-o", "alone")
    assert alone.exit_code == 0, alone.stderr
    code = "import os, sys; from c3tools.cli import main; os.chdir(sys.argv.pop(1)); main()"
    command = [sys.executable, "-c", code, str(tmp_path), "connect", "full", *options, "-o", "both"]
    two = two_processes(command, tmp_path / "both" / "geometry.json")["points"]
    one = json.loads((tmp_path / "alone" / "geometry.json").read_text())["points"]
    for name in ("loss", "gap", "paired_cosine", "logit_scale"):
        # the first point of the log, before training, has no loss
        assert [point[name] for point in two[1:]] == pytest.approx([point[name] for point in one[1:]], abs=1e-4)
    rows = [
        load_encoder(f"local-dir:{tmp_path / name}", backend="torch", precision="fp32").encode_texts(["a red square"])
        for name in ("alone", "both")
    ]
    assert float((rows[0] * rows[1]).sum()) == pytest.approx(1, abs=1e-5)
