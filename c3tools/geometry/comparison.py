"""Several gap reports together: two stores side by side, or every pair of modalities of one store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..pages import FigureBlock, Section, Table, render_page
from ..pages.render import number
from ..reporter import SILENT
from ..store.reader import Store
from .figures import figure_blocks
from .report import TEMPLATE, GapReport, gap_report, save_report
from .spaces import COLLAPSE, RAW
from .tables import Figures, Values, numbers, report_facts, with_interval
from .verdict import verdict_section

ALL_PAIRS = ("all",)


@dataclass
class GapReports:
    """One or more gap reports: two are of two stores, three or more of every pair of modalities of one store."""

    reports: list[GapReport]

    @property
    def values(self) -> list[dict[str, Any]]:
        """The JSON object of each report."""
        return [report.values for report in self.reports]

    @property
    def heading(self) -> str:
        """Store and model, or the two stores."""
        return self.reports[0].heading if len(self.reports) != 2 else "Two spaces, side by side"

    @property
    def notes(self) -> list[str]:
        """Notes for the reader: how two stores differ, and the notes of the reports, each once."""
        if len(self.reports) == 2:
            own = [f"{values['provenance']['store']}: {note}" for values in self.values for note in values["notes"]]
            return _differences(*self.values) + own
        return list(dict.fromkeys(note for values in self.values for note in values["notes"]))

    def to_dict(self) -> dict[str, Any]:
        """Return what `c3 gap-report --json` prints: of one report, of two ``stores``, or of several ``reports``."""
        if len(self.reports) == 1:
            return self.values[0]
        if len(self.reports) == 2:
            return {"stores": self.values, "notes": _differences(*self.values)}
        return {"reports": self.values}

    def summary(self) -> list[Section]:
        """Return the one report in a few sentences; of several, those of each and the tables that compare them."""
        return self.reports[0].summary() if len(self.reports) == 1 else self.sections()

    def sections(self) -> list[Section]:
        """Return the one report, two stores side by side, or the pairs of modalities as sentences and tables."""
        if len(self.reports) == 1:
            return self.reports[0].sections()
        tables = _compare_stores(self.values) if len(self.reports) == 2 else _list_pairs(self.values)
        return [*self._verdicts(), *tables]

    def save(self, path: str | Path) -> list[Path]:
        """Write JSON or pages as `GapReport.save` does; every pair of modalities has a further page beside ``path``."""
        return save_report(path, self.to_dict(), self._pages)

    def save_figures(self, folder: Path) -> list[Path]:
        """Write every figure as PNG and SVG, of several reports into one sub-folder each, and return the files."""
        if len(self.reports) == 1:
            return self.reports[0].save_figures(folder)
        written = []
        for position, report in enumerate(self.reports, start=1):
            store = Path(report.values["provenance"]["store"]).name
            name = store if len(self.reports) == 2 else "-".join(report.values["modalities"])
            written += report.save_figures(folder / f"{position}-{name}")
        return written

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for section in self.sections() for table in section.tables)

    def _verdicts(self) -> list[Section]:
        """Return the verdict of each report under the name of its store, or of its pair of modalities."""
        two = len(self.reports) == 2
        names = [values["provenance"]["store"] if two else " and ".join(values["modalities"]) for values in self.values]
        return [verdict_section(values, f"Verdict: {name}") for name, values in zip(names, self.values, strict=True)]

    def _pages(self, name: str) -> dict[str, str]:
        """Return HTML pages by what is added to the stem of ``name``: the first page has "" and links to the others."""
        if len(self.reports) == 1:
            return {"": self.reports[0].to_html()}
        facts = [report_facts(values) for values in self.values]
        if len(self.reports) == 2:
            blocks = [
                figure_blocks(report.labelled_figures() if report.measured else {}, prefix=f"store{number}")
                for number, report in enumerate(self.reports)
            ]
            return {
                "": _page(self.heading, self.notes, [*self._verdicts(), *_compare_stores(self.values, blocks)], facts)
            }
        suffixes = ["-" + "-".join(values["modalities"]) for values in self.values]
        links = [f"{Path(name).stem}{suffix}{Path(name).suffix}" for suffix in suffixes]
        shared = {key: facts[0][key] for key in ("Store", "Model", "Made with")}
        first = _page("Every pair of modalities", [], [*self._verdicts(), *_list_pairs(self.values, links)], [shared])
        return {"": first} | {suffix: each.to_html() for suffix, each in zip(suffixes, self.reports, strict=True)}


def gap_reports(
    stores: Sequence[Store | str | Path], *, modalities: Sequence[str] | None = None, **options: Any
) -> GapReports:
    """Measure one store, two stores side by side, or every pair of modalities of one store.

    Args:
        stores: one or two.
        modalities: see `gap_report`; ``("all",)`` is every pair of modalities of one store.
        options: the others of `gap_report`.

    Raises:
        StoreError: as `gap_report`; or if there are more than two stores, or two and every pair of modalities.
    """
    if len(stores) > 2:
        raise StoreError(f"A report compares at most two stores, not {len(stores)}.", remedy="Give one or two stores.")
    if modalities is None or tuple(modalities) != ALL_PAIRS:
        return GapReports([gap_report(store, modalities=modalities, **options) for store in stores])
    if len(stores) == 2:
        raise StoreError(
            "Two stores can only be compared for one pair of modalities, not for every pair.",
            remedy="Choose the pair, for example --modalities image,text.",
        )
    store = Store.open(stores[0], reporter=options.get("reporter", SILENT))
    pairs = list(combinations(store.modalities, 2)) if len(store.modalities) > 2 else [None]
    return GapReports([gap_report(store, modalities=pair, **options) for pair in pairs])


def _page(title: str, notes: list[str], sections: list[Section], sources: list[dict[str, str]]) -> str:
    return render_page(TEMPLATE, title=title, lead="", tiles=[], notes=notes, sections=sections, sources=sources)


def _compare_stores(reports: Sequence[Values], figures: Sequence[Figures] = ()) -> list[Section]:
    """Lay out the reports of two stores in one table, and on a page their figures side by side."""
    names = [name for name in reports[0]["modalities"] if name in reports[1]["modalities"]]
    rows: list[list[str]] = []

    def add(name: str, cells: Iterable[str]) -> None:
        rows.append([name, *cells])

    def measure(name: str, part: str, key: str, digits: int = 3) -> None:
        found = [report[part] or {} for report in reports]
        add(name, [with_interval(part.get(key), part.get(f"{key}_interval"), digits) for part in found])

    add("Model", [str(report["provenance"]["model"]) for report in reports])
    for name in names:
        add(f"Rows, {name}", [number(report["modalities"][name]["n"], 0) for report in reports])
    measure("Gap length", "gap", "length")
    measure("Relative gap (RMG)", "gap", "rmg")
    measure("Cosine of pairs", "pairs", "paired_cosine")
    measure("Cosine of others", "pairs", "unpaired_cosine")
    measure("Alignment noise, rms per dimension", "pairs", "residual_rms", 4)
    for name in names:
        found = [report["modalities"][name] for report in reports]
        add(f"Effective dimension, {name}", [f"{part['effective_dimension']} of {part['dim']}" for part in found])
    for preset, when in ((RAW, "before"), (COLLAPSE, "after Collapse")):
        recalls = [report["retrieval"].get(preset, {}) for report in reports]
        for direction in recalls[0]:
            if direction in recalls[1]:
                ends = [report["retrieval_intervals"][preset][direction]["recall@1"] for report in reports]
                shares = zip((recall[direction]["recall@1"] for recall in recalls), ends, strict=True)
                label = f"Recall@1, %, {direction.replace('_', ' ')}, {when}"
                add(label, [with_interval(value, end, 1, 100) for value, end in shares])
    for preset, when in ((RAW, "before"), (COLLAPSE, "after Collapse")):
        spaces = [report["spaces"].get(preset) for report in reports]
        if all(spaces):
            parts = ((space["separability"], space["separability_interval"]) for space in spaces if space)
            add(f"Linear separability, %, {when}", [with_interval(value, ends, 1, 100) for value, ends in parts])
    for name, found in reports[0]["assumptions"].items():
        if name in reports[1]["assumptions"]:
            add(found["question"], [report["assumptions"][name]["answer"] for report in reports])
    stores = [report["provenance"]["store"] for report in reports]
    table = Table(["Measure", *stores], rows, note="95 % bootstrap intervals over items are in brackets.")
    sections = [Section("Measures", tables=[table])]
    for key, title in (
        ("spectra", "Spectra"),
        ("projection", "In two dimensions"),
        ("orthogonality", "Orthogonality of the gap"),
        ("noise-size", "Size of the noise"),
        ("recall", "Recall under each preset"),
    ):
        found = [(own[key], store) for own, store in zip(figures, stores, strict=False) if key in own]
        blocks = [FigureBlock(block.svg, store, block.wide) for block, store in found]
        sections += [Section(title, figures=blocks)] if blocks else []
    return sections


def _list_pairs(reports: Sequence[Values], links: Sequence[str] = ()) -> list[Section]:
    """Lay out the reports of every pair of modalities of a store; ``links`` are the pages of the pairs."""
    names = [" and ".join(report["modalities"]) for report in reports]
    rows, recall = [], []
    for name, report in zip(names, reports, strict=True):
        gap, pairs = report["gap"], report["pairs"] or {}
        cells = [*numbers(gap, length=3, rmg=3), *numbers(pairs, paired_cosine=3, unpaired_cosine=3, residual_rms=4)]
        rows.append([name, *numbers(pairs, n=0), *cells])
        before, after = report["retrieval"].get(RAW, {}), report["retrieval"].get(COLLAPSE, {})
        for direction, scores in before.items():
            if direction in after:
                values = scores["recall@1"], after[direction]["recall@1"]
                recall.append([direction.replace("_", " "), *(number(100 * value, 1) for value in values)])
    columns = ["modalities", "pairs", "gap length", "RMG", "cosine of pairs", "of others", "noise, rms"]
    note = "The gap length is the distance of the two means. A dash means that the two modalities have no pairs."
    questions = {name: found["question"] for name, found in reports[0]["assumptions"].items()}
    verdicts = [
        [label, *(report["assumptions"].get(name, {}).get("answer", "") for name in questions)]
        for label, report in zip(names, reports, strict=True)
    ]
    return [
        Section("Every pair of modalities", tables=[Table(columns, rows, note=note, links=links)]),
        Section(
            "Recall@1 before and after Collapse",
            [] if recall else ["The modalities of this store have no pairs."],
            [Table(["direction", "before, %", "after, %"], recall)] if recall else [],
        ),
        Section(
            "Does the model of the paper hold?",
            tables=[Table(["modalities", *questions.values()], verdicts, left=list(questions.values()))],
        ),
    ]


def _differences(first: Values, second: Values) -> list[str]:
    """Return notes on differences of two stores other than their measures."""
    provenance = [values["provenance"] for values in (first, second)]
    models, rows = ([facts[key] for facts in provenance] for key in ("model", "rows"))
    notes = []
    if models[0] != models[1]:
        both = " and ".join(models)
        notes.append(
            f"The stores contain embeddings of two models, {both}: their measures can be compared, but not their "
            "vectors."
        )
    if rows[0] != rows[1]:
        listed = " against ".join(", ".join(f"{n:,} {name}" for name, n in counts.items()) for counts in rows)
        notes.append(
            f"The stores have different numbers of rows ({listed}), and recall depends on the number of rows searched."
        )
    return notes
