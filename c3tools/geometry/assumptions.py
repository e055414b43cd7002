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

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import asin, degrees, exp, sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from ..arrays import Array, Indices
from ..clustering.kmeans import kmeans
from ..moments import unit_rows
from ..reporter import counted
from ..seeds import generator
from .collect import Collected
from .measures import Residuals, effective_dimension

MIN_ITEMS = 20
"""Items from which parts of them can be compared."""
MIN_SHAPE_ITEMS = 12
"""Items from which the shape of the noise, and of the modalities along the gap, can be judged. With
fewer, the paper's model is denied too often: docs/results/geometry.md."""
CHANCE = 2.0
"""The gap lies along a mean if its angle is within so many standard errors."""
SAME = 0.3
"""Variation of a constant gap, over its length: a turn of 17 degrees (a cosine of 0.95)."""
ALIKE = 0.6
"""Variation of a partly constant gap, over its length: a turn of 35 degrees (0.82)."""
PARTS = 0.4
"""Share of the gaps of parts in the squared distance of a pair, from which a store whose means are
not apart has them. After Collapse, topics of CLIP and c3-mini have 6 to 21%."""
FEW = 0.1
"""Share of the dimensions of Gaussian noise that may have other marginals than a Gaussian."""
SOME = 0.25
"""That share of partly Gaussian noise."""
_GROUPS = 10
_DOMAINS = 3  # parts that may have opposite gaps: more would each be a few scenes of a video
_PERMUTATIONS = 99
_PERMUTED_ITEMS = 1_000
_LEAST_SHARE = 0.05  # of the items, that one of several gaps has
_FLAT_SHARE = 1 / 6  # of a flat distribution, within a sixth of two centres' distance of the middle
_NULL_DIRECTIONS = 2_000
_ROUNDING = 1e-6  # of float32 rows


Word = Literal["yes", "partly", "no", "unknown"]

CONSTANT = "Is the gap constant?"
ORTHOGONAL = "Is the gap orthogonal to both modalities?"
GAUSSIAN = "Is the alignment noise Gaussian?"
ISOTROPIC = "Is the alignment noise isotropic?"


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
    collected: Collected, noise: Residuals | None, *, has_gap: bool, seed: int = 0
) -> dict[str, Answer]:
    """Answer the questions by name, in the order of the paper's model.

    Args:
        collected: what was read.
        noise: the alignment noise; None without pairs, which all but ``orthogonal`` need.
        has_gap: whether the means are apart, without which ``orthogonal`` has no answer, and
            ``constant`` only where parts of the store have gaps of their own.
        seed: of random groups and directions.
    """
    no_pairs = "This check needs pairs, but the store has none."
    no_gap = "This check applies only if there is a gap."
    answers = {
        "constant": Answer(CONSTANT, "unknown", no_gap if noise else no_pairs),
        "orthogonal": Answer(ORTHOGONAL, "unknown", no_gap),
        "gaussian": Answer(GAUSSIAN, "unknown", no_pairs),
        "isotropic": Answer(ISOTROPIC, "unknown", no_pairs),
    }
    if has_gap:
        answers["orthogonal"] = _is_orthogonal(collected, seed)
    if noise:
        constant = _is_constant(collected, seed, has_gap=has_gap)
        if has_gap or constant.answer == "no":
            answers["constant"] = constant
        answers["gaussian"] = _is_gaussian(noise)
        answers["isotropic"] = _is_isotropic(noise)
    return answers


