"""Measures of one modality, of the gap, of the pairs and of the alignment noise, with their
intervals.

Definitions and sources are in docs/reference/gap-report.md. What moments give is exact; means over
pairs are those of the sample, which has every pair if there are not too many.

The interval of a function of means is that of its linearisation: the first-order contribution of
each pair, averaged over bootstrap draws of the items. Items are drawn independently; the captions
of one image are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, sqrt
from typing import Any

import numpy as np

from ..arrays import Array, Floats, Indices
from ..metrics.significance import (
    Estimate,
    estimate_entries,
    mean_interval,
    student_quantile,
)
from ..moments import Moments
from ..seeds import generator
from .collect import Collected, Sample

MAX_DIRECTIONS = 10_000
EDGES = np.linspace(-5, 5, 61)
"""Bins of `Residuals.marginals`."""
_FINE = 8  # bins of the comparison with a normal distribution, per bin shown
_EXPLAINED = 0.99


@dataclass(eq=False)
class ModalityMeasures:
    """Measures of one modality, as in the report's JSON, and its spectrum.

    Attributes:
        n: rows.
        dim: d.
        effective_dimension: see `effective_dimension`.
        effective_rank: see `effective_rank`.
        participation_ratio: ``(sum l)^2 / sum l^2`` of the eigenvalues l of the covariance; 0 if
            there is no variance.
        mean_norm: length of the mean of the rows, not the mean of their lengths.
        mean_norm_error: standard error of that length; NaN for one row or a mean of zero.
        mean_direction_error_degrees: standard error of the mean's direction; None likewise.
        rows_for_one_degree: independent rows at which that error falls to one degree; None
            likewise.
        independent_rows: rows that the errors count as independent (captions of one image are not).
        limited_by_rows: whether n, not the encoder, bounds the dimensions (``n - 1 < d``).
        spectrum: float64 (d,), eigenvalues of the covariance, descending.
    """

    n: int
    dim: int
    effective_dimension: int
    effective_rank: float
    participation_ratio: float
    mean_norm: float
    mean_norm_error: float
    mean_direction_error_degrees: float | None
    rows_for_one_degree: int | None
    independent_rows: int
    limited_by_rows: bool
    spectrum: Array

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as the report's JSON has them."""
        return {
            "n": self.n,
            "dim": self.dim,
            "effective_dimension": self.effective_dimension,
            "effective_rank": self.effective_rank,
            "participation_ratio": self.participation_ratio,
            "mean_norm": self.mean_norm,
            "mean_norm_error": self.mean_norm_error,
            "mean_direction_error_degrees": self.mean_direction_error_degrees,
            "rows_for_one_degree": self.rows_for_one_degree,
            "independent_rows": self.independent_rows,
            "limited_by_rows": self.limited_by_rows,
        }


@dataclass
class GapMeasures:
    """Measures of the modality gap; all but the lengths need pairs.

    Attributes:
        length: norm of the difference of the means (L2M). Its square is too large by what the means
            of so few items differ by chance, on average (`Collected.gap_bias`).
        length_debiased: the square root of the square less that; 0 if nothing is left.
        instance_distance: mean distance of pairs (L2I).
        rmg: relative modality gap (Schrodi et al., 2024).
        direction: mean cosine between the mean difference of a group of pairs and the next one's.
        group_length: mean and standard deviation of the groups' lengths.
    """

    length: Estimate
    length_debiased: Estimate
    instance_distance: Estimate | None
    rmg: Estimate | None
    direction: float | None
    group_length: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as the report's JSON has them."""
        return {
            **estimate_entries("length", self.length),
            **estimate_entries("length_debiased", self.length_debiased),
            **estimate_entries("instance_distance", self.instance_distance),
            **estimate_entries("rmg", self.rmg),
            "direction": self.direction,
            "group_length": self.group_length,
        }


@dataclass
class PairMeasures:
    """Measures of the pairs.

    Attributes:
        n: pairs.
        items: items that have pairs.
        paired_cosine: mean cosine of pairs.
        unpaired_cosine: mean cosine over all pairs that do not match; None if there are none.
        residual_rms: root mean square, over dimensions, of the alignment noise about the mean of
            these pairs.
        residual_rms_debiased: about the true mean, from which that of so few items differs.
        alignment: mean squared distance of pairs (Wang and Isola, 2020).
    """

    n: int
    items: int
    paired_cosine: Estimate
    unpaired_cosine: Estimate | None
    residual_rms: Estimate
    residual_rms_debiased: Estimate
    alignment: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as the report's JSON has them."""
        return {
            "n": self.n,
            "items": self.items,
            **estimate_entries("paired_cosine", self.paired_cosine),
            **estimate_entries("unpaired_cosine", self.unpaired_cosine),
            **estimate_entries("residual_rms", self.residual_rms),
            **estimate_entries("residual_rms_debiased", self.residual_rms_debiased),
            **estimate_entries("alignment", self.alignment),
        }


