from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c3tools.connect import ConnectedHeads, apply_heads, connect_heads, read_features
from c3tools.connect.heads import Head, HeadShape, new_heads
from c3tools.errors import ConnectError
from c3tools.io import spill
from c3tools.store import Pairs, Store
from tests.conftest import Messages

from ..conftest import make_store
from .worlds import some_pairs, views, write_files

QUICK: dict[str, Any] = {"dim": 16, "hidden": 32, "batch_size": 40, "learning_rate": 3e-3, "precision": "fp32"}
QUICK |= {"epochs": 6, "logit_scale": "20"}


def connected(hidden: int = 16) -> ConnectedHeads:
    torch.manual_seed(0)
    shape = HeadShape(dim=6, hidden=hidden)
    return ConnectedHeads({"image": Head(20, shape), "text": Head(12, shape)}, shape, {"note": "a test"})


def test_a_head_standardises_by_its_training_rows_alone() -> None:
    features = np.random.default_rng(0).normal(5, 3, size=(50, 4))
    features[:, 3] = 7  # constant: its spread would divide by zero
    features[40:] += 1000
    head = Head(4, HeadShape(dim=3))
    head.fit(features.astype(np.float16), np.arange(40))
    kept = features[:40].astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(head.mean.numpy(), kept.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(head.spread.numpy()[:3], kept.std(axis=0)[:3], rtol=1e-6)
    assert head.spread[3] == 1


@pytest.mark.parametrize("hidden", [0, 16])
def test_embeddings_are_the_normalised_outputs(hidden: int) -> None:
    heads = connected(hidden)
    features = np.random.default_rng(0).normal(size=(9, 20)).astype(np.float32)
    weights = {name: tensor.numpy() for name, tensor in heads.heads["image"].layers.state_dict().items()}
    if hidden:
        inner = np.maximum(features @ weights["0.weight"].T + weights["0.bias"], 0)
        expected = inner @ weights["3.weight"].T + weights["3.bias"]
    else:
        expected = features @ weights["weight"].T + weights["bias"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(heads.embed("image", features), expected, atol=1e-5)
    assert heads.embed("image", features[:0]).shape == (0, 6)


@pytest.mark.parametrize("cone", [0.5, 1.33, 3.0])
def test_a_cone_is_a_gap_of_the_stated_size(cone: float) -> None:
    first, second, index = views(400, dims=(64, 64), shared=32)
    pairs = some_pairs(first, second, index, np.arange(400))
    shape = HeadShape(dim=256, hidden=512, cone=cone)
    heads = ConnectedHeads(dict(zip(("image", "text"), new_heads(pairs, shape, seed=0), strict=True)), shape, {})
    means = heads.embed("image", first).mean(axis=0), heads.embed("text", second).mean(axis=0)
    # E[1/norm] is a little above 1/sqrt(E[norm^2]), and two random directions are not quite orthogonal
    assert np.linalg.norm(means[0] - means[1]) == pytest.approx(cone * np.sqrt(2 / (1 + cone**2)), rel=0.12)


def test_heads_come_back_as_they_were_saved(tmp_path: Path) -> None:
    heads = connected()
    heads.save(tmp_path / "heads")
    again = ConnectedHeads.load(tmp_path / "heads")
    assert {path.name for path in (tmp_path / "heads").iterdir()} == {"connect.json", "heads.safetensors"}
    assert (again.names, again.shape, again.record, again.sha256) == (
        heads.names,
        heads.shape,
        heads.record,
        heads.sha256,
    )
    features = np.random.default_rng(0).normal(size=(3, 12))
    np.testing.assert_array_equal(again.embed("text", features), heads.embed("text", features))


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match=r"There are no heads at .*\n.*c3 connect heads"):
        ConnectedHeads.load(tmp_path / "nowhere")
    folder = tmp_path / "heads"
    connected().save(folder)
    other = tmp_path / "other"
    connected(hidden=0).save(other)
    weights = (folder / "heads.safetensors").read_bytes()
    (folder / "heads.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ConnectError, match="damaged"):
        ConnectedHeads.load(folder)
    torch.manual_seed(1)
    shape = HeadShape(dim=6, hidden=16)
    ConnectedHeads({"image": Head(20, shape), "text": Head(12, shape)}, shape, {}).save(other)
    (folder / "heads.safetensors").write_bytes((other / "heads.safetensors").read_bytes())
    with pytest.raises(ConnectError, match=r"do not match its connect\.json"):
        ConnectedHeads.load(folder)
    value = json.loads((other / "connect.json").read_text())
    (other / "connect.json").write_text(json.dumps({**value, "format_version": 99}))
    with pytest.raises(ConnectError, match="newer version of c3tools"):
        ConnectedHeads.load(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: {name: value[name] for name in value if name != "sha256"},
        lambda value: {**value, "modalities": 3},
        lambda value: {**value, "modalities": [[]]},
        lambda value: {**value, "format_version": float("inf")},
        lambda value: {**value, "shape": {**value["shape"], "hidden": 2**40}},  # 80 TB
        lambda value: [value],
    ],
)
def test_a_damaged_record_is_one_error(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    connected().save(tmp_path / "heads")
    path = tmp_path / "heads" / "connect.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ConnectError, match="are damaged"):
        ConnectedHeads.load(tmp_path / "heads")


def test_other_features_are_refused() -> None:
    with pytest.raises(ConnectError, match=r"needs 20 features per row, not 12"):
        connected().embed("image", np.zeros((2, 12)))
    with pytest.raises(ConnectError, match=r"no head for 'audio'.*image and text"):
        connected().embed("audio", np.zeros((2, 12)))


@pytest.mark.parametrize("wrong", [{"dim": 1}, {"hidden": -1}, {"dropout": 1.0}, {"cone": -0.1}])
def test_shapes_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConnectError):
        HeadShape(**wrong)


def test_the_same_call_gives_the_same_heads(tmp_path: Path) -> None:
    features = read_features(**write_files(tmp_path / "features"))
    options = {**QUICK, "epochs": 2, "dropout": 0.2}
    a, b, c = (connect_heads(features, tmp_path / f"{n}", seed=seed, **options) for n, seed in enumerate((0, 0, 1)))
    assert a.sha256 == b.sha256 != c.sha256
    assert ConnectedHeads.load(tmp_path / "0").sha256 == a.sha256


def test_rows_in_a_file_train_the_same_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, items = views(150, dims=(24, 24))
    make_store(tmp_path / "store", first, second, owners=items.tolist(), split=None)
    shas = []
    for limit in (spill.MEMORY_LIMIT, -1):
        monkeypatch.setattr(spill, "MEMORY_LIMIT", limit)
        features = read_features(store=tmp_path / "store")
        assert isinstance(features.second.embeddings, spill.FileRows) == (limit < 0)
        heads = connect_heads(features, tmp_path / f"heads{limit}", **QUICK)
        apply_heads(heads, features, tmp_path / f"applied{limit}")
        own = Store.open(tmp_path / f"applied{limit}").load("text")
        shas.append((heads.sha256, heads.record["identity"], heads.record["scores"], own.embeddings.tobytes()))
    assert shas[0] == shas[1]


def test_heads_connect_two_stores_and_make_a_third(tmp_path: Path) -> None:
    first, second, index = views(120, 2, dims=(12, 12))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
    make_store(tmp_path / "one", *unit, owners=index.tolist(), split=None)
    make_store(tmp_path / "two", -unit[0], unit[1], owners=index.tolist(), split=None)
    features = read_features(store=tmp_path / "one", second_store=tmp_path / "two", modalities=("image", "image"))
    heads = connect_heads(features, tmp_path / "heads", **QUICK)
    record = heads.to_dict()
    assert record["modalities"] == ["image", "image_2"]
    assert sum(record["pairs"].values()) < 120  # a store without splits is split by the keys
    assert record["scores"]["val"]["recall"]["image_to_image_2"]["recall@1"] > 0.5
    assert "image → image_2" in heads._repr_html_()
    report = apply_heads(tmp_path / "heads", features, tmp_path / "joined")
    assert report.rows == {"image": 120, "image_2": 120}
    joined = Store.open(tmp_path / "joined")
    assert len(Pairs.match(joined.load("image"), joined.load("image_2"))) == 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_scale": "200"}, "above the limit of 100"),
        ({"loss": "hinge"}, "no loss 'hinge'"),
        ({"batch_size": 1}, "contains no negatives"),
        ({"train_split": "dev2"}, "no pairs of image and text in the split 'dev2'"),
        ({"cone": -1}, "cone must be at least 0, not -1"),
        ({"hidden": -5}, "hidden must be at least 0, not -5"),
        ({"dropout": float("nan")}, "dropout must be at least 0 and below 1, not nan"),
        ({"dim": 1}, "A head needs at least 2 dimensions, not 1"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, not -0.1"),
    ],
)
def test_wrong_settings_are_one_message(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    features = read_features(**write_files(tmp_path / "features"))
    with pytest.raises(ConnectError, match=message):
        connect_heads(features, tmp_path / "heads", **{**QUICK, **options})
    assert not (tmp_path / "heads").exists()


def test_a_collapsed_run_writes_its_log_alone(tmp_path: Path) -> None:
    files = write_files(tmp_path / "features")
    rows = np.ones((240, 12), np.float32)  # every text is the same to its tower
    rows[0] += 1
    np.save(files["text"], rows)
    options = {**QUICK, "learning_rate": 1e-5, "logit_scale": "0.01"}
    with pytest.raises(ConnectError, match="The training collapsed"):
        connect_heads(read_features(**files), tmp_path / "heads", **options)
    assert {path.name for path in (tmp_path / "heads").iterdir()} == {"geometry.json", "geometry.svg"}


def test_features_of_another_tower_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    files = write_files(tmp_path / "features")
    np.save(files["text"], np.ones((240, 13), np.float32))
    with pytest.raises(ConnectError, match="needs 12 features per row, not 13"):
        apply_heads(connected(), read_features(**files), tmp_path / "connected")
    assert not (tmp_path / "connected").exists()


def test_features_of_another_model_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    first, second, index = views(120, 2, dims=(12, 12))
    for name in ("one", "two"):
        model = {"name": name, "weights_sha256": name}
        make_store(tmp_path / name, first, second, owners=index.tolist(), split=None, model=model)
    own, other = (read_features(store=tmp_path / name) for name in ("one", "two"))
    heads = connect_heads(own, tmp_path / "heads", **{**QUICK, "epochs": 1})
    assert {name: model["name"] for name, model in heads.record["models"].items()} == {"image": "one", "text": "one"}
    with pytest.raises(ConnectError, match=r"The image head is of the model one \(one\), but these features of two"):
        apply_heads(tmp_path / "heads", other, tmp_path / "connected")
    assert not (tmp_path / "connected").exists()
    heads.check_model("image", None)  # of a file of vectors, whose model is unknown


def test_rows_with_nan_are_left_out_of_training_and_of_the_store(tmp_path: Path) -> None:
    files = write_files(tmp_path / "features")
    rows = np.load(files["image"])
    rows[3, 5] = np.nan  # an image of the train split: its two captions go as well
    np.save(files["image"], rows)
    features, said = read_features(**files), Messages()
    record = connect_heads(features, tmp_path / "heads", **{**QUICK, "epochs": 1}, reporter=said).to_dict()
    assert any("1 of 120 image rows contain NaN or infinity" in text for text in said.texts)
    assert record["pairs"]["train"] == 166
    report = apply_heads(tmp_path / "heads", features, tmp_path / "connected")
    assert report.rows == {"image": 119, "text": 240}
    assert [failure.key for failure in Store.open(tmp_path / "connected").failures()] == ["photo003"]
