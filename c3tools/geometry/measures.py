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
from ..metrics.retrieval import DEFAULT_KS, pair_ranks
from ..moments import Moments
from ..progress import SilentTracker, Tracker
from ..transforms import PRESETS, Pipeline, preset
from . import sigma as sigma_rules
from .assumptions import Assumption, Residuals, all_assumptions, group_directions, orthogonality, residuals
from .bootstrap import Interval, mean_interval
from .collect import Collected
from .neighbours import modality_bias, separability, uniformity
from .reading import Rows
from .spectrum import ModalityMeasures, gap_vector, measure_modality, variance_along, within_cosine

Array = npt.NDArray[np.float64]

RAW = "raw"
COLLAPSE = "c2-collapse"
RECALL_PRESETS = (RAW, COLLAPSE, "gap-shift", "project-out-gap", "standardize", "whiten", "realign")
"""The noise-free presets that moments suffice for; ``c2-collapse`` is also what GR-CLIP does to two modalities."""
ALL_PRESETS_SCORES = 50_000_000
"""Up to so many cosines per space, recall is measured under all of them."""


@dataclass(frozen=True)
class GapMeasures:
    """The modality gap.

    Attributes:
        length: norm of the difference of the means (L2M).
        length_interval: 95 % bootstrap interval, over items; None without pairs.
        instance_distance: mean distance of pairs (L2I), or None without pairs.
        instance_distance_interval: likewise.
        rmg: relative modality gap (Schrodi et al., 2024), or None without pairs.
        direction: mean cosine between group means; None with fewer than two groups.
        group_length: mean and standard deviation of the groups' lengths, or None.
        variance_along: per modality, the share of its variance along the gap.
    """

    length: float
    length_interval: Interval | None
    instance_distance: float | None
    instance_distance_interval: Interval | None
    rmg: float | None
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
        residual_rms: root mean square, over dimensions, of the alignment noise.
        alignment: mean squared distance of pairs (Wang and Isola, 2020).
    """

    n: int
    items: int
    paired_cosine: float
    paired_cosine_interval: Interval | None
    unpaired_cosine: float | None
    residual_rms: float
    alignment: float


@dataclass(frozen=True)
class SpaceMeasures:
    """What a preset makes of the space.

    Attributes:
        preset: its name; ``raw`` for none.
        recall: direction (``image_to_text``) → ``{"recall@1": ...}``, fractions; empty without pairs.
        intervals: the same keys → 95 % bootstrap interval.
        gap: distance of the two means of the working set after it.
        separability: held-out accuracy of the probe; None where not computed.
        modality_bias: per modality, share of own-modality neighbours; None where not computed.
        uniformity: per modality; None where not computed.
    """

    preset: str
    recall: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval | None]]
    gap: float
    separability: float | None = None
    modality_bias: dict[str, float] | None = None
    uniformity: dict[str, float] | None = None


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
    spaces, transformed, failed = {}, {}, []
    for name in dict.fromkeys((RAW, COLLAPSE, *presets)):
        try:
            x, y = apply_preset(name, collected)
        except TransformError as error:
            failed.append(f"{name} cannot be applied here: {error.message}")
            continue
        spaces[name] = _space(name, collected, x, y, seed)
        if name in (RAW, COLLAPSE):
            transformed[name] = (x, y)
        tracker.advance(note=name)
    gap = gap_vector(collected.moments[first], collected.moments[second])
    item_numbers = np.arange(len(working.first))
    owners = {first: item_numbers, second: working.owner if working.paired else np.arange(len(working.second))}
    orthogonal = {
        name: orthogonality(rows, owners[name], gap, seed=seed)
        for name, rows in ((first, working.first), (second, working.second))
    }
    noise = residuals(working.differences(), working.owner, seed=seed) if working.paired else None
    sigmas = _sigmas(collected)
    return Measured(
        collected=collected,
        modalities=modalities,
        gap=_gap(collected, gap, seed),
        pairs=_pairs(collected, seed),
        spaces=spaces,
        assumptions=all_assumptions(collected.sums, collected.items, noise, orthogonal, len(gap)),
        noise=noise,
        orthogonal=orthogonal,
        subsets=_subsets(collected, gap),
        sigmas=sigmas,
        recommended=sigma_rules.recommend(sigmas),
        transformed=transformed,
        notes=[*collected.notes, *_limits(collected, modalities), *failed, *skipped],
    )


def apply_preset(name: str, collected: Collected) -> tuple[Rows, Rows]:
    """The working set after a preset, as inference inputs: (m, d) and (k, d)."""
    first, second = collected.working.first, collected.working.second
    if name == RAW:
        return _unit(first), _unit(second)
    return (
        fitted(name, collected).transform(first, modality=collected.first),
        fitted(name, collected).transform(second, modality=collected.second),
    )


def fitted(name: str, collected: Collected) -> Pipeline:
    """A preset fitted on the moments that the report names, the first modality being the inference input."""
    pipeline = preset(name, train_on=collected.second, infer_on=collected.first)
    rows = {collected.first: collected.working.first, collected.second: collected.working.second}
    return pipeline.fit(collected.fit_moments, rows if pipeline.needs_rows else None)


def describe_preset(name: str) -> str:
    """What a preset does, as a formula."""
    return "norm(e)" if name == RAW else PRESETS[name].summary


def unpaired_cosine(collected: Collected) -> float | None:
    """Mean cosine over all pairs of paired rows that do not match: ``(sum x . sum y - sum_pairs x . y) / rest``."""
    sums = collected.sums
    if sums is None:
        return None
    rest = collected.items * len(sums.owner) - len(sums.owner)
    if rest <= 0:
        return None
    first, second = (
        collected.moments[name].n * collected.moments[name].mean if total is None else total
        for name, total in ((collected.first, sums.first_sum), (collected.second, sums.second_sum))
    )
    return float((first @ second - sums.cosine.sum()) / rest)


def relative_gap(paired_cosine: float, first: Moments, second: Moments) -> float | None:
    """RMG of Schrodi et al. (2024): the distance of pairs over itself and the mean distance within modalities.

    ``D = (1 - cos) / 2``; num = mean D over pairs; den = num + (mean D within x + mean D within y) / 2, diagonals
    excluded.
    """
    within = [within_cosine(moments) for moments in (first, second)]
    if within[0] is None or within[1] is None:
        return None
    num = (1 - paired_cosine) / 2
    den = num + ((1 - within[0]) / 2 + (1 - within[1]) / 2) / 2
    return num / den if den > 0 else None


def _space(name: str, collected: Collected, x: Rows, y: Rows, seed: int) -> SpaceMeasures:
    working, first, second = collected.working, collected.first, collected.second
    recall: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, Interval | None]] = {}
    if working.paired:
        forward, backward = pair_ranks(x, y, working.owner)
        directions = ((f"{first}_to_{second}", forward, None), (f"{second}_to_{first}", backward, working.owner))
        for direction, ranks, items in directions:
            recall[direction] = {f"recall@{k}": float(ranks.hits(k).mean()) for k in DEFAULT_KS}
            intervals[direction] = {f"recall@{k}": mean_interval(ranks.hits(k), items, seed=seed) for k in DEFAULT_KS}
    gap = float(np.linalg.norm(x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)))
    if name not in (RAW, COLLAPSE):
        return SpaceMeasures(name, recall, intervals, gap)
    bias = modality_bias(x, y, seed=seed)
    return SpaceMeasures(
        name,
        recall,
        intervals,
        gap,
        separability=separability(working.first, working.second, collapse=name == COLLAPSE, seed=seed)[0],
        modality_bias={first: bias[0], second: bias[1]},
        uniformity={first: uniformity(x, seed=seed)[0], second: uniformity(y, seed=seed)[0]},
    )


def _gap(collected: Collected, gap: Array, seed: int) -> GapMeasures:
    first, second = (collected.moments[name] for name in (collected.first, collected.second))
    length, sums = float(np.linalg.norm(gap)), collected.sums
    along = {name: variance_along(moments, gap) for name, moments in collected.moments.items()}
    if sums is None:
        return GapMeasures(length, None, None, None, None, None, None, along)
    lengths = np.linalg.norm(sums.groups, axis=1)
    directions = group_directions(sums.groups)
    return GapMeasures(
        length=length,
        length_interval=_length_interval(collected, gap, seed),
        instance_distance=float(sums.distance.mean()),
        instance_distance_interval=mean_interval(sums.distance, sums.owner, seed=seed),
        rmg=relative_gap(float(sums.cosine.mean()), first, second),
        direction=float(directions.mean()) if len(directions) else None,
        group_length=(float(lengths.mean()), float(lengths.std())) if len(lengths) else None,
        variance_along=along,
    )


def _length_interval(collected: Collected, gap: Array, seed: int) -> Interval | None:
    """Interval of the gap's length: of the mean of ``u . (x - y)``, u the unit gap, which is its linearisation.

    From the pairs of the working set; where that is a sample, narrowed to the number of items there are.
    """
    working, length = collected.working, float(np.linalg.norm(gap))
    if not working.paired or length == 0:
        return None
    along = working.differences() @ (gap / length)
    interval = mean_interval(along.astype(np.float64), working.owner, seed=seed)
    if interval is None:
        return None
    shrink = float(np.sqrt(len(working.first) / max(collected.items, 1)))
    centre = float(along.mean())
    return length + (interval[0] - centre) * shrink, length + (interval[1] - centre) * shrink


def _pairs(collected: Collected, seed: int) -> PairMeasures | None:
    sums = collected.sums
    if sums is None:
        return None
    return PairMeasures(
        n=len(sums.owner),
        items=collected.items,
        paired_cosine=float(sums.cosine.mean()),
        paired_cosine_interval=mean_interval(sums.cosine, sums.owner, seed=seed),
        unpaired_cosine=unpaired_cosine(collected),
        residual_rms=float(np.sqrt(sums.variance.mean())),
        alignment=float(np.mean(sums.distance**2)),
    )


def _subsets(collected: Collected, gap: Array) -> list[dict[str, Any]]:
    sums, length = collected.sums, float(np.linalg.norm(gap))
    if sums is None:
        return []
    rows = []
    for name, mean, count in zip(collected.subset_names, sums.subset_means, sums.subset_pairs, strict=True):
        norm = float(np.linalg.norm(mean))
        if count:
            cosine = float(mean @ gap / (norm * length)) if norm * length > 0 else None
            rows.append({"value": name, "pairs": int(count), "length": norm, "cosine_with_gap": cosine})
    return rows


def _sigmas(collected: Collected) -> list[sigma_rules.SigmaRule]:
    working = collected.working
    means = [collected.fit_moments[name].mean for name in (collected.first, collected.second)]
    owner = working.owner if working.paired else np.full(len(working.second), -1)
    return [
        sigma_rules.caption_spread(working.second, owner, means[1]),
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
            f"No {collected.second} row belongs to a {collected.first} row, so distances of pairs, RMG, alignment "
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


def _unit(rows: Rows) -> Rows:
    units: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return units
