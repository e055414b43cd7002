"""Confidence intervals by the bootstrap over items: captions of one image are drawn together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..seeds import generator
from ..store.rows import Indices

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 1000
LEVEL = 0.95
_MAX_BLOCKS = 2000


@dataclass(frozen=True)
class Estimate:
    """A number that rests on a sample.

    Attributes:
        value: the number.
        interval: 95 % bootstrap interval; None for fewer than 3 items.
        rows: rows it rests on.
    """

    value: float
    interval: Interval | None
    rows: int


def mean_interval(values: Array, items: Indices | None = None, *, seed: int = 0) -> Interval | None:
    """95 % interval of the mean of ``values`` by the percentile bootstrap (Efron, 1979).

    Items are drawn with replacement, each with all its values. More than 2,000 items are first put together in
    2,000 blocks at random, which leaves the interval of a mean as it is. The same seed draws the same items for every
    mean, so that two presets are compared on the same resamples.

    Args:
        values: float64 (n,).
        items: int64 (n,), the item of each value; each value is its own item by default.
        seed: seed of the resampling.

    Returns:
        Lower and upper end, or None for fewer than 3 items.
    """
    numbers = np.arange(len(values)) if items is None else np.unique(items, return_inverse=True)[1]
    count = int(numbers.max()) + 1 if len(numbers) else 0
    if count < 3:
        return None
    if count > _MAX_BLOCKS:
        numbers = (generator(seed, "bootstrap blocks").permutation(count) % _MAX_BLOCKS)[numbers]
        count = _MAX_BLOCKS
    sums = np.bincount(numbers, weights=values, minlength=count)
    sizes = np.bincount(numbers, minlength=count).astype(np.float64)
    draws = _draws(seed, count)
    means = (draws @ sums) / (draws @ sizes)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _draws(seed: int, count: int) -> Array:
    """How often each item is drawn in each resample, float64 (resamples, items)."""
    drawn = (
        generator(seed, "bootstrap").integers(count, size=(RESAMPLES, count)) + np.arange(RESAMPLES)[:, None] * count
    )
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * count)
    draws: Array = counts.reshape(RESAMPLES, count).astype(np.float64)
    return draws
