"""The measures of a pair of modalities, from what `collect` read.

Definitions and sources are those of docs/geometry.md; exact unless a sample is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import TransformError
from ..reporter import SilentTracker, Tracker
from ..transforms import sigma as sigma_rules
from . import pair_means
from .assumptions import Assumption, Residuals, all_assumptions, group_directions, orthogonality, residuals
from .bootstrap import Interval, mean_interval
from .collect import Collected
from .reading import Rows
from .spaces import ALL_PRESETS_SCORES, COLLAPSE, RAW, RECALL_PRESETS, SpaceMeasures, apply_preset, measure_space
from .spectrum import ModalityMeasures, gap_vector, measure_modality, variance_along
from .subsets import compare_subsets, same_in_every_subset

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GapMeasures:
    """The modality gap.

    Attributes:
        length: norm of the difference of the means (L2M).
        length_interval: 95 % bootstrap interval, over items; None without pairs.
        instance_distance: mean distance of pairs (L2I), or None without pairs.
        instance_distance_interval: likewise.
        rmg: relative modality gap (Schrodi et al., 2024), or None without pairs.
        rmg_interval: likewise.
        direction: mean cosine between group means; None with fewer than two groups.
        group_length: mean and standard deviation of the groups' lengths, or None.
        variance_along: per modality, the share of its variance along the gap.
    """

    length: float
    length_interval: Interval | None
    instance_distance: float | None
    instance_distance_interval: Interval | None
    rmg: float | None
    rmg_interval: Interval | None
    direction: float | None
    group_length: tuple[float, float] | None
    variance_along: dict[str, float]


@dataclass(frozen=True)
class PairMeasures:
    """What pairs say.

    Attributes:
        n: pairs.
        items: items that have pairs.
        paired_cosine: mean cosine of pairs.
        paired_cosine_interval: 95 % bootstrap interval over items.
        unpaired_cosine: mean cosine over all pairs that do not match, exactly; None if there are none.
        unpaired_cosine_interval: likewise.
        residual_rms: root mean square, over dimensions, of the alignment noise.
        residual_rms_interval: likewise.
        alignment: mean squared distance of pairs (Wang and Isola, 2020).
        alignment_interval: likewise.
    """

    n: int
    items: int
    paired_cosine: float
    paired_cosine_interval: Interval | None
    unpaired_cosine: float | None
    unpaired_cosine_interval: Interval | None
    residual_rms: float
    residual_rms_interval: Interval | None
    alignment: float
    alignment_interval: Interval | None


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
    transformed: dict[str, tuple[Rows, Rows]]
    notes: list[str]


def measure(
    collected: Collected, *, presets: Sequence[str] | None = None, seed: int = 0, tracker: Tracker | None = None
) -> Measured:
    """Measure a pair of modalities.

    Args:
        collected: what was read.
        presets: the spaces recall is measured in; ``raw`` and ``c2-collapse`` are always among them. By default all of
            `RECALL_PRESETS` where that is cheap, else these two.
        seed: of samples and resampling.
        tracker: told when a space is done.
    """
    tracker = tracker or SilentTracker()
    first, second, working = collected.first, collected.second, collected.working
    independent = collected.items or None
    skipped: list[str] = []
    if presets is None:
        cheap = working.complete and len(working.first) * len(working.second) <= ALL_PRESETS_SCORES
        presets = RECALL_PRESETS if cheap else ()
        if not cheap:
            skipped.append("Recall is given raw and after Collapse; the other presets, on request, with --presets.")
    modalities = {
        name: measure_modality(moments, independent if name == second else None)
        for name, moments in collected.moments.items()
    }
    owners = _owners(collected)
    spaces, transformed, failed = {}, {}, []
    for name in dict.fromkeys((RAW, COLLAPSE, *presets)):
        try:
            x, y = apply_preset(name, collected)
        except TransformError as error:
            failed.append(f"{name} cannot be applied here: {error.message}")
            continue
        spaces[name] = measure_space(name, collected, x, y, owners, seed=seed)
        if name in (RAW, COLLAPSE):
            transformed[name] = (x, y)
        tracker.advance(note=name)
    gap = gap_vector(collected.moments[first], collected.moments[second])
    orthogonal = {
        name: orthogonality(rows, items, gap, seed=seed)
        for name, rows, items in zip((first, second), (working.first, working.second), owners, strict=True)
    }
    noise = residuals(working.differences(), working.owner, seed=seed) if working.paired else None
    assumptions = all_assumptions(collected.sums, collected.items, noise, orthogonal, len(gap))
    subsets = compare_subsets(collected, gap)
    if subsets:
        assumptions.insert(1, same_in_every_subset(subsets))
    sigmas = _sigmas(collected)
    return Measured(
        collected=collected,
        modalities=modalities,
        gap=_gap(collected, gap, seed),
        pairs=_pairs(collected, seed),
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


def _owners(collected: Collected) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The item of each row of the working set, per modality; where nothing is paired, each row is its own."""
    working = collected.working
    first = np.arange(len(working.first))
    return first, working.owner if working.paired else len(first) + np.arange(len(working.second))