def _is_constant(collected: Collected, seed: int, *, has_gap: bool) -> Answer:
    """Test whether the gap is the same vector everywhere: along the store's order, by content, and
    item by item.

    A variation is the root mean square distance of the groups' gaps from the gap of all, less what
    groups drawn at random differ by, over the gap's length. It counts only if it is above 95% of
    random groups. Equal items count as one. The groups are the items in the store's order, and
    clusters of items by content (k-means on the sum of both modalities' centred rows, which noise
    of one size in both leaves uncorrelated with their difference). A third variation is that of
    several gaps mixed at random, see `_mixture`.

    Without a gap, as where two domains have opposite ones, there are at most three groups,
    variations are divided by the distance of a pair, and the answer is no from `PARTS` on.
    """
    # One row per distinct item: the mean of its rows in each modality
    working = collected.working
    sizes = np.bincount(working.distinct_items)[:, None]
    images = np.zeros((len(sizes), working.first.shape[1]))
    texts = np.zeros_like(images)
    np.add.at(images, working.distinct_items, working.first)
    np.add.at(texts, working.distinct_items, working.item_means)
    images /= sizes
    texts /= sizes
    count = len(images)
    if count < MIN_ITEMS:
        return Answer(CONSTANT, "unknown", _too_few(count, MIN_ITEMS, "compare parts of them"))

    # Variations are measured in lengths of the gap; without a gap, in distances of a pair
    differences = images - texts
    if has_gap:
        length = sqrt(float(collected.gap @ collected.gap) - collected.gap_bias)
        unit = "its length"
    else:
        length = max(sqrt(float(np.mean(np.sum(differences**2, axis=1)))), _ROUNDING)
        unit = "the distance of a pair"

    # How the gaps of groups vary, for three ways to group the items
    differences -= differences.mean(axis=0)
    most_groups = _GROUPS if has_gap else _DOMAINS
    groups = min(most_groups, count // 10)
    by_content = kmeans(images + texts, groups, generator(seed, "clusters"))
    by_order = np.arange(count) * groups // count
    variations = {
        "order": _between_groups(differences, by_order, seed=seed) / length,
        "content": _between_groups(differences, by_content, seed=seed) / length,
        "mixture": _mixture(differences, most_groups, seed=seed) / length,
    }
    because = (
        f"Beyond chance, the gap varies by {100 * variations['order']:.0f}% of {unit} along "
        f"the order of the store, by {100 * variations['content']:.0f}% between {groups} clusters "
        f"of items with similar content, and by {100 * variations['mixture']:.0f}% between "
        f"clusters of their differences, as gaps mixed at random would make ({count} items)."
    )
    largest = max(variations.values())
    word = _graded(yes=largest <= SAME, partly=largest <= ALIKE)
    if not has_gap:
        word = "no" if largest**2 >= PARTS else "unknown"
    measures = {"groups": groups, "items": count, **variations}
    return Answer(CONSTANT, word, because, largest, measures)


def _is_orthogonal(collected: Collected, seed: int) -> Answer:
    """Test whether the gap is orthogonal to the spans of both modalities, against directions at
    random.

    The number is the variance of a modality along the gap over that along the average direction: 0
    if orthogonal, about 1 for a random direction, more for one inside the span. The answer is yes
    only if both modalities vary less along the gap than along 97.5% of random directions. The
    share of the gap inside the 99% span is given as well; it cannot tell a gap from a random
    direction where noise fills all dimensions, as the span then does.
    """
    items = collected.distinct_items
    if items < MIN_SHAPE_ITEMS:
        because = _too_few(items, MIN_SHAPE_ITEMS, "judge directions")
        return Answer(ORTHOGONAL, "unknown", because)
    along_gap = {name: _along_gap(collected, name, seed) for name in collected.moments}
    measures = {name: asdict(modality) for name, modality in along_gap.items()}

    # A gap along a mean proves nothing: unit rows vary little in that direction anyway
    for name, modality in along_gap.items():
        if modality.angle_to_mean <= CHANCE * modality.angle_error:
            because = (
                f"The gap lies along the mean of the {name} rows, as far as "
                f"{counted(items, 'item')} can tell "
                f"({modality.angle_to_mean:.0f}° ± {modality.angle_error:.0f}°). Rows of unit "
                f"length vary little along their mean, whatever the model."
            )
            return Answer(ORTHOGONAL, "unknown", because, measures=measures)

    # Compare the variance along the gap with that along random directions
    ratios = {name: modality.variance_ratio for name, modality in along_gap.items()}
    inside = {name: modality.share_in_span for name, modality in along_gap.items()}
    by_chance = {name: modality.share_by_chance for name, modality in along_gap.items()}
    is_below = []
    is_above = []
    ranges = []
    for name, modality in along_gap.items():
        low, high = modality.random_directions
        is_below.append(modality.variance_ratio < low)
        is_above.append(modality.variance_ratio > high)
        ranges.append(f"{name} {low:.2f} to {high:.2f}")
    because = (
        f"Variance along the gap, divided by that along an average direction: {_listed(ratios)}; "
        f"random directions at the same angle to the mean give {', '.join(ranges)}. Share of the "
        f"gap inside the 99% span: {_listed(inside)}; by chance {_listed(by_chance)}."
    )
    word = _graded(yes=all(is_below), partly=any(is_below) and not any(is_above))
    return Answer(ORTHOGONAL, word, because, max(ratios.values()), measures)


@dataclass(frozen=True)
class AlongGap:
    """The variance of a modality along the gap.

    Attributes:
        variance_ratio: variance along the gap over that along the average direction.
        random_directions: the range of this ratio for 95% of random directions at the gap's angle
            to the mean.
        share_in_span: share of the gap inside the 99% span.
        share_by_chance: that of the average direction.
        angle_to_mean: between the gap and the line of the modality's mean, degrees, at most 90.
        angle_error: its root mean square over draws of items if it were 0, degrees.
    """

    variance_ratio: float
    random_directions: tuple[float, float]
    share_in_span: float
    share_by_chance: float
    angle_to_mean: float
    angle_error: float


def _along_gap(collected: Collected, name: str, seed: int) -> AlongGap:
    """Compare the variance of a modality along the gap with that along random directions.

    Random directions have the gap's angle to the modality's mean: rows of unit length vary little
    along their mean, and the gap, a difference of means, is not at right angles to it, so that
    among all directions it would vary less than most for this reason alone.
    """
    moments = collected.moments[name]
    covariance = moments.covariance
    gap = collected.gap
    gap_covariance = collected.gap_covariance
    squared_length = float(gap @ gap) - collected.gap_bias  # unbiased
    values, vectors = np.linalg.eigh(covariance)
    values = values[::-1]
    vectors = vectors[:, ::-1]
    dim = len(values)
    total_variance = float(values.sum())

    # The unbiased estimate of g' S g, given as "The variance along the gap" in
    # docs/reference/gap-report.md. The measured gap is g + e with the error e of mean 0 and
    # covariance G = C / n for n items, C the covariance of what an item adds to the gap: its row
    # minus the mean of its rows in the other modality.
    # 1. E[(g + e)' S (g + e)] = g' S g + tr(S G), so tr(S G) is subtracted.
    # 2. tr(S G) as measured is too large, because S and C come from the same items. For Gaussian
    #    rows, tr(S C) is too large by (tr(K)^2 + tr(K^2)) / (n - 1) (Isserlis, 1918), K the
    #    covariance of an item's row with what it adds to the gap. tr(K^2) is far smaller in many
    #    dimensions and left out.
    # 3. tr K = tr S_x - tr cov(x, y) and tr C = tr S_x + tr S_y - 2 tr cov(x, y), so
    #    tr K = (tr S_x - tr S_y + tr C) / 2. For y the sign is reversed, which the square hides.
    items = collected.distinct_items
    traces = {
        modality: float(np.trace(its_moments.covariance))
        for modality, its_moments in collected.moments.items()
    }
    trace_of_k = (2 * traces[name] - sum(traces.values()) + items * collected.gap_bias) / 2
    bias_of_trace = trace_of_k**2 / (items * max(items - 1, 1))
    added_by_error = max(float(np.sum(covariance * gap_covariance)) - bias_of_trace, 0.0)
    along = max(float(gap @ covariance @ gap) - added_by_error, 0.0)

    # Likewise the squared length of the gap's part in the span V: |V' g|^2 less tr(V' G V)
    span = effective_dimension(values)
    basis = vectors[:, :span]
    error_in_span = float(np.sum((gap_covariance @ basis) * basis))
    in_span = float(np.sum((gap @ basis) ** 2)) - error_in_span

    # The variance ratio of random directions at the gap's angle to the mean
    mean_direction = unit_rows(moments.mean[None])[0]
    length = float(np.linalg.norm(gap))
    cosine = float(gap @ mean_direction) / length
    sine = sqrt(max(1 - cosine**2, 0.0))
    drawn = generator(seed, "random directions").standard_normal((_NULL_DIRECTIONS, dim))
    across_mean = unit_rows(drawn - np.outer(drawn @ mean_direction, mean_direction))
    directions = cosine * mean_direction + sine * across_mean  # (directions, d)
    ratios = (directions @ vectors) ** 2 @ values * (dim / total_variance)
    low, high = np.quantile(ratios, [0.025, 0.975])

    # The sine is off by the errors of the gap and of the mean, each across the mean's direction;
    # both are squared, and relative to the length of what they are the error of
    gap_along_mean = float(mean_direction @ gap_covariance @ mean_direction)
    gap_error = max(collected.gap_bias - gap_along_mean, 0.0) / length**2
    rows_along_mean = float(mean_direction @ covariance @ mean_direction)
    mean_error = max(total_variance - rows_along_mean, 0.0)
    mean_error /= collected.independent[name] - 1  # of the mean, not of a row
    mean_error /= float(moments.mean @ moments.mean)
    sine_error = min(sqrt(gap_error + cosine**2 * mean_error), 1.0)
    return AlongGap(
        variance_ratio=along / squared_length * dim / total_variance,
        random_directions=(float(low), float(high)),
        share_in_span=min(max(in_span / squared_length, 0.0), 1.0),
        share_by_chance=span / dim,
        angle_to_mean=degrees(asin(sine)),
        angle_error=degrees(asin(sine_error)),
    )


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())


