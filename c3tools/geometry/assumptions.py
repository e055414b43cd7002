"""Tests of the model `e_x - e_y = c_perp + eps, eps ~ N(0, sigma^2 I)`: questions with a number and a verdict each.

The paper's model of a contrastive space (Zhang et al., ICLR 2024): the gap is constant, it is orthogonal to the
spans of both modalities, and what is left of a pair is isotropic Gaussian noise. The thresholds below are effect
sizes rather than significance levels: with enough rows every test rejects every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, sqrt
from typing import Any, Literal

import numpy as np

from ..moments import Array
from ..reporter import counted
from ..seeds import generator
from ..store.rows import Indices
from .collect import Collected
from .reading import Rows
from .spectrum import eigenvalues, participation_ratio
from .stream import PairSums

Answer = Literal["yes", "partly", "no", "unknown"]

QUESTIONS = {
    "constant": "Is the gap constant?",
    "orthogonal": "Is the gap orthogonal to both modalities?",
    "gaussian": "Is what is left of a pair Gaussian?",
    "isotropic": "Is what is left of a pair isotropic?",
    "subsets": "Is the gap the same in every subset?",
}
MAX_DIRECTIONS = 10_000
MIN_SUBSET_ITEMS = 3
SAME, ALIKE = 0.3, 0.6
"""A difference of 0.3 of the gap's length is a turn of 17 degrees (a cosine of 0.95); 0.6 is one of 35 (0.82)."""
_FURTHEST = 5.0
_FINE_PER_SHOWN = 8
_FINE_BINS = 60 * _FINE_PER_SHOWN
_BLOCK = 1024


@dataclass(frozen=True)
class Assumption:
    """One question about the data, and its answer.

    Attributes:
        name: key in the report's JSON.
        question: in words.
        answer: ``yes``, ``partly``, ``no``, or ``unknown``.
        number: what the answer rests on; None where unknown.
        because: one sentence with the number in it.
    """

    name: str
    question: str
    answer: Answer
    number: float | None
    because: str


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
            number of pairs, 1 for isotropic noise.
        pairs: number of pairs.
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


def residuals(differences: Rows, item_index: Indices, *, seed: int = 0) -> Residuals:
    """Measure the alignment noise.

    Args:
        differences: (k, d), ``x - y`` of every pair.
        item_index: int64 (k,), its item.
        seed: of the pairs of residuals that are compared.
    """
    noise = differences.astype(np.float64) - differences.mean(axis=0, dtype=np.float64)
    pairs, dim = noise.shape
    deviation = noise.std(axis=0)
    values = eigenvalues(noise.T @ noise / pairs)
    # a sample of n isotropic Gaussian rows has a participation ratio of d / (1 + (d + 1) / n), not d
    isotropy = participation_ratio(values) * (1 + (dim + 1) / pairs) / dim
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
        isotropy=min(float(isotropy), 1.0),
        pairs=pairs,
        standardised=(coarse / (standard.size * np.diff(shown)), shown),
    )


