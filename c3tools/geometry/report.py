"""The gap report: its numbers as one JSON object with stable keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..store.reader import Store
from .collect import collected_facts
from .measures import Measured
from .spaces import SpaceMeasures
from .spectrum import ModalityMeasures

DIGITS = 9
SCHEMA = 1


@dataclass
class GapReport:
    """A finished report.

    Attributes:
        values: what `--json` prints; keys documented in docs/geometry.md, floats with 9 significant digits.
        measured: the arrays behind it, for figures; None where only one modality was measured.
        alone: that modality, then.
    """

    values: dict[str, Any]
    measured: Measured | None
    alone: dict[str, ModalityMeasures] = field(default_factory=dict)


def report_values(measured: Measured, *, seed: int, split: str | None) -> dict[str, Any]:
    """The report's JSON object."""
    gap, pairs = measured.gap, measured.pairs
    facts = collected_facts(measured.collected)
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "modalities": {name: modality_values(found) for name, found in measured.modalities.items()},
        "gap": {
            "length": gap.length,
            "length_interval": gap.length_interval,
            "instance_distance": gap.instance_distance,
            "instance_distance_interval": gap.instance_distance_interval,
            "rmg": gap.rmg,
            "rmg_interval": gap.rmg_interval,
            "direction": gap.direction,
            "group_length": gap.group_length,
            "variance_along": gap.variance_along,
        },
        "pairs": None
        if pairs is None
        else {
            "n": pairs.n,
            "items": pairs.items,
            "paired_cosine": pairs.paired_cosine,
            "paired_cosine_interval": pairs.paired_cosine_interval,
            "unpaired_cosine": pairs.unpaired_cosine,
            "unpaired_cosine_interval": pairs.unpaired_cosine_interval,
            "residual_rms": pairs.residual_rms,
            "residual_rms_interval": pairs.residual_rms_interval,
            "alignment": pairs.alignment,
            "alignment_interval": pairs.alignment_interval,
        },
        "retrieval": {name: space.recall for name, space in measured.spaces.items() if space.recall},
        "retrieval_intervals": {name: space.intervals for name, space in measured.spaces.items() if space.intervals},
        "spaces": {name: _space_values(space) for name, space in measured.spaces.items()},
        "assumptions": {found.name: found.to_json() for found in measured.assumptions},
        "noise": _noise_values(measured),
        "subsets": measured.subsets,
        "sigma": {
            "candidates": {rule.name: rule.to_dict() for rule in measured.sigmas},
            "recommended": measured.recommended[0].name,
            "value": measured.recommended[0].sigma,
            "why": measured.recommended[1],
        },
        "provenance": {**facts, "split": split or "all", "seed": seed, "c3tools": __version__},
        "notes": measured.notes,
    }
    return to_json_floats(values)  # type: ignore[no-any-return]


def single_report(store: Store, found: ModalityMeasures, modality: str, *, split: str | None) -> GapReport:
    """The report of a store with one modality: what can be said about it alone, and what cannot."""
    notes = [
        f"This is one modality, {modality}: there is no gap, and no pairs, to measure."
        + (" Embed another modality into the same store for the full report." if len(store.modalities) == 1 else "")
    ]
    if found.limited_by_rows:
        notes.append(f"{found.n} rows span at most {found.n - 1} of {found.dim} dimensions.")
    values = {
        "schema": SCHEMA,
        "modalities": {modality: modality_values(found)},
        "gap": None,
        "pairs": None,
        "retrieval": {},
        "spaces": {},
        "assumptions": {},
        "provenance": {
            "store": str(store.path),
            "model": str(store.info.model),
            "dim": store.info.dim,
            "dtype": store.info.dtype,
            "rows": {modality: found.n},
            "split": split or "all",
            "c3tools": __version__,
        },
        "notes": notes,
    }
    return GapReport(to_json_floats(values), None, {modality: found})


def comparison_notes(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What two reports that are laid side by side differ in."""
    values = (first, second)
    models = [report["provenance"]["model"] for report in values]
    notes = []
    if models[0] != models[1]:
        notes.append(
            f"The stores hold embeddings of two models, {models[0]} and {models[1]}: compare the measures, not the "
            "vectors."
        )
    rows = [report["provenance"]["rows"] for report in values]
    if rows[0] != rows[1]:
        listed = (", ".join(f"{n:,} {name}" for name, n in counts.items()) for counts in rows)
        notes.append(
            f"The stores differ in rows ({' against '.join(listed)}): recall depends on the size of the gallery."
        )
    return notes


def modality_values(found: ModalityMeasures) -> dict[str, Any]:
    """One modality's part of the JSON object."""
    return {
        "n": found.n,
        "dim": found.dim,
        "effective_dimension": found.effective_dimension,
        "effective_rank": found.effective_rank,
        "participation_ratio": found.participation_ratio,
        "mean_norm": found.mean_norm,
        "mean_norm_error": found.mean_norm_error,
        "mean_direction_error_degrees": found.direction_error,
        "rows_for_one_degree": found.rows_for_one_degree,
        "independent_rows": found.independent,
        "limited_by_rows": found.limited_by_rows,
    }


def to_json_floats(value: Any) -> Any:
    """Numbers with 9 significant digits, so that rounding in the last bits does not show; no NaN, no infinity."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): to_json_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_floats(item) for item in value]
    return value


def _space_values(space: SpaceMeasures) -> dict[str, Any]:
    values: dict[str, Any] = {"gap": space.gap, "separability": None, "modality_bias@10": None, "uniformity": None}
    if space.separability is None or space.modality_bias is None or space.uniformity is None:
        return values
    values |= {"separability": space.separability.value, "separability_interval": space.separability.interval}
    for name, found in (("modality_bias@10", space.modality_bias), ("uniformity", space.uniformity)):
        values[name] = {modality: estimate.value for modality, estimate in found.items()}
        values[f"{name}_interval"] = {modality: estimate.interval for modality, estimate in found.items()}
        values[f"{name}_rows"] = {modality: estimate.rows for modality, estimate in found.items()}
    return values


def _noise_values(measured: Measured) -> dict[str, Any] | None:
    noise = measured.noise
    if noise is None:
        return None
    return {
        "pairs": noise.pairs,
        "isotropy": noise.isotropy,
        "std_smallest": float(noise.per_dimension.min()),
        "std_largest": float(noise.per_dimension.max()),
        "direction_mean": float(noise.cosines.mean()) if len(noise.cosines) else None,
        "direction_std": float(noise.cosines.std()) if len(noise.cosines) else None,
        "distance_to_normal": noise.distance,
    }
