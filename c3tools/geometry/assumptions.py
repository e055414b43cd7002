"""Tests of the model `e_x - e_y = c_perp + eps, eps ~ N(0, sigma^2 I)`: questions with a number and
an answer each.

The paper's model of a contrastive space (Zhang et al., ICLR 2024): the gap is constant, it is
orthogonal to the spans of both modalities, and what is left of a pair is isotropic Gaussian noise.
Each test has two parts: an effect size, since with enough rows every significance test rejects
every model, and an allowance for what few items show by chance. Items are drawn independently; the
captions of one image are not. benchmarks/assumption_power.py measures the answers on stores that
follow the model and on stores that violate it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from ..arrays import Array, Indices
from ..moments import unit_rows
from ..reporter import counted
from ..seeds import generator
from .collect import Collected
from .measures import Residuals, effective_dimension

MIN_ITEMS = 20
SAME, ALIKE = 0.3, 0.6
"""A difference of 0.3 of the gap's length is a turn of 17 degrees (a cosine of 0.95); 0.6 is one of
35 (0.82)."""
FEW, SOME = 0.1, 0.25
"""Shares of the dimensions that may have other marginals than a Gaussian."""
_GROUPS = 10
_PERMUTATIONS = 99
_PERMUTED_ITEMS = 1_000
_MIXED_DIRECTIONS = 5
_ROUNDS = 20  # of k-means
_NULL_DIRECTIONS = 2_000


Word = Literal["yes", "partly", "no", "unknown"]
Judgement = tuple[Word, str] | tuple[Word, str, float, dict[str, Any]]
"""What an `Answer` has beside its question."""


@dataclass
class Answer:
    """The answer to a question about the data.

    Attributes:
        question: in words.
        answer: ``yes``, ``partly``, ``no``, or ``unknown``.
        because: what it rests on, in words and numbers.
        number: the number that it rests on; None where it is unknown, or rests on several.
        measures: the numbers behind it, with what chance gives.
    """

    question: str
    answer: Word
    because: str
    number: float | None = None
    measures: dict[str, Any] = field(default_factory=dict)


def answer_questions(
    collected: Collected, noise: Residuals | None, *, seed: int = 0
) -> dict[str, Answer]:
    """Answer the questions by name, in the order of the paper's model; all but ``orthogonal`` need
    pairs.
    """
    absent: Judgement = "unknown", "This needs pairs, but the store has none."
    return {
        "constant": Answer(
            "Is the gap constant?", *(_is_constant(collected, seed) if noise else absent)
        ),
        "orthogonal": Answer(
            "Is the gap orthogonal to both modalities?", *_is_orthogonal(collected, seed)
        ),
        "gaussian": Answer(
            "Is the alignment noise Gaussian?", *(_is_gaussian(noise) if noise else absent)
        ),
        "isotropic": Answer(
            "Is the alignment noise isotropic?", *(_is_isotropic(noise) if noise else absent)
        ),
    }


def _is_constant(collected: Collected, seed: int) -> Judgement:
    """Test whether the gap is the same vector everywhere: along the store's order, by content, and
    item by item.

    A variation is the root mean square distance of the groups' gaps from the gap of all, less what
    groups drawn at random differ by, over the gap's length. It counts only if it is above 95 % of
    random groups. The groups are the items in the store's order, and clusters of items by content
    (k-means on the sum of both modalities' centred rows, which noise of one size in both leaves
    uncorrelated with their difference). A third variation is that of two or more gaps mixed at
    random: along a principal direction of the differences two of them make a flat, two-peaked
    distribution, and ``sqrt(-kurtosis / 2)`` of its variance is theirs.
    """
    working, gap = collected.working, collected.gap
    count, length = len(working.first), sqrt(max(float(gap @ gap) - collected.gap_bias, 0.0))
    if count < MIN_ITEMS:
        few = (
            f"{counted(count, 'item')} are too few to compare parts of them; {MIN_ITEMS} are "
            f"needed."
        )
        return "unknown", few
    if length == 0:
        return "unknown", "There is no gap beyond what so few items show by chance."
    differences, groups = working.first - working.item_means, min(_GROUPS, count // 10)
    differences -= differences.mean(axis=0)
    content = _cluster(working.first + working.item_means, groups, seed=seed)
    found = {
        "order": _between_groups(differences, np.arange(count) * groups // count, seed=seed)
        / length,
        "content": _between_groups(differences, content, seed=seed) / length,
        "mixture": _mixture(differences) / length,
    }
    because = (
        f"Beyond chance, the gap varies by {100 * found['order']:.0f} % of its length along the "
        f"order of the store, by "
        f"{100 * found['content']:.0f} % between {groups} clusters of items with similar content, "
        f"and by "
        f"{100 * found['mixture']:.0f} % in a test for two gaps mixed at random ({count} items)."
    )
    worst = max(found.values())
    return (
        _graded(worst <= SAME, worst <= ALIKE),
        because,
        worst,
        {"groups": groups, "items": count, **found},
    )


def _is_orthogonal(collected: Collected, seed: int) -> Judgement:
    """Test whether the gap is orthogonal to the spans of both modalities, against directions at
    random.

    The number is the variance of a modality along the gap over that along the average direction: 0
    if orthogonal, about 1 for a random direction, more for one inside the span. The answer is yes
    only if both modalities vary less along the gap than along 97.5 % of random directions. The
    share of the gap inside the 99 % span is given as well; it cannot tell a gap from a random
    direction where noise fills all dimensions, as the span then does.
    """
    found = {name: _along_gap(collected, name, seed) for name in collected.moments}
    known = {name: measures for name, measures in found.items() if measures}
    if not known:
        return "unknown", "There is no gap beyond chance, or the modalities do not vary."
    ratios = {
        name: (each["variance_ratio"], *each["random_directions"]) for name, each in known.items()
    }
    below, above = (
        [ratio < low for ratio, low, _ in ratios.values()],
        [ratio > high for ratio, _, high in ratios.values()],
    )

    def listed(key: str) -> str:
        return ", ".join(f"{name} {each[key]:.2f}" for name, each in known.items())

    ranges = ", ".join(f"{name} {low:.2f} to {high:.2f}" for name, (_, low, high) in ratios.items())
    because = (
        f"Variance along the gap, divided by that along an average direction: "
        f"{listed('variance_ratio')}; random "
        f"directions at the same angle to the mean give {ranges}. Share of the gap inside the 99 "
        f"% span: "
        f"{listed('share_in_span')}; by chance {listed('share_by_chance')}."
    )
    worst = max(ratio for ratio, *_ in ratios.values())
    return _graded(all(below), any(below) and not any(above)), because, worst, known


def _along_gap(collected: Collected, name: str, seed: int) -> dict[str, Any] | None:
    """Compare the variance of a modality along the gap with that along random directions.

    Random directions have the gap's angle to the modality's mean: rows of unit length vary little
    along their mean, and the gap, a difference of means, is not at right angles to it, so that
    among all directions it would vary less than most for this reason alone.

    Returns:
        ``variance_ratio``, 1 on average over all directions, and ``random_directions``, the range
        of 95 % of those with
        the gap's angle to the mean; ``share_in_span``, and ``share_by_chance``, that of the average
        direction. None
        without a gap or without variance.
    """
    moments, gap, gap_covariance = collected.moments[name], collected.gap, collected.gap_covariance
    values, vectors = np.linalg.eigh(moments.covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    total, dim = float(values.sum()), len(values)
    square = float(gap @ gap) - collected.gap_bias
    if total <= 0 or square <= 0:
        return None
    span = effective_dimension(values)
    inside = vectors[:, :span]
    # rows and gap covary, by half of what their traces and the other modality's differ by, so that
    # the product of their sample covariances is too large
    traces = {other: float(np.trace(own.covariance)) for other, own in collected.moments.items()}
    items = collected.items or min(own.n for own in collected.moments.values())
    shared = (2 * traces[name] - sum(traces.values()) + items * collected.gap_bias) / 2
    excess = shared**2 / (items * max(items - 1, 1))
    chance = max(float(np.sum(moments.covariance * gap_covariance)) - excess, 0.0)
    along = float(gap @ moments.covariance @ gap) - chance
    part = float(np.sum((gap @ inside) ** 2)) - float(np.sum((gap_covariance @ inside) * inside))
    drawn = generator(seed, "random directions").standard_normal((_NULL_DIRECTIONS, dim))
    unit = unit_rows(moments.mean[None])[0]
    drawn = unit_rows(drawn - np.outer(drawn @ unit, unit))
    cosine = float(gap @ unit) / float(np.linalg.norm(gap))
    ratios = (
        ((cosine * unit + sqrt(max(1 - cosine**2, 0.0)) * drawn) @ vectors) ** 2
        @ values
        * (dim / total)
    )
    return {
        "variance_ratio": max(along, 0.0) / square * dim / total,
        "random_directions": [float(end) for end in np.quantile(ratios, [0.025, 0.975])],
        "share_in_span": min(max(part / square, 0.0), 1.0),
        "share_by_chance": span / dim,
    }


def _is_gaussian(noise: Residuals) -> Judgement:
    """Test whether the marginals of the alignment noise are Gaussian, dimension by dimension and
    pooled.

    A dimension is unlike a Gaussian if its skewness is beyond 0.3 or its excess kurtosis beyond
    0.5, and beyond three standard errors of either: ``sqrt(6 / n)`` and ``sqrt(24 / n)`` of n
    items.
    """
    kurtosis, error = _unbiased_kurtosis(noise.kurtosis, noise.items), sqrt(24 / noise.items)
    unlike = (np.abs(kurtosis) > max(0.5, 3 * error)) | (
        np.abs(noise.skewness) > max(0.3, 1.5 * error)
    )
    share, mean, distance = float(unlike.mean()), float(kurtosis.mean()), noise.distance_to_normal
    # dimensions that vary together count as one
    allowed = 3 * error / sqrt(max(noise.isotropy * len(kurtosis), 1.0))
    close = share <= FEW and distance <= 0.03 and abs(mean) <= 0.5 + allowed
    near = share <= SOME and distance <= 0.06 and abs(mean) <= 1.0 + allowed
    because = (
        f"In {100 * share:.0f} % of the dimensions, skewness or kurtosis differ from a Gaussian. "
        f"The mean excess "
        f"kurtosis is {mean:.2f}, and the pooled standardised marginals differ from a normal "
        f"distribution by at most "
        f"{distance:.3f} ({noise.items} items)."
    )
    measures = {"unlike_dimensions": share, "mean_excess_kurtosis": mean, "distance": distance}
    return _graded(close, near), because, distance, measures


def _is_isotropic(noise: Residuals) -> Judgement:
    """Test whether the alignment noise has the same size in every direction.

    Allowances for few items: twice the standard error ``2 / n`` of the share, and for the ratio of
    the largest to the smallest standard deviation, what n isotropic items in d dimensions give.
    """
    smallest, largest, dim = noise.std_smallest, noise.std_largest, len(noise.per_dimension)
    ratio = largest / smallest if smallest > 0 else float("inf")
    furthest = NormalDist().inv_cdf(1 - 0.5 / dim)
    chance = exp(2 * furthest / sqrt(2 * noise.items))
    share = noise.isotropy * (1 + 4 / noise.items)
    because = (
        f"The noise fills {100 * noise.isotropy:.0f} % of the dimensions (100 % if isotropic). "
        f"The standard deviation "
        f"per dimension ranges from {smallest:.3f} to {largest:.3f}, a ratio of {ratio:.1f} "
        f"(isotropic noise of "
        f"{noise.items} items: {chance:.1f})."
    )
    measures = {"isotropy": noise.isotropy, "std_ratio": ratio, "std_ratio_by_chance": chance}
    return (
        _graded(share >= 0.9 and ratio <= 2 * chance, share >= 0.6),
        because,
        noise.isotropy,
        measures,
    )


def _between_groups(differences: Array, labels: Indices, *, seed: int) -> float:
    """Return the root mean square distance of group means from the mean, beyond that of random
    groups.

    Args:
        differences: float64 (n, d), centred.
        labels: int64 (n,), the group of each row.
        seed: of the permutations.

    Returns:
        0 if it is not above 95 % of the permutations of the labels.
    """

    def above_chance(rows: Array, drawn: Indices) -> Array:
        """Return the mean square distance of group means from 0, by size, over its mean over all
        permutations.

        Both (p,), of groups (p, n): one for each drawing of labels.
        """
        members = (drawn[:, None] == np.unique(drawn)[:, None]).astype(np.float64)  # (p, groups, n)
        sums = members @ rows
        spread = (np.einsum("pgd,pgd->pg", sums, sums) / members.sum(axis=2)).sum(axis=1)
        chance = float(np.sum(rows**2)) * (members.shape[1] - 1) / (len(rows) - 1)
        return np.asarray(spread / chance if chance > 0 else spread)

    rng, count = generator(seed, "permuted groups"), len(differences)
    value = float(above_chance(differences, labels[None])[0])
    # how far random groups are above chance does not depend on the number of items: a thousand are
    # enough
    chosen = rng.permutation(count)[:_PERMUTED_ITEMS]
    rows = differences[chosen] - differences[chosen].mean(axis=0)
    drawn = above_chance(
        rows, np.stack([rng.permutation(labels[chosen]) for _ in range(_PERMUTATIONS)])
    )
    if value <= np.sort(drawn)[int(0.95 * _PERMUTATIONS)]:
        return 0.0
    spread = float(np.mean(np.einsum("ij,ij->i", differences, differences)))
    return sqrt(max(value - 1, 0.0) * spread * (len(np.unique(labels)) - 1) / (count - 1))


def _mixture(differences: Array) -> float:
    """Return the root mean square distance of two gaps, mixed at random in any shares, from their
    mean.

    Where two points have the share ``l`` of the variance along a direction and Gaussian noise the
    rest, skewness s and excess kurtosis k obey ``2 l^3 + k l = s^2``, as those of two points alone
    obey ``k = s^2 - 2``. A principal direction counts if it is flatter than a Gaussian, or flatter
    than its skewness allows, by three standard errors.

    Args:
        differences: float64 (n, d), centred, one row per item.
    """
    count, square = len(differences), 0.0
    error = 3 * sqrt(24 / count)
    vectors = np.linalg.eigh(differences.T @ differences)[1][:, : -_MIXED_DIRECTIONS - 1 : -1]
    for scores in (differences @ vectors).T:
        variance = float(np.mean(scores**2))
        if variance <= 0:
            continue
        kurtosis = float(_unbiased_kurtosis(np.mean(scores**4) / variance**2 - 3, count))
        squared_skewness = float(np.mean(scores**3)) ** 2 / variance**3
        if kurtosis < -error or squared_skewness - kurtosis > error + 6 / count:
            roots = np.roots([2, 0, kurtosis, -squared_skewness])
            square += variance * min(float(roots[np.abs(roots.imag) < 1e-9].real.max()), 1.0)
    return sqrt(square)


def _cluster(rows: Array, count: int, *, seed: int) -> Indices:
    """Cluster rows (n, d) by k-means from k-means++ starts; return the cluster of each, int64
    (n,).
    """
    rng = generator(seed, "clusters")
    rows = rows - rows.mean(axis=0)
    squares = np.einsum("ij,ij->i", rows, rows)
    centres = rows[rng.integers(len(rows), size=1)]
    distance = np.full(len(rows), np.inf)
    while len(centres) < count:
        distance = np.minimum(
            distance, np.maximum(squares - 2 * rows @ centres[-1] + centres[-1] @ centres[-1], 0)
        )
        if not distance.sum() > 0:
            break
        centres = np.vstack([centres, rows[rng.choice(len(rows), p=distance / distance.sum())]])
    for _ in range(_ROUNDS):
        labels = np.argmin(np.einsum("ij,ij->i", centres, centres) - 2 * rows @ centres.T, axis=1)
        for number in np.unique(labels):
            centres[number] = rows[labels == number].mean(axis=0)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _unbiased_kurtosis(kurtosis: Array, count: int) -> Array:
    """Return the excess kurtosis G2 from the moment ratio g2 of ``count`` values, unbiased for
    Gaussian ones.
    """
    if count < 4:
        return kurtosis
    return np.asarray((count - 1) * ((count + 1) * kurtosis + 6) / ((count - 2) * (count - 3)))


def _graded(yes: bool, partly: bool) -> Word:
    return "yes" if yes else "partly" if partly else "no"
