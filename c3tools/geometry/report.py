"""The gap report: the geometry of a store, of two stores side by side, or of every pair of modalities of a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .. import __version__
from ..errors import StoreError, TransformError
from ..io.files import write_text_atomically
from ..io.locations import location
from ..metrics.significance import to_json
from ..pages import Section, Table, render_page, save_figure
from ..reporter import SILENT, Reporter
from ..store import Store
from ..transforms import sigma as sigma_rules
from . import tables
from .assumptions import Answer, answer_questions, compare_subsets
from .collect import Collected, collect, collect_single
from .figures import all_figures, figure_blocks
from .measures import BIASED_ITEMS, FEW_ITEMS, Measured, measure_gap, measure_pairs
from .residuals import orthogonality, residuals
from .spaces import ALL_PRESETS_SCORES, COLLAPSE, RAW, RECALL_PRESETS, SpaceMeasures, measure_space
from .spectrum import ModalityMeasures, gaps_between_modalities, measure_modality
from .verdict import verdicts

SCHEMA = 1
EXTREMES = 5
ALL_PAIRS = ("all",)
TEMPLATE = Path(__file__).parent / "templates" / "gap_report.html"


class GapReport(Measured):
    """The geometry of two modalities of a store, or of one, and what is made of it: JSON, tables, page and figures.

    docs/reference/geometry.md defines the measures.
    """

    def __repr__(self) -> str:
        return f"GapReport({self.heading})"

    @property
    def heading(self) -> str:
        """Store and model."""
        return f"{self.provenance['store']}  ·  {self.provenance['model']}"

    @cached_property
    def verdict(self) -> dict[str, Answer]:
        """The answers to: is there a gap, will Collapse help, will Corrupt help, is anything unusual."""
        return verdicts(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what `c3 gap-report --json` prints."""

        def answers(found: dict[str, Answer]) -> dict[str, Any]:
            return {name: {"name": name, **vars(answer)} for name, answer in found.items()}

        spaces = to_json(self.spaces)
        taken = [{name: space.pop(key) for name, space in spaces.items()} for key in ("recall", "recall_interval")]
        recall, intervals = ({name: found for name, found in each.items() if found} for each in taken)
        values = {
            "schema": SCHEMA,
            "modalities": self.modalities,
            "gap": self.gap,
            "pairs": self.pairs,
            "retrieval": recall,
            "retrieval_intervals": intervals,
            "spaces": spaces,
            "assumptions": answers(self.assumptions),
            "noise": self.noise,
            "subsets": self.subsets,
            "sigma": self.recommended
            and {
                "candidates": {each.name: each.to_dict() for each in self.sigmas},
                "recommended": self.recommended[0].name,
                "value": self.recommended[0].sigma,
                "why": self.recommended[1],
            },
            "modality_gaps": self.modality_gaps,
            "provenance": self.provenance,
            "notes": self.notes,
            "verdict": answers(self.verdict),
        }
        return to_json(values)  # type: ignore[no-any-return]

    def labelled_figures(self) -> dict[str, tuple[Figure, str]]:
        """Draw the matplotlib figures; return each by name, with its label for screen readers."""
        return all_figures(self)

    def summary(self) -> list[Section]:
        """Return the report in a few sentences."""
        return [tables.verdict_section(self)]

    def sections(self) -> list[Section]:
        """Return the report as sentences and tables."""
        return [*self.summary(), *tables.report_sections(self)]

    def to_html(self) -> str:
        """Return the report as one self-contained page."""
        blocks = figure_blocks(self.labelled_figures())
        sections = [*tables.report_sections(self, blocks), *tables.extreme_sections(self, EXTREMES)]
        names = " and ".join(self.modalities) if self.gap else "one modality"
        return render_page(
            TEMPLATE,
            title=f"The geometry of {names}",
            verdict=self.summary(),
            tiles=tables.tiles(self),
            notes=self.notes,
            sections=sections,
            sources=[tables.facts(self)],
        )

    def save(self, path: str | Path) -> list[Path]:
        """Write JSON to a path or URL that ends in ``.json``, else the HTML page; return the written file."""
        return GapReports([self]).save(path)

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for section in self.sections() for table in section.tables)


