from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from c3tools.connect import ConnectedHeads
from c3tools.store import Store

from ..conftest import make_store
from ..connect.worlds import views, write_files

C3 = Callable[..., Result]
QUICK = ("--dim", 16, "--hidden", 32, "--batch-size", 40, "--learning-rate", 0.003, "--precision", "fp32")
QUICK += ("--epochs", 6, "--logit-scale", 20)


def test_heads_connect_two_files_and_apply_makes_a_store(c3: C3, tmp_path: Path) -> None:
    files = write_files(tmp_path / "features")
    result = c3("connect", "heads", *files, *QUICK, "--json", "run.json")
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
    assert "168 to learn from" in card
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


def test_the_same_command_gives_the_same_heads(c3: C3, tmp_path: Path) -> None:
    files = write_files(tmp_path / "features")
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert c3("connect", "heads", *files, *QUICK, "--seed", seed, "-o", name).exit_code == 0
        digests.append(ConnectedHeads.load(tmp_path / name).sha256)
    assert digests[0] == digests[1] != digests[2]


def test_heads_connect_the_modalities_of_a_store_and_of_two(c3: C3, tmp_path: Path) -> None:
    first, second, owner = views(120, 2, dims=(12, 12))
    unit = [(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (first, second)]
    make_store(tmp_path / "c3-store", *unit, owners=owner, split=None)
    make_store(tmp_path / "other", -unit[0], unit[1], owners=owner, split=None)
    result = c3("connect", "heads", *QUICK, "--json", "one.json")
    assert result.exit_code == 0, result.stderr
    one = json.loads((tmp_path / "one.json").read_text())
    assert one["modalities"] == ["image", "text"]
    assert sum(one["pairs"].values()) < 240  # a store without splits is split by the keys
    across = ("--second-store", "other", "--modalities", "image,image")
    result = c3("connect", "heads", *QUICK, *across, "-o", "h2", "--json", "two.json")
    assert result.exit_code == 0, result.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["modalities"] == ["image", "image_2"]
    assert two["scores"]["val"]["recall"]["image_to_image_2"]["recall@1"] > 0.5
    made = c3("connect", "apply", "h2", *across, "-o", "joined")
    assert made.exit_code == 0, made.stderr
    report = c3("gap-report", "joined", "--json", "gap.json")
    assert report.exit_code == 0, report.stderr
    assert json.loads((tmp_path / "gap.json").read_text())["pairs"]["n"] == 120


def test_audio_is_connected_with_text(c3: C3, tmp_path: Path) -> None:
    first, second, _ = views(120)
    np.save(tmp_path / "sounds.npy", first)
    np.save(tmp_path / "words.npy", second)
    sides = ("--text", "words.npy", "--other", "audio=sounds.npy")
    result = c3("connect", "heads", *sides, *QUICK, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    assert "Row i of audio was paired with row i of text" in result.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["modalities"] == ["text", "audio"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--logit-scale", "200"), "beyond the limit of 100"),
        (("--loss", "hinge"), "no loss 'hinge'"),
        (("--batch-size", "1"), "has no negatives"),
        (("--train-split", "dev2"), "no pairs of image and text in the split 'dev2'"),
        (("--cone", "-1"), "The cone is 0 or more"),
    ],
)
def test_wrong_settings_are_one_message(c3: C3, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    files = write_files(tmp_path / "features")
    result = c3("connect", "heads", *files, *QUICK, *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "c3-heads").exists()


def test_a_collapsed_run_writes_its_log_alone(c3: C3, tmp_path: Path) -> None:
    files = write_files(tmp_path / "features")
    rows = np.ones((240, 12), np.float32)  # every text is the same to its tower
    rows[0] += 1
    np.save(tmp_path / "features" / "text.npy", rows)
    result = c3("connect", "heads", *files, *QUICK, "--learning-rate", "1e-5", "--logit-scale", "0.01")
    assert result.exit_code == 1, result.stderr
    assert "The run collapsed" in result.stderr
    assert {path.name for path in (tmp_path / "c3-heads").iterdir()} == {"geometry.json", "geometry.svg"}


def test_without_two_sides_or_heads_there_is_a_remedy(c3: C3, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(4))
    one = c3("connect", "heads", "--image", "a.npy")
    assert one.exit_code == 1
    assert "Two modalities are connected, not 1 (image)" in one.stderr
    none = c3("connect", "apply", "nowhere", "--image", "a.npy", "--text", "a.npy")
    assert none.exit_code == 1
    assert "c3 connect heads" in none.stderr
    names = c3("connect", "heads", "--store", ".", "--modalities", "image")
    assert "does not name two" in names.stderr


def test_features_of_another_tower_are_refused_before_anything_is_written(c3: C3, tmp_path: Path) -> None:
    files = write_files(tmp_path / "features")
    assert c3("connect", "heads", *files, *QUICK).exit_code == 0
    np.save(tmp_path / "features" / "text.npy", np.ones((240, 13), np.float32))
    result = c3("connect", "apply", *files, "-o", "connected")
    assert result.exit_code == 1
    assert "takes 12 features per row, not 13" in result.stderr
    assert not (tmp_path / "connected").exists()


def test_rows_with_nan_are_left_out_of_training_and_of_the_store(c3: C3, tmp_path: Path) -> None:
    files = write_files(tmp_path / "features")
    path = tmp_path / "features" / "image.npy"
    rows = np.load(path)
    rows[3, 5] = np.nan  # an image of the train split: its two captions go as well
    np.save(path, rows)
    result = c3("connect", "heads", *files, *QUICK, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    assert "1 of 120 image rows hold NaN or infinity" in result.stderr
    assert json.loads((tmp_path / "run.json").read_text())["pairs"]["train"] == 166
    made = c3("connect", "apply", *files, "-o", "connected", "--json", "made.json")
    assert made.exit_code == 0, made.stderr
    assert json.loads((tmp_path / "made.json").read_text())["rows"] == {"image": 119, "text": 240}
    store = Store.open(tmp_path / "connected")
    assert [failure.key for failure in store.failures()] == ["photo003"]