@dataclass(eq=False)
class Residuals:
    """The alignment noise ``(x - y) - mean`` of pairs.

    Attributes:
        pairs: number of pairs.
        items: number of items they belong to.
        isotropy: share of the dimensions that the noise fills: the participation ratio over d,
            corrected for the number of items, 1 for isotropic noise.
        std_smallest: smallest standard deviation of a dimension.
        std_largest: largest.
        direction_mean: mean of ``cosines``; None if there are none.
        direction_std: their standard deviation.
        distance_to_normal: largest distance between the distribution function of the pooled
            standardised marginals and the normal one (Kolmogorov's).
        per_dimension: float64 (d,), standard deviation per dimension.
        skewness: float64 (d,), per dimension.
        kurtosis: float64 (d,), excess, per dimension.
        cosines: cosines between residuals of different items.
        marginals: float64 (60,), densities of the pooled standardised marginals in the bins
            `EDGES`.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as the report's JSON has them, without what is per dimension."""
        return {
            "pairs": self.pairs,
            "items": self.items,
            "isotropy": self.isotropy,
            "std_smallest": self.std_smallest,
            "std_largest": self.std_largest,
            "direction_mean": self.direction_mean,
            "direction_std": self.direction_std,
            "distance_to_normal": self.distance_to_normal,
        }


def eigenvalues(covariance: Array) -> Array:
    """Return the eigenvalues (d,) of a covariance (d, d), descending, negative rounding errors set
    to zero.
    """
    return np.asarray(np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0))


def effective_dimension(values: Array) -> int:
    """Return the smallest k whose k largest singular values make up more than 99% of their sum.

    The paper's measure of dimensional collapse (Zhang et al., ICLR 2024), with the singular values
    of the covariance of L2-normalised rows. 0 if there is no variance at all.

    Args:
        values: (d,) eigenvalues of the covariance, descending.
    """
    total = values.sum()
    if total <= 0:
        return 0
    return int(np.argmax(np.cumsum(values) > _EXPLAINED * total)) + 1


def effective_rank(values: Array) -> float:
    """Return ``exp(-sum p log p)``, ``p = s / sum(s)`` (Roy and Vetterli, 2007); 0 if there is no
    variance.
    """
    if values.sum() <= 0:
        return 0.0
    p = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def measure_modality(moments: Moments, independent: int | None = None) -> ModalityMeasures:
    """Measure one modality from its moments.

    The errors of the mean treat ``independent`` rows as independent draws: the mean's length has
    the variance of the rows along the mean over that number, its direction the variance across it.

    Args:
        moments: of the L2-normalised rows.
        independent: how many rows count as independent; all of them by default. For captions, the
            images.
    """
    rows = moments.n if independent is None else min(independent, moments.n)
    covariance = moments.covariance
    values = eigenvalues(covariance)
    sum_of_squares = float(values @ values)

    # Errors of the mean, from the variance along it and across it
    length = float(np.linalg.norm(moments.mean))
    length_error = float("nan")
    direction_error = None
    rows_for_one_degree = None
    if length > 0 and rows > 1:
        unit = moments.mean / length
        along = max(float(unit @ covariance @ unit), 0.0)
        across = max(float(np.trace(covariance)) - along, 0.0)
        length_error = float(np.sqrt(along / (rows - 1)))
        direction_error = float(np.degrees(np.arctan(np.sqrt(across / (rows - 1)) / length)))
        one_degree = length * np.tan(np.radians(1.0))
        rows_for_one_degree = int(np.ceil(across / one_degree**2)) + 1
    return ModalityMeasures(
        n=moments.n,
        dim=moments.dim,
        effective_dimension=effective_dimension(values),
        effective_rank=effective_rank(values),
        participation_ratio=(
            float(values.sum()) ** 2 / sum_of_squares if sum_of_squares > 0 else 0.0
        ),
        mean_norm=length,
        mean_norm_error=length_error,
        mean_direction_error_degrees=direction_error,
        rows_for_one_degree=rows_for_one_degree,
        independent_rows=rows,
        limited_by_rows=moments.n - 1 < moments.dim,
        spectrum=values,
    )


