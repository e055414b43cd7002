"""Measures of the gap and of the pairs, with their intervals; and everything that is measured, as one object.

Definitions and sources are in docs/reference/geometry.md. What moments give is exact; means over pairs are those of the
sample, which has every pair if there are not too many.

The interval of a function of means is that of its linearisation: the first-order contribution of each pair, averaged
over bootstrap draws of the items.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..arrays import Array, Floats
from ..metrics.significance import Estimate, mean_interval, student_quantile
from ..transforms.sigma import SigmaRule
from .assumptions import Answer, Subset
from .collect import Collected, Sample
from .residuals import Residuals, row_cosines
from .spaces import SpaceMeasures
from .spectrum import ModalityMeasures, relative_gap

BIASED_ITEMS, FEW_ITEMS = 300, 100
"""With fewer items the plain length and residual, or recall and separability too, have approximate intervals: see
docs/reference/geometry.md for their coverage."""


@dataclass(frozen=True)
class GapMeasures:
    """Measures of the modality gap; all but the lengths and ``variance_along`` need pairs.

    Attributes:
        length: norm of the difference of the means (L2M). Its square is too large by what the means of so few items
            differ by chance, on average (`Collected.gap_bias`).
        length_debiased: the square root of the square less that; 0 if nothing is left.
        instance_distance: mean distance of pairs (L2I).
        rmg: relative modality gap (Schrodi et al., 2024).
        direction: mean cosine between the mean difference of a group of pairs and the next one's.
        group_length: mean and standard deviation of the groups' lengths.
        variance_along: per modality, the share of its variance along the gap.
    """

    length: Estimate
    length_debiased: Estimate
    instance_distance: Estimate | None
    rmg: Estimate | None
    direction: float | None
    group_length: tuple[float, float] | None
    variance_along: dict[str, float]


@dataclass(frozen=True)
class PairMeasures:
    """Measures of the pairs.

    Attributes:
        n: pairs.
        items: items that have pairs.
        paired_cosine: mean cosine of pairs.
        unpaired_cosine: mean cosine over all pairs that do not match; None if there are none.
        residual_rms: root mean square, over dimensions, of the alignment noise about the mean of these pairs.
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


@dataclass
class Measured:
    """Everything that is measured about two modalities of a store, or one: then ``gap`` is None, and the rest is empty.

    Attributes:
        modalities: measures of each modality.
        provenance: where the numbers come from: store, model, numbers of rows, split and seed.
        notes: what the reader should know.
        gap: measures of the gap.
        pairs: measures of the pairs; None without pairs.
        spaces: preset → measures of the space that it makes.
        assumptions: question → answer.
        noise: the alignment noise; None without pairs.
        subsets: the gap by the values of a column.
        sigmas: what each rule gives for sigma.
        recommended: one of these rules, and why.
        modality_gaps: the gap of every pair of modalities, if there are more than two.
        collected: the rows that were read.
        orthogonal: modality → cosines of its differences with the gap.
        transformed: ``raw`` and ``c2-collapse`` → the rows of both modalities.
    """

    modalities: dict[str, ModalityMeasures]
    provenance: dict[str, Any]
    notes: list[str]
    gap: GapMeasures | None = None
    pairs: PairMeasures | None = None
    spaces: dict[str, SpaceMeasures] = field(default_factory=dict)
    assumptions: dict[str, Answer] = field(default_factory=dict)
    noise: Residuals | None = None
    subsets: list[Subset] = field(default_factory=list)
    sigmas: list[SigmaRule] = field(default_factory=list)
    recommended: tuple[SigmaRule, str] | None = None
    modality_gaps: list[dict[str, Any]] = field(default_factory=list)
    collected: Collected | None = None
    orthogonal: dict[str, Array] = field(default_factory=dict)
    transformed: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)