def _is_gaussian(noise: Residuals) -> Answer:
    """Test whether the marginals of the alignment noise are Gaussian, dimension by dimension and
    pooled.

    A dimension is unlike a Gaussian if its skewness is beyond 0.3 or its excess kurtosis beyond
    0.5, and beyond three standard errors of either: ``sqrt(6 / n)`` and ``sqrt(24 / n)`` of n
    items. The answer is yes if at most `FEW` of the dimensions are, the mean excess kurtosis is
    within 0.5, and the pooled marginals are within 0.03 of a normal distribution (largest
    difference of the distribution functions); partly with `SOME`, 1.0 and 0.06.
    """
    if no_answer := _why_not_judged(noise):
        return Answer(GAUSSIAN, "unknown", no_answer)
    distance = noise.distance_to_normal
    kurtosis = _unbiased_kurtosis(noise.kurtosis, noise.items)
    mean = float(kurtosis.mean())
    error_of_skewness = sqrt(6 / noise.items)
    error_of_kurtosis = sqrt(24 / noise.items)
    is_skewed = np.abs(noise.skewness) > max(0.3, 3 * error_of_skewness)
    has_other_tails = np.abs(kurtosis) > max(0.5, 3 * error_of_kurtosis)
    share = float((is_skewed | has_other_tails).mean())

    # Dimensions that vary together count as one
    allowed = 3 * error_of_kurtosis / sqrt(max(noise.isotropy * len(kurtosis), 1.0))
    is_close = share <= FEW and distance <= 0.03 and abs(mean) <= 0.5 + allowed
    is_near = share <= SOME and distance <= 0.06 and abs(mean) <= 1.0 + allowed
    because = (
        f"In {100 * share:.0f}% of the dimensions, skewness or kurtosis differ from a Gaussian. "
        f"The mean excess kurtosis is {mean:.2f}, and the pooled standardised marginals differ "
        f"from a normal distribution by at most {distance:.3f} ({noise.items} items)."
    )
    word = _graded(yes=is_close, partly=is_near)
    measures = {"unlike_dimensions": share, "mean_excess_kurtosis": mean, "distance": distance}
    return Answer(GAUSSIAN, word, because, distance, measures)


