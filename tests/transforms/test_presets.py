"""Each preset against a formula written out in float64 numpy, apart from the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes, sqrtm
from scipy.special import softmax

from c3tools.arrays import Matrix
from c3tools.errors import TransformError
from c3tools.seeds import keyed_normal
from c3tools.transforms import PRESETS, PUBLISHED_SIGMA, GaussianNoise, Pipeline, preset

from .conftest import Array, Pairs, unit

SIGMA = 0.1


def z_of(pairs: Pairs) -> Array:
    noise: Array = keyed_normal(5, 2, pairs.keys, pairs.x.shape[1]).astype(np.float64)
    return noise


def gap_unit(p: Pairs) -> Array:
    gap = unit(p.x).mean(0) - unit(p.y).mean(0)
    direction: Array = gap / np.linalg.norm(gap)
    return direction


def _centred(v: Array) -> Array:
    centred: Array = unit(v) - unit(v).mean(0)
    return centred


def _realign(p: Pairs) -> Array:
    x, y = unit(p.y), unit(p.x)  # target text, source image
    moved = x.mean(0) + np.sqrt(x.var(0).sum() / y.var(0).sum()) * (y - y.mean(0))
    moved = unit(moved)
    return unit(moved - moved.mean(0) + x.mean(0))


def _ridge(p: Pairs) -> Array:
    x, y = _centred(p.x), _centred(p.y)
    n, d = x.shape
    # ridge regression as least squares on augmented rows, another route than the normal equations
    stacked = np.vstack([x, np.sqrt(1e-3 * n) * np.eye(d)])
    weights = np.linalg.lstsq(stacked, np.vstack([y, np.zeros((d, d))]), rcond=None)[0]
    return unit(x @ weights + unit(p.y).mean(0))


def _procrustes(p: Pairs) -> Array:
    rotation, _ = orthogonal_procrustes(_centred(p.x), _centred(p.y))
    return unit(_centred(p.x) @ rotation + unit(p.y).mean(0))


def _whiten(v: Array) -> Array:
    covariance = np.cov(unit(v).T, bias=True)
    d = len(covariance)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / d * np.eye(d)
    return unit(_centred(v) @ np.linalg.inv(sqrtm(shrunk).real))


def _without_gap(v: Array, p: Pairs) -> Array:
    u = gap_unit(p)
    return unit(unit(v) - (unit(v) @ u)[:, None] * u)


def _shift(v: Array, p: Pairs, sign: int) -> Array:
    gap = unit(p.x).mean(0) - unit(p.y).mean(0)
    return unit(unit(v) - sign * gap / 2)


def _lafite(v: Array, z: Array) -> Array:
    return unit(0.25 * unit(v) + 0.75 * z / np.linalg.norm(z, axis=1, keepdims=True))


def _decap(p: Pairs) -> Array:
    return unit(softmax(unit(p.x) @ unit(p.y).T / 0.01, axis=1) @ unit(p.y))


def _tomcap(p: Pairs, z: Array) -> Array:
    x, y = unit(p.x), unit(p.y)
    return unit((y - y.mean(0)) / y.std(0) * x.std(0) + x.mean(0) + SIGMA * z)


def _span(p: Pairs, z: Array) -> Array:
    u = gap_unit(p)
    return unit(_centred(p.y) + PUBLISHED_SIGMA * (z - (z @ u)[:, None] * u))


def _covariance(p: Pairs, z: Array) -> Array:
    root = sqrtm(np.cov((_centred(p.x) - _centred(p.y)).T, bias=True)).real
    return unit(_centred(p.y) + z @ root)


def _retrieval(p: Pairs, q: Array, own: list[str] | None = None) -> Array:
    rows = []
    stored = unit(_centred(p.y)).astype(np.float16).astype(np.float64)
    for i, query in enumerate(unit(q)):
        others = [j for j, item in enumerate(p.items) if own is None or item != own[i]]
        memory = stored[others]
        nearest = memory[np.argsort(-(memory @ query))[:10]]
        mean = softmax(nearest @ query / 0.05) @ nearest
        rows.append(query + mean / np.linalg.norm(mean))
    return unit(np.stack(rows))


# name: (training text, inference image)
FORMULAS: dict[str, tuple[Callable[[Pairs, Array], Array], Callable[[Pairs], Array]]] = {
    "c1": (lambda p, z: unit(p.y), lambda p: unit(p.x)),
    "c2-collapse": (lambda p, z: unit(_centred(p.y)), lambda p: unit(_centred(p.x))),
    "c2-corrupt": (lambda p, z: unit(unit(p.y) + SIGMA * z), lambda p: unit(p.x)),
    "c3": (lambda p, z: unit(_centred(p.y) + SIGMA * z), lambda p: unit(_centred(p.x))),
    "capdec": (lambda p, z: unit(unit(p.y) + SIGMA * z), lambda p: unit(p.x)),
    "lafite": (lambda p, z: _lafite(p.y, z), lambda p: unit(p.x)),
    "decap": (lambda p, z: unit(p.y), _decap),
    "clipre": (lambda p, z: unit(p.y), lambda p: unit(p.y)[(unit(p.x) @ unit(p.y).T).argmax(1)]),
    "realign": (lambda p, z: unit(p.y), _realign),
    "tomcap": (_tomcap, lambda p: unit(p.x)),
    "gr-clip": (lambda p, z: unit(_centred(p.y)), lambda p: unit(_centred(p.x))),
    "gap-shift": (lambda p, z: _shift(p.y, p, -1), lambda p: _shift(p.x, p, 1)),
    "project-out-gap": (lambda p, z: _without_gap(p.y, p), lambda p: _without_gap(p.x, p)),
    "standardize": (
        lambda p, z: unit(_centred(p.y) / unit(p.y).std(0)),
        lambda p: unit(_centred(p.x) / unit(p.x).std(0)),
    ),
    "whiten": (lambda p, z: _whiten(p.y), lambda p: _whiten(p.x)),
    "ridge": (lambda p, z: unit(p.y), _ridge),
    "procrustes": (lambda p, z: unit(p.y), _procrustes),
    "c3-span": (_span, lambda p: unit(_centred(p.x))),
    "c3-covariance": (_covariance, lambda p: unit(_centred(p.x))),
    "c3-retrieval": (
        lambda p, z: _retrieval(p, _centred(p.y) + SIGMA * z, p.items),
        lambda p: _retrieval(p, _centred(p.x)),
    ),
}


def fitted(name: str, pairs: Pairs) -> Pipeline:
    sigma = None if name == "c3-span" else SIGMA
    return pairs.fit(preset(name, sigma=sigma))


def training(pipeline: Pipeline, rows: Array, pairs: Pairs, seed: int = 0, epoch: int = 0) -> Matrix:
    names: dict[str, Any] = {"keys": pairs.keys, "items": pairs.items}
    return pipeline.transform(rows, modality="text", training=True, **names, seed=seed, epoch=epoch)


def test_every_preset_has_a_formula() -> None:
    assert set(FORMULAS) == set(PRESETS)


@pytest.mark.parametrize("name", FORMULAS)
def test_training_inputs(name: str, pairs: Pairs) -> None:
    expected = FORMULAS[name][0](pairs, z_of(pairs))
    got = training(fitted(name, pairs), pairs.y * 3, pairs, seed=5, epoch=2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_inference_inputs(name: str, pairs: Pairs) -> None:
    expected = FORMULAS[name][1](pairs)
    got = fitted(name, pairs).transform(pairs.x * 0.5, modality="image")
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_validation_inputs_get_no_noise(name: str, pairs: Pairs) -> None:
    pipeline = fitted(name, pairs)
    first = pipeline.transform(pairs.y, modality="text", seed=1, epoch=1)
    second = pipeline.transform(pairs.y, modality="text", seed=2, epoch=9)
    assert (first == second).all()


@pytest.mark.parametrize("name", FORMULAS)
def test_outputs_have_unit_norm(name: str, pairs: Pairs) -> None:
    pipeline = fitted(name, pairs)
    for out in (
        pipeline.transform(pairs.x, modality="image"),
        training(pipeline, pairs.y, pairs),
    ):
        np.testing.assert_allclose(np.linalg.norm(out.astype(np.float64), axis=1), 1, atol=1e-6)


def test_sigma_defaults_to_the_published_value() -> None:
    (noise,) = [step for step in preset("c3").steps if isinstance(step, GaussianNoise)]
    assert noise.sigma == pytest.approx(0.1264911, abs=1e-7)


def test_lafite_equals_its_published_form(pairs: Pairs) -> None:
    # norm(f + xi |f| eps / |eps|) with xi = l / (1 - l) = 3
    z = z_of(pairs)
    expected = unit(pairs.y + 3 * z / np.linalg.norm(z, axis=1, keepdims=True))
    got = preset("lafite").fit(pairs.moments).transform(pairs.y, training=True, keys=pairs.keys, seed=5, epoch=2)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_roles_can_be_swapped_for_text_to_image(pairs: Pairs) -> None:
    swapped = preset("clipre", train_on="image", infer_on="text").fit(pairs.moments, pairs.rows)
    expected = pairs.x[(pairs.y @ pairs.x.T).argmax(1)]
    np.testing.assert_allclose(swapped.transform(pairs.y, modality="text"), expected, atol=1e-6)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(TransformError, match=r"no preset 'c4'[\s\S]*c2-collapse"):
        preset("c4")


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf"), 10**400])
def test_impossible_sigma(sigma: float) -> None:
    with pytest.raises(TransformError, match="sigma"):
        preset("c3", sigma=sigma)