def _gap(collected: Collected, gap: Array, seed: int) -> GapMeasures:
    first, second = (collected.moments[name] for name in (collected.first, collected.second))
    length, sums = float(np.linalg.norm(gap)), collected.sums
    along = {name: variance_along(moments, gap) for name, moments in collected.moments.items()}
    if sums is None:
        return GapMeasures(length, None, None, None, None, None, None, None, along)
    lengths = np.linalg.norm(sums.groups, axis=1)
    directions = group_directions(sums.groups)
    rmg = pair_means.relative_gap(float(sums.cosine.mean()), first, second)
    return GapMeasures(
        length=length,
        length_interval=pair_means.length_interval(collected, gap, seed=seed),
        instance_distance=float(sums.distance.mean()),
        instance_distance_interval=mean_interval(sums.distance, sums.owner, seed=seed),
        rmg=rmg,
        rmg_interval=None if rmg is None else pair_means.rmg_interval(collected, rmg, seed=seed),
        direction=float(directions.mean()) if len(directions) else None,
        group_length=(float(lengths.mean()), float(lengths.std())) if len(lengths) else None,
        variance_along=along,
    )


def _pairs(collected: Collected, seed: int) -> PairMeasures | None:
    sums = collected.sums
    if sums is None:
        return None
    unpaired = pair_means.unpaired_cosine(collected)
    rms = float(np.sqrt(sums.variance.mean()))
    squares = sums.distance**2
    return PairMeasures(
        n=len(sums.owner),
        items=collected.items,
        paired_cosine=float(sums.cosine.mean()),
        paired_cosine_interval=mean_interval(sums.cosine, sums.owner, seed=seed),
        unpaired_cosine=unpaired,
        unpaired_cosine_interval=None
        if unpaired is None
        else pair_means.unpaired_interval(collected, unpaired, seed=seed),
        residual_rms=rms,
        residual_rms_interval=pair_means.residual_interval(collected, rms, seed=seed),
        alignment=float(squares.mean()),
        alignment_interval=mean_interval(squares, sums.owner, seed=seed),
    )


def _sigmas(collected: Collected) -> list[sigma_rules.SigmaRule]:
    working = collected.working
    means = [collected.fit_moments[name].mean for name in (collected.first, collected.second)]
    owner = working.owner if working.paired else np.full(len(working.second), -1)
    spread = sigma_rules.caption_spread(working.second, owner, means[1])
    return [
        spread,
        sigma_rules.twice_spread(spread),
        sigma_rules.residual_rms(None if collected.sums is None else collected.sums.variance),
        sigma_rules.pair_cosine(working.first, working.second, working.owner, means),
        sigma_rules.published(),
    ]


def _limits(collected: Collected, modalities: dict[str, ModalityMeasures]) -> list[str]:
    """What bounds the numbers, in words."""
    notes = []
    for name, found in modalities.items():
        if found.limited_by_rows:
            notes.append(
                f"{name}: {found.n} rows span at most {found.n - 1} of {found.dim} dimensions, so its effective "
                "dimension is limited by the number of rows, not by the encoder alone."
            )
    if collected.sums is None:
        notes.append(
            f"No {collected.second} row belongs to any {collected.first} row, so distances of pairs, RMG, alignment "
            "noise and recall cannot be given; the gap, the spectra and the modality bias can."
        )
    elif not collected.working.complete:
        working = collected.working
        notes.append(
            f"Recall, uniformity, separability, modality bias and the shape of the noise are measured on a seeded "
            f"sample of {len(working.first):,} {collected.first} rows with all their {len(working.second):,} "
            f"{collected.second} rows; recall is therefore that of a gallery of this size. Everything else is exact."
        )
    return notes
