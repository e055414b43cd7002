"""Uncertainty of scores: the spread over seeds, and intervals over items, or over items and seeds.

Every bootstrap draws items with replacement (Efron, 1979; Koehn, 2004 for the paired one): an image
always comes with all its captions. CIDEr's document frequencies stay those of the whole set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import pi, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from ..arrays import Array, Indices
from ..errors import MetricError
from ..seeds import generator
from .caption_scores import CaptionScores

Ends = tuple[float, float]

RESAMPLES = 1000
LEVEL = 0.95
_MAX_BLOCKS = 2000


@dataclass(frozen=True)
class Estimate:
    """A measured number, as reports show it.

    Attributes:
        value: the number.
        interval: lower and upper end of its 95% interval; None for fewer than 3 items.
        rows: rows that it was measured on.
    """

    value: float
    interval: Ends | None = None
    rows: int = 0


def estimate_entries(name: str, estimate: Estimate | None) -> dict[str, Any]:
    """Return an estimate as two entries of a JSON object: ``name`` and ``name_interval``."""
    if estimate is None:
        return {name: None, f"{name}_interval": None}
    return {name: estimate.value, f"{name}_interval": estimate.interval}


def named_estimate_entries(name: str, estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return estimates as three entries of a JSON object, each of which is an object with their
    names.

    The entries are ``name``, ``name_interval`` and ``name_rows``; the last is left out if there are
    no estimates.
    """
    entries: dict[str, Any] = {
        name: {key: estimate.value for key, estimate in estimates.items()},
        f"{name}_interval": {key: estimate.interval for key, estimate in estimates.items()},
    }
    if estimates:
        entries[f"{name}_rows"] = {key: estimate.rows for key, estimate in estimates.items()}
    return entries


def mean_interval(values: Array, items: Indices | None = None, *, seed: int = 0) -> Ends | None:
    """Return the 95% interval of the mean of ``values`` by the expanded percentile bootstrap over
    items.

    The percentiles lie further out than 2.5 and 97.5: as far as Student's distribution and the n /
    (n - 1) of the variance ask for, which the plain bootstrap neglects (Hesterberg, 2015). Of 30
    items they are 1.9 and 98.1. More than 2,000 items are first put together in 2,000 random
    blocks, which leaves the interval of a mean as it is. The same seed draws the same items for
    every mean, so that two presets are compared on the same resamples.

    Args:
        values: float64 (n,).
        items: int64 (n,), the item of each value; each value is its own item by default.
        seed: seed of the resampling.

    Returns:
        Lower and upper end, or None for fewer than 3 items.
    """
    numbers = _item_numbers(values, items)
    count = int(numbers.max()) + 1 if len(numbers) else 0
    if count < 3:
        return None
    if count > _MAX_BLOCKS:
        block_of_item = generator(seed, "bootstrap blocks").permutation(count) % _MAX_BLOCKS
        numbers = block_of_item[numbers]
        count = _MAX_BLOCKS
    sums = np.bincount(numbers, weights=values, minlength=count)
    sizes = np.bincount(numbers, minlength=count).astype(np.float64)
    draws = _draw_counts(seed, count)
    means = (draws @ sums) / (draws @ sizes)
    expansion = student_quantile(count - 1) * sqrt(count / (count - 1))
    level = 2 * NormalDist().cdf(expansion) - 1
    return _quantiles(means, level)


def share_interval(values: Array, items: Indices | None = None) -> Ends | None:
    """Return the 95% interval of a share of successes, by Wilson's score (1927) for their
    effective number.

    Unlike a bootstrap's it is no point where every value is 1. The number of independent values is
    that at which their share would have the variance of the mean over items; it is the number of
    items where all values are equal.

    Args:
        values: float64 (n,), from 0 to 1.
        items: int64 (n,), the item of each value; each value is its own item by default.

    Returns:
        Lower and upper end, or None for fewer than 3 items.
    """
    numbers = _item_numbers(values, items)
    count = int(numbers.max()) + 1 if len(numbers) else 0
    if count < 3:
        return None
    share = float(values.mean())
    spread = share * (1 - share)
    item_sums = np.bincount(numbers, weights=values - share)
    variance = float(item_sums @ item_sums) / len(values) ** 2 * count / (count - 1)
    independent = float(count)
    if variance > 0:
        independent = min(spread / variance, float(len(values)))

    square = student_quantile(count - 1) ** 2
    width = 1 + square / independent
    centre = (share + square / (2 * independent)) / width
    half = sqrt(square * (spread / independent + square / (4 * independent**2))) / width
    # rounding must not exclude a share of 0 or 1
    low = 0.0 if share == 0 else max(centre - half, 0.0)
    high = 1.0 if share == 1 else min(centre + half, 1.0)
    return low, high


def _item_numbers(values: Array, items: Indices | None) -> Indices:
    """Return the number of the item of each value, from 0; by default each is its own item."""
    if items is None:
        items = np.arange(len(values))
    return np.unique(items, return_inverse=True)[1]


