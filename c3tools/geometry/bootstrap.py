"""Confidence intervals by the bootstrap over items: captions of one image are drawn together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..seeds import generator
from .pairing import Indices

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 1000
LEVEL = 0.95
_MAX_BLOCKS = 2000


def mean_interval(values: Array, items: Indices | None = None, *, seed: int = 0, name: str = "") -> Interval | None:
    """95 % interval of the mean of ``values`` by the percentile bootstrap (Efron, 1979).

    Items are drawn with replacement, each with all its values. More than 2,000 items are first put together in
    2,000 blocks at random, which leaves the interval of a mean as it is.

    Args:
        values: float64 (n,).
        items: int64 (n,), the item of each value; each value is its own item by default.
        seed: seed of the resampling.
        name: what is resampled; other names draw other numbers.

    Returns:
        Lower and upper end, or None for fewer than 3 items.
    """
    numbers = np.arange(len(values)) if items is None else np.unique(items, return_inverse=True)[1]
    count = int(numbers.max()) + 1 if len(numbers) else 0
    if count < 3:
        return None
    rng = generator(seed, "bootstrap", name)
    if count > _MAX_BLOCKS:
        numbers = (rng.permutation(count) % _MAX_BLOCKS)[numbers]
        count = _MAX_BLOCKS
    sums = np.bincount(numbers, weights=values, minlength=count)
    sizes = np.bincount(numbers, minlength=count).astype(np.float64)
    drawn = rng.integers(count, size=(RESAMPLES, count)) + np.arange(RESAMPLES)[:, None] * count
    draws = np.bincount(drawn.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count).astype(np.float64)
    means = (draws @ sums) / (draws @ sizes)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