def different_items(item_index: Indices, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Draw up to 10,000 random pairs of rows that belong to different items."""
    count = len(item_index)
    rng = generator(seed, purpose)
    wanted = min(MAX_DIRECTIONS, count * (count - 1) // 2)
    left = rng.integers(count, size=wanted)
    right = (left + rng.integers(1, max(count, 2), size=wanted)) % count
    different = item_index[left] != item_index[right]
    return left[different], right[different]


def orthogonality(rows: Rows, item_index: Indices, gap: Array, *, seed: int = 0) -> Array:
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


def all_assumptions(
    sums: PairSums | None, items: int, noise: Residuals | None, orthogonal: dict[str, Array], dim: int
) -> list[Assumption]:
    """Answer the four questions, in the order of the paper's model; three of them need pairs."""
    if sums is None or noise is None:
        absent = "This needs pairs, and the store has none."
        constant, gaussian, isotropic = (_answer(name, absent) for name in ("constant", "gaussian", "isotropic"))
        return [constant, is_orthogonal(orthogonal, dim), gaussian, isotropic]
    return [is_constant(sums, items), is_orthogonal(orthogonal, dim), is_gaussian(noise), is_isotropic(noise)]


def is_constant(sums: PairSums, items: int) -> Assumption:
    """Test whether the gap is the same vector everywhere: over groups of pairs, in the order of the store."""
    if len(sums.groups) < 2:
        return _answer("constant", f"{counted(len(sums.item_index), 'pair')}: fewer than two groups.")
    # with the overall gap rather than with the next group: a gap that turns slowly agrees with its neighbours
    overall = np.broadcast_to(sums.mean, sums.groups.shape)
    directions, lengths = row_cosines(sums.groups, overall), np.linalg.norm(sums.groups, axis=1)
    if not len(directions):
        return _answer("constant", "There is no gap.")
    cosine, spread = float(directions.mean()), float(lengths.std() / max(lengths.mean(), 1e-12))
    answer: Answer = "yes" if cosine >= 0.95 and spread <= 0.05 else "partly" if cosine >= 0.8 else "no"
    because = (
        f"Means of {sums.group_pairs} pairs have a cosine of {cosine:.3f} with the gap (at least "
        f"{float(directions.min()):.3f}), and their lengths vary by {100 * spread:.1f} % ({len(lengths)} groups, "
        f"{items} items)."
    )
    return _answer("constant", because, answer, cosine)


def is_orthogonal(cosines: dict[str, Array], dim: int) -> Assumption:
    """Test whether the gap is orthogonal to the spans of both modalities."""
    spreads = {name: float(np.sqrt(np.mean(values**2))) for name, values in cosines.items() if len(values)}
    if not spreads:
        return _answer("orthogonal", "There is no gap, or no differences to compare.")
    worst = max(spreads.values())
    # in few dimensions not even random directions are nearly orthogonal
    allowed = max(0.1, 1.25 / sqrt(dim))
    answer: Answer = "yes" if worst <= allowed else "partly" if worst <= 2 * allowed else "no"
    listed = ", ".join(f"{name} {value:.3f}" for name, value in spreads.items())
    because = (
        f"Differences within a modality have a cosine of 0 ± {worst:.3f} with the gap ({listed}; directions at random "
        f"in {dim} dimensions would have {1 / sqrt(dim):.3f})."
    )
    return _answer("orthogonal", because, answer, worst)


def is_gaussian(noise: Residuals) -> Assumption:
    """Test whether the marginals of the alignment noise are Gaussian."""
    kurtosis, skewness = float(np.median(np.abs(noise.kurtosis))), float(np.median(np.abs(noise.skewness)))
    # allow for chance: for n Gaussian values these statistics have variances of 24 / n and 6 / n
    allowed = 3 * sqrt(24 / noise.pairs)
    close = kurtosis <= max(0.5, allowed) and skewness <= max(0.3, allowed / 2) and noise.distance <= 0.03
    answer: Answer = "yes" if close else "partly" if kurtosis <= 1.5 and noise.distance <= 0.06 else "no"
    because = (
        f"The standardised marginals differ from a normal distribution by at most {noise.distance:.3f}; the median "
        f"dimension has skewness {skewness:.2f} and excess kurtosis {kurtosis:.2f} in size ({noise.pairs} pairs)."
    )
    return _answer("gaussian", because, answer, noise.distance)


def is_isotropic(noise: Residuals) -> Assumption:
    """Test whether the alignment noise has the same size in every direction."""
    smallest, largest = float(noise.per_dimension.min()), float(noise.per_dimension.max())
    ratio = largest / smallest if smallest > 0 else float("inf")
    answer: Answer = "yes" if noise.isotropy >= 0.9 and ratio <= 2 else "partly" if noise.isotropy >= 0.6 else "no"
    because = (
        f"It fills {100 * noise.isotropy:.0f} % of the dimensions (100 % if isotropic); the standard deviation per "
        f"dimension runs from {smallest:.3f} to {largest:.3f}."
    )
    return _answer("isotropic", because, answer, noise.isotropy)


def row_cosines(left: Array, right: Array) -> Array:
    """Return the cosine of each row of ``left`` (n, d) with the same row of ``right``; rows of norm 0 are left out."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray(np.einsum("ij,ij->i", left, right)[norms > 0] / norms[norms > 0])


def compare_subsets(collected: Collected, gap: Array) -> list[dict[str, Any]]:
    """Measure the gap of each subset: pairs, items, length, cosine with the gap, and how far it differs beyond chance.

    By chance, the mean difference of a subset of m of n items is off the mean over all by a squared distance of
    ``tr(S) (1 / m - 1 / n)``, S the covariance of the pair differences. ``difference`` is the distance that is left
    when this is taken off, over the length of the gap; None for subsets of fewer than 3 items.
    """
    sums, length = collected.sums, float(np.linalg.norm(gap))
    if sums is None:
        return []
    overall, total = float(np.linalg.norm(sums.mean)), float(sums.variance.sum())
    rows = []
    for number, name in enumerate(collected.subset_names):
        pairs, items, mean = int(sums.subset_pairs[number]), int(sums.subset_items[number]), sums.subset_means[number]
        if not pairs:
            continue
        norm = float(np.linalg.norm(mean))
        chance = total * max(1 / items - 1 / collected.items, 0.0)
        beyond = max(float(np.sum((mean - sums.mean) ** 2)) - chance, 0.0)
        rows.append(
            {
                "value": name,
                "pairs": pairs,
                "items": items,
                "length": norm,
                "cosine_with_gap": float(mean @ gap / (norm * length)) if norm * length > 0 else None,
                "difference": float(np.sqrt(beyond)) / overall if overall > 0 and items >= MIN_SUBSET_ITEMS else None,
            }
        )
    return rows


def is_same_in_subsets(rows: list[dict[str, Any]]) -> Assumption:
    """Test whether the gap is the same in every subset, by the subset whose gap differs most."""
    known = [row for row in rows if row["difference"] is not None]
    if len(known) < 2:
        because = f"{len(known)} of {len(rows)} subsets have at least {MIN_SUBSET_ITEMS} items with pairs."
        return _answer("subsets", because)
    worst = max(known, key=lambda row: row["difference"])
    value = float(worst["difference"])
    answer: Answer = "yes" if value <= SAME else "partly" if value <= ALIKE else "no"
    because = (
        f"The gap of {worst['value']!r} ({worst['items']:,} items) differs most from that of all pairs: by "
        f"{100 * value:.0f} % of its length, beyond what so few items differ by chance ({len(known)} subsets)."
    )
    return _answer("subsets", because, answer, value)


def _answer(name: str, because: str, answer: Answer = "unknown", number: float | None = None) -> Assumption:
    return Assumption(name, QUESTIONS[name], answer, number, because)