def measure_gap(collected: Collected, seed: int) -> GapMeasures:
    """Measure the gap: its length with and without bias, distances of pairs, and how it varies along the store.

    The interval of the plain length is that of the linearised length. The other is found for the square, whose variance
    is ``4 g' A g - 2 tr(A^2)`` with A the covariance of the gap g over draws of the data, so that it contains for a gap
    of zero too; both have the quantiles of Student's distribution.
    """
    first, second = (collected.moments[name] for name in (collected.first, collected.second))
    gap, covariance, sample = collected.gap, collected.gap_covariance, collected.sample
    norm, independent = float(np.linalg.norm(gap)), collected.items or min(first.n, second.n)
    square = norm**2 - collected.gap_bias
    length, debiased = Estimate(norm), Estimate(float(np.sqrt(max(square, 0.0))))
    if independent >= 3 and norm > 0:
        quantile = student_quantile(independent - 1)
        along = max(float(gap @ covariance @ gap), 0.0)
        # the sample's tr(A^2) is too large by tr(A)^2 over the degrees of freedom
        freedom = min(independent, len(collected.working.first)) - 1
        chance = 2 * max(float(np.sum(covariance**2)) - collected.gap_bias**2 / freedom, 0.0)
        plain = quantile * float(np.sqrt(along)) / norm
        wide = quantile * float(np.sqrt(max(4 * along - chance, chance)))
        length = replace(length, interval=(norm - plain, norm + plain))
        low, high = (float(np.sqrt(max(end, 0.0))) for end in (square - wide, square + wide))
        debiased = replace(debiased, interval=(low, high))
    distance = rmg = direction = group_length = None
    if sample.paired:
        sums = sample.sums
        distance = _mean(collected, sums.distance, seed)
        lengths, directions = np.linalg.norm(sums.groups, axis=1), row_cosines(sums.groups[:-1], sums.groups[1:])
        direction = float(directions.mean()) if len(directions) else None
        group_length = float(lengths.mean()), float(lengths.std())
        value, num = relative_gap(float(sums.cosine.mean()), first, second), float((1 - sums.cosine.mean()) / 2)
        rmg = None if value is None else Estimate(value)
        if value and num > 0 and value < 1:
            # RMG = N / (N + W), N the distance of pairs and W the mean one within modalities. A pair adds
            # (1 - x . y) / 2 to N and -(x . mu_x + y . mu_y) / 2 to W, as each row stands on both sides of the pairs of
            # its modality; the derivatives are W / (N + W)^2 and -N / (N + W)^2
            within = num * (1 - value) / value
            added = within * (1 - sums.cosine) / 2 + num * _along(sample, first.mean, second.mean) / 2
            rmg = _linearised(collected, value, added / (num + within) ** 2, seed)
    along_gap = {}
    for name, moments in collected.moments.items():
        total = float(np.trace(moments.scatter)) * norm**2
        along_gap[name] = float(gap @ moments.scatter @ gap) / total if total > 0 else 0.0
    return GapMeasures(length, debiased, distance, rmg, direction, group_length, along_gap)


def measure_pairs(collected: Collected, seed: int) -> PairMeasures | None:
    """Measure the cosines of pairs and of unrelated rows, and the alignment noise; None without pairs."""
    sample = collected.sample
    if not sample.paired:
        return None
    sums, items, pairs = sample.sums, len(sample.first), len(sample.second)
    # the mean over rows that do not match is (sum x . sum y - sum over pairs of x . y) / rest
    rest, unpaired = items * pairs - pairs, None
    if rest > 0:
        total = sample.first.sum(axis=0, dtype=np.float64) @ sample.second.sum(axis=0, dtype=np.float64)
        value = float((total - sums.cosine.sum()) / rest)
        first, second = (collected.moments[name].mean for name in (collected.first, collected.second))
        unpaired = _linearised(collected, value, _along(sample, second, first), seed)
    rms = float(np.sqrt(sums.variance.mean()))
    residual = Estimate(rms, None, pairs)
    if rms > 0:  # each pair adds |(x - y) - mean|^2 / d to the square
        squares = sums.distance**2 - 2 * _along(sample, sums.mean, -sums.mean) + sums.mean @ sums.mean
        residual = _linearised(collected, rms, squares / len(sums.mean) / (2 * rms), seed)
    debiased = float(np.sqrt(sums.variance.mean() + _residual_bias(collected)))
    ends = residual.interval and (residual.interval[0] * debiased / rms, residual.interval[1] * debiased / rms)
    return PairMeasures(
        n=collected.pairs,
        items=collected.items,
        paired_cosine=_mean(collected, sums.cosine, seed),
        unpaired_cosine=unpaired,
        residual_rms=residual,
        residual_rms_debiased=Estimate(debiased, ends, pairs),
        alignment=_mean(collected, sums.distance**2, seed),
    )


def _residual_bias(collected: Collected) -> float:
    """Return by how much the mean square of the residuals per dimension is too small: the variance of their mean."""
    working = collected.working
    off = (working.item_means - working.first + collected.sample.sums.mean) * working.rows_per_item[:, None]  # (m, d)
    count = len(off)
    if count < 2:
        return 0.0
    share = off / (len(working.item_index) / count)
    return float(np.sum(share**2) / ((count - 1) * len(collected.sample.first) * off.shape[1]))


def _along(sample: Sample, a: Array, b: Array) -> Array:
    """Return ``x . a + y . b`` of every pair: float64 (k,)."""
    x, y = sample.first @ a.astype(sample.first.dtype), sample.second @ b.astype(sample.second.dtype)
    return np.asarray(x[sample.item_index].astype(np.float64) + y)


def _mean(collected: Collected, values: Array, seed: int) -> Estimate:
    return Estimate(float(values.mean()), mean_interval(values, collected.sample.item_index, seed=seed), len(values))


def _linearised(collected: Collected, value: float, added: Array, seed: int) -> Estimate:
    """Return ``value`` with the interval of the mean of what each pair adds to it (k,)."""
    mean = _mean(collected, added, seed)
    off = value - mean.value
    return Estimate(value, mean.interval and (mean.interval[0] + off, mean.interval[1] + off), mean.rows)
