from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from c3tools.encoders import load_encoder, load_network
from c3tools.store import Store

from ..connect.photos import save_photos, save_tiny_clip
from ..connect.test_gradients import two_processes

C3 = Callable[..., Result]
QUICK = ("--batch-size", 16, "--chunk", 6, "--epochs", 12, "--learning-rate", 0.01, "--precision", "fp32")
QUICK += ("--patience", 0, "--logit-scale", "learned:14")


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    save_photos(tmp_path / "photos")
    return save_tiny_clip(tmp_path / "tiny")


def state(name: str) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in load_network(name).model.state_dict().items()}


@pytest.mark.parametrize("mode", ["lit", "full"])
def test_a_trained_model_is_used_like_any_other(c3: C3, tmp_path: Path, tiny: str, mode: str) -> None:
    result = c3("connect", mode, "photos", "--model", tiny, *QUICK, "--json", "run.json")
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

    made = c3("embed", "photos", "--model", f"local-dir:{folder}", "--store", "store", "--precision", "fp32")
    assert made.exit_code == 0, made.stderr
    texts = Store.open(tmp_path / "store").load("text", split="test")
    images = Store.open(tmp_path / "store").load("image", split="test")
    gap = np.linalg.norm(images.embeddings.mean(axis=0) - texts.embeddings.mean(axis=0))
    assert gap == pytest.approx(record["scores"]["test"]["gap"], abs=3e-3)


def test_half_weights_are_half_as_large_and_encode_alike(c3: C3, tmp_path: Path, tiny: str) -> None:
    for name, more in (("whole", ()), ("half", ("--half",))):
        assert c3("connect", "lit", "photos", "--model", tiny, *QUICK, "-o", name, *more).exit_code == 0
    sizes = [(tmp_path / name / "open_clip_model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)
    rows = [
        load_encoder(f"local-dir:{tmp_path / name}", precision="fp32").encode_texts(["a dark red square"])
        for name in ("whole", "half")
    ]
    assert float((rows[0] * rows[1]).sum()) > 0.999


def test_a_photo_that_cannot_be_decoded_is_left_out_and_said(c3: C3, tmp_path: Path, tiny: str) -> None:
    broken = tmp_path / "photos" / "plain-red-3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    result = c3("connect", "full", "photos", "--model", tiny, *QUICK, "--epochs", 1, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    assert "1 of 48 photos cannot be decoded" in result.stderr
    assert "plain-red-3.png" in result.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["photos"], record["unreadable"], record["pairs"]["train"]) == (47, 1, 62)


def test_photos_without_captions_or_split_are_one_message(c3: C3, tmp_path: Path, tiny: str) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.new("RGB", (32, 32)).save(bare / "one.png")
    result = c3("connect", "lit", "bare", "--model", tiny, *QUICK)
    assert result.exit_code == 1
    assert "no captioned photos" in result.stderr
    result = c3("connect", "lit", "photos", "--model", tiny, *QUICK, "--train-split", "other")
    assert result.exit_code == 1
    assert "test: 16, train: 64, val: 16" in result.stderr


@pytest.mark.timeout(600)
def test_two_processes_train_the_model_of_one(c3: C3, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", 4)
    tiny = save_tiny_clip(tmp_path / "tiny")
    options = [str(part) for part in ("photos", "--model", tiny, *QUICK, "--epochs", 2, "--no-augment")]
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
        load_encoder(f"local-dir:{tmp_path / name}", precision="fp32").encode_texts(["a dark red square"])
        for name in ("alone", "both")
    ]
    assert float((rows[0] * rows[1]).sum()) == pytest.approx(1, abs=1e-5)