def relative_gap(paired_cosine: float, first: Moments, second: Moments) -> float | None:
    """Return RMG (Schrodi et al., 2024): the distance of pairs over itself plus the distance within
    modalities.

    ``D = (1 - cos) / 2``; num = mean D over pairs; den = num + (mean D within x + mean D within y)
    / 2, diagonals excluded: the mean cosine of different rows is ``(n^2 |mu|^2 - sum |x|^2) / (n (n
    - 1))``. None for fewer than two rows of a modality.
    """
    if min(first.n, second.n) < 2:
        return None
    distance_of_pairs = (1 - paired_cosine) / 2
    first_distance = (1 - _cosine_of_different_rows(first)) / 2
    second_distance = (1 - _cosine_of_different_rows(second)) / 2
    denominator = distance_of_pairs + (first_distance + second_distance) / 2
    return distance_of_pairs / denominator if denominator > 0 else None


def _cosine_of_different_rows(moments: Moments) -> float:
    """Return the mean cosine of two different rows, of at least two, from their moments."""
    n = moments.n
    squared_mean = float(moments.mean @ moments.mean)
    sum_of_squares = float(np.trace(moments.scatter)) + n * squared_mean
    return (n * n * squared_mean - sum_of_squares) / (n * (n - 1))


def measure_gap(collected: Collected, seed: int) -> GapMeasures:
    """Measure the gap: its length with and without bias, distances of pairs, and how it varies
    along the store.

    All but the lengths need pairs, and are None without them. The interval of the plain length is
    that of the linearised length. That of the other is found for the square, so that it also covers
    a gap of zero. The variance of the square is ``4 g' A g - 2 tr(A^2)``, where A is the covariance
    of the gap g over draws of the data. Both have the quantiles of Student's distribution.
    """
    gap = collected.gap
    covariance = collected.gap_covariance
    norm = float(np.linalg.norm(gap))
    debiased_square = norm**2 - collected.gap_bias
    length = Estimate(norm)
    debiased = Estimate(sqrt(max(debiased_square, 0.0)))

    # The intervals of both lengths
    independent = collected.distinct_items
    if independent >= 3:
        quantile = student_quantile(independent - 1)
        along = max(float(gap @ covariance @ gap), 0.0)
        margin = quantile * sqrt(along) / norm if norm > 0 else 0.0
        length = Estimate(norm, (norm - margin, norm + margin))

        # The sample's tr(A^2) is too large by tr(A)^2 over the degrees of freedom. Without a gap,
        # the variance of the square is 2 tr(A^2), which is also the least that is assumed
        freedom = min(independent, len(collected.working.first)) - 1
        trace_of_square = float(np.sum(covariance**2)) - collected.gap_bias**2 / freedom
        without_gap = 2 * max(trace_of_square, 0.0)
        margin_of_square = quantile * sqrt(max(4 * along - without_gap, without_gap))
        low = sqrt(max(debiased_square - margin_of_square, 0.0))
        high = sqrt(max(debiased_square + margin_of_square, 0.0))
        debiased = Estimate(debiased.value, (low, high))

    # Distances of pairs, and how the gap varies along the store
    sample = collected.sample
    if not sample.paired:
        return GapMeasures(
            length,
            debiased,
            instance_distance=None,
            rmg=None,
            direction=None,
            group_length=None,
        )
    sums = sample.sums
    group_lengths = np.linalg.norm(sums.group_means, axis=1)
    next_cosines = row_cosines(sums.group_means[:-1], sums.group_means[1:])
    return GapMeasures(
        length=length,
        length_debiased=debiased,
        instance_distance=_mean_over_pairs(collected, sums.distances, seed),
        rmg=_estimate_rmg(collected, seed),
        direction=float(next_cosines.mean()) if len(next_cosines) else None,
        group_length=(float(group_lengths.mean()), float(group_lengths.std())),
    )


def _estimate_rmg(collected: Collected, seed: int) -> Estimate | None:
    """Return the relative modality gap with its interval; None where it is not defined.

    RMG = N / (N + W), N the distance of pairs and W the mean one within modalities. A pair adds
    ``(1 - x . y) / 2`` to N and ``-(x . mu_x + y . mu_y) / 2`` to W, as each row stands on both
    sides of the pairs of its modality. The derivatives are ``W / (N + W)^2`` and
    ``-N / (N + W)^2``.
    """
    first = collected.moments[collected.first]
    second = collected.moments[collected.second]
    cosines = collected.sample.sums.cosines
    rmg = relative_gap(float(cosines.mean()), first, second)
    if rmg is None:
        return None
    if rmg == 0:
        return Estimate(rmg)
    of_pairs = float((1 - cosines.mean()) / 2)
    within = of_pairs * (1 - rmg) / rmg
    added_within = of_pairs * _along(collected.sample, first.mean, second.mean) / 2
    added = within * (1 - cosines) / 2 + added_within
    return _estimate(collected, added / (of_pairs + within) ** 2, rmg, seed)