def _is_isotropic(noise: Residuals) -> Answer:
    """Test whether the alignment noise has the same size in every direction.

    Allowances for few items: twice the standard error ``2 / n`` of the share, and for the ratio of
    the largest to the smallest standard deviation, what n isotropic items in d dimensions give.
    """
    if no_answer := _why_not_judged(noise):
        return Answer(ISOTROPIC, "unknown", no_answer)
    smallest = noise.std_smallest
    largest = noise.std_largest
    ratio = largest / smallest if smallest > 0 else float("inf")
    # The largest of d standard normal numbers, about
    furthest = NormalDist().inv_cdf(1 - 0.5 / len(noise.per_dimension))
    chance = exp(2 * furthest / sqrt(2 * noise.items))
    share = noise.isotropy * (1 + 4 / noise.items)
    because = (
        f"The noise fills {100 * noise.isotropy:.0f}% of the dimensions (100% if isotropic). "
        f"The standard deviation per dimension ranges from {smallest:.3f} to {largest:.3f}, a "
        f"ratio of {ratio:.1f} (isotropic noise of {noise.items} items: {chance:.1f})."
    )
    word = _graded(yes=share >= 0.9 and ratio <= 2 * chance, partly=share >= 0.6)
    measures = {"isotropy": noise.isotropy, "std_ratio": ratio, "std_ratio_by_chance": chance}
    return Answer(ISOTROPIC, word, because, noise.isotropy, measures)


