"""The alignment noise: what is left of the differences of pairs without the gap, and its shape.

Items are drawn independently; the residuals of the captions of one image are not, because they share that of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, sqrt

import numpy as np

from ..arrays import Array, Floats, Indices
from ..seeds import generator

MAX_DIRECTIONS = 10_000
EDGES = np.linspace(-5, 5, 61)
"""Bins of `Residuals.marginals`."""
_FINE = 8  # bins of the comparison with a normal distribution, per bin shown
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Residuals:
    """The alignment noise ``(x - y) - mean`` of pairs.

    Attributes:
        pairs: number of pairs.
        items: number of items they belong to.
        isotropy: share of the dimensions that the noise fills: the participation ratio over d, corrected for the
            number of items, 1 for isotropic noise.
        std_smallest: smallest standard deviation of a dimension.
        std_largest: largest.
        direction_mean: mean of ``cosines``; None if there are none.
        direction_std: their standard deviation.
        distance_to_normal: largest distance between the distribution function of the pooled standardised marginals and
            the normal one (Kolmogorov's).
        per_dimension: float64 (d,), standard deviation per dimension.
        skewness: float64 (d,), per dimension.
        kurtosis: float64 (d,), excess, per dimension.
        cosines: cosines between residuals of different items.
        marginals: float64 (60,), densities of the pooled standardised marginals in the bins `EDGES`.
    """

    pairs: int
    items: int
    isotropy: float
    std_smallest: float
    std_largest: float
    direction_mean: float | None
    direction_std: float | None
    distance_to_normal: float
    per_dimension: Array
    skewness: Array
    kurtosis: Array
    cosines: Array
    marginals: Array


def residuals(differences: Floats, item_index: Indices, *, seed: int = 0) -> Residuals:
    """Measure the alignment noise.

    Args:
        differences: (k, d), ``x - y`` of every pair.
        item_index: int64 (k,), its item.
        seed: of the pairs of residuals that are compared.
    """
    noise = differences.astype(np.float64) - differences.mean(axis=0, dtype=np.float64)
    pairs, deviation, isotropy = len(noise), noise.std(axis=0), _isotropy(noise, item_index)
    left, right = _different_items(item_index, seed, "residual cosines")
    cosines = row_cosines(noise[left], noise[right])
    standard = np.divide(noise, np.where(deviation > 0, deviation, 1.0), out=noise)
    squares = standard * standard
    fine = np.linspace(EDGES[0], EDGES[-1], _FINE * (len(EDGES) - 1) + 1)
    counts = np.histogram(standard, bins=fine)[0]
    # from a histogram: sorting all values of a large sample would cost more than everything else
    below = np.count_nonzero(standard < fine[0]) + np.concatenate([[0], np.cumsum(counts)])
    normal = np.array([0.5 * (1 + erf(z / sqrt(2))) for z in fine])
    return Residuals(
        pairs=pairs,
        items=len(np.unique(item_index)),
        isotropy=isotropy,
        std_smallest=float(deviation.min()),
        std_largest=float(deviation.max()),
        direction_mean=float(cosines.mean()) if len(cosines) else None,
        direction_std=float(cosines.std()) if len(cosines) else None,
        distance_to_normal=float(np.abs(below / standard.size - normal).max()),
        per_dimension=deviation,
        skewness=np.einsum("ij,ij->j", squares, standard) / pairs,
        kurtosis=np.einsum("ij,ij->j", squares, squares) / pairs - 3,
        cosines=cosines,
        marginals=counts.reshape(-1, _FINE).sum(axis=1) / (standard.size * np.diff(EDGES)),
    )


def _isotropy(noise: Array, item_index: Indices) -> float:
    """Return ``tr(S)^2 / (d tr(S^2))``, S the covariance of the residuals, without the bias of few items.

    tr(S^2) is the variance of ``r_a . r_b`` over residuals of different items (Chen, Zhang and Zhong, 2010): what
    residuals of one item share does not count. Not above 1; 0 if there is no noise.
    """
    pairs, dim = noise.shape
    scatter = noise.T @ noise
    numbers = np.unique(item_index, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    items, order, starts = len(sizes), np.argsort(numbers, kind="stable"), np.cumsum(sizes) - sizes
    own_squares = own_sums = 0.0
    for size in np.unique(sizes):
        rows = noise[order[starts[sizes == size][:, None] + np.arange(size)]]  # (items of this size, size, d)
        own_squares += float(np.sum((rows @ rows.transpose(0, 2, 1)) ** 2))
        own_sums += float(np.sum(rows.sum(axis=1) ** 2))
    count, trace = pairs**2 - float(np.sum(sizes**2)), float(np.trace(scatter)) / pairs
    if count <= 0 or trace <= 0:
        return 0.0
    total = trace + own_sums / pairs**2 * items / (items - 1)
    mean = -own_sums / count  # over residuals of different items: all residuals sum to zero
    variance = (float(np.sum(scatter**2)) - own_squares) / count - mean**2
    return min(total**2 / (dim * variance), 1.0) if variance > 0 else 1.0


def orthogonality(rows: Floats, item_index: Indices, gap: Array, *, seed: int = 0) -> Array:
    """Return cosines of same-modality differences ``x_i - x_j``, of distinct items, with the mean gap.

    Args:
        rows: (n, d) of one modality.
        item_index: int64 (n,), the item of each row; rows of one item are not compared.
        gap: float64 (d,).
        seed: of the pairs.
    """
    left, right = _different_items(item_index, seed, "orthogonality")
    length, cosines = float(np.linalg.norm(gap)), [np.empty(0)]
    for start in range(0, len(left) if length > 0 else 0, _BLOCK):
        difference = rows[left[start : start + _BLOCK]] - rows[right[start : start + _BLOCK]]
        norms = np.sqrt(np.einsum("ij,ij->i", difference, difference)).astype(np.float64)
        along = difference @ gap.astype(difference.dtype)
        cosines.append(along[norms > 0] / (norms[norms > 0] * length))
    return np.concatenate(cosines)


def row_cosines(left: Array, right: Array) -> Array:
    """Return the cosine of each row of ``left`` (n, d) with the same row of ``right``; rows of norm 0 are left out."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray(np.einsum("ij,ij->i", left, right)[norms > 0] / norms[norms > 0])


def _different_items(item_index: Indices, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Draw up to 10,000 random pairs of rows that belong to different items."""
    count, rng = len(item_index), generator(seed, purpose)
    wanted = min(MAX_DIRECTIONS, count * (count - 1) // 2)
    left = rng.integers(count, size=wanted)
    right = (left + rng.integers(1, max(count, 2), size=wanted)) % count
    different = item_index[left] != item_index[right]
    return left[different], right[different]
