from __future__ import annotations

from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from c3tools.errors import MetricError
from c3tools.metrics.captions import CaptionScores
from c3tools.metrics.significance import (
    bootstrap_interval,
    compare,
    crossed_interval,
    mean_and_std,
    mean_interval,
    share_interval,
    student_quantile,
)


def made_up(values: np.ndarray, keys: list[str] | None = None) -> CaptionScores:
    n = len(values)
    counts = np.ones((n, 10))
    return CaptionScores(
        keys or [str(i) for i in range(n)], {"CIDEr": float(values.mean())}, {"CIDEr": values}, counts, []
    )


def test_the_interval_is_that_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(0).normal(50, 10, size=2000)
    interval = bootstrap_interval(made_up(values), "CIDEr", resamples=2000)
    half = stats.norm.ppf(0.975) * values.std() / np.sqrt(len(values))
    assert interval.score == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.06)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.06)


def test_a_paired_comparison_sees_a_difference_that_intervals_hide() -> None:
    rng = np.random.default_rng(1)
    images = rng.normal(50, 20, size=400)
    first, second = images + rng.normal(0, 1, 400), images + 0.5 + rng.normal(0, 1, 400)
    found = compare(made_up(first), made_up(second), "CIDEr", resamples=2000)
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert found.p_value < 0.01
    assert found.low > 0
    other = compare(made_up(second), made_up(first), "CIDEr", resamples=2000)
    assert other.difference == pytest.approx(-found.difference)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))


def test_p_values_agree_with_a_t_test_where_both_hold() -> None:
    rng = np.random.default_rng(2)
    first = rng.normal(50, 5, size=500)
    second = first + rng.normal(0.12, 1.5, 500)
    expected = stats.ttest_rel(second, first).pvalue
    found = compare(made_up(first), made_up(second), "CIDEr", resamples=5000).p_value
    assert found == pytest.approx(expected, abs=0.02)


def test_the_same_captions_do_not_differ() -> None:
    values = np.arange(10.0)
    same = compare(made_up(values), made_up(values), "CIDEr", resamples=100)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_other_images_are_refused() -> None:
    with pytest.raises(MetricError, match="have different images"):
        compare(made_up(np.ones(2)), made_up(np.ones(2), ["x", "y"]), "CIDEr")


def test_mean_and_std_is_the_sample_standard_deviation() -> None:
    assert mean_and_std([1.0, 2.0, 4.0]) == pytest.approx((mean([1, 2, 4]), stdev([1, 2, 4])))
    assert mean_and_std([3.0]) == (3.0, None)
    with pytest.raises(ValueError, match="no values"):
        mean_and_std([])


def test_bootstrap_interval_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    interval = mean_interval(values)
    assert interval is not None
    low, high = interval
    assert (high - low) / 2 == pytest.approx(1.96 * 2.0 / np.sqrt(4000), rel=0.12)
    assert low < values.mean() < high


def test_bootstrap_draws_the_captions_of_an_image_together() -> None:
    items = np.repeat(np.arange(300), 5)
    values = np.random.default_rng(0).normal(size=300)[items]
    interval = mean_interval(values, items)
    assert interval is not None
    low, high = interval
    assert (high - low) / 2 == pytest.approx(1.96 / np.sqrt(300), rel=0.12)
    assert mean_interval(values[:10], items[:10]) is None


@given(st.floats(1, 3000), st.floats(0.5, 0.99))
def test_the_quantile_is_students(freedom: float, level: float) -> None:
    assert student_quantile(freedom, level) == pytest.approx(float(stats.t.ppf((1 + level) / 2, freedom)), rel=2e-5)


def drawn(seed: int, seeds: int, images: int, spreads: tuple[float, float, float]) -> np.ndarray:
    """Scores (seeds, images) around 0, each a part of its seed, one of its image and one of both."""
    rng, (of_seed, of_image, of_both) = np.random.default_rng(seed), spreads
    parts = of_seed * rng.normal(size=(seeds, 1)) + of_image * rng.normal(size=images)
    return np.asarray(parts + of_both * rng.normal(size=(seeds, images)))


@given(st.integers(0, 1000), st.integers(3, 60))
def test_the_interval_of_one_seed_is_students_over_images(seed: int, images: int) -> None:
    values = drawn(seed, 1, images, (1, 2, 0))
    expected = stats.t.interval(0.95, images - 1, values.mean(), stats.sem(values[0]))
    assert crossed_interval(values) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(st.integers(0, 1000), st.integers(2, 6))
