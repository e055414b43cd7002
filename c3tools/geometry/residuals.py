"""Differences of pairs: the alignment noise that is left without the gap, its shape, and how groups of items differ.

Items are drawn independently; the residuals of the captions of one image are not, because they share that of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, sqrt
from typing import Any

import numpy as np

from ..arrays import Array, Floats, Indices
from ..seeds import generator
from .spectrum import eigenvalues

MAX_DIRECTIONS = 10_000
_PERMUTATIONS = 99
_PERMUTED_ITEMS = 1_000
_MIXED_DIRECTIONS = 5
_FURTHEST = 5.0
_FINE_PER_SHOWN = 8
_FINE_BINS = 60 * _FINE_PER_SHOWN
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Residuals:
    """The alignment noise ``(x - y) - mean`` of the pairs of the working set.

    Attributes:
        spectrum: float64 (d,), eigenvalues of its covariance, descending.
        per_dimension: float64 (d,), standard deviation per dimension.
        skewness: float64 (d,), per dimension.
        kurtosis: float64 (d,), excess, per dimension.
        distance: largest distance between the distribution function of the pooled standardised marginals and the
            normal one (Kolmogorov's).
        cosines: cosines between residuals of different items.
        isotropy: share of the dimensions that the noise fills: the participation ratio over d, corrected for the
            number of items, 1 for isotropic noise.
        pairs: number of pairs.
        items: number of items they belong to.
        standardised: a histogram of the pooled standardised marginals: densities and bin edges.
    """

    spectrum: Array
    per_dimension: Array
    skewness: Array
    kurtosis: Array
    distance: float
    cosines: Array
    isotropy: float
    pairs: int
    items: int
    standardised: tuple[Array, Array]

    def to_dict(self) -> dict[str, Any]:
        """Return the noise as the report's JSON has it."""
        return {
            "pairs": self.pairs,
            "isotropy": self.isotropy,
            "std_smallest": float(self.per_dimension.min()),
            "std_largest": float(self.per_dimension.max()),
            "direction_mean": float(self.cosines.mean()) if len(self.cosines) else None,
            "direction_std": float(self.cosines.std()) if len(self.cosines) else None,
            "distance_to_normal": self.distance,
        }


def residuals(differences: Floats, item_index: Indices, *, seed: int = 0) -> Residuals:
    """Measure the alignment noise.

    Args:
        differences: (k, d), ``x - y`` of every pair.
        item_index: int64 (k,), its item.
        seed: of the pairs of residuals that are compared.
    """
    noise = differences.astype(np.float64) - differences.mean(axis=0, dtype=np.float64)
    pairs = len(noise)
    items = len(np.unique(item_index))
    deviation = noise.std(axis=0)
    values = eigenvalues(noise.T @ noise / pairs)
    isotropy = _isotropy(noise, item_index, values)
    left, right = different_items(item_index, seed, "residual cosines")
    cosines = row_cosines(noise[left], noise[right])
    standard = np.divide(noise, np.where(deviation > 0, deviation, 1.0), out=noise)
    squares = standard * standard
    counts, edges = np.histogram(standard, bins=_FINE_BINS, range=(-_FURTHEST, _FURTHEST))
    # from a histogram: sorting all values of a large sample would cost more than everything else
    below = np.count_nonzero(standard < -_FURTHEST) + np.concatenate([[0], np.cumsum(counts)])
    normal = np.array([0.5 * (1 + erf(z / sqrt(2))) for z in edges])
    coarse, shown = counts.reshape(-1, _FINE_PER_SHOWN).sum(axis=1), edges[::_FINE_PER_SHOWN]
    return Residuals(
        spectrum=values,
        per_dimension=deviation,
        skewness=np.einsum("ij,ij->j", squares, standard) / pairs,
        kurtosis=np.einsum("ij,ij->j", squares, squares) / pairs - 3,
        distance=float(np.abs(below / standard.size - normal).max()),
        cosines=cosines,
        isotropy=isotropy,
        pairs=pairs,
        items=items,
        standardised=(coarse / (standard.size * np.diff(shown)), shown),
    )


def _isotropy(noise: Array, item_index: Indices, values: Array) -> float:
    """Return ``tr(S)^2 / (d tr(S^2))``, S the covariance of the residuals, without the bias of few items.

    tr(S^2) is the variance of ``r_a . r_b`` over residuals of different items (Chen, Zhang and Zhong, 2010): what
    residuals of one item share does not count. Not above 1; 0 if there is no noise.
    """
    pairs, dim = noise.shape
    numbers = np.unique(item_index, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    items = len(sizes)
    order, starts = np.argsort(numbers, kind="stable"), np.cumsum(sizes) - sizes
    own_squares = own_sums = 0.0
    for size in np.unique(sizes):
        rows = noise[order[starts[sizes == size][:, None] + np.arange(size)]]  # (items of this size, size, d)
        own_squares += float(np.sum((rows @ rows.transpose(0, 2, 1)) ** 2))
        own_sums += float(np.sum(rows.sum(axis=1) ** 2))
    count = pairs**2 - float(np.sum(sizes**2))
    total = float(values.sum()) + own_sums / pairs**2 * items / max(items - 1, 1)
    if count <= 0 or float(values.sum()) <= 0:
        return 0.0
    square = (float(np.sum(values**2)) * pairs**2 - own_squares) / count
    mean = -own_sums / count  # over residuals of different items: all residuals sum to zero
    variance = square - mean**2
    return min(total**2 / (dim * variance), 1.0) if variance > 0 else 1.0


def different_items(item_index: Indices, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Draw up to 10,000 random pairs of rows that belong to different items."""
    count = len(item_index)
    rng = generator(seed, purpose)
    wanted = min(MAX_DIRECTIONS, count * (count - 1) // 2)
    left = rng.integers(count, size=wanted)
    right = (left + rng.integers(1, max(count, 2), size=wanted)) % count
    different = item_index[left] != item_index[right]
    return left[different], right[different]


def orthogonality(rows: Floats, item_index: Indices, gap: Array, *, seed: int = 0) -> Array:
    """Return cosines of same-modality differences ``x_i - x_j``, of distinct items, with the mean gap.

    Args:
        rows: (n, d) of one modality.
        item_index: int64 (n,), the item of each row; rows of one item are not compared.
        gap: float64 (d,).
        seed: of the pairs.
    """
    left, right = different_items(item_index, seed, "orthogonality")
    length = float(np.linalg.norm(gap))
    if not len(left) or length == 0:
        return np.empty(0)
    norms, along = np.empty(len(left)), np.empty(len(left))
    for start in range(0, len(left), _BLOCK):
        block = slice(start, start + _BLOCK)
        difference = rows[left[block]] - rows[right[block]]
        norms[block] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        along[block] = difference @ gap.astype(difference.dtype)
    return np.asarray(along[norms > 0] / (norms[norms > 0] * length))


def group_directions(groups: Array) -> Array:
    """Return the cosine of each group's mean difference with the next one's (the paper's gap direction)."""
    return row_cosines(groups[:-1], groups[1:])


def row_cosines(left: Array, right: Array) -> Array:
    """Return the cosine of each row of ``left`` (n, d) with the same row of ``right``; rows of norm 0 are left out."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray(np.einsum("ij,ij->i", left, right)[norms > 0] / norms[norms > 0])


def unbiased_kurtosis(kurtosis: Array, count: int) -> Array:
    """Return the excess kurtosis G2 from the moment ratio g2 of ``count`` values, unbiased for Gaussian ones."""
    if count < 4:
        return kurtosis
    return np.asarray((count - 1) * ((count + 1) * kurtosis + 6) / ((count - 2) * (count - 3)))


def between_groups(differences: Array, labels: Indices, *, seed: int = 0) -> float:
    """Return the root mean square distance of group means from the mean, beyond that of random groups.

    Args:
        differences: float64 (n, d), centred.
        labels: int64 (n,), the group of each row.
        seed: of the permutations.

    Returns:
        0 if it is not above 95 % of the permutations of the labels.
    """
    rng = generator(seed, "permuted groups")
    value = _above_chance(differences, labels)
    # how far random groups are above chance does not depend on the number of items: a thousand are enough
    chosen = rng.permutation(len(differences))[:_PERMUTED_ITEMS]
    rows = differences[chosen] - differences[chosen].mean(axis=0)
    drawn = sorted(_above_chance(rows, rng.permutation(labels[chosen])) for _ in range(_PERMUTATIONS))
    if value <= drawn[int(0.95 * _PERMUTATIONS)]:
        return 0.0
    spread = float(np.mean(np.einsum("ij,ij->i", differences, differences)))
    groups = len(np.unique(labels))
    return sqrt(max(value - 1, 0.0) * spread * (groups - 1) / (len(differences) - 1))


def _above_chance(differences: Array, labels: Indices) -> float:
    """Return the mean square distance of group means from 0, weighted by size, over its mean over all permutations."""
    count, sizes = len(differences), np.bincount(labels)
    chosen = np.zeros((len(sizes), count))
    chosen[labels, np.arange(count)] = 1
    sums = (chosen @ differences)[sizes > 0]
    spread = float(np.sum(np.einsum("ij,ij->i", sums, sums) / sizes[sizes > 0]))
    chance = float(np.sum(differences**2)) * (np.count_nonzero(sizes) - 1) / (count - 1)
    return spread / chance if chance > 0 else 0.0


def mixture(differences: Array) -> float:
    """Return the root mean square distance of two gaps, mixed at random, from their mean.

    0 unless the differences are flatter than a Gaussian, by three standard errors, along one of five principal
    directions: a mixture of two points has the kurtosis -2, and noise around them brings it nearer to 0.

    Args:
        differences: float64 (n, d), centred, one row per item.
    """
    count = len(differences)
    _, vectors = np.linalg.eigh(differences.T @ differences)
    scores = differences @ vectors[:, : -_MIXED_DIRECTIONS - 1 : -1]
    variances = np.mean(scores**2, axis=0)
    variances[variances <= 0] = 1.0
    kurtosis = unbiased_kurtosis(np.mean(scores**4, axis=0) / variances**2 - 3, count)
    flat = np.minimum(np.where(kurtosis < -3 * sqrt(24 / count), kurtosis, 0.0), 0.0)
    return float(np.sqrt(np.sum(variances * np.sqrt(np.minimum(-flat / 2, 1.0)))))


def cluster(rows: Array, count: int, *, seed: int = 0, rounds: int = 20) -> Indices:
    """Cluster rows (n, d) by k-means from k-means++ starts; return the cluster of each, int64 (n,)."""
    rng = generator(seed, "clusters")
    rows = rows - rows.mean(axis=0)
    squares = np.einsum("ij,ij->i", rows, rows)
    centres = rows[rng.integers(len(rows), size=1)]
    distance = np.full(len(rows), np.inf)
    while len(centres) < count:
        distance = np.minimum(distance, np.maximum(squares - 2 * rows @ centres[-1] + centres[-1] @ centres[-1], 0))
        if not distance.sum() > 0:
            break
        centres = np.vstack([centres, rows[rng.choice(len(rows), p=distance / distance.sum())]])
    labels = np.zeros(len(rows), dtype=np.int64)
    for _ in range(rounds):
        found = np.argmin(np.einsum("ij,ij->i", centres, centres) - 2 * rows @ centres.T, axis=1)
        if np.array_equal(found, labels):
            break
        labels = found
        for number in np.unique(labels):
            centres[number] = rows[labels == number].mean(axis=0)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
