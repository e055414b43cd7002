from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from c3tools.connect import ConnectedHeads, Head, HeadShape
from c3tools.connect.heads_run import new_heads
from c3tools.errors import ConnectError

from .worlds import some_pairs, views


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
    first, second, owner = views(400, dims=(64, 64), shared=32)
    pairs = some_pairs(first, second, owner, np.arange(400))
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
    with pytest.raises(ConnectError, match=r"no connected heads at .*\n.*c3 connect heads"):
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
    with pytest.raises(ConnectError, match=r"not those that its connect\.json names"):
        ConnectedHeads.load(folder)
    value = json.loads((other / "connect.json").read_text())
    (other / "connect.json").write_text(json.dumps({**value, "format_version": 99}))
    with pytest.raises(ConnectError, match="newer c3tools"):
        ConnectedHeads.load(other)


def test_other_features_are_refused() -> None:
    with pytest.raises(ConnectError, match=r"takes 20 features per row, not 12"):
        connected().embed("image", np.zeros((2, 12)))
    with pytest.raises(ConnectError, match=r"no head for 'audio'.*image and text"):
        connected().embed("audio", np.zeros((2, 12)))


@pytest.mark.parametrize("wrong", [{"dim": 1}, {"hidden": -1}, {"dropout": 1.0}, {"cone": -0.1}])
def test_shapes_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConnectError):
        HeadShape(**wrong)
