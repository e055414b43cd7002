"""Properties of pipelines, noise, and what `transform` refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from c3tools.errors import TransformError
from c3tools.moments import Moments
from c3tools.seeds import keyed_normal
from c3tools.transforms import Pipeline, preset
from c3tools.transforms.steps import (
    AdaptiveNoise,
    Collapse,
    FairScale,
    GapShift,
    GaussianNoise,
    Normalize,
    Procrustes,
    ProjectOutGap,
    Standardize,
    Whiten,
)
from c3tools.transforms.torch_module import TransformModule
from tests.stores import assert_close, unit

from .conftest import Pairs, make_pairs


def test_two_steps_draw_different_noise(pairs: Pairs) -> None:
    pipeline = Pipeline([Normalize(), GaussianNoise(0.1), GaussianNoise(0.2), Normalize()])
    first, second = (keyed_normal(0, 0, [f"{own}{key}" for key in pairs.keys], 24) for own in ("", "1\x1f"))
    expected = unit(pairs.y + 0.1 * first + 0.2 * second)
    got = pipeline.transform(pairs.y, training=True, keys=pairs.keys)
    assert_close(got, expected)
    module = TransformModule(pipeline).train()
    assert_close(module(torch.from_numpy(pairs.y), pairs.keys).numpy(), expected)


def test_steps_are_fitted_on_what_the_steps_before_leave(pairs: Pairs) -> None:
    steps = [Normalize(), ProjectOutGap(), Normalize(), Collapse(), Normalize()]
    pipeline = Pipeline(steps).fit(pairs.moments, pairs.rows)
    u = unit((pairs.x.mean(0) - pairs.y.mean(0))[None])[0]
    expected = unit(pairs.y - (pairs.y @ u)[:, None] * u).mean(0)
    assert_close(pipeline.steps[3].state["centre/text"], expected, 1e-7)
    with pytest.raises(TransformError, match="collapse needs the moments"):  # unknown after normalising again
        Pipeline(steps).fit(pairs.moments)
    steps[1] = ProjectOutGap(role="training")  # which inference inputs do not go through
    centred = Pipeline(steps).fit(pairs.rows).steps[3]
    assert_close(centred.state["centre/text"], pairs.y.mean(0), 1e-7)
    scaled = Pipeline([Normalize(), FairScale(), Collapse(), Normalize()]).fit(pairs.moments)  # known after scaling
    expected = scaled.steps[1].state["scale/text"] * pairs.y.mean(0)
    assert_close(scaled.steps[2].state["centre/text"], expected, 1e-12)


@given(st.integers(2, 20), st.integers(0, 2**31))
@settings(max_examples=20)
def test_procrustes_of_few_pairs_is_the_fitted_rotation_nearest_to_the_identity(n: int, seed: int) -> None:
    pairs = make_pairs(n, 24, seed)
    x, y = (rows - rows.mean(axis=0) for rows in pairs)
    with pytest.warns(UserWarning, match=f"{n} pairs.* {n - 1} of 24 dimensions"):
        found = Procrustes().matrix(x, y)
        order = np.random.default_rng(0).permutation(n)
        assert_close(Procrustes().matrix(x[order], y[order]), found, 1e-8)
    assert_close(found @ found.T, np.eye(24), 1e-10)
    # the limit of scipy's solution for pairs that also contain a little of every axis, mapped to itself
    little = 1e-5 * np.eye(24)
    expected, _ = orthogonal_procrustes(np.vstack([x, little]), np.vstack([y, little]))
    assert_close(found, expected, 1e-4)


def test_input_is_left_alone_and_may_be_short(pairs: Pairs) -> None:
    y = pairs.y.astype(np.float32)
    before = y.copy()
    preset("c3").fit(pairs.moments).transform(y, modality="text", training=True, keys=pairs.keys)
    assert (y == before).all()
    assert_close(preset("c1").fit().transform(np.array([[3e-30, 4e-30]])), [[0.6, 0.8]])


def test_the_modality_is_asked_for_where_it_makes_a_difference(pairs: Pairs) -> None:
    for name in ("c3", "decap", "ridge"):
        with pytest.raises(TransformError, match=r"image and text[\s\S]*modality='image' or modality='text'"):
            preset(name).fit(pairs.rows).transform(pairs.x)
    alone = preset("c3").fit({"image": pairs.x})
    assert (alone.transform(pairs.x) == alone.transform(pairs.x, modality="image")).all()
    for name in ("c1", "project-out-gap", "lafite"):
        pipeline = preset(name).fit(pairs.moments)
        assert (pipeline.transform(pairs.x) == pipeline.transform(pairs.x, modality="image")).all()


def test_what_transform_refuses(pairs: Pairs) -> None:
    for name, rows, options, words in (
        ("c3", np.ones((2, 24)), {"modality": "audio"}, "'audio', only for image, text"),
        ("c3", np.where(np.eye(24)[:12], np.nan, 1), {}, "12 of 12 rows .*row 0"),
        ("c1", np.eye(25)[:, :24], {}, "Row 24 has norm 0"),
        ("c1", np.ones(24), {}, r"\(24,\)[\s\S]*v\[None, :\]"),
        ("c3", np.ones((2, 24)), {"training": True, "keys": ["a"]}, "1 keys for 2 rows"),
    ):
        with pytest.raises(TransformError, match=words):
            preset(name).fit(pairs.moments).transform(rows, **{"modality": "text", **options})  # type: ignore[arg-type]


def test_pipelines_that_are_not_fitted_or_of_other_models(pairs: Pairs) -> None:
    for pipeline, step in ((preset("c3"), "collapse"), (preset("c2-corrupt", sigma="auto"), "gaussian-noise")):
        with pytest.raises(TransformError, match=f"not fitted.*{step}"):
            pipeline.transform(pairs.y, modality="text")
    missing = preset("c3").fit({"text": pairs.moments["text"], "image": Moments.empty(24)})
    assert missing.provenance["n"] == {"text": 120} and not missing.knows("image")
    assert Pipeline([Normalize(), Collapse(role="training"), Normalize()]).fit({"text": pairs.y}).knows("image")
    pipeline = preset("c3").fit(pairs.moments, provenance={"model": {"name": "a", "weights_sha256": "1"}})
    pipeline.check_model({"name": "renamed", "weights_sha256": "1"})
    pipeline.check_model(None)
    for model in ({"name": "b", "weights_sha256": "2"}, {"name": "b"}):
        with pytest.raises(TransformError, match="model a"):
            pipeline.check_model(model)


def test_orders_that_cost_accuracy_are_refused() -> None:
    for steps, words in (
        ([Normalize(), GaussianNoise(), Collapse(), Normalize()], "gaussian-noise.*collapse"),
        ([Normalize(), Collapse(), GaussianNoise()], "end with normalize"),
        ([Collapse(), Normalize()], "norm 1"),
        ([Normalize(), AdaptiveNoise(role="both"), Normalize()], "training inputs alone"),  # type: ignore[arg-type]
        *(
            ([Normalize(), Collapse(), Normalize(), step, Normalize()], f"{step.kind} comes after collapse.* twice")
            for step in (Collapse(), GapShift(), Standardize(), Whiten())
        ),
    ):
        with pytest.raises(TransformError, match=words):
            Pipeline(steps)
