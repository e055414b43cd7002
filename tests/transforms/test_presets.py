"""Each preset against a formula written out in float64 numpy, apart from the package; saved, and in
torch."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, sqrtm
from scipy.special import softmax

from c3tools.errors import TransformError
from c3tools.seeds import keyed_normal
from c3tools.transforms import PRESETS, Pipeline, preset
from c3tools.transforms.presets import open_pipeline
from c3tools.transforms.sigma import PUBLISHED_SIGMA
from c3tools.transforms.steps import Collapse, CovarianceNoise, GapShift
from c3tools.transforms.torch_module import TransformModule
from tests.golden import recorded
from tests.stores import assert_close, unit

from .conftest import MOMENTS, ROWS, Array, P, Pairs, X, Y, between, retrieved

SIGMA = 0.1


def gap_unit(p: Pairs) -> Array:
    return np.asarray(unit((p.x.mean(0) - p.y.mean(0))[None])[0])


def covariant(p: Pairs, z: Array, sigma: float | None = None) -> Array:
    """Noise with the covariance of the differences of pairs, of this size if one is given."""
    covariance = np.cov((p.x - p.y).T, bias=True)
    scale = sigma / np.sqrt(np.diag(covariance).mean()) if sigma else 1
    return np.asarray(scale * z @ sqrtm(covariance).real)


def formulas(p: Pairs, z: Array) -> dict[str, tuple[Array, Array]]:
    """By preset: training texts, inference images."""
    (x, y), noise, d = p, SIGMA * z, p.x.shape[1]
    mean, mean_y = x.mean(0), y.mean(0)
    cx, cy = x - mean, y - mean_y
    u, collapsed = gap_unit(p), unit(cx)
    moved = unit(mean_y + np.sqrt(y.var(0).sum() / x.var(0).sum()) * cx)
    # ridge regression as least squares on augmented rows, another route than the normal equations
    stacked = np.vstack([cx, np.sqrt(1e-3 * len(x)) * np.eye(d)])
    weights = np.linalg.lstsq(stacked, np.vstack([cy, np.zeros((d, d))]), rcond=None)[0]
    rotation, _ = orthogonal_procrustes(cx, cy)
    stored = unit(cy).astype(np.float16).astype(np.float64)

    def fair(v: Array) -> Array:
        # those of texts, which ask
        spreads = [np.cov(w.T, bias=True) / w.var(0).sum() for w in (y, v)]
        return np.asarray(unit(v - v.mean(0)) / np.sqrt(np.trace(spreads[0] @ spreads[1])))

    def whiten(v: Array) -> Array:
        covariance = np.cov(v.T, bias=True)
        shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / d * np.eye(d)
        return unit((v - v.mean(0)) @ np.linalg.inv(sqrtm(shrunk).real))

    def retrieval(queries: Array, own: bool) -> Array:
        items = np.array(p.items)
        memories = (stored[(items != item) | own] for item in items)
        return np.stack([retrieved(*each) for each in zip(unit(queries), memories, strict=True)])

    collapse, corrupt = (unit(cy), collapsed), (unit(y + noise), x)
    return {
        "c1": (y, x),
        "c2-collapse": collapse,
        "gr-clip": collapse,
        "c2-corrupt": corrupt,
        "capdec": corrupt,
        "c3": (unit(cy + noise), collapsed),
        # as published: norm(f + xi |f| eps / |eps|) with xi = l / (1 - l) = 3
        "lafite": (unit(y + 3 * unit(z)), x),
        "decap": (y, unit(softmax(x @ y.T / 0.01, axis=1) @ y)),
        "clipre": (y, y[(x @ y.T).argmax(1)]),
        "realign": (y, unit(moved - moved.mean(0) + mean_y)),
        "tomcap": (unit(cy / y.std(0) * x.std(0) + mean + noise), x),
        "fair": (fair(y), fair(x)),
        "gap-shift": (unit(y + (mean - mean_y) / 2), unit(x - (mean - mean_y) / 2)),
        "project-out-gap": (unit(y - np.outer(y @ u, u)), unit(x - np.outer(x @ u, u))),
        "standardize": (unit(cy / y.std(0)), unit(cx / x.std(0))),
        "whiten": (whiten(y), whiten(x)),
        "ridge": (y, unit(cx @ weights + mean_y)),
        "procrustes": (y, unit(cx @ rotation + mean_y)),
        "c3-span": (unit(cy + noise - np.outer(noise @ u, u)), collapsed),
        "c3-covariance": (unit(cy + covariant(p, z)), collapsed),
        "c3-retrieval": (retrieval(cy + noise, own=False), retrieval(cx, own=True)),
    }


FORMULAS = formulas(P, keyed_normal(5, 2, P.keys, 24).astype(np.float64))


def test_every_preset_has_a_formula_and_the_steps_on_record() -> None:
    assert set(FORMULAS) == set(PRESETS)
    made = {name: preset(name, train_on="text", infer_on="photo") for name in PRESETS}
    needs = {name: (one.noisy, one.needs_rows, one.fitted) for name, one in made.items()}
    steps = {name: one.config()["steps"] for name, one in made.items()}
    recorded(
        Path(__file__).parent / "golden" / "presets.json",
        {"noisy, needs rows, is fitted": needs, "steps": steps},
    )


def test_steps_of_another_size() -> None:
    z = keyed_normal(0, 0, P.keys, 24).astype(np.float64)
    noisy = unit(Y - Y.mean(0) + covariant(P, z, 0.3))
    for steps, expected in (
        ([GapShift(delta=0.3)], unit(Y + 0.3 / 2 * gap_unit(P))),
        ([Collapse(), CovarianceNoise(0.3)], noisy),
    ):
        pipeline = between(*steps).fit(ROWS)
        got = pipeline.transform(Y, modality="text", training=True, keys=P.keys)
        assert_close(got, expected)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_preset_is_its_formula_fitted_saved_and_in_torch(name: str, tmp_path: Path) -> None:
    own = dict.fromkeys(ROWS, P.items)
    pipeline = preset(name, sigma=SIGMA).fit(MOMENTS, ROWS, items=own)
    loaded = Pipeline.load(pipeline.save(tmp_path / "p"))
    expected = dict(zip((True, False), FORMULAS[name], strict=True))
    names = {"keys": P.keys, "items": P.items, "epoch": 2}
    for training, modality, rows in ((True, "text", Y * 3), (False, "image", X * 0.5)):
        got = pipeline.transform(rows, modality=modality, training=training, seed=5, **names)  # type: ignore[arg-type]
        assert got.dtype == np.float32
        assert_close(got, expected[training])
        same = loaded.transform(rows, modality=modality, training=training, seed=5, **names)  # type: ignore[arg-type]
        np.testing.assert_array_equal(same, got)
        module = TransformModule(pipeline, modality, seed=5).train(training)
        assert_close(module(torch.from_numpy(rows), **names).numpy(), got, 2e-6)
        parts = [pipeline.transform(rows[i : i + 7], modality=modality) for i in range(0, 120, 7)]
        whole = pipeline.transform(rows, modality=modality, seed=1, epoch=9)  # without noise
        assert_close(np.concatenate(parts), whole)
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


def test_sigma_pairs_is_refused_for_noise_on_images_alone() -> None:
    assert preset("gr-clip", sigma="pairs", train_on="image").sigma is None
    with pytest.raises(TransformError, match="adds its noise to texts, but this one trains on"):
        preset("c3", sigma="pairs", train_on="image")


def test_a_sigma_for_a_preset_without_noise_is_refused() -> None:
    assert open_pipeline(preset_name="gr-clip", sigma=0).name == "gr-clip"
    with pytest.raises(TransformError, match=r"The preset 'gr-clip' has no sigma to choose"):
        open_pipeline(preset_name="gr-clip", sigma=0.3)


def test_a_preset_is_also_a_file_with_steps(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"name": "mine", "steps": ["normalize", "collapse", "normalize"]}')
    mine = preset(str(path))
    assert (mine.name, mine.config()) == ("mine", {**preset("gr-clip").config(), "name": "mine"})
    with pytest.raises(TransformError, match=r"sigma can only be set for a preset.*\n.*mine.json"):
        preset(str(path), sigma=0.1)
    with pytest.raises(TransformError, match=r"no preset 'mine'.*\n.*or a file such as"):
        preset("mine")
    with pytest.raises(TransformError, match=r"mine.yaml cannot be read"):
        preset("mine.yaml")
