"""The measures of a pair of modalities, from what `collect` read, and the intervals of those that rest on all pairs.

Definitions and sources are in docs/reference/geometry.md. Means over pairs, and functions of such means, are exact:
they come from sums.

The interval of a function of means is that of its linearisation: the first-order contribution of each
pair, averaged over bootstrap draws of the items of the working set. Where the working set is a sample, the interval is
narrowed to the number of items there are, as the number itself rests on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Floats
from ..errors import TransformError
from ..metrics.significance import Ends, mean_interval, student_quantile
from ..reporter import SILENT, Reporter
from ..transforms import sigma as sigma_rules
from .assumptions import Assumption, all_assumptions, compare_subsets, is_same_in_subsets
from .collect import Collected
from .residuals import Residuals, group_directions, orthogonality, residuals
from .spaces import ALL_PRESETS_SCORES, COLLAPSE, RAW, RECALL_PRESETS, SpaceMeasures, apply_preset, measure_space
from .spectrum import ModalityMeasures, gap_vector, measure_modality, relative_gap, variance_along
from .stream import PairSums

BIASED_ITEMS, FEW_ITEMS = 300, 100
"""With fewer items the plain length and residual, or recall and separability too, have approximate intervals: see
docs/reference/geometry.md for their coverage."""


@dataclass(frozen=True)
class GapMeasures:
    """Measures of the modality gap, as in the report's JSON; all but the length and ``variance_along`` need pairs.

    An ``_interval`` is the 95 % interval over items.

    Attributes:
        length: norm of the difference of the means (L2M). Its square is too large by what the means of so few items
            differ by chance, on average (`Collected.gap_bias`).
        length_debiased: the square root of the square less that; 0 if nothing is left.
        instance_distance: mean distance of pairs (L2I).
        rmg: relative modality gap (Schrodi et al., 2024).
        direction: mean cosine between group means; None with fewer than two groups.
        group_length: mean and standard deviation of the groups' lengths, or None.
        variance_along: per modality, the share of its variance along the gap.
    """

    length: float
    length_interval: Ends | None
    length_debiased: float
    length_debiased_interval: Ends | None
    instance_distance: float | None
    instance_distance_interval: Ends | None
    rmg: float | None
    rmg_interval: Ends | None
    direction: float | None
    group_length: tuple[float, float] | None
    variance_along: dict[str, float]


@dataclass(frozen=True)
class PairMeasures:
    """Measures of the pairs, as in the report's JSON.

    An ``_interval`` is the 95 % interval over items.

    Attributes:
        n: pairs.
        items: items that have pairs.
        paired_cosine: mean cosine of pairs.
        unpaired_cosine: mean cosine over all pairs that do not match, exactly; None if there are none.
        residual_rms: root mean square, over dimensions, of the alignment noise about the mean of these pairs.
        residual_rms_debiased: about the true mean, from which that of so few items differs.
        alignment: mean squared distance of pairs (Wang and Isola, 2020).
    """

    n: int
    items: int
    paired_cosine: float
    paired_cosine_interval: Ends | None
    unpaired_cosine: float | None
    unpaired_cosine_interval: Ends | None
    residual_rms: float
    residual_rms_interval: Ends | None
    residual_rms_debiased: float
    residual_rms_debiased_interval: Ends | None
    alignment: float
    alignment_interval: Ends | None


@dataclass
class Measured:
    """Everything that is measured about a pair of modalities."""

    collected: Collected
    modalities: dict[str, ModalityMeasures]
    gap: GapMeasures
    pairs: PairMeasures | None
    spaces: dict[str, SpaceMeasures]
    assumptions: list[Assumption]
    noise: Residuals | None
    orthogonal: dict[str, Array]
    subsets: list[dict[str, Any]]
    sigmas: list[sigma_rules.SigmaRule]
    recommended: tuple[sigma_rules.SigmaRule, str]
    transformed: dict[str, tuple[Floats, Floats]]
    notes: list[str]


def measure(
    collected: Collected, *, presets: Sequence[str] | None = None, seed: int = 0, reporter: Reporter = SILENT
) -> Measured:
    """Measure a pair of modalities.

    Args:
        collected: what was read.
        presets: the spaces recall is measured in; ``raw`` and ``c2-collapse`` are always among them. By default all of
            `RECALL_PRESETS` if that is cheap, else these two.
        seed: of samples and resampling.
        reporter: shows the progress over the spaces.
    """
    first, second, working = collected.first, collected.second, collected.working
    skipped: list[str] = []
    if presets is None:
        cheap = working.complete and len(working.first) * len(working.second) <= ALL_PRESETS_SCORES
        presets = RECALL_PRESETS if cheap else ()
        if not cheap:
            skipped.append("Recall is measured before and after Collapse only. Choose other presets with --presets.")
    modalities = {
        name: measure_modality(moments, collected.independent[name]) for name, moments in collected.moments.items()
    }
    spaces, transformed, failed = {}, {}, []
    names = list(dict.fromkeys((RAW, COLLAPSE, *presets)))
    with reporter.progress("Measuring spaces", len(names)) as progress:
        for name in names:
            progress.advance(note=name)
            try:
                x, y = apply_preset(name, collected)
            except TransformError as error:
                failed.append(f"{name} cannot be applied here: {error.message}")
                continue
            spaces[name] = measure_space(name, collected, x, y, working.items, seed=seed)
            if name in (RAW, COLLAPSE):
                transformed[name] = (x, y)
    gap = gap_vector(collected.moments[first], collected.moments[second])
    orthogonal = {
        name: orthogonality(rows, items, gap, seed=seed)
        for name, rows, items in zip((first, second), (working.first, working.second), working.items, strict=True)
    }
    noise = residuals(working.differences(), working.item_index, seed=seed) if working.paired else None
    assumptions = all_assumptions(collected, noise, seed=seed)
    subsets = compare_subsets(collected, gap)
    if subsets:
        assumptions.insert(1, is_same_in_subsets(subsets))
    sigmas = _sigmas(collected)
    return Measured(
        collected=collected,
        modalities=modalities,
        gap=_measure_gap(collected, gap, seed),
        pairs=_measure_pairs(collected, seed),
        spaces=spaces,
        assumptions=assumptions,
        noise=noise,
        orthogonal=orthogonal,
        subsets=subsets,
        sigmas=sigmas,
        recommended=sigma_rules.recommend(sigmas),
        transformed=transformed,
        notes=[*collected.notes, *_limits(collected, modalities), *failed, *skipped],
    )


def _measure_gap(collected: Collected, gap: Array, seed: int) -> GapMeasures:
    first, second = (collected.moments[name] for name in (collected.first, collected.second))
    sums = collected.sums
    length, length_interval, debiased, debiased_interval = _gap_lengths(collected, gap)
    along = {name: variance_along(moments, gap) for name, moments in collected.moments.items()}
    if sums is None:
        return GapMeasures(
            length, length_interval, debiased, debiased_interval, None, None, None, None, None, None, along
        )
    lengths = np.linalg.norm(sums.groups, axis=1)
    directions = group_directions(sums.groups)
    rmg = relative_gap(float(sums.cosine.mean()), first, second)
    return GapMeasures(
        length=length,
        length_interval=length_interval,
        length_debiased=debiased,
        length_debiased_interval=debiased_interval,
        instance_distance=float(sums.distance.mean()),
        instance_distance_interval=mean_interval(sums.distance, sums.item_index, seed=seed),
        rmg=rmg,
        rmg_interval=None if rmg is None else _rmg_interval(collected, sums, rmg, seed),
        direction=float(directions.mean()) if len(directions) else None,
        group_length=(float(lengths.mean()), float(lengths.std())) if len(lengths) else None,
        variance_along=along,
    )


def _gap_lengths(collected: Collected, gap: Array) -> tuple[float, Ends | None, float, Ends | None]:
    """Return the length of the gap with its interval, plain and without the bias of its square.

    The plain interval is that of the linearised length. The other is found for the square, whose variance is
    ``4 g' A g - 2 tr(A^2)`` with A the covariance of the gap g over draws of the data, so that it contains for a gap of
    zero too; both have the quantiles of Student's distribution.
    """
    covariance, length = collected.gap_covariance, float(np.linalg.norm(gap))
    independent = collected.items or min(moments.n for moments in collected.moments.values())
    square = length**2 - collected.gap_bias
    debiased = float(np.sqrt(max(square, 0.0)))
    if independent < 3 or length == 0:
        return length, None, debiased, None
    quantile = student_quantile(independent - 1)
    along = max(float(gap @ covariance @ gap), 0.0)
    # the sample's tr(A^2) is too large by tr(A)^2 over the degrees of freedom
    freedom = min(independent, len(collected.working.first)) - 1
    chance = 2 * max(float(np.sum(covariance**2)) - collected.gap_bias**2 / freedom, 0.0)
    plain = quantile * float(np.sqrt(along)) / length
    wide = quantile * float(np.sqrt(max(4 * along - chance, chance)))
    ends = float(np.sqrt(max(square - wide, 0.0))), float(np.sqrt(max(square + wide, 0.0)))
    return length, (length - plain, length + plain), debiased, ends


def _measure_pairs(collected: Collected, seed: int) -> PairMeasures | None:
    sums = collected.sums
    if sums is None:
        return None
    unpaired = _unpaired_cosine(collected, sums)
    unpaired_interval = None
    if unpaired is not None:
        x, y = _along_means(collected, crossed=True)  # each pair adds x . mu_y + mu_x . y
        unpaired_interval = _interval(collected, unpaired, x + y, seed)
    rms = float(np.sqrt(sums.variance.mean()))
    rms_debiased = float(np.sqrt(sums.variance.mean() + _residual_bias(collected, sums)))
    rms_interval = None if rms == 0 else _residual_interval(collected, sums, rms, seed)
    squares = sums.distance**2
    return PairMeasures(
        n=len(sums.item_index),
        items=collected.items,
        paired_cosine=float(sums.cosine.mean()),
        paired_cosine_interval=mean_interval(sums.cosine, sums.item_index, seed=seed),
        unpaired_cosine=unpaired,
        unpaired_cosine_interval=unpaired_interval,
        residual_rms=rms,
        residual_rms_interval=rms_interval,
        residual_rms_debiased=rms_debiased,
        residual_rms_debiased_interval=_scaled(rms_interval, rms_debiased / rms) if rms_interval else None,
        alignment=float(squares.mean()),
        alignment_interval=mean_interval(squares, sums.item_index, seed=seed),
    )


def _unpaired_cosine(collected: Collected, sums: PairSums) -> float | None:
    """Return the mean cosine of paired rows that do not match: ``(sum x . sum y - sum_pairs x . y) / rest``."""
    rest = collected.items * len(sums.item_index) - len(sums.item_index)
    if rest <= 0:
        return None
    first, second = (
        collected.moments[name].n * collected.moments[name].mean if total is None else total
        for name, total in ((collected.first, sums.first_sum), (collected.second, sums.second_sum))
    )
    return float((first @ second - sums.cosine.sum()) / rest)


def _rmg_interval(collected: Collected, sums: PairSums, value: float, seed: int) -> Ends | None:
    """Return the interval of RMG = N / (N + W), N the distance of pairs and W the mean one within modalities.

    To first order a pair adds ``(1 - x . y) / 2`` to N and ``-(x . mu_x + y . mu_y) / 2`` to W, each row standing on
    both sides of the pairs of its modality; the derivatives are ``W / (N + W)^2`` and ``-N / (N + W)^2``.
    """
    working = collected.working
    num = float((1 - sums.cosine.mean()) / 2)
    if num <= 0 or not 0 < value < 1:
        return None
    near = (1 - np.einsum("ij,ij->i", working.first[working.item_index], working.second)) / 2
    x, y = _along_means(collected, crossed=False)
    within = num * (1 - value) / value
    return _interval(collected, value, (within * near + num * (x + y) / 2) / (num + within) ** 2, seed)


def _residual_interval(collected: Collected, sums: PairSums, value: float, seed: int) -> Ends | None:
    """Return the interval of the residual rms: each pair adds ``|(x - y) - mean|^2 / d`` to its square."""
    noise = collected.working.differences() - sums.mean.astype(collected.working.first.dtype)
    squares = np.einsum("ij,ij->i", noise, noise) / noise.shape[1]
    return _interval(collected, value, squares / (2 * value), seed)


def _scaled(ends: Ends, factor: float) -> Ends:
    return ends[0] * factor, ends[1] * factor


def _residual_bias(collected: Collected, sums: PairSums) -> float:
    """Return by how much the mean square of the residuals per dimension is too small: the variance of their mean."""
    working = collected.working
    off = (working.item_means - working.first + sums.mean) * working.rows_per_item[:, None]  # (m, d)
    count = len(off)
    if count < 2:
        return 0.0
    share = off / (len(working.item_index) / count)
    return float(np.sum(share**2) / ((count - 1) * collected.items * off.shape[1]))


def _along_means(collected: Collected, *, crossed: bool) -> tuple[Array, Array]:
    """Return x and y of every pair along the mean of the other modality (crossed), or of their own: float64 (k,)."""
    working = collected.working
    means = [collected.moments[name].mean for name in (collected.first, collected.second)]
    x = working.first @ means[1 if crossed else 0].astype(working.first.dtype)
    y = working.second @ means[0 if crossed else 1].astype(working.second.dtype)
    return x[working.item_index].astype(np.float64), y.astype(np.float64)


def _interval(collected: Collected, value: float, added: Floats, seed: int) -> Ends | None:
    """Return the interval of ``value`` from the contribution of each pair of the working set (k,)."""
    values = added.astype(np.float64)
    interval = mean_interval(values, collected.working.item_index, seed=seed)
    if interval is None:
        return None
    shrink = float(np.sqrt(len(collected.working.first) / max(collected.items, 1)))
    centre = float(values.mean())
    return value + (interval[0] - centre) * shrink, value + (interval[1] - centre) * shrink


def _sigmas(collected: Collected) -> list[sigma_rules.SigmaRule]:
    working = collected.working
    means = [collected.fit_moments[name].mean for name in (collected.first, collected.second)]
    item_index = working.item_index if working.paired else np.full(len(working.second), -1)
    spread = sigma_rules.caption_spread(working.second, item_index, means[1])
    return [
        spread,
        sigma_rules.scaled_spread(spread),
        sigma_rules.residual_rms(None if collected.sums is None else collected.sums.variance),
        sigma_rules.pair_cosine(working.first, working.second, working.item_index, means),
        sigma_rules.published(),
    ]


def _limits(collected: Collected, modalities: dict[str, ModalityMeasures]) -> list[str]:
    """Return notes on the limits of the numbers: few rows, no pairs, or a sample."""
    notes = [
        f"{name}: {found.n} rows span at most {found.n - 1} of {found.dim} dimensions, so the number of rows "
        "limits the effective dimension."
        for name, found in modalities.items()
        if found.limited_by_rows
    ]
    if 0 < collected.items < BIASED_ITEMS:
        also = " The intervals of recall and separability are approximate too." if collected.items < FEW_ITEMS else ""
        notes.append(
            f"With only {collected.items} {collected.first} rows, the length of the gap and the residual rms are "
            f"biased and their intervals are approximate; use the debiased values.{also}"
        )
    if collected.sums is None:
        notes.append(
            f"No {collected.second} row belongs to any {collected.first} row, so distances of pairs, RMG, alignment "
            "noise and recall cannot be measured. The gap, the spectra and the modality bias can."
        )
    elif not collected.working.complete:
        working = collected.working
        notes.append(
            f"Recall, uniformity, separability, modality bias and the shape of the noise are measured on a seeded "
            f"sample of {len(working.first):,} {collected.first} rows with all their {len(working.second):,} "
            f"{collected.second} rows, so recall is for a search among that many rows. Everything else is exact."
        )
    return notes
