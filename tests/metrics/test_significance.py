"""Intervals and their quantiles; scipy is the oracle, and coverage over draws."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from c3tools.errors import MetricError
from c3tools.metrics.caption_metric import MeanScore
from c3tools.metrics.caption_scores import CaptionScores
from c3tools.metrics.significance import (
    Difference,
    bootstrap_interval,
    compare,
    crossed_interval,
    mean_interval,
    share_interval,
)
from c3tools.seeds import generator


def made_up(values: Any, keys: Any = None) -> CaptionScores:
    names = keys or [*map(str, range(len(values)))]
    return CaptionScores(names, {"CIDEr": MeanScore.of(values)}, [])


def test_bootstrap_intervals_are_those_of_the_standard_error() -> None:
    values, items = np.random.default_rng(0).normal(50, 10, size=2000), np.repeat(np.arange(300), 5)
    width = stats.norm.ppf(0.975) * values.std() / np.sqrt(len(values))
    expected = pytest.approx((values.mean() - width, values.mean() + width), abs=0.06)
    assert bootstrap_interval(made_up(values), "CIDEr", resamples=2000) == expected
    # the captions of an image are drawn together
    assert mean_interval(values[:300][items], items) == pytest.approx(mean_interval(values[:300]))
    assert mean_interval(values[:10], items[:10]) is None


def test_a_paired_comparison_sees_a_difference_that_intervals_hide() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(50, 20, size=400)
    second = first + 0.2 + rng.normal(0, 2, 400)
    forth = compare(made_up(first), made_up(second), "CIDEr", resamples=5000)
    assert forth.difference == pytest.approx(second.mean() - first.mean())
    assert forth.p_value == pytest.approx(stats.ttest_rel(second, first).pvalue, abs=0.02)
    back = compare(made_up(second), made_up(first), "CIDEr", resamples=5000)
    expected = Difference(-forth.difference, -forth.high, -forth.low, forth.p_value)
    assert asdict(back) == pytest.approx(asdict(expected))


def test_runs_with_equal_scores_have_no_difference() -> None:
    scores = np.random.default_rng(1).normal(50, 20, size=400)
    difference = compare(made_up(scores), made_up(scores), "CIDEr", resamples=100)
    assert difference == Difference(difference=0, low=0, high=0, p_value=1)


def test_runs_on_other_images_are_not_compared() -> None:
    first = made_up(np.ones(2), ["x", "z"])
    with pytest.raises(MetricError, match="2 and 2, of which 1 are in both"):
        compare(first, made_up(np.ones(2), ["x", "y"]), "CIDEr")
    with pytest.raises(MetricError, match="the same images in different orders"):
        compare(first, made_up(np.ones(2), ["z", "x"]), "CIDEr")


def test_the_percentiles_of_few_values_are_expanded() -> None:
    values = np.random.default_rng(0).normal(size=8)
    means = values[generator(3, "bootstrap").integers(8, size=(1000, 8))].mean(axis=1)
    tail = stats.norm.cdf(stats.t.ppf(0.025, 7) * np.sqrt(8 / 7))
    assert mean_interval(values, seed=3) == pytest.approx(
        np.quantile(means, [tail, 1 - tail]), rel=1e-3
    )


@given(st.integers(300, 5000), st.floats(0, 1))
def test_the_interval_of_a_share_is_wilsons(count: int, share: float) -> None:
    values = (np.arange(count) < round(share * count)).astype(np.float64)
    expected = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    assert share_interval(values) == pytest.approx((expected.low, expected.high), abs=1e-3)
    five = share_interval(np.repeat(values[:300], 5), np.repeat(np.arange(300), 5))
    assert five == pytest.approx(share_interval(values[:300]))  # captions of one image count once
    assert share_interval(values[:2]) is None


@given(st.sampled_from([(1, 4, 0), (1, 4, 20), (4, 1, 9)]), st.integers(0, 1000), st.integers(1, 6))
def test_the_variance_of_a_mean_over_seeds_and_images_is_of_three_parts(
    spreads: Any, seed: int, seeds: int
) -> None:
    rng, shapes = np.random.default_rng(seed), ((seeds, 1), (1, 40), (seeds, 40))
    parts = [spread * rng.normal(size=shape) for spread, shape in zip(spreads, shapes, strict=True)]
    values = parts[0] + parts[1] + parts[2]
    of_images, freedom, of_seeds, of_both = (
        float(stats.sem(values.mean(axis=0))) ** 2,
        39.0,
        0.0,
        0.0,
    )
    if seeds > 1:
        of_seeds = float(stats.sem(values.mean(axis=1))) ** 2
        left = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True)
        of_both = min(
            left.var() * 40 * seeds / (39 * (seeds - 1)) / (40 * seeds), of_seeds, of_images
        )
        freedom = (of_seeds + of_images - of_both) ** 2 / (
            of_seeds**2 / (seeds - 1) + of_images**2 / 39
        )
    width = stats.t.ppf(0.975, max(freedom, 1)) * np.sqrt(of_seeds + of_images - of_both)
    assert crossed_interval(values) == pytest.approx(
        (values.mean() - width, values.mean() + width), rel=1e-4, abs=1e-4
    )


def test_equal_scores_have_no_width_and_few_images_no_interval() -> None:
    found = [crossed_interval(np.full((3, n), 7.0)) for n in (5, 2, 0)]
    assert found == [(7, 7), None, None]
