"""The space as it is and as each preset leaves it: recall, gap, separability, modality bias, uniformity.

Measured on the working set, as all of these need all pairs of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..metrics.retrieval import DEFAULT_KS, pair_ranks
from ..moments import unit_rows
from ..store.rows import Indices
from ..transforms import PRESETS, Pipeline, preset
from .bootstrap import Estimate, Interval, mean_interval
from .collect import Collected
from .neighbours import modality_bias, separability, uniformity
from .reading import Rows

RAW = "raw"
COLLAPSE = "c2-collapse"
RECALL_PRESETS = (RAW, COLLAPSE, "gap-shift", "project-out-gap", "standardize", "whiten", "realign")
"""The noise-free presets that moments suffice for; ``c2-collapse`` is also what GR-CLIP does to two modalities."""
ALL_PRESETS_SCORES = 50_000_000
"""Up to so many cosines per space, recall is measured under all of them."""


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
    separability: Estimate | None = None
    modality_bias: dict[str, Estimate] | None = None
    uniformity: dict[str, Estimate] | None = None


def measure_space(
    name: str, collected: Collected, x: Rows, y: Rows, owners: tuple[Indices, Indices], *, seed: int = 0
) -> SpaceMeasures:
    """Measure a space; the preset ``raw`` and Collapse completely, the others by recall and gap.

    Args:
        name: of the preset.
        collected: what was read.
        x: (m, d), the first modality's rows of the working set after the preset.
        y: (k, d), the second's.
        owners: int64 (m,) and (k,), the item of each row.
        seed: of samples and resampling.
    """
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
    bias = modality_bias(x, y, items=owners, seed=seed)
    return SpaceMeasures(
        name,
        recall,
        intervals,
        gap,
        separability=separability(working.first, working.second, owners, collapse=name == COLLAPSE, seed=seed),
        modality_bias={first: bias[0], second: bias[1]},
        uniformity={first: uniformity(x, owners[0], seed=seed), second: uniformity(y, owners[1], seed=seed)},
    )


def apply_preset(name: str, collected: Collected) -> tuple[Rows, Rows]:
    """The working set after a preset, as inference inputs: (m, d) and (k, d)."""
    first, second = collected.working.first, collected.working.second
    if name == RAW:
        return unit_rows(first), unit_rows(second)
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
