"""How sure a score, or a difference of two scores, is: over seeds, and by the bootstrap over images.

The bootstraps resample images with replacement (Koehn, 2004). CIDEr's document frequencies stay those of the whole set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import MetricError
from ..seeds import generator
from .captions import CaptionScores


def mean_and_std(values: Sequence[float] | npt.NDArray[np.floating]) -> tuple[float, float | None]:
    """Return the mean of n values and their sample standard deviation (n - 1), None for fewer than two values.

    Raises:
        ValueError: if there is no value.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("the mean of no values")
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval, in percent."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same images.

    Attributes:
        difference: score of the second minus score of the first, in percent.
        low: lower end of the difference's interval.
        high: upper end of the difference's interval.
        p_value: two-sided, from the share of resamples in which the sign turns.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    scores: CaptionScores, metric: str, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of a corpus score."""
    draws = np.array([scores.resampled(metric, rows) for rows in _resamples(len(scores.keys), resamples, seed)])
    low, high = _ends(draws, level)
    return Interval(scores.corpus[metric], low, high)


def compare(
    first: CaptionScores,
    second: CaptionScores,
    metric: str,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap of the difference ``second - first``: both runs are resampled alike.

    Raises:
        MetricError: if the runs are not on the same images in the same order.
    """
    if first.keys != second.keys:
        raise MetricError(
            f"The two runs are not on the same images ({len(first.keys)} and {len(second.keys)} keys).",
            remedy="Score both on the keys they share.",
        )
    draws = np.array(
        [
            second.resampled(metric, rows) - first.resampled(metric, rows)
            for rows in _resamples(len(first.keys), resamples, seed)
        ]
    )
    low, high = _ends(draws, level)
    # add-one, so that a finite number of resamples never claims certainty
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum())) + 1
    difference = second.corpus[metric] - first.corpus[metric]
    return Comparison(difference, low, high, min(1.0, 2 * tail / (resamples + 1)))


def _resamples(n: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    return generator(seed, "bootstrap", n).integers(0, n, size=(count, n))


def _ends(draws: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
