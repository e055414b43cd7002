"""Measures of one modality, of the gap, of the pairs and of the alignment noise, with their
intervals.

Definitions and sources are in docs/reference/geometry.md. What moments give is exact; means over
pairs are those of the sample, which has every pair if there are not too many.

The interval of a function of means is that of its linearisation: the first-order contribution of
each pair, averaged over bootstrap draws of the items. Items are drawn independently; the captions
of one image are not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """Return the smallest k whose k largest singular values make up more than 99 % of their sum.

    The paper's measure of dimensional collapse (Zhang et al., ICLR 2024), with the singular values
    of the covariance of L2-normalised rows. 0 if there is no variance at all.

    Args:
        values: (d,) eigenvalues of the covariance, descending.
    """
    total = values.sum()
    return int(np.argmax(np.cumsum(values) > _EXPLAINED * total)) + 1 if total > 0 else 0


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
    covariance, length = moments.covariance, float(np.linalg.norm(moments.mean))
    values = eigenvalues(covariance)
    length_error, direction_error, enough = float("nan"), None, None
    if length > 0 and rows > 1:
        unit = moments.mean / length
        along = max(float(unit @ covariance @ unit), 0.0)
        across = max(float(np.trace(covariance)) - along, 0.0)
        length_error = float(np.sqrt(along / (rows - 1)))
        direction_error = float(np.degrees(np.arctan(np.sqrt(across / (rows - 1)) / length)))
        enough = int(np.ceil(across / (length * np.tan(np.radians(1.0))) ** 2)) + 1
    squares = float(values @ values)
    return ModalityMeasures(
        n=moments.n,
        dim=moments.dim,
        effective_dimension=effective_dimension(values),
        effective_rank=effective_rank(values),
        participation_ratio=float(values.sum()) ** 2 / squares if squares > 0 else 0.0,
        mean_norm=length,
        mean_norm_error=length_error,
        mean_direction_error_degrees=direction_error,
        rows_for_one_degree=enough,
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
    within = []
    for moments in (first, second):
        n, squared_mean = moments.n, float(moments.mean @ moments.mean)
        if n < 2:
            return None
        squares = float(np.trace(moments.scatter)) + n * squared_mean
        within.append((n * n * squared_mean - squares) / (n * (n - 1)))
    num = (1 - paired_cosine) / 2
    den = num + ((1 - within[0]) / 2 + (1 - within[1]) / 2) / 2
    return num / den if den > 0 else None


def measure_gap(collected: Collected, seed: int) -> GapMeasures:
    """Measure the gap: its length with and without bias, distances of pairs, and how it varies
    along the store.

    The interval of the plain length is that of the linearised length. The other is found for the
    square, whose variance is ``4 g' A g - 2 tr(A^2)`` with A the covariance of the gap g over draws
    of the data, so that it contains for a gap of zero too; both have the quantiles of Student's
    distribution.
    """
    first = collected.moments[collected.first]
    second = collected.moments[collected.second]
    gap = collected.gap
    covariance = collected.gap_covariance
    sample = collected.sample
    norm = float(np.linalg.norm(gap))
    independent = collected.distinct_items
    square = norm**2 - collected.gap_bias
    length = Estimate(norm)
    debiased = Estimate(sqrt(max(square, 0.0)))
    if independent >= 3:
        quantile = student_quantile(independent - 1)
        along = max(float(gap @ covariance @ gap), 0.0)
        # the sample's tr(A^2) is too large by tr(A)^2 over the degrees of freedom
        freedom = min(independent, len(collected.working.first)) - 1
        chance = 2 * max(float(np.sum(covariance**2)) - collected.gap_bias**2 / freedom, 0.0)
        plain = quantile * sqrt(along) / norm if norm > 0 else 0.0
        wide = quantile * sqrt(max(4 * along - chance, chance))
        length = replace(length, interval=(norm - plain, norm + plain))
        debiased = replace(
            debiased, interval=(sqrt(max(square - wide, 0.0)), sqrt(max(square + wide, 0.0)))
        )
    distance = rmg = direction = group_length = None
    if sample.paired:
        sums = sample.sums
        groups = sums.group_means
        distance = _estimate(collected, sums.distances, seed)
        lengths = np.linalg.norm(groups, axis=1)
        directions = row_cosines(groups[:-1], groups[1:])
        direction = float(directions.mean()) if len(directions) else None
        group_length = float(lengths.mean()), float(lengths.std())
        value = relative_gap(float(sums.cosines.mean()), first, second)
        num = float((1 - sums.cosines.mean()) / 2)
        rmg = None if value is None else Estimate(value)
        if value:
            # RMG = N / (N + W), N the distance of pairs and W the mean one within modalities. A
            # pair adds (1 - x . y) / 2 to N and -(x . mu_x + y . mu_y) / 2 to W, as each row stands
            # on both sides of the pairs of its modality; the derivatives are W / (N + W)^2 and -N /
            # (N + W)^2
            within = num * (1 - value) / value
            moved = num * _along(sample, first.mean, second.mean) / 2
            added = within * (1 - sums.cosines) / 2 + moved
            rmg = _estimate(collected, added / (num + within) ** 2, seed, value)
    return GapMeasures(length, debiased, distance, rmg, direction, group_length)


def measure_pairs(collected: Collected, seed: int) -> PairMeasures | None:
    """Measure the cosines of pairs and of unrelated rows, and the alignment noise; None without
    pairs.
    """
    sample = collected.sample
    if not sample.paired:
        return None
    sums = sample.sums
    mean = sums.mean
    items = len(sample.first)
    pairs = len(sample.second)
    # the mean over rows that do not match is (sum x . sum y - sum over pairs of x . y) / rest
    rest, unpaired = items * pairs - pairs, None
    if rest > 0:
        total = sample.first.sum(axis=0, dtype=np.float64) @ sample.second.sum(
            axis=0, dtype=np.float64
        )
        first, second = (
            collected.moments[name].mean for name in (collected.first, collected.second)
        )
        unpaired = _estimate(
            collected,
            _along(sample, second, first),
            seed,
            float((total - sums.cosines.sum()) / rest),
        )
    rms = sqrt(sums.variance.mean())
    residual = Estimate(rms, None, pairs)
    if rms > 0:  # each pair adds |(x - y) - mean|^2 / d to the square
        squares = sums.distances**2 - 2 * _along(sample, mean, -mean) + mean @ mean
        residual = _estimate(collected, squares / len(mean) / (2 * rms), seed, rms)
    # the mean square is too small by the variance of the mean over draws of items
    working, excess = collected.working, 0.0
    if (count := len(working.first)) > 1:
        off = (working.item_means - working.first + mean) * working.rows_per_item[:, None]  # (m, d)
        off /= len(working.item_index) / count
        excess = float(np.sum(off**2) / ((count - 1) * items * off.shape[1]))
    debiased = sqrt(sums.variance.mean() + excess)
    ends = residual.interval and (
        residual.interval[0] * debiased / rms,
        residual.interval[1] * debiased / rms,
    )
    return PairMeasures(
        n=collected.pairs,
        items=collected.items,
        paired_cosine=_estimate(collected, sums.cosines, seed),
        unpaired_cosine=unpaired,
        residual_rms=residual,
        residual_rms_debiased=Estimate(debiased, ends, pairs),
        alignment=_estimate(collected, sums.distances**2, seed),
    )


def residuals(differences: Floats, item_index: Indices, *, seed: int = 0) -> Residuals:
    """Measure the shape of the alignment noise.

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
    counts, fine = np.histogram(
        standard, bins=_FINE * (len(EDGES) - 1), range=(EDGES[0], EDGES[-1])
    )
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
    known = norms > 0
    return np.asarray(np.einsum("ij,ij->i", left, right)[known] / norms[known])


