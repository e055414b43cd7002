"""Each preset against a formula written out in float64 numpy, apart from the package; saved, and in torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, sqrtm
from scipy.special import softmax

from c3tools.errors import TransformError
from c3tools.seeds import keyed_normal
from c3tools.transforms import PRESETS, Pipeline, preset
from c3tools.transforms.sigma import PUBLISHED_SIGMA
from c3tools.transforms.steps import Collapse, CovarianceNoise, GapShift, Normalize
from c3tools.transforms.torch_module import TransformModule
from tests.golden import recorded
from tests.stores import unit

from .conftest import Array, Pairs

GOLDEN = Path(__file__).parent / "golden"
SIGMA = 0.1


def gap_unit(p: Pairs) -> Array:
    direction: Array = unit((p.x.mean(0) - p.y.mean(0))[None])[0]
    return direction


def _centred(v: Array) -> Array:
    return np.asarray(v - v.mean(0))


def _realign(p: Pairs) -> Array:
    x, y = p.y, p.x  # target text, source image
    moved = unit(x.mean(0) + np.sqrt(x.var(0).sum() / y.var(0).sum()) * (y - y.mean(0)))
    return unit(moved - moved.mean(0) + x.mean(0))


def _ridge(p: Pairs) -> Array:
    x, y = _centred(p.x), _centred(p.y)
    n, d = x.shape
    # ridge regression as least squares on augmented rows, another route than the normal equations
    stacked = np.vstack([x, np.sqrt(1e-3 * n) * np.eye(d)])
    weights = np.linalg.lstsq(stacked, np.vstack([y, np.zeros((d, d))]), rcond=None)[0]
    return unit(x @ weights + p.y.mean(0))


def _procrustes(p: Pairs) -> Array:
    rotation, _ = orthogonal_procrustes(_centred(p.x), _centred(p.y))
    return unit(_centred(p.x) @ rotation + p.y.mean(0))


def _fair(v: Array, p: Pairs) -> Array:
    spreads = [np.cov(w.T, bias=True) / w.var(0).sum() for w in (p.y, v)]  # those of texts, which ask
    return np.asarray(unit(_centred(v)) / np.sqrt(np.trace(spreads[0] @ spreads[1])))


def _whiten(v: Array) -> Array:
    covariance = np.cov(v.T, bias=True)
    d = len(covariance)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / d * np.eye(d)
    return unit(_centred(v) @ np.linalg.inv(sqrtm(shrunk).real))


def _without_gap(v: Array, p: Pairs) -> Array:
    u = gap_unit(p)
    return unit(v - (v @ u)[:, None] * u)


def _shift(v: Array, p: Pairs, sign: int) -> Array:
    return unit(v - sign * (p.x.mean(0) - p.y.mean(0)) / 2)


def _tomcap(p: Pairs, z: Array) -> Array:
    return unit(_centred(p.y) / p.y.std(0) * p.x.std(0) + p.x.mean(0) + SIGMA * z)


def _span(p: Pairs, z: Array) -> Array:
    u = gap_unit(p)
    return unit(_centred(p.y) + SIGMA * (z - (z @ u)[:, None] * u))


def _covariance(p: Pairs, z: Array, sigma: float | None = None) -> Array:
    covariance = np.cov((_centred(p.x) - _centred(p.y)).T, bias=True)
    scale = sigma / np.sqrt(np.diag(covariance).mean()) if sigma else 1
    return unit(_centred(p.y) + scale * z @ sqrtm(covariance).real)


def _retrieval(p: Pairs, q: Array, own: list[str] | None = None) -> Array:
    rows = []
    stored = unit(_centred(unit(p.y))).astype(np.float16).astype(np.float64)
    for i, query in enumerate(unit(q)):
        memory = stored[[j for j, item in enumerate(p.items) if own is None or item != own[i]]]
        nearest = memory[np.argsort(-(memory @ query))[:10]]
        mean = softmax(nearest @ query / 0.05) @ nearest
        rows.append(query + mean / np.linalg.norm(mean))
    return unit(np.stack(rows))


# name: (training text, inference image)
FORMULAS: dict[str, tuple[Callable[[Pairs, Array], Array], Callable[[Pairs], Array]]] = {
    "c1": (lambda p, z: p.y, lambda p: p.x),
    "c2-collapse": (lambda p, z: unit(_centred(p.y)), lambda p: unit(_centred(p.x))),
    "c2-corrupt": (lambda p, z: unit(p.y + SIGMA * z), lambda p: p.x),
    "c3": (lambda p, z: unit(_centred(p.y) + SIGMA * z), lambda p: unit(_centred(p.x))),
    # as published: norm(f + xi |f| eps / |eps|) with xi = l / (1 - l) = 3
    "lafite": (lambda p, z: unit(p.y + 3 * z / np.linalg.norm(z, axis=1, keepdims=True)), lambda p: p.x),
    "decap": (lambda p, z: p.y, lambda p: unit(softmax(p.x @ p.y.T / 0.01, axis=1) @ p.y)),
    "clipre": (lambda p, z: p.y, lambda p: p.y[(p.x @ p.y.T).argmax(1)]),
    "realign": (lambda p, z: p.y, _realign),
    "tomcap": (_tomcap, lambda p: p.x),
    "fair": (lambda p, z: _fair(p.y, p), lambda p: _fair(p.x, p)),
    "gap-shift": (lambda p, z: _shift(p.y, p, -1), lambda p: _shift(p.x, p, 1)),
    "project-out-gap": (lambda p, z: _without_gap(p.y, p), lambda p: _without_gap(p.x, p)),
    "standardize": (lambda p, z: unit(_centred(p.y) / p.y.std(0)), lambda p: unit(_centred(p.x) / p.x.std(0))),
    "whiten": (lambda p, z: _whiten(p.y), lambda p: _whiten(p.x)),
    "ridge": (lambda p, z: p.y, _ridge),
    "procrustes": (lambda p, z: p.y, _procrustes),
    "c3-span": (_span, lambda p: unit(_centred(p.x))),
    "c3-covariance": (_covariance, lambda p: unit(_centred(p.x))),
    "c3-retrieval": (
        lambda p, z: _retrieval(p, _centred(p.y) + SIGMA * z, p.items),
        lambda p: _retrieval(p, _centred(p.x)),
    ),
}


FORMULAS |= {"capdec": FORMULAS["c2-corrupt"], "gr-clip": FORMULAS["c2-collapse"]}


def test_every_preset_has_a_formula_and_the_steps_on_record() -> None:
    assert set(FORMULAS) == set(PRESETS)
    made = {name: preset(name, train_on="text", infer_on="photo") for name in PRESETS}
    needs = {name: (one.noisy, one.needs_rows, one.fitted) for name, one in made.items()}
    steps = {name: one.config()["steps"] for name, one in made.items()}
    recorded(GOLDEN / "presets.json", {"noisy, needs rows, is fitted": needs, "steps": steps})


def test_steps_of_another_size(pairs: Pairs) -> None:
    shifted = Pipeline([Normalize(), GapShift(delta=0.3), Normalize()]).fit(pairs.moments)
    expected = unit(pairs.y + 0.3 / 2 * gap_unit(pairs))
    np.testing.assert_allclose(shifted.transform(pairs.y, modality="text"), expected, atol=1e-6)
    noisy = Pipeline([Normalize(), Collapse(), CovarianceNoise(0.3), Normalize()]).fit(pairs.rows)
    expected = _covariance(pairs, keyed_normal(0, 0, pairs.keys, 24).astype(np.float64), 0.3)
    got = noisy.transform(pairs.y, modality="text", training=True, keys=pairs.keys)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_preset_is_its_formula_fitted_saved_and_in_torch(name: str, pairs: Pairs, tmp_path: Path) -> None:
    own = dict.fromkeys(pairs.rows, pairs.items)
    pipeline = preset(name, sigma=SIGMA).fit(pairs.moments, pairs.rows, items=own)
    loaded = Pipeline.load(pipeline.save(tmp_path / "p"))
    z = keyed_normal(5, 2, pairs.keys, 24).astype(np.float64)
    expected = {True: FORMULAS[name][0](pairs, z), False: FORMULAS[name][1](pairs)}
    names: dict[str, Any] = {"keys": pairs.keys, "items": pairs.items, "epoch": 2}
    for training, modality, rows in ((True, "text", pairs.y * 3), (False, "image", pairs.x * 0.5)):
        got = pipeline.transform(rows, modality=modality, training=training, seed=5, **names)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected[training], atol=1e-6)
        same = loaded.transform(rows, modality=modality, training=training, seed=5, **names)
        np.testing.assert_array_equal(same, got)
        module = TransformModule(pipeline, modality, seed=5).train(training)
        np.testing.assert_allclose(module(torch.from_numpy(rows), **names).numpy(), got, atol=2e-6)
        parts = [pipeline.transform(rows[i : i + 7], modality=modality) for i in range(0, 120, 7)]
        whole = pipeline.transform(rows, modality=modality, seed=1, epoch=9)  # without noise
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    assert (loaded.name, loaded.dim, loaded.provenance) == (name, pipeline.dim, pipeline.provenance)
    assert len({*pipeline.steps, *loaded.steps}) == 2 * len(pipeline.steps)  # each is itself alone
    for step in pipeline.steps:
        for operation in step.operations("image" if "image" in step.fitted_for else "text"):
            with pytest.raises(FrozenInstanceError):
                operation.scale = 0  # type: ignore[misc, union-attr]
            assert operation != copy.copy(operation)
    assert Pipeline.from_config(pipeline.config()).config() == pipeline.config()


def test_sigma_is_the_published_value_or_a_possible_one() -> None:
    assert preset("c3").sigma == PUBLISHED_SIGMA == pytest.approx(0.1264911, abs=1e-7)
    assert (preset("c1").sigma, preset("c3", sigma="auto").sigma) == (None, "auto")
    assert preset("c3", sigma="0.1").sigma == 0.1
    with pytest.raises(TransformError, match="'auto' or 'pairs'"):
        preset("c3", sigma=10**400)
