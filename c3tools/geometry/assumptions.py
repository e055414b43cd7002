"""Tests of the model `e_x - e_y = c_perp + eps, eps ~ N(0, sigma^2 I)`: questions with a number and a verdict each.

The paper's model of a contrastive space (Zhang et al., ICLR 2024): the gap is constant, it is orthogonal to the
spans of both modalities, and what is left of a pair is isotropic Gaussian noise. Each test has two parts: an effect
size, since with enough rows every significance test rejects every model, and an allowance for what few items show by
chance. Items are drawn independently; the captions of one image are not. benchmarks/assumption_power.py measures the
verdicts on stores that follow the model and on stores that violate it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from ..arrays import Array
from ..moments import Moments
from ..reporter import counted
from ..seeds import generator
from .collect import Collected
from .residuals import Residuals, between_groups, cluster, mixture, unbiased_kurtosis
from .spectrum import effective_dimension

Answer = Literal["yes", "partly", "no", "unknown"]

QUESTIONS = {
    "constant": "Is the gap constant?",
    "orthogonal": "Is the gap orthogonal to both modalities?",
    "gaussian": "Is the alignment noise Gaussian?",
    "isotropic": "Is the alignment noise isotropic?",
    "subsets": "Is the gap the same in every subset?",
}
MIN_SUBSET_ITEMS = 3
MIN_ITEMS = 20
SAME, ALIKE = 0.3, 0.6
"""A difference of 0.3 of the gap's length is a turn of 17 degrees (a cosine of 0.95); 0.6 is one of 35 (0.82)."""
FEW, SOME = 0.1, 0.25
"""Shares of the dimensions that may have other marginals than a Gaussian."""
_GROUPS = 10
_NULL_DIRECTIONS = 2_000


@dataclass(frozen=True)
class Assumption:
    """One question about the data, and its answer.

    Attributes:
        name: key in the report's JSON.
        question: in words.
        answer: ``yes``, ``partly``, ``no``, or ``unknown``.
        number: what the answer rests on; None where unknown.
        because: one sentence with the number in it.
        measures: the numbers behind it, with what chance gives.
    """

    name: str
    question: str
    answer: Answer
    number: float | None
    because: str
    measures: dict[str, Any] = field(default_factory=dict)


def all_assumptions(collected: Collected, noise: Residuals | None, *, seed: int = 0) -> list[Assumption]:
    """Answer the four questions, in the order of the paper's model; three of them need pairs."""
    orthogonal = is_orthogonal(collected, seed=seed)
    if collected.sums is None or noise is None:
        absent = "This needs pairs, but the store has none."
        constant, gaussian, isotropic = (_answer(name, absent) for name in ("constant", "gaussian", "isotropic"))
        return [constant, orthogonal, gaussian, isotropic]
    return [is_constant(collected, seed=seed), orthogonal, is_gaussian(noise), is_isotropic(noise)]