def _why_not_judged(noise: Residuals) -> str:
    """Say why the noise cannot be judged; an empty string if it can."""
    if noise.std_largest <= _ROUNDING:
        return "There is no alignment noise: the rows of each pair differ by the same vector."
    if noise.items < MIN_SHAPE_ITEMS:
        return _too_few(noise.items, MIN_SHAPE_ITEMS, "judge the shape of the noise")
    return ""


def _too_few(items: int, needed: int, purpose: str) -> str:
    """Say that there are fewer items than needed."""
    return f"{counted(items, 'item')} are too few to {purpose}; {needed} are needed."


def _between_groups(differences: Array, labels: Indices, *, seed: int) -> float:
    """Return the root mean square distance of group means from the mean, beyond that of random
    groups.

    Args:
        differences: float64 (n, d), centred.
        labels: int64 (n,), the group of each row.
        seed: of the permutations.

    Returns:
        0 if it is not above 95% of the permutations of the labels.
    """
    rng = generator(seed, "permuted groups")
    count = len(differences)
    value = float(_above_chance(differences, labels[None])[0])

    # How far random groups are above chance does not depend on the number of items: a thousand are
    # enough
    items = rng.permutation(count)[:_PERMUTED_ITEMS]
    rows = differences[items] - differences[items].mean(axis=0)
    permuted = np.stack([rng.permutation(labels[items]) for _ in range(_PERMUTATIONS)])
    by_chance = np.sort(_above_chance(rows, permuted))
    if value <= by_chance[int(0.95 * _PERMUTATIONS)]:
        return 0.0
    spread = float(np.mean(np.einsum("ij,ij->i", differences, differences)))
    groups = len(np.unique(labels))
    return sqrt(max(value - 1, 0.0) * spread * (groups - 1) / (count - 1))


