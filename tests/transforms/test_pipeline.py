from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import MissingExtraError, TransformError
from c3tools.moments import Moments
from c3tools.transforms import (
    PRESETS,
    AdaptiveNoise,
    Collapse,
    CovarianceNoise,
    GapShift,
    GaussianNoise,
    MemoryProjection,
    Normalize,
    OrderWarning,
    Pipeline,
    ProjectOutGap,
    RidgeMap,
    Standardize,
    Step,
    Whiten,
    preset,
)
from c3tools.transforms.operations import apply

from .conftest import Pairs, make_pairs, unit

shapes = st.tuples(st.integers(2, 40), st.integers(2, 12), st.integers(0, 2**32 - 1))


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_centred_means_are_zero(shape: tuple[int, int, int]) -> None:
    n, dim, seed = shape
    pairs = make_pairs(n, dim, seed)
    pipeline = Pipeline([Normalize(), Collapse(), Normalize()]).fit(pairs.moments)
    collapse = pipeline.steps[1]
    for rows, name in ((pairs.x, "image"), (pairs.y, "text")):
        (operation,) = collapse.operations(name)
        centred = apply(operation, rows.astype(np.float32))
        np.testing.assert_allclose(centred.astype(np.float64).mean(axis=0), 0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::c3tools.transforms.FewPairsWarning")
@given(shapes, st.sampled_from(sorted(PRESETS)))
@settings(max_examples=100, deadline=None)
def test_output_norms_are_one(shape: tuple[int, int, int], name: str) -> None:
    n, dim, seed = shape
    pairs = make_pairs(max(n, 3), dim, seed)
    pipeline = pairs.fit(preset(name))
    for modality, rows in pairs.rows.items():
        out = pipeline.transform(rows, modality=modality, training=True, keys=pairs.keys, items=pairs.items)
        np.testing.assert_allclose(np.linalg.norm(out.astype(np.float64), axis=1), 1, atol=1e-6)
        out = pipeline.transform(rows, modality=modality)
        np.testing.assert_allclose(np.linalg.norm(out.astype(np.float64), axis=1), 1, atol=1e-6)


# in fewer dimensions a row can lie on its mean, where what float32 rounds is all that is left of it
@pytest.mark.filterwarnings("ignore::c3tools.transforms.FewPairsWarning")
@given(st.integers(10, 40), st.integers(8, 24), st.sampled_from(sorted(PRESETS)), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_saved_loaded_and_torch_agree(n: int, dim: int, name: str, seed: int) -> None:
    import torch

    from c3tools.transforms.torch_module import TransformModule

    pairs = make_pairs(n, dim, seed)
    pipeline = pairs.fit(preset(name))
    with TemporaryDirectory() as folder:
        loaded = Pipeline.load(pipeline.save(folder))
    for modality, rows in pairs.rows.items():
        module = TransformModule(pipeline, modality, seed=seed)
        for training in (False, True):
            options: dict[str, Any] = {
                "modality": modality,
                "training": training,
                "keys": pairs.keys,
                "items": pairs.items,
                "seed": seed,
                "epoch": 3,
            }
            expected = pipeline.transform(rows, **options)
            assert (loaded.transform(rows, **options) == expected).all()
            got = module.train(training)(torch.from_numpy(rows), pairs.keys, 3, pairs.items)
            # decap divides cosines by 0.01, and what float32 rounds with them
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-5 if name == "decap" else 1e-6)


@given(shapes, st.lists(st.integers(0, 40), max_size=5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_moments_merge_to_the_same_fit(shape: tuple[int, int, int], cuts: list[int], random: object) -> None:
    n, dim, seed = shape
    pairs = make_pairs(max(n, 4), dim, seed)
    whole = Moments.from_rows(pairs.y)
    order = np.random.default_rng(seed).permutation(len(pairs.y))
    pieces = np.split(pairs.y[order], sorted({min(cut, len(pairs.y)) for cut in cuts}))
    random.shuffle(pieces)  # type: ignore[attr-defined]
    merged = Moments.merge_all((Moments.from_rows(piece) for piece in pieces if len(piece)), dim)
    other = Moments.from_rows(pairs.x)
    for name in ("c3", "standardize", "whiten", "gap-shift"):
        first = preset(name).fit({"text": whole, "image": other})
        second = preset(name).fit({"text": merged, "image": other})
        for a, b in zip(first.steps, second.steps, strict=True):
            for key, value in a.state.items():
                np.testing.assert_allclose(
                    b.state[key].astype(np.float64), value.astype(np.float64), rtol=1e-6, atol=1e-9
                )


def test_fit_from_rows_equals_fit_from_moments(pairs: Pairs) -> None:
    from_rows = preset("c3").fit(rows={"text": pairs.y * 7, "image": pairs.x})
    from_moments = preset("c3").fit(pairs.moments)
    a = from_rows.transform(pairs.y, modality="text")
    np.testing.assert_allclose(a, from_moments.transform(pairs.y, modality="text"), atol=1e-6)


def test_noise_depends_on_seed_epoch_and_key_alone(pairs: Pairs) -> None:
    pipeline = preset("c3").fit(pairs.moments)

    def draw(rows: list[int], seed: int = 1, epoch: int = 1) -> np.ndarray:
        keys = [pairs.keys[row] for row in rows]
        return pipeline.transform(pairs.y[rows], modality="text", training=True, keys=keys, seed=seed, epoch=epoch)

    together = draw([0, 1, 2, 3])
    assert (together[[2, 0]] == draw([2, 0])).all()
    assert not np.allclose(together, draw([0, 1, 2, 3], epoch=2), atol=1e-3)
    assert not np.allclose(together, draw([0, 1, 2, 3], seed=2), atol=1e-3)


def test_noise_has_the_size_that_sigma_says() -> None:
    pairs = make_pairs(2000, 32)
    steps: list[Step] = [Normalize(), Collapse(), GaussianNoise(0.3), Normalize()]
    pipeline = Pipeline(steps).fit(pairs.moments)
    centred = pairs.y - pairs.y.mean(0)
    out = pipeline.transform(pairs.y, modality="text", training=True, keys=pairs.keys).astype(np.float64)
    # the noised vector's direction: E cos = |c|^2 / (|c| sqrt(|c|^2 + d sigma^2)) to first order
    norms = np.linalg.norm(centred, axis=1)
    cosines = (out * centred).sum(1) / norms
    expected = norms / np.sqrt(norms**2 + 32 * 0.3**2)
    assert cosines.mean() == pytest.approx(expected.mean(), abs=0.01)


def test_two_noisy_steps_draw_different_noise(pairs: Pairs) -> None:
    twice = Pipeline([Normalize(), GaussianNoise(0.1), GaussianNoise(0.1), Normalize()])
    once = Pipeline([Normalize(), GaussianNoise(0.2), Normalize()])
    a = twice.transform(pairs.y, modality="text", training=True, keys=pairs.keys)
    b = once.transform(pairs.y, modality="text", training=True, keys=pairs.keys)
    assert not np.allclose(a, b, atol=1e-3)


def test_covariance_noise_can_be_rescaled(pairs: Pairs) -> None:
    step = CovarianceNoise(sigma=0.05)
    Pipeline([Normalize(), step, Normalize()]).fit(pairs.moments, pairs.rows)
    matrix = step.state["matrix"].astype(np.float64)
    assert np.trace(matrix @ matrix.T) / len(matrix) == pytest.approx(0.05**2, rel=1e-6)


def test_memory_of_neighbours_approaches_the_whole_memory(pairs: Pairs) -> None:
    def project(**options: object) -> np.ndarray:
        steps = [Normalize(), MemoryProjection(role="inference", **options), Normalize()]  # type: ignore[arg-type]
        return Pipeline(steps).fit(pairs.moments, pairs.rows).transform(pairs.x, modality="image")

    whole = project()
    assert (project(neighbours=len(pairs.y)) == whole).all()
    np.testing.assert_allclose(project(neighbours=60), whole, atol=1e-4)
    np.testing.assert_allclose(project(neighbours=1), project(tau=0.0), atol=1e-6)


class TestMemoryIndex:
    """A memory that is searched with FAISS."""

    @pytest.fixture(autouse=True)
    def faiss(self) -> None:
        pytest.importorskip("faiss", reason="faiss is an extra")

    @staticmethod
    def project(pairs: Pairs, **options: object) -> np.ndarray:
        steps = [Normalize(), MemoryProjection(role="inference", **options), Normalize()]  # type: ignore[arg-type]
        return Pipeline(steps).fit(pairs.moments, pairs.rows).transform(pairs.x, modality="image")

    @pytest.mark.parametrize("index", ["Flat", "HNSW32", "IVF2,Flat"])
    def test_agrees_with_the_exact_search(self, pairs: Pairs, index: str) -> None:
        for options in ({"neighbours": 9}, {"tau": 0.0}, {"neighbours": 500}):
            exact, found = self.project(pairs, **options), self.project(pairs, **options, index=index)
            same = np.isclose(found, exact, atol=1e-5).all(axis=1)
            assert same.mean() > (0.5 if "IVF" in index else 0.99)  # half of two cells are visited

    def test_an_index_survives_its_recipe(self, pairs: Pairs, tmp_path: Path) -> None:
        steps = [Normalize(), MemoryProjection(neighbours=5, index="Flat", role="inference"), Normalize()]
        pipeline = Pipeline(steps).fit(pairs.moments, pairs.rows)
        loaded = Pipeline.load(pipeline.save(tmp_path))
        got = loaded.transform(pairs.x, modality="image")
        np.testing.assert_allclose(got, pipeline.transform(pairs.x, modality="image"), atol=1e-6)

    def test_refusals(self, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(TransformError, match=r"no neighbours[\s\S]*for example 100"):
            MemoryProjection(index="Flat")
        for index in ("Nonsense", "IVF4000,Flat"):
            with pytest.raises(TransformError, match=f"cannot make the index '{index}' of a memory of 120 rows"):
                self.project(pairs, neighbours=3, index=index)
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(MissingExtraError, match=r"c3tools\[cpu\]"):
            self.project(pairs, neighbours=3, index="Flat")


def test_steps_are_fitted_on_what_the_steps_before_leave(pairs: Pairs) -> None:
    pipeline = Pipeline([Normalize(), ProjectOutGap(), Normalize(), Collapse(), Normalize()])
    pipeline.fit(pairs.moments, pairs.rows)
    gap = pairs.x.mean(0) - pairs.y.mean(0)
    u = gap / np.linalg.norm(gap)
    expected = unit(pairs.y - (pairs.y @ u)[:, None] * u).mean(0)
    np.testing.assert_allclose(pipeline.steps[3].state["mean/text"].astype(np.float64), expected, atol=1e-7)


def test_moments_unknown_after_renormalising_need_rows(pairs: Pairs) -> None:
    pipeline = Pipeline([Normalize(), ProjectOutGap(), Normalize(), Collapse(), Normalize()])
    with pytest.raises(TransformError, match=r"collapse needs the moments"):
        pipeline.fit(pairs.moments)


def test_input_is_left_alone(pairs: Pairs) -> None:
    y = pairs.y.astype(np.float32)
    before = y.copy()
    preset("c3").fit(pairs.moments).transform(y, modality="text", training=True, keys=pairs.keys)
    assert (y == before).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_input_dtypes(pairs: Pairs, dtype: type) -> None:
    pipeline = preset("c3").fit(pairs.moments)
    expected = unit(unit(pairs.y.astype(dtype).astype(np.float64)) - pairs.y.mean(0))
    np.testing.assert_allclose(pipeline.transform(pairs.y.astype(dtype), modality="text"), expected, atol=2e-6)


def test_rows_do_not_depend_on_their_block(pairs: Pairs) -> None:
    for name in PRESETS:
        pipeline = preset(name).fit(pairs.moments, pairs.rows)
        whole = pipeline.transform(pairs.x, modality="image")
        parts = [pipeline.transform(pairs.x[i : i + 7], modality="image") for i in range(0, len(pairs.x), 7)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def test_very_short_vectors_keep_their_direction() -> None:
    tiny = np.array([[3e-30, 4e-30]])
    np.testing.assert_allclose(preset("c1").fit().transform(tiny), [[0.6, 0.8]], atol=1e-6)


class TestRefusals:
    def test_unfitted(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match=r"not fitted.*collapse"):
            preset("c3").transform(pairs.y, modality="text")

    def test_other_dimension_gives_both_numbers(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match=r"24 dimensions, but these have 10[\s\S]*same model"):
            preset("c3").fit(pairs.moments).transform(pairs.y[:, :10], modality="text")

    def test_other_modality(self, pairs: Pairs) -> None:
        pipeline = preset("c3").fit({"text": pairs.moments["text"]})
        with pytest.raises(TransformError, match=r"not fitted for the modality 'image', only for text"):
            pipeline.transform(pairs.x, modality="image")

    def test_modality_without_train_rows_counts_as_missing(self, pairs: Pairs) -> None:
        pipeline = preset("c3").fit({"text": pairs.moments["text"], "image": Moments.empty(24)})
        assert pipeline.provenance["n"] == {"text": 120}
        with pytest.raises(TransformError, match="not fitted for the modality 'image'"):
            pipeline.transform(pairs.x, modality="image")

    def test_moments_of_two_dimensions(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match=r"moments of image: 8, moments of text: 24|text: 24"):
            preset("c3").fit({"image": Moments.from_rows(pairs.x[:, :8]), "text": pairs.moments["text"]})

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, pairs: Pairs, value: float) -> None:
        y = pairs.y.copy()
        y[[4, 9], 3] = value
        with pytest.raises(TransformError, match=r"2 of 120 rows contain NaN or infinity; the first is row 4"):
            preset("c3").fit(pairs.moments).transform(y, modality="text")
        with pytest.raises(TransformError, match="NaN or infinity"):
            preset("c3").fit(rows={"text": y})

    def test_too_large_for_float32(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match="NaN or infinity"):
            preset("c1").fit().transform(np.full((1, 3), 1e300))

    def test_zero_vector(self, pairs: Pairs) -> None:
        y = pairs.y.copy()
        y[7] = 0
        with pytest.raises(TransformError, match="Row 7 has norm 0"):
            preset("c1").fit().transform(y, modality="text")

    def test_one_vector_without_its_axis(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match=r"shape \(24,\)[\s\S]*v\[None, :\]"):
            preset("c1").fit().transform(pairs.y[0])

    def test_noise_without_keys(self, pairs: Pairs) -> None:
        pipeline = preset("c3").fit(pairs.moments)
        with pytest.raises(TransformError, match="keys="):
            pipeline.transform(pairs.y, modality="text", training=True)
        with pytest.raises(TransformError, match="3 keys for 120 rows"):
            pipeline.transform(pairs.y, modality="text", training=True, keys=["a", "b", "c"])

    def test_no_rows_for_a_step_that_needs_them(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match=r"memory-projection needs text rows to be fitted"):
            preset("decap").fit(pairs.moments)
        with pytest.raises(TransformError, match=r"memory-projection needs text rows to be fitted"):
            preset("decap").fit(pairs.moments, {"text": np.empty((0, 24))})

    def test_pairs_of_different_length(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match=r"120 image rows and 100 text rows"):
            preset("ridge").fit(pairs.moments, {"image": pairs.x, "text": pairs.y[:100]})

    def test_singular_covariance(self) -> None:
        few = make_pairs(6, 24)
        with pytest.raises(TransformError, match=r"covariance of (image|text) is singular \(6 rows, 24 dim"):
            Pipeline([Normalize(), Whiten(shrinkage=0.0), Normalize()]).fit(few.moments)
        with pytest.raises(TransformError, match=r"singular"):
            Pipeline([Normalize(), RidgeMap(penalty=0.0), Normalize()]).fit(few.moments, few.rows)

    def test_no_gap(self, pairs: Pairs) -> None:
        same = {"image": pairs.moments["text"], "text": pairs.moments["text"]}
        with pytest.raises(TransformError, match="needs a modality gap"):
            preset("gap-shift").fit(same)

    def test_nothing_to_fit_on(self) -> None:
        with pytest.raises(TransformError, match="needs the moments"):
            preset("c3").fit({})

    def test_other_model(self, pairs: Pairs) -> None:
        pipeline = preset("c3").fit(pairs.moments, provenance={"model": {"name": "a", "weights_sha256": "1"}})
        pipeline.check_model({"name": "renamed", "weights_sha256": "1"})
        pipeline.check_model(None)
        with pytest.raises(TransformError, match=r"of the model a .* of b"):
            pipeline.check_model({"name": "b", "weights_sha256": "2"})
        with pytest.raises(TransformError, match="of the model a"):
            pipeline.check_model({"name": "b"})

    @pytest.mark.parametrize("split", ["test", "val"])
    def test_means_of_scored_rows(self, pairs: Pairs, split: str) -> None:
        with pytest.raises(TransformError, match=f"fitted on the {split} split"):
            preset("c3").fit(pairs.moments, provenance={"split": split})
        lax = Pipeline(preset("c3").steps, strict=False)
        with pytest.warns(OrderWarning, match="rows that are scored"):
            lax.fit(pairs.moments, provenance={"split": split})


ORDERS = {
    "noise before centring": (
        [Normalize(), GaussianNoise(), Collapse(), Normalize()],
        "gaussian-noise comes before collapse",
    ),
    "no re-normalisation": ([Normalize(), Collapse(), GaussianNoise()], "do not end with normalize"),
    "noise at inference": (
        [Normalize(), GaussianNoise(role="both"), Normalize()],
        "noise is for training inputs only",
    ),
    "noise for validation": (
        [Normalize(), AdaptiveNoise(role="inference"), Normalize()],
        "noise is for training inputs only",
    ),
    "not normalised": ([Collapse(), Normalize()], "no normalize before it"),
    "normalised for training only": (
        [Normalize(role="training"), Collapse(), Normalize()],
        "no normalize before it",
    ),
    "mean subtracted twice": (
        [Normalize(), Collapse(), Normalize(), GapShift(), Normalize()],
        "the mean would be subtracted twice",
    ),
    "standardised after collapse": ([Normalize(), Collapse(), Standardize(), Normalize()], "comes after collapse"),
}


@pytest.mark.parametrize("case", ORDERS)
def test_order_check(case: str) -> None:
    steps, words = ORDERS[case]
    with pytest.raises(TransformError, match=words):
        Pipeline(steps)
    with pytest.warns(OrderWarning, match=words):
        Pipeline(steps, strict=False)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_the_order_check(name: str) -> None:
    assert preset(name).strict