def is_constant(collected: Collected, *, seed: int = 0) -> Assumption:
    """Test whether the gap is the same vector everywhere: along the store's order, by content, and item by item.

    A variation is the root mean square distance of the groups' gaps from the gap of all, less what groups drawn at
    random differ by, over the gap's length. It counts only if it is above 95 % of random groups. The groups are the
    items in the store's order, and clusters of items by content (k-means on the sum of both modalities' centred rows,
    which noise of one size in both leaves uncorrelated with their difference). A third variation is that of two or more
    gaps mixed at random: along a principal direction of the differences two of them make a flat, two-peaked
    distribution, and ``sqrt(-kurtosis / 2)`` of its variance is theirs.
    """
    gap, working = collected.moments[collected.first].mean - collected.moments[collected.second].mean, collected.working
    count = len(working.first)
    length = sqrt(max(float(gap @ gap) - collected.gap_bias, 0.0))
    if count < MIN_ITEMS:
        few = f"{counted(count, 'item')} are too few to compare parts of them; {MIN_ITEMS} are needed."
        return _answer("constant", few)
    if length == 0:
        return _answer("constant", "There is no gap beyond what so few items show by chance.")
    means = working.item_means
    content = working.first + means
    differences = working.first - means
    differences -= differences.mean(axis=0)
    groups = min(_GROUPS, max(2, count // 10))
    parts = {
        "order": np.arange(count) * groups // count,
        "content": cluster(content, groups, seed=seed),
    }
    found = {name: between_groups(differences, labels, seed=seed) / length for name, labels in parts.items()}
    found["mixture"] = mixture(differences) / length
    worst = max(found.values())
    answer: Answer = "yes" if worst <= SAME else "partly" if worst <= ALIKE else "no"
    shares = {name: f"{100 * value:.0f} %" for name, value in found.items()}
    because = (
        f"Beyond chance, the gap varies by {shares['order']} of its length along the order of the store, by "
        f"{shares['content']} between {groups} clusters of items with similar content, and by {shares['mixture']} in "
        f"a test for two gaps mixed at random ({count} items)."
    )
    return _answer("constant", because, answer, worst, {"groups": groups, "items": count, **found})


def is_orthogonal(collected: Collected, *, seed: int = 0) -> Assumption:
    """Test whether the gap is orthogonal to the spans of both modalities, against directions at random.

    The number is the variance of a modality along the gap over that along the average direction: 0 if orthogonal,
    about 1 for a random direction, more for one inside the span. The answer is yes only if both modalities vary less
    along the gap than along 97.5 % of random directions. The share of the gap inside the 99 % span is given as well;
    it cannot tell a gap from a random direction where noise fills all dimensions, as the span then does.
    """
    gap = collected.moments[collected.first].mean - collected.moments[collected.second].mean
    traces = {name: float(np.trace(moments.covariance)) for name, moments in collected.moments.items()}
    items = collected.items or min(moments.n for moments in collected.moments.values())
    found = {}
    for name, moments in collected.moments.items():
        # rows and gap covary, by half of what their traces and the other modality's differ by, so that the product of
        # their sample covariances is too large
        shared = (2 * traces[name] - sum(traces.values()) + items * collected.gap_bias) / 2
        excess = shared**2 / (items * max(items - 1, 1))
        found[name] = along_gap(moments, gap, collected.gap_covariance, excess=excess, seed=seed)
    known = {name: values for name, values in found.items() if values is not None}
    if not known:
        return _answer("orthogonal", "There is no gap beyond chance, or the modalities do not vary.")
    below = [values["variance_ratio"] < values["random_directions"][0] for values in known.values()]
    above = [values["variance_ratio"] > values["random_directions"][1] for values in known.values()]
    answer: Answer = "yes" if all(below) else "partly" if any(below) and not any(above) else "no"

    def listed(key: str, digits: int) -> str:
        return ", ".join(f"{name} {values[key]:.{digits}f}" for name, values in known.items())

    ranges = ", ".join("{} {:.2f} to {:.2f}".format(name, *each["random_directions"]) for name, each in known.items())
    because = (
        f"Variance along the gap, divided by that along an average direction: {listed('variance_ratio', 2)}; random "
        f"directions at the same angle to the mean give {ranges}. Share of the gap inside the 99 % span: "
        f"{listed('share_in_span', 2)}; by chance {listed('share_by_chance', 2)}."
    )
    worst = max(float(values["variance_ratio"]) for values in known.values())
    return _answer("orthogonal", because, answer, worst, known)


def along_gap(
    moments: Moments, gap: Array, gap_covariance: Array, *, excess: float = 0.0, seed: int = 0
) -> dict[str, Any] | None:
    """Compare the variance of a modality along the gap with that along random directions.

    Args:
        moments: of the modality.
        gap: float64 (d,).
        gap_covariance: float64 (d, d), the uncertainty of ``gap``, whose share is taken off.
        excess: what the trace of the product of both covariances is too large by on average.
        seed: of the random directions.

    Returns:
        ``variance_ratio``, 1 on average over all directions, ``random_directions``, the range of 95 % of those with the
        gap's angle to the mean, and ``random_in_span``, the mean over directions inside the span; ``share_in_span``,
        ``share_by_chance`` and ``share_range`` likewise. None without a gap or without variance.
    """
    values, vectors = np.linalg.eigh(moments.covariance)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    total, dim = float(values.sum()), len(values)
    square = float(gap @ gap) - float(np.trace(gap_covariance))
    if total <= 0 or square <= 0:
        return None
    span = effective_dimension(values)
    inside = vectors[:, :span]
    chance = max(float(np.sum(moments.covariance * gap_covariance)) - excess, 0.0)
    along = float(gap @ moments.covariance @ gap) - chance
    part = float(np.sum((gap @ inside) ** 2)) - float(np.sum((gap_covariance @ inside) * inside))
    directions = _random_directions(moments.mean, gap, generator(seed, "random directions"))
    weights = (directions @ vectors) ** 2
    ratios, shares = weights @ values * (dim / total), weights[:, :span].sum(axis=1)
    return {
        "variance_ratio": max(along, 0.0) / square * dim / total,
        "random_directions": [float(end) for end in np.quantile(ratios, [0.025, 0.975])],
        "random_in_span": float(values[:span].sum()) / span * dim / total,
        "share_in_span": min(max(part / square, 0.0), 1.0),
        "share_by_chance": span / dim,
        "share_range": [float(end) for end in np.quantile(shares, [0.025, 0.975])],
    }


def _random_directions(mean: Array, gap: Array, rng: np.random.Generator) -> Array:
    """Draw unit vectors (m, d) at random among those with the gap's angle to a modality's mean.

    Rows of unit length vary little along their mean, and the gap, a difference of means, is not at right angles to it:
    among all directions it would vary less than most for this reason alone.
    """
    drawn = rng.standard_normal((_NULL_DIRECTIONS, len(gap)))
    length = float(np.linalg.norm(mean))
    unit = mean / length if length > 0 else np.zeros_like(mean)
    drawn -= np.outer(drawn @ unit, unit)
    drawn /= np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-300)
    cosine = min(max(float(gap @ unit) / float(np.linalg.norm(gap)), -1.0), 1.0)
    return np.asarray(cosine * unit + sqrt(1 - cosine**2) * drawn)


def is_gaussian(noise: Residuals) -> Assumption:
    """Test whether the marginals of the alignment noise are Gaussian, dimension by dimension and pooled.

    A dimension is unlike a Gaussian if its skewness is beyond 0.3 or its excess kurtosis beyond 0.5, and beyond three
    standard errors of either: ``sqrt(6 / n)`` and ``sqrt(24 / n)`` of n items.
    """
    kurtosis = unbiased_kurtosis(noise.kurtosis, noise.items)
    error = sqrt(24 / noise.items)
    unlike = (np.abs(kurtosis) > max(0.5, 3 * error)) | (np.abs(noise.skewness) > max(0.3, 1.5 * error))
    share, mean = float(unlike.mean()), float(kurtosis.mean())
    # dimensions that vary together count as one
    allowed = 3 * error / sqrt(max(noise.isotropy * len(kurtosis), 1.0))
    close = share <= FEW and noise.distance <= 0.03 and abs(mean) <= 0.5 + allowed
    near = share <= SOME and noise.distance <= 0.06 and abs(mean) <= 1.0 + allowed
    answer: Answer = "yes" if close else "partly" if near else "no"
    because = (
        f"In {100 * share:.0f} % of the dimensions, skewness or kurtosis differ from a Gaussian. The mean excess "
        f"kurtosis is {mean:.2f}, and the pooled standardised marginals differ from a normal distribution by at most "
        f"{noise.distance:.3f} ({noise.items} items)."
    )
    measures = {"unlike_dimensions": share, "mean_excess_kurtosis": mean, "distance": noise.distance}
    return _answer("gaussian", because, answer, noise.distance, measures)


def is_isotropic(noise: Residuals) -> Assumption:
    """Test whether the alignment noise has the same size in every direction.

    Allowances for few items: twice the standard error ``2 / n`` of the share, and for the ratio of the largest to the
    smallest standard deviation, what n isotropic items in d dimensions give.
    """
    smallest, largest = float(noise.per_dimension.min()), float(noise.per_dimension.max())
    ratio = largest / smallest if smallest > 0 else float("inf")
    furthest = NormalDist().inv_cdf(1 - 0.5 / len(noise.per_dimension)) if len(noise.per_dimension) > 1 else 0.0
    chance = exp(2 * furthest / sqrt(2 * noise.items))
    share = noise.isotropy * (1 + 4 / noise.items)
    answer: Answer = "yes" if share >= 0.9 and ratio <= 2 * chance else "partly" if share >= 0.6 else "no"
    because = (
        f"The noise fills {100 * noise.isotropy:.0f} % of the dimensions (100 % if isotropic). The standard deviation "
        f"per dimension ranges from {smallest:.3f} to {largest:.3f}, a ratio of {ratio:.1f} (isotropic noise of "
        f"{noise.items} items: {chance:.1f})."
    )
    measures = {"isotropy": noise.isotropy, "std_ratio": ratio, "std_ratio_by_chance": chance}
    return _answer("isotropic", because, answer, noise.isotropy, measures)


def compare_subsets(collected: Collected, gap: Array) -> list[dict[str, Any]]:
    """Measure the gap of each subset: pairs, items, length, cosine with the gap, and how far it differs beyond chance.

    By chance, the mean difference of a subset of m of n items is off the mean over all by a squared distance of
    ``tr(S) (1 / m - 1 / n)``, S the covariance of the items' differences. ``difference`` is the distance that is left
    when this is taken off, over the length of the gap, and 0 where chance gives as much to the worst of so many subsets
    in one store of twenty; None for subsets of fewer than 3 items.
    """
    sums, length = collected.sums, float(np.linalg.norm(gap))
    if sums is None:
        return []
    working = collected.working
    spread = working.first - working.item_means
    spread = spread - spread.mean(axis=0)
    freedom = max(len(spread) - 1, 1)
    total = float(np.sum(spread**2)) / freedom
    # tr(S^2), of which the variance of a squared distance is made, without what few items add to it
    square = max(float(np.sum((spread.T @ spread / freedom) ** 2)) - total**2 / freedom, 0.0)
    # nearly, a squared distance has a chi-squared distribution of (tr S)^2 / tr(S^2) degrees of freedom: Wilson and
    # Hilferty's quantile, which one subset in twenty stores without any difference exceeds
    shape = 2 * square / (9 * total**2) if total > 0 else 0.0
    limit = (1 - shape + NormalDist().inv_cdf(1 - 0.05 / max(len(collected.subset_names), 1)) * sqrt(shape)) ** 3
    overall = float(np.linalg.norm(sums.mean))
    rows = []
    for number, name in enumerate(collected.subset_names):
        pairs, items, mean = int(sums.subset_pairs[number]), int(sums.subset_items[number]), sums.subset_means[number]
        if not pairs:
            continue
        norm = float(np.linalg.norm(mean))
        chance = total * max(1 / items - 1 / collected.items, 0.0)
        beyond = float(np.sum((mean - sums.mean) ** 2)) - chance
        if beyond <= (limit - 1) * chance:
            beyond = 0.0
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
        f"{100 * value:.0f} % of its length, not counting what so few items differ by chance ({len(known)} subsets)."
    )
    return _answer("subsets", because, answer, value)


def _answer(
    name: str,
    because: str,
    answer: Answer = "unknown",
    number: float | None = None,
    measures: dict[str, Any] | None = None,
) -> Assumption:
    return Assumption(name, QUESTIONS[name], answer, number, because, measures or {})