def _above_chance(rows: Array, labels: Indices) -> Array:
    """Return the mean square distance of group means from 0, weighted by size, over its mean over
    all permutations of the labels.

    Args:
        rows: float64 (n, d), centred.
        labels: int64 (p, n), the group of each row, in p ways.

    Returns:
        float64 (p,).
    """
    groups = np.unique(labels)[:, None]
    is_member = (labels[:, None] == groups).astype(np.float64)  # (p, groups, n)
    sums = is_member @ rows
    sizes = is_member.sum(axis=2)
    spread = (np.einsum("pgd,pgd->pg", sums, sums) / sizes).sum(axis=1)
    chance = float(np.sum(rows**2)) * (len(groups) - 1) / (len(rows) - 1)
    return np.asarray(spread / chance if chance > 0 else spread)


def _mixture(differences: Array, most_groups: int, *, seed: int) -> float:
    """Return the root mean square distance of several gaps, mixed at random, from their mean; 0 if
    there are not several.

    The items are clustered by their differences, into two clusters, three, and so on. Clusters are
    gaps if there is a valley between them: if fewer items are near the middle of two centres than a
    flat distribution would have there, by three standard errors. So neither flat noise nor noise of
    another shape with one peak makes gaps, and gaps closer than about four standard deviations of
    the noise are not told apart. Clusters of a few items are outliers.

    Args:
        differences: float64 (n, d), centred, one row per item.
        most_groups: clusters that are tried, at the most.
        seed: of the clusters.
    """
    # The centres of k clusters differ in k - 1 directions: cluster in the principal ones
    count = len(differences)
    eigenvectors = np.linalg.eigh(differences.T @ differences)[1]
    scores = differences @ eigenvectors[:, -(most_groups - 1) :]

    # Two centres halve a flat distribution, so they are half its width apart, and a sixth of it is
    # within a sixth of their distance of the middle
    standard_error = sqrt(_FLAT_SHARE * (1 - _FLAT_SHARE) / count)
    share_of_valley = _FLAT_SHARE - 3 * standard_error
    largest = 0.0
    for cluster_count in range(2, most_groups + 1):
        labels = kmeans(scores, cluster_count, generator(seed, "clusters"))
        sizes = np.bincount(labels)
        large_clusters = np.flatnonzero(sizes >= _LEAST_SHARE * count)
        if len(large_clusters) < 2:
            continue
        centres = np.stack([scores[labels == label].mean(axis=0) for label in large_clusters])
        rows = scores[np.isin(labels, large_clusters)]

        # How far each row is from the middle of its two nearest centres, whose distance is 1
        squares = np.square(rows[:, None] - centres).sum(axis=2)  # (n, c)
        nearest = np.argsort(squares, axis=1)[:, :2]
        near, next_near = np.take_along_axis(squares, nearest, axis=1).T
        between = np.square(centres[nearest[:, 0]] - centres[nearest[:, 1]]).sum(axis=1)
        from_middle = (next_near - near) / (2 * between)
        if np.mean(from_middle < _FLAT_SHARE) >= share_of_valley:
            continue

        # The centres are gaps: their root mean square distance from the mean gap
        shares = sizes[large_clusters] / sizes[large_clusters].sum()
        off = centres - shares @ centres
        largest = max(largest, sqrt(float(shares @ np.square(off).sum(axis=1))))
    return largest


def _unbiased_kurtosis(kurtosis: Array, count: int) -> Array:
    """Return the excess kurtosis G2 from the moment ratio g2 of ``count`` values, unbiased for
    Gaussian ones.
    """
    if count < 4:
        return kurtosis
    return np.asarray((count - 1) * ((count + 1) * kurtosis + 6) / ((count - 2) * (count - 3)))


def _graded(*, yes: bool, partly: bool) -> Word:
    """Return the first word whose condition holds, else no."""
    if yes:
        return "yes"
    return "partly" if partly else "no"