@dataclass
class GapReports:
    """One or more gap reports: two are of two stores, three or more of every pair of modalities of one store."""

    reports: list[GapReport]

    @property
    def names(self) -> list[str]:
        """The two stores, or the modalities of each report."""
        two = len(self.reports) == 2
        return [each.provenance["store"] if two else " and ".join(each.modalities) for each in self.reports]

    @property
    def heading(self) -> str:
        """Store and model, or the two stores."""
        return self.reports[0].heading if len(self.reports) != 2 else "Two spaces, side by side"

    @property
    def notes(self) -> list[str]:
        """Notes for the reader: how two stores differ, and the notes of the reports, each once."""
        if len(self.reports) == 2:
            own = [f"{each.provenance['store']}: {note}" for each in self.reports for note in each.notes]
            return [*tables.differences(self.reports), *own]
        return list(dict.fromkeys(note for each in self.reports for note in each.notes))

    def to_dict(self) -> dict[str, Any]:
        """Return what `c3 gap-report --json` prints: of one report, of two ``stores``, or of several ``reports``."""
        values = [each.to_dict() for each in self.reports]
        if len(values) == 2:
            return {"stores": values, "notes": tables.differences(self.reports)}
        return values[0] if len(values) == 1 else {"reports": values}

    def summary(self) -> list[Section]:
        """Return the one report in a few sentences; of several, those of each and the table that compares them."""
        return self.reports[0].summary() if len(self.reports) == 1 else self.sections()

    def sections(self) -> list[Section]:
        """Return the one report, or several side by side, as sentences and tables."""
        if len(self.reports) == 1:
            return self.reports[0].sections()
        return [*self._verdicts(), *tables.compare(self.reports, self.names)]

    def save(self, path: str | Path) -> list[Path]:
        """Write JSON to a path or URL that ends in ``.json``, else HTML, and return the files.

        Several reports have a page that compares them, and every pair of modalities a further one beside it.
        """
        target = location(path)
        if target.suffix == ".json":
            pages = {target: json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"}
        elif len(self.reports) == 1:
            pages = {target: self.reports[0].to_html()}
        else:
            sections, links = tables.compare(self.reports, self.names), dict[Path, str]()
            if len(self.reports) == 2:
                numbered = enumerate(self.reports)
                drawn = [figure_blocks(each.labelled_figures(), prefix=f"store{number}") for number, each in numbered]
                for key in ("spectra", "projection", "orthogonality", "noise-size", "recall"):
                    both = zip(drawn, self.names, strict=True)
                    blocks = [replace(own[key], caption=name) for own, name in both if key in own]
                    sections += [Section(key.replace("-", " ").capitalize(), figures=blocks)] if blocks else []
            else:
                ends = ["-".join(each.modalities) for each in self.reports]
                links = {
                    target.with_name(f"{target.stem}-{end}{target.suffix}"): each.to_html()
                    for end, each in zip(ends, self.reports, strict=True)
                }
                rows = [[name] for name in self.names]
                sections.append(Section("Pages", tables=[Table(["report"], rows, links=[page.name for page in links])]))
            page = render_page(
                TEMPLATE,
                title=self.heading if len(self.reports) == 2 else "Every pair of modalities",
                verdict=self._verdicts(),
                tiles=[],
                notes=self.notes,
                sections=sections,
                sources=[tables.facts(each) for each in self.reports[:2]],
            )
            pages = {target: page, **links}
        for file, text in pages.items():
            write_text_atomically(file, text)
        return list(pages)

    def save_figures(self, folder: Path) -> list[Path]:
        """Write every figure as PNG and SVG, of several reports into one sub-folder each, and return the files."""
        written = []
        for position, report in enumerate(self.reports, start=1):
            name = Path(report.provenance["store"]).name if len(self.reports) == 2 else "-".join(report.modalities)
            into = folder / f"{position}-{name}" if len(self.reports) > 1 else folder
            for figure, (drawing, _) in report.labelled_figures().items():
                written += [into / f"{figure}.{ending}" for ending in ("png", "svg")]
                for file in written[-2:]:
                    save_figure(drawing, file)
        return written

    def _verdicts(self) -> list[Section]:
        """Return the verdict of each report under its name."""
        pairs = zip(self.reports, self.names, strict=True)
        return [tables.verdict_section(each, f"Verdict: {name}") for each, name in pairs]


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


def gap_report(
    store: Store | str | Path = "c3-store",
    *,
    modalities: Sequence[str] | None = None,
    split: str | None = None,
    by: str | None = None,
    skip_invalid: bool = False,
    presets: Sequence[str] | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> GapReport:
    """Measure the geometry of two modalities of a store, or of one.

    Args:
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        modalities: The two to compare, or one to measure alone; by default image and text, or the first two.
        split: Use only the rows of this split: train, val, test or all.
        by: Also measure the gap for each value of this column.
        skip_invalid: Leave out rows that contain NaN or infinity or have norm 0.
        presets: Measure recall for raw, c2-collapse and these presets, for example gap-shift,whiten.
        seed: Seed for all random numbers.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, a modality is missing or has fewer than 3 rows, or rows are invalid.
    """
    store = Store.open(store, reporter=reporter)
    chosen = _choose(store, modalities)
    for name in presets or ():
        if name not in RECALL_PRESETS:
            raise StoreError(
                f"The gap report cannot measure recall for {name!r}.",
                remedy=f"Use {', '.join(RECALL_PRESETS)}; `c3 evaluate` scores the others.",
            )
    info = store.info
    provenance = {"store": str(store.path), "model": str(info.model), "dim": info.dim, "dtype": info.dtype}
    settings = {"split": split or "all", "seed": seed, "c3tools": __version__}
    if len(chosen) == 1:
        moments, independent, notes = collect_single(store, chosen[0], split=split, skip_invalid=skip_invalid)
        found = measure_modality(moments, independent)
        alone = f"This report is on one modality, {chosen[0]}, so there are no gap and no pairs to measure."
        if len(store.modalities) == 1:
            alone += " Embed another modality into the same store for a full report."
        notes = [alone, *_row_limits({chosen[0]: found}), *notes]
        return GapReport({chosen[0]: found}, {**provenance, "rows": {chosen[0]: found.n}, **settings}, notes)
    data = collect(store, *chosen, split=split, by=by, skip_invalid=skip_invalid, seed=seed, reporter=reporter)
    first, second, working = data.first, data.second, data.working
    measured = {name: measure_modality(moments, data.independent[name]) for name, moments in data.moments.items()}
    notes = [*data.notes, *_row_limits(measured), *_limits(data)]
    cheap = working.complete and len(working.first) * len(working.second) <= ALL_PRESETS_SCORES
    names = [RAW, COLLAPSE, *(RECALL_PRESETS if presets is None and cheap else presets or ())]
    spaces: dict[str, SpaceMeasures] = {}
    transformed = {}
    with reporter.progress("Measuring spaces", len(dict.fromkeys(names))) as progress:
        for name in dict.fromkeys(names):
            progress.advance(note=name)
            try:
                spaces[name], x, y = measure_space(name, data, seed=seed)
            except TransformError as error:
                notes.append(f"{name} cannot be applied here: {error.message}")
                continue
            if name in (RAW, COLLAPSE):
                transformed[name] = x, y
    if presets is None and not cheap:
        notes.append("Recall is measured before and after Collapse only. Choose other presets with --presets.")
    others = [name for name in store.modalities if name not in chosen]
    if others and modalities is None:
        notes.append(
            f"The store also has {', '.join(others)}; this report is about {chosen[0]} and {chosen[1]}. Choose two "
            "modalities with --modalities A,B, or every pair with --modalities all."
        )
    differences = working.first[working.item_index] - working.second if working.paired else None
    noise = None if differences is None else residuals(differences, working.item_index, seed=seed)
    subsets, sigmas = compare_subsets(data), _sigmas(data)
    return GapReport(
        modalities=measured,
        provenance={
            **provenance,
            "rows": {name: moments.n for name, moments in data.moments.items()},
            "items": data.items,
            "pairs": data.pairs,
            "working_set": {"complete": working.complete, first: len(working.first), second: len(working.second)},
            "fitted_on": data.fitted_on,
            **settings,
        },
        notes=notes,
        gap=measure_gap(data, seed),
        pairs=measure_pairs(data, seed),
        spaces=spaces,
        assumptions=answer_questions(data, noise, subsets, seed=seed),
        noise=noise,
        subsets=subsets,
        sigmas=sigmas,
        recommended=sigma_rules.recommend(sigmas),
        modality_gaps=gaps_between_modalities(store, split=split) if others else [],
        collected=data,
        orthogonal={
            name: orthogonality(rows, items, data.gap, seed=seed)
            for name, rows, items in zip((first, second), (working.first, working.second), working.items, strict=True)
        },
        transformed=transformed,
    )


def _choose(store: Store, modalities: Sequence[str] | None) -> list[str]:
    there = store.modalities
    if modalities is None:
        if not there:
            raise StoreError(f"The store {store.path} is empty.", remedy="Fill it with `c3 embed PATH`.")
        return there[:2]
    if not 1 <= len(modalities) <= 2 or len(set(modalities)) != len(modalities):
        raise StoreError(
            f"A report needs two different modalities, not {', '.join(modalities) or 'none'}.",
            remedy=f"The store has {', '.join(there) or 'none'}; `--modalities all` reports on every pair.",
        )
    for name in modalities:
        store.require(name)
    return list(modalities)


def _sigmas(data: Collected) -> list[sigma_rules.SigmaRule]:
    working, variance = data.working, data.sample.sums.variance if data.sample.paired else None
    means = [data.fit_moments[name].mean for name in (data.first, data.second)]
    item_index = working.item_index if working.paired else np.full(len(working.second), -1)
    spread = sigma_rules.caption_spread(working.second, item_index, means[1])
    return [
        spread,
        sigma_rules.scaled_spread(spread),
        sigma_rules.residual_rms(variance),
        sigma_rules.pair_cosine(working.first, working.second, working.item_index, means),
        sigma_rules.published(),
    ]


def _row_limits(modalities: dict[str, ModalityMeasures]) -> list[str]:
    return [
        f"{name}: {found.n} rows span at most {found.n - 1} of {found.dim} dimensions, so the number of rows limits "
        "the effective dimension."
        for name, found in modalities.items()
        if found.limited_by_rows
    ]


def _limits(data: Collected) -> list[str]:
    """Return notes on the limits of the numbers: few rows, no pairs, or a sample."""
    first, second, working, sample = data.first, data.second, data.working, data.sample
    if not sample.paired:
        return [
            f"No {second} row belongs to any {first} row, so distances of pairs, RMG, alignment noise and recall "
            "cannot be measured. The gap, the spectra and the modality bias can."
        ]
    notes = []
    if data.items < BIASED_ITEMS:
        also = " The intervals of recall and separability are approximate too." if data.items < FEW_ITEMS else ""
        notes.append(
            f"With only {data.items} {first} rows, the length of the gap and the residual rms are biased and their "
            f"intervals are approximate; use the debiased values.{also}"
        )
    if not working.complete:
        notes.append(
            f"Recall, uniformity, separability, modality bias and the shape of the noise are measured on a seeded "
            f"sample of {len(working.first):,} {first} rows with all their {len(working.second):,} {second} rows, so "
            "recall is for a search among that many rows."
        )
    if not sample.complete:
        notes.append(
            f"Distances and cosines of pairs are those of a seeded sample of {len(sample.second):,} pairs; their "
            "intervals say how exact they are."
        )
    return notes