def _isotropy(noise: Array, item_index: Indices) -> float:
    """Return ``tr(S)^2 / (d tr(S^2))``, S the covariance of the residuals, without the bias of few
    items.

    tr(S^2) is the variance of ``r_a . r_b`` over residuals of different items (Chen, Zhang and
    Zhong, 2010): what residuals of one item share does not count. Not above 1; 0 if there is no
    noise.
    """
    pairs, dim = noise.shape
    scatter = noise.T @ noise
    numbers = np.unique(item_index, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    items, order, starts = len(sizes), np.argsort(numbers, kind="stable"), np.cumsum(sizes) - sizes
    own_squares = own_sums = 0.0
    for size in np.unique(sizes):
        # (items of this size, size, d)
        rows = noise[order[starts[sizes == size][:, None] + np.arange(size)]]
        own_squares += float(np.sum((rows @ rows.transpose(0, 2, 1)) ** 2))
        own_sums += float(np.sum(rows.sum(axis=1) ** 2))
    count, trace = pairs**2 - float(np.sum(sizes**2)), float(np.trace(scatter)) / pairs
    if count <= 0 or trace <= 0:
        return 0.0
    total = trace + own_sums / pairs**2 * items / (items - 1)
    mean = -own_sums / count  # over residuals of different items: all residuals sum to zero
    variance = (float(np.sum(scatter**2)) - own_squares) / count - mean**2
    return min(total**2 / (dim * variance), 1.0) if variance > 0 else 1.0


def _different_items(item_index: Indices, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Draw up to 10,000 random pairs of rows that belong to different items."""
    count, rng = len(item_index), generator(seed, purpose)
    wanted = min(MAX_DIRECTIONS, count * (count - 1) // 2)
    left = rng.integers(count, size=wanted)
    right = (left + rng.integers(1, count, size=wanted)) % count
    different = item_index[left] != item_index[right]
    return left[different], right[different]


def _along(sample: Sample, a: Array, b: Array) -> Array:
    """Return ``x . a + y . b`` of every pair: float64 (k,)."""
    x, y = (
        sample.first @ a.astype(sample.first.dtype),
        sample.second @ b.astype(sample.second.dtype),
    )
    return np.asarray(x[sample.item_index].astype(np.float64) + y)


def _estimate(
    collected: Collected, added: Array, seed: int, value: float | None = None
) -> Estimate:
    """Return the mean of ``added`` (k,) with its interval, or ``value`` with that of what each pair
    adds to it.
    """
    mean = float(added.mean())
    ends, off = (
        mean_interval(added, collected.sample.item_index, seed=seed),
        0.0 if value is None else value - mean,
    )
    return Estimate(
        mean if value is None else value, ends and (ends[0] + off, ends[1] + off), len(added)
    )