def measure_pairs(collected: Collected, seed: int) -> PairMeasures | None:
    """Measure the cosines of pairs and of unrelated rows, and the alignment noise; None without
    pairs.
    """
    sample = collected.sample
    if not sample.paired:
        return None
    sums = sample.sums
    pair_count = len(sample.second)
    dim = len(sums.mean)

    # The residual rms, about the mean of these pairs
    mean_square = sums.variance.mean()
    rms = sqrt(mean_square)
    residual = Estimate(rms, interval=None, rows=pair_count)
    if rms > 0:
        # Each pair adds |(x - y) - mean|^2 / d to the mean square
        squares = (
            sums.distances**2 - 2 * _along(sample, sums.mean, -sums.mean) + sums.mean @ sums.mean
        )
        residual = _estimate(collected, squares / dim / (2 * rms), rms, seed)

    # The mean square is too small by the variance of the residuals' mean over draws of items
    bias = 0.0
    working = collected.working
    item_count = len(working.first)
    if item_count > 1:
        # How far each item moves that mean, times the number of items: by its mean residual,
        # weighted by its number of pairs
        moved = working.item_means - working.first + sums.mean
        moved = moved * working.rows_per_item[:, None]  # (m, d)
        moved /= len(working.item_index) / item_count
        bias = float(np.sum(moved**2) / ((item_count - 1) * len(sample.first) * dim))
    debiased = sqrt(mean_square + bias)
    debiased_interval = None
    if residual.interval is not None:
        low, high = residual.interval
        debiased_interval = (low * debiased / rms, high * debiased / rms)

    # The mean cosine of the rows that do not match: (sum x . sum y - sum over pairs of x . y) / n
    unpaired_cosine = None
    unmatched = len(sample.first) * pair_count - pair_count
    if unmatched > 0:
        first_total = sample.first.sum(axis=0, dtype=np.float64)
        second_total = sample.second.sum(axis=0, dtype=np.float64)
        cosine = float((first_total @ second_total - sums.cosines.sum()) / unmatched)
        first_mean = collected.moments[collected.first].mean
        second_mean = collected.moments[collected.second].mean
        added = _along(sample, second_mean, first_mean)
        unpaired_cosine = _estimate(collected, added, cosine, seed)
    return PairMeasures(
        n=collected.pairs,
        items=collected.items,
        paired_cosine=_mean_over_pairs(collected, sums.cosines, seed),
        unpaired_cosine=unpaired_cosine,
        residual_rms=residual,
        residual_rms_debiased=Estimate(debiased, debiased_interval, pair_count),
        alignment=_mean_over_pairs(collected, sums.distances**2, seed),
    )


def residuals(differences: Floats, item_index: Indices, *, seed: int = 0) -> Residuals:
    """Measure the shape of the alignment noise.

    Args:
        differences: (k, d), ``x - y`` of every pair.
        item_index: int64 (k,), its item.
        seed: of the pairs of residuals that are compared.
    """
    noise = differences.astype(np.float64) - differences.mean(axis=0, dtype=np.float64)
    pairs = len(noise)
    deviation = noise.std(axis=0)
    isotropy = _isotropy(noise, item_index)
    left, right = _different_items(item_index, seed, "residual cosines")
    cosines = row_cosines(noise[left], noise[right])

    # Moments of the standardised residuals, which take the place of the residuals in memory
    standard = np.divide(noise, np.where(deviation > 0, deviation, 1.0), out=noise)
    squares = standard * standard

    # The distribution function comes from a histogram: sorting all values of a large sample would
    # cost more than everything else
    counts, fine_edges = np.histogram(
        standard, bins=_FINE * (len(EDGES) - 1), range=(EDGES[0], EDGES[-1])
    )
    below_first = np.count_nonzero(standard < fine_edges[0])
    below_edges = below_first + np.concatenate([[0], np.cumsum(counts)])
    normal = np.array([0.5 * (1 + erf(edge / sqrt(2))) for edge in fine_edges])
    return Residuals(
        pairs=pairs,
        items=len(np.unique(item_index)),
        isotropy=isotropy,
        std_smallest=float(deviation.min()),
        std_largest=float(deviation.max()),
        direction_mean=float(cosines.mean()) if len(cosines) else None,
        direction_std=float(cosines.std()) if len(cosines) else None,
        distance_to_normal=float(np.abs(below_edges / standard.size - normal).max()),
        per_dimension=deviation,
        skewness=np.einsum("ij,ij->j", squares, standard) / pairs,
        kurtosis=np.einsum("ij,ij->j", squares, squares) / pairs - 3,
        cosines=cosines,
        marginals=counts.reshape(-1, _FINE).sum(axis=1) / (standard.size * np.diff(EDGES)),
    )