def test_without_a_share_of_both_the_interval_is_made_of_the_two_standard_errors(seed: int, seeds: int) -> None:
    values = drawn(seed, seeds, 40, (1, 4, 0))
    of_seeds, of_images = (float(stats.sem(values.mean(axis=axis))) ** 2 for axis in (1, 0))
    freedom = (of_seeds + of_images) ** 2 / (of_seeds**2 / (seeds - 1) + of_images**2 / 39)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(of_seeds + of_images)
    assert crossed_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-4, abs=1e-4)


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(3, 30), st.floats(-100, 100), st.floats(0.1, 10))
def test_the_interval_moves_and_scales_with_the_scores(
    seed: int, seeds: int, images: int, shift: float, scale: float
) -> None:
    values = drawn(seed, seeds, images, (1, 2, 3))
    ends = crossed_interval(values)
    assert ends is not None
    low, high = ends
    moved = (shift + scale * low, shift + scale * high)
    assert crossed_interval(shift + scale * values) == pytest.approx(moved, abs=1e-6)
    assert crossed_interval(-values) == pytest.approx((-high, -low), abs=1e-6)
    rng = np.random.default_rng(seed)
    assert crossed_interval(values[rng.permutation(seeds)][:, rng.permutation(images)]) == pytest.approx(ends, abs=1e-6)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spreads", [(0, 10, 45), (1.5, 10, 45), (0.5, 40, 35), (5, 10, 45), (0, 40, 0), (4, 0, 0)])
def test_intervals_over_seeds_and_images_cover_the_mean(seeds: int, spreads: tuple[float, float, float]) -> None:
    """Like CIDEr of one method, and like differences of two; the last two vary with the images or the seeds alone."""
    held = []
    for seed in range(400):
        ends = crossed_interval(drawn(seed, seeds, 300, spreads))
        assert ends is not None
        held.append(ends[0] <= 0 <= ends[1])
    assert (0.88 if seeds == 2 else 0.92) <= np.mean(held) <= 0.995


def test_seeds_that_differ_widen_the_interval() -> None:
    images = np.random.default_rng(0).normal(50, 40, size=1000)
    alike, other = (np.stack([images + shift for shift in shifts]) for shifts in ((0, 0, 0), (-3, 0, 3)))
    widths = []
    for values in (images[None], alike, other):
        ends = crossed_interval(values)
        assert ends is not None
        widths.append(ends[1] - ends[0])
    assert widths[1] == pytest.approx(widths[0])  # the same captions thrice are no more photos
    assert widths[2] > 1.5 * widths[1]


def test_equal_scores_have_no_width_and_few_images_no_interval() -> None:
    assert crossed_interval(np.full((3, 5), 7.0)) == (7, 7)
    assert crossed_interval(np.ones((3, 2))) is None
    assert crossed_interval(np.ones((3, 0))) is None


def test_the_bootstrap_of_few_values_covers_their_mean() -> None:
    held = []
    for seed in range(600):
        interval = mean_interval(np.random.default_rng(seed).normal(size=8), seed=seed)
        assert interval is not None
        held.append(interval[0] <= 0 <= interval[1])
    # the plain percentile bootstrap of 8 values covers 0.88
    assert np.mean(held) == pytest.approx(0.94, abs=0.025)


@given(st.integers(300, 5000), st.floats(0, 1))
def test_the_interval_of_a_share_is_wilsons(count: int, share: float) -> None:
    successes = round(share * count)
    values = (np.arange(count) < successes).astype(np.float64)
    expected = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert share_interval(values) == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_a_share_of_one_has_an_interval_and_captions_of_one_image_count_once() -> None:
    interval = share_interval(np.ones(100))
    assert interval is not None
    assert interval[1] == 1
    assert interval[0] == pytest.approx(1 - 3.94 / 103.94, abs=1e-3)  # n / (n + z^2)
    values = (np.arange(100) < 60).astype(np.float64)
    alone, five = share_interval(values), share_interval(np.repeat(values, 5), np.repeat(np.arange(100), 5))
    assert alone == pytest.approx(five)
    assert share_interval(np.ones(2)) is None