def crossed_interval(values: Array) -> Ends | None:
    """Return the 95% interval of a mean over seeds and images, for other seeds and other images of
    the same kinds.

    A score varies with the seed, with the image, and with both together; the variance of the mean
    is the sum of these three components, estimated by the mean squares of a two-way layout with
    random effects. The quantile is Student's, with Satterthwaite's (1946) degrees of freedom. In
    simulations of CIDEr and its differences on 100 and 1,000 images
    (``benchmarks/interval_coverage.py --scores``), the interval covers 0.93 to 0.98 with 3 or 5
    seeds and 0.90 to 0.98 with 2. The bootstrap that draws both seeds and images (Owen, 2007)
    reaches no further than the most extreme of the few seeds: it covers 0.75 to 1.

    Args:
        values: float64 (seeds, images), the score of each image with each seed; differences of two
            methods on the same images give the interval of the difference. With one seed, the
            interval is over images alone.

    Returns:
        Lower and upper end, or None for fewer than 3 images.
    """
    seeds, images = values.shape
    if images < 3:
        return None
    mean = float(values.mean())
    of_images = float(values.mean(axis=0).var(ddof=1)) / images
    if seeds == 1:
        variance = of_images
        freedom = images - 1.0
    else:
        of_seeds = float(values.mean(axis=1).var(ddof=1)) / seeds
        rest = values - values.mean(axis=0) - values.mean(axis=1)[:, None] + mean
        of_rest = float((rest**2).sum()) / ((seeds - 1) * (images - 1) * seeds * images)
        # Both of the others contain this component, so it is subtracted once. Estimates may
        # contradict that
        of_both = min(of_rest, of_seeds, of_images)
        variance = of_seeds + of_images - of_both
        freedom = images - 1.0
        if variance > 0:
            squares = of_seeds**2 / (seeds - 1) + of_images**2 / (images - 1)
            freedom = max(variance**2 / squares, 1.0)
    half = student_quantile(freedom) * sqrt(variance)
    return mean - half, mean + half


@lru_cache(maxsize=256)
def student_quantile(freedom: float) -> float:
    """Return the quantile of Student's t that encloses 95% on both sides, to 1e-5 of itself.

    The density of the angle whose tangent is t / sqrt(freedom) is a power of its cosine, and is
    integrated.

    Args:
        freedom: degrees of freedom, at least 1; not necessarily whole.
    """
    # Points are denser towards the end, where the tangent is steep and, with few degrees of
    # freedom, so is the density
    last_angle = min(pi / 2, 10 / sqrt(freedom))
    angles = last_angle * (1 - np.linspace(1, 0, 4001) ** 2)
    density = np.cos(angles) ** (freedom - 1)

    # Twice the integral up to each angle, by trapezoids
    pieces = (density[1:] + density[:-1]) * np.diff(angles)
    enclosed = np.append(0, np.cumsum(pieces))
    angle = np.interp(LEVEL * enclosed[-1], enclosed, angles)
    return float(np.tan(angle) * sqrt(freedom))


def bootstrap_interval(scores: CaptionScores, metric: str, *, resamples: int = RESAMPLES) -> Ends:
    """Return the percentile interval of a corpus score over images."""
    samples = _resamples(len(scores.keys), resamples)
    return _quantiles([scores.resampled(metric, rows) for rows in samples])


@dataclass(frozen=True)
class Difference:
    """The difference of two runs in a score.

    Attributes:
        difference: in percent.
        low: lower end of its 95% interval.
        high: upper end.
        p_value: two-sided, from the share of resamples in which the sign turns.
    """

    difference: float
    low: float
    high: float
    p_value: float


def compare(
    first: CaptionScores, second: CaptionScores, metric: str, *, resamples: int = RESAMPLES
) -> Difference:
    """Compare two runs by the paired bootstrap of ``second - first``: both are resampled alike.

    Raises:
        MetricError: if the runs are not on the same images in the same order.
    """
    if first.keys != second.keys:
        shared = len({*first.keys} & {*second.keys})
        if shared == len(first.keys) == len(second.keys):
            raise MetricError(
                "The two runs have the same images in different orders.",
                remedy="Score both in the same order of keys.",
            )
        raise MetricError(
            f"The two runs have different images: {len(first.keys):,} and {len(second.keys):,}, "
            f"of which {shared:,} are in both.",
            remedy="Score both on the keys they share.",
        )
    draws = []
    for rows in _resamples(len(first.keys), resamples):
        draws.append(second.resampled(metric, rows) - first.resampled(metric, rows))
    negative = sum(draw <= 0 for draw in draws)
    positive = sum(draw >= 0 for draw in draws)
    # add-one, so that a finite number of resamples never claims certainty
    tail = min(negative, positive) + 1
    low, high = _quantiles(draws)
    return Difference(
        difference=second.corpus[metric] - first.corpus[metric],
        low=low,
        high=high,
        p_value=min(1.0, 2 * tail / (resamples + 1)),
    )


@lru_cache(maxsize=8)
def _draw_counts(seed: int, count: int) -> Array:
    """Return how often each item is drawn in each resample, float64 (resamples, items)."""
    drawn = generator(seed, "bootstrap").integers(count, size=(RESAMPLES, count))
    drawn += np.arange(RESAMPLES)[:, None] * count  # other numbers in each resample
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * count)
    return counts.reshape(RESAMPLES, count).astype(np.float64)


def _resamples(n: int, count: int) -> Indices:
    """Return the rows of ``count`` resamples of n images, int64 (count, n)."""
    return generator(0, "bootstrap", n).integers(0, n, size=(count, n))


def _quantiles(draws: Sequence[float] | Array, level: float = LEVEL) -> Ends:
    """Return the ends of the interval that encloses this share of the draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