def orthogonality(rows: Floats, item_index: Indices, gap: Array, *, seed: int = 0) -> Array:
    """Return cosines of same-modality differences ``x_i - x_j``, of distinct items, with the mean
    gap.

    Args:
        rows: (n, d) of one modality.
        item_index: int64 (n,), the item of each row; rows of one item are not compared.
        gap: float64 (d,).
        seed: of the pairs.
    """
    left, right = _different_items(item_index, seed, "orthogonality")
    return row_cosines(rows[left] - rows[right], gap[None])


def row_cosines(left: Floats, right: Floats) -> Array:
    """Return cosines of rows of ``left`` (n, d) with those of ``right``, or its only row, where
    both have a norm.
    """
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    has_direction = norms > 0
    products = np.einsum("ij,ij->i", left, right)
    return np.asarray(products[has_direction] / norms[has_direction])


def _isotropy(noise: Array, item_index: Indices) -> float:
    """Return ``tr(S)^2 / (d tr(S^2))``, S the covariance of the residuals, without the bias of few
    items.

    tr(S^2) is the variance of ``r_a . r_b`` over residuals of different items (Chen, Zhang and
    Zhong, 2010): what residuals of one item share does not count. Not above 1; 0 if there is no
    noise.
    """
    pairs, dim = noise.shape
    scatter = noise.T @ noise

    # Sums over the residuals of the same item: of the squares of their inner products, and of the
    # squares of their sum
    numbers = np.unique(item_index, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    by_item = np.argsort(numbers, kind="stable")
    starts = np.cumsum(sizes) - sizes
    squares_within = 0.0
    sums_within = 0.0
    for size in np.unique(sizes):
        places = starts[sizes == size][:, None] + np.arange(size)
        rows = noise[by_item[places]]  # (items of this size, size, d)
        squares_within += float(np.sum((rows @ rows.transpose(0, 2, 1)) ** 2))
        sums_within += float(np.sum(rows.sum(axis=1) ** 2))

    items = len(sizes)
    pairs_of_items = pairs**2 - float(np.sum(sizes**2))
    trace = float(np.trace(scatter)) / pairs
    if pairs_of_items <= 0 or trace <= 0:
        return 0.0
    total = trace + sums_within / pairs**2 * items / (items - 1)
    # All residuals sum to zero, so that those of different items have a negative mean
    mean = -sums_within / pairs_of_items
    variance = (float(np.sum(scatter**2)) - squares_within) / pairs_of_items - mean**2
    return min(total**2 / (dim * variance), 1.0) if variance > 0 else 1.0


def _different_items(item_index: Indices, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Draw up to 10,000 random pairs of rows that belong to different items: (left, right)."""
    count = len(item_index)
    rng = generator(seed, purpose)
    drawn = min(MAX_DIRECTIONS, count * (count - 1) // 2)
    left = rng.integers(count, size=drawn)
    right = (left + rng.integers(1, count, size=drawn)) % count
    are_different = item_index[left] != item_index[right]
    return left[are_different], right[are_different]


def _along(sample: Sample, a: Array, b: Array) -> Array:
    """Return ``x . a + y . b`` of every pair: float64 (k,)."""
    x = sample.first @ a.astype(sample.first.dtype)
    y = sample.second @ b.astype(sample.second.dtype)
    return np.asarray(x[sample.item_index].astype(np.float64) + y)


def _mean_over_pairs(collected: Collected, values: Array, seed: int) -> Estimate:
    """Return the mean of a value of every pair (k,), with its interval."""
    interval = mean_interval(values, collected.sample.item_index, seed=seed)
    return Estimate(float(values.mean()), interval, len(values))


def _estimate(collected: Collected, added: Array, value: float, seed: int) -> Estimate:
    """Return ``value`` with the interval of what each pair adds to it.

    Args:
        collected: has the items of the pairs.
        added: float64 (k,), the first-order contribution of every pair.
        value: to which they are contributions.
        seed: of the bootstrap.
    """
    interval = mean_interval(added, collected.sample.item_index, seed=seed)
    if interval is not None:
        shift = value - float(added.mean())
        low, high = interval
        interval = (low + shift, high + shift)
    return Estimate(value, interval, len(added))
