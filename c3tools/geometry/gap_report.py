"""The job of `c3 gap-report`: measure two modalities of a store, every pair of them, or two stores side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..io.locations import write_all
from ..reporter import Tracker
from ..store.reader import Store
from .collect import collect, collect_single
from .measures import measure
from .overview import gaps_between_modalities
from .report import GapReport, comparison_notes, report_values, single_report, to_json_floats
from .spaces import RECALL_PRESETS
from .spectrum import measure_modality

ALL_PAIRS = ("all",)


@dataclass
class GapDocument:
    """What one run of the command makes.

    Attributes:
        reports: one, or one per store, or one per pair of modalities.
        values: the JSON object.
        pages: HTML pages by what is added to the name of the file; the first is the one to open.
    """

    reports: list[GapReport]
    values: dict[str, Any]
    pages: dict[str, str]

    def write_pages(self, path: Path) -> list[Path]:
        """Write the pages, the first to ``path``, the others beside it; here or by URL."""
        written = []
        for suffix, page in self.pages.items():
            target = path.with_name(f"{path.stem}{suffix}{path.suffix}")
            write_all(target, page.encode())
            written.append(target)
        return written


def gap_document(
    stores: Sequence[Path],
    *,
    page_name: str,
    modalities: Sequence[str] | None = None,
    split: str | None = None,
    by: str | None = None,
    skip_invalid: bool = False,
    presets: Sequence[str] | None = None,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> GapDocument:
    """Measure one store, every pair of its modalities, or two stores, and lay it out as pages.

    Args:
        stores: one or two.
        page_name: the file name of the first page, which the others are named after.
        modalities: see `gap_report`; ``("all",)`` is every pair of modalities of one store.
        split: see `gap_report`, as the rest.
        by: a column.
        skip_invalid: leave invalid rows out.
        presets: of recall.
        seed: of samples and resampling.
        tracker: told about rows read.

    Raises:
        StoreError: as `gap_report`; or if there are more than two stores, or two and every pair of modalities.
    """
    from . import page

    def one(path: Path, names: Sequence[str] | None) -> GapReport:
        return gap_report(
            path,
            modalities=names,
            split=split,
            by=by,
            skip_invalid=skip_invalid,
            presets=presets,
            seed=seed,
            tracker=tracker,
        )

    if len(stores) > 2:
        raise StoreError(f"A report compares two stores, not {len(stores)}.", remedy="Name one or two.")
    if modalities is not None and tuple(modalities) == ALL_PAIRS:
        if len(stores) == 2:
            raise StoreError(
                "Two stores are compared by one pair of modalities, not by every pair.",
                remedy="Name the pair, for example --modalities image,text.",
            )
        there = Store.open(stores[0]).modalities
        if len(there) > 2:
            reports = [one(stores[0], pair) for pair in combinations(there, 2)]
            values = {"reports": [report.values for report in reports]}
            return GapDocument(reports, values, page.pair_pages(reports, page_name))
        modalities = None
    reports = [one(path, modalities) for path in stores]
    if len(reports) == 1:
        return GapDocument(reports, reports[0].values, {"": page.report_page(reports[0])})
    return GapDocument(reports, compare(*reports), {"": page.comparison_page(*reports)})


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
    """Measure the geometry of two modalities of a store, or of one.

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
            "--modalities A,B, or every pair with --modalities all."
        )
    values = report_values(measured, seed=seed, split=split)
    values["modality_gaps"] = to_json_floats(gaps_between_modalities(store, split=split)) if others else []
    return GapReport(values, measured)


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
    there = store.modalities
    if modalities is not None:
        if not 1 <= len(modalities) <= 2 or len(set(modalities)) != len(modalities):
            raise StoreError(
                f"A report compares two different modalities, not {', '.join(modalities) or 'none'}.",
                remedy=f"The store has: {', '.join(there) or 'nothing'}; `--modalities all` takes every pair.",
            )
        for name in modalities:
            store.require(name)
        return list(modalities)
    if not there:
        raise StoreError(f"The store {store.path} is empty.", remedy="Fill it with `c3 embed PATH`.")
    return there[:2]
