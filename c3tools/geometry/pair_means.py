"""Numbers that are means over pairs, or functions of such means, exactly from sums; and their intervals.

The interval of a function of means is that of its linearisation: what each pair adds to it, to first order, averaged
over bootstrap draws of the items of the working set. Where that is a sample, the interval is narrowed to the number of
items there are, as the number itself rests on all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..moments import Moments
from .bootstrap import Interval, mean_interval
from .collect import Collected
from .spectrum import within_cosine

Array = npt.NDArray[np.float64]


def unpaired_cosine(collected: Collected) -> float | None:
    """Mean cosine over all pairs of paired rows that do not match: ``(sum x . sum y - sum_pairs x . y) / rest``."""
    sums = collected.sums
    if sums is None:
        return None
    rest = collected.items * len(sums.owner) - len(sums.owner)
    if rest <= 0:
        return None
    first, second = (
        collected.moments[name].n * collected.moments[name].mean if total is None else total
        for name, total in ((collected.first, sums.first_sum), (collected.second, sums.second_sum))
    )
    return float((first @ second - sums.cosine.sum()) / rest)


def relative_gap(paired_cosine: float, first: Moments, second: Moments) -> float | None:
    """RMG of Schrodi et al. (2024): the distance of pairs over itself and the mean distance within modalities.

    ``D = (1 - cos) / 2``; num = mean D over pairs; den = num + (mean D within x + mean D within y) / 2, diagonals
    excluded.
    """
    within = [within_cosine(moments) for moments in (first, second)]
    if within[0] is None or within[1] is None:
        return None
    num = (1 - paired_cosine) / 2
    den = num + ((1 - within[0]) / 2 + (1 - within[1]) / 2) / 2
    return num / den if den > 0 else None


def length_interval(collected: Collected, gap: Array, *, seed: int = 0) -> Interval | None:
    """95 % interval of the gap's length: each pair adds ``u . (x - y)``, u the unit gap."""
    length = float(np.linalg.norm(gap))
    if not collected.working.paired or length == 0:
        return None
    return _interval(collected, length, collected.working.differences() @ (gap / length), seed)


def unpaired_interval(collected: Collected, value: float, *, seed: int = 0) -> Interval | None:
    """95 % interval of the unpaired cosine: each pair adds ``x . mu_y + mu_x . y``."""
    x, y = _along_means(collected, crossed=True)
    return _interval(collected, value, x + y, seed)


def rmg_interval(collected: Collected, value: float, *, seed: int = 0) -> Interval | None:
    """95 % interval of RMG = N / (N + W), N the distance of pairs and W the mean one within modalities.

    To first order a pair adds ``(1 - x . y) / 2`` to N and ``-(x . mu_x + y . mu_y) / 2`` to W, each row standing on
    both sides of the pairs of its modality; the derivatives are ``W / (N + W)^2`` and ``-N / (N + W)^2``.
    """
    working = collected.working
    if not working.paired or collected.sums is None:
        return None
    near = (1 - np.einsum("ij,ij->i", working.first[working.owner], working.second)) / 2
    x, y = _along_means(collected, crossed=False)
    num = float((1 - collected.sums.cosine.mean()) / 2)
    if num <= 0 or not 0 < value < 1:
        return None
    within = num * (1 - value) / value
    return _interval(collected, value, (within * near + num * (x + y) / 2) / (num + within) ** 2, seed)


def residual_interval(collected: Collected, value: float, *, seed: int = 0) -> Interval | None:
    """95 % interval of the residual rms: each pair adds ``|(x - y) - mean|^2 / d`` to its square."""
    working = collected.working
    if not working.paired or collected.sums is None or value == 0:
        return None
    noise = working.differences() - collected.sums.mean.astype(working.first.dtype)
    squares = np.einsum("ij,ij->i", noise, noise) / noise.shape[1]
    return _interval(collected, value, squares / (2 * value), seed)


def _along_means(collected: Collected, *, crossed: bool) -> tuple[Array, Array]:
    """For every pair of the working set, x and y along the mean of the other modality, or of their own."""
    working = collected.working
    means = [collected.moments[name].mean for name in (collected.first, collected.second)]
    x = working.first @ means[1 if crossed else 0].astype(working.first.dtype)
    y = working.second @ means[0 if crossed else 1].astype(working.second.dtype)
    return x[working.owner].astype(np.float64), y.astype(np.float64)


def _interval(collected: Collected, value: float, added: npt.NDArray[np.floating], seed: int) -> Interval | None:
    values = added.astype(np.float64)
    interval = mean_interval(values, collected.working.owner, seed=seed)
    if interval is None:
        return None
    shrink = float(np.sqrt(len(collected.working.first) / max(collected.items, 1)))
    centre = float(values.mean())
    return value + (interval[0] - centre) * shrink, value + (interval[1] - centre) * shrink
