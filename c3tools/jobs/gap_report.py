"""The job of `c3 gap-report`: measure a store, or two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..geometry.collect import collect, collect_single
from ..geometry.measures import measure
from ..geometry.report import GapReport, comparison_notes, report_values, single_report
from ..geometry.spaces import RECALL_PRESETS
from ..geometry.spectrum import measure_modality
from ..progress import Tracker
from ..store.reader import Store


def gap_report(
    store_path: Path,
    *,
    modalities: Sequence[str] | None = None,
    split: str | None = None,
    by: str | None = None,
    skip_invalid: bool = False,
    presets: Sequence[str] | None = None,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> GapReport:
    """Measure the geometry of a store.

    Args:
        store_path: the store.
        modalities: the two to compare; by default image and text, or the first two there are. One measures it alone.
        split: measure the rows of this split only.
        by: a column that divides the pairs into subsets, each with its own gap.
        skip_invalid: leave rows with NaN, infinity or norm 0 out, instead of refusing them.
        presets: the noise-free presets recall is measured under, besides ``raw`` and ``c2-collapse``; by default all
            that can be fitted without pairs where that is cheap.
        seed: of samples and resampling.
        tracker: told about rows read.

    Raises:
        StoreError: if there is no store, a modality is missing or has fewer than 3 rows, or rows are invalid.
    """
    store = Store.open(store_path)
    chosen = _choose(store, modalities)
    if len(chosen) == 1:
        moments, notes = collect_single(store, chosen[0], split=split, skip_invalid=skip_invalid)
        report = single_report(store, measure_modality(moments), chosen[0], split=split)
        report.values["notes"] += notes
        return report
    collected = collect(
        store, chosen[0], chosen[1], split=split, by=by, skip_invalid=skip_invalid, seed=seed, tracker=tracker
    )
    measured = measure(collected, presets=_checked_presets(presets), seed=seed)
    others = [name for name in store.modalities if name not in chosen]
    if others and modalities is None:
        measured.notes.append(
            f"The store also has {', '.join(others)}; this is {chosen[0]} against {chosen[1]}. Choose two with "
            "--modalities."
        )
    return GapReport(report_values(measured, seed=seed, split=split), measured)


def compare(first: GapReport, second: GapReport) -> dict[str, Any]:
    """Two reports side by side: ``{"stores": [...], "notes": [...]}``, what differs between them named."""
    values = [first.values, second.values]
    return {"stores": values, "notes": comparison_notes(*values)}


def _checked_presets(names: Sequence[str] | None) -> Sequence[str] | None:
    for name in names or ():
        if name not in RECALL_PRESETS:
            raise StoreError(
                f"Recall is not measured under {name!r} here.",
                remedy=f"Choose among {', '.join(RECALL_PRESETS)}; `c3 evaluate` scores the others.",
            )
    return names


def _choose(store: Store, modalities: Sequence[str] | None) -> list[str]:
    if modalities is not None:
        if len(modalities) > 2 or len(set(modalities)) != len(modalities):
            raise StoreError(
                f"A report compares two different modalities, not {', '.join(modalities)}.",
                remedy=f"The store has: {', '.join(store.modalities) or 'nothing'}.",
            )
        for name in modalities:
            store.require(name)
        return list(modalities)
    there = store.modalities
    if not there:
        raise StoreError(f"The store {store.path} is empty.", remedy="Fill it with `c3 embed PATH`.")
    return there[:2]
