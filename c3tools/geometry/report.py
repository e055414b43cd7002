"""The gap report: the geometry of a store as one object that is data, tables, figures and a page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .. import __version__
from ..errors import StoreError
from ..io.files import write_text_atomically
from ..io.locations import location
from ..pages import Section, render_page, save_figure
from ..reporter import SILENT, Reporter
from ..store.reader import Store
from .collect import collect, collect_single, extreme_pairs, store_facts
from .figures import all_figures, figure_blocks, spectra
from .measures import Measured, measure
from .spaces import RECALL_PRESETS
from .spectrum import ModalityMeasures, gaps_between_modalities, measure_modality
from .tables import extreme_sections, report_facts, report_sections, report_tiles, summarize
from .verdict import verdict_section, verdicts

DIGITS = 9
SCHEMA = 1
EXTREMES = 5
TEMPLATE = Path(__file__).parent / "templates" / "gap_report.html"


@dataclass
class GapReport:
    """The geometry of two modalities of a store, or of one.

    Attributes:
        values: the JSON object, with floats of 9 significant digits; docs/reference/geometry.md describes the keys.
        measured: the arrays for the figures; None if only one modality was measured.
        alone: this modality, if only one was measured.
    """

    values: dict[str, Any]
    measured: Measured | None
    alone: dict[str, ModalityMeasures] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"GapReport({self.heading})"

    def to_dict(self) -> dict[str, Any]:
        """Return what `c3 gap-report --json` prints."""
        return self.values

    @property
    def heading(self) -> str:
        """Store and model."""
        return "  ·  ".join(str(self.values["provenance"][name]) for name in ("store", "model"))

    @property
    def figures(self) -> dict[str, Figure]:
        """The matplotlib figures by name; they are drawn at each access."""
        return {name: figure for name, (figure, _) in self.labelled_figures().items()}

    def labelled_figures(self) -> dict[str, tuple[Figure, str]]:
        """Draw the figures; return each with its label for screen readers."""
        if self.measured is None:
            return {"spectrum": (spectra(self.alone), "Covariance spectrum")}
        return all_figures(self.measured)

    def summary(self) -> list[Section]:
        """Return the report in a few sentences."""
        return [verdict_section(self.values)]

    def sections(self) -> list[Section]:
        """Return the report as sentences and tables."""
        return [*self.summary(), *report_sections(self.values, self.measured)]

    def to_html(self) -> str:
        """Return the report as one self-contained page."""
        title, lead, sections = "The geometry of one modality", "", []
        if self.measured is not None:
            collected = self.measured.collected
            title, lead = f"The geometry of {collected.first} and {collected.second}", summarize(self.measured)
            sections = extreme_sections(collected.first, collected.second, extreme_pairs(collected, EXTREMES))
        return render_page(
            TEMPLATE,
            title=title,
            lead=lead,
            tiles=report_tiles(self.values),
            notes=self.values["notes"],
            sections=[
                *self.summary(),
                *report_sections(self.values, self.measured, figure_blocks(self.labelled_figures())),
                *sections,
            ],
            sources=[report_facts(self.values)],
        )

    def save(self, path: str | Path) -> list[Path]:
        """Write JSON to a path or URL that ends in ``.json``, else the HTML page; return the written file."""
        return save_report(path, self.values, lambda _: {"": self.to_html()})

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for section in self.sections() for table in section.tables)

    def save_figures(self, folder: Path) -> list[Path]:
        """Write every figure as PNG and SVG into ``folder``, and return the files."""
        written = []
        for name, figure in self.figures.items():
            for ending in ("png", "svg"):
                save_figure(figure, folder / f"{name}.{ending}")
                written.append(folder / f"{name}.{ending}")
        return written


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
    _check_presets(presets)
    if len(chosen) == 1:
        moments, independent, notes = collect_single(store, chosen[0], split=split, skip_invalid=skip_invalid)
        found = measure_modality(moments, independent)
        return GapReport(_single_values(store, found, chosen[0], split, notes), None, {chosen[0]: found})
    collected = collect(
        store, chosen[0], chosen[1], split=split, by=by, skip_invalid=skip_invalid, seed=seed, reporter=reporter
    )
    measured = measure(collected, presets=presets, seed=seed, reporter=reporter)
    others = [name for name in store.modalities if name not in chosen]
    if others and modalities is None:
        measured.notes.append(
            f"The store also has {', '.join(others)}; this report is about {chosen[0]} and {chosen[1]}. Choose two "
            "modalities with --modalities A,B, or every pair with --modalities all."
        )
    values = _pair_values(measured, seed=seed, split=split)
    values["modality_gaps"] = to_json_floats(gaps_between_modalities(store, split=split)) if others else []
    return GapReport(values, measured)


def save_report(path: str | Path, values: dict[str, Any], pages: Callable[[str], dict[str, str]]) -> list[Path]:
    """Write JSON to a path or URL that ends in ``.json``, else the HTML pages, and return the files.

    Args:
        path: the file, or the first page; further pages are written beside it.
        values: the JSON object.
        pages: makes the pages for the file name of the first one, by what is added to the stem of that name.
    """
    target = location(path)
    if target.suffix == ".json":
        write_text_atomically(target, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        return [target]
    written = []
    for suffix, page in pages(target.name).items():
        written.append(target.with_name(f"{target.stem}{suffix}{target.suffix}"))
        write_text_atomically(written[-1], page)
    return written


def to_json_floats(value: Any) -> Any:
    """Round floats to 9 significant digits, so that the last bits do not show; NaN and infinity become None."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): to_json_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_floats(item) for item in value]
    return value


def _with_verdict(values: dict[str, Any]) -> dict[str, Any]:
    values["verdict"] = {found.name: asdict(found) for found in verdicts(values)}
    return to_json_floats(values)  # type: ignore[no-any-return]


def _check_presets(names: Sequence[str] | None) -> None:
    for name in names or ():
        if name not in RECALL_PRESETS:
            raise StoreError(
                f"The gap report cannot measure recall for {name!r}.",
                remedy=f"Use {', '.join(RECALL_PRESETS)}; `c3 evaluate` scores the others.",
            )


def _choose(store: Store, modalities: Sequence[str] | None) -> list[str]:
    there = store.modalities
    if modalities is not None:
        if not 1 <= len(modalities) <= 2 or len(set(modalities)) != len(modalities):
            raise StoreError(
                f"A report needs two different modalities, not {', '.join(modalities) or 'none'}.",
                remedy=f"The store has {', '.join(there) or 'none'}; `--modalities all` reports on every pair.",
            )
        for name in modalities:
            store.require(name)
        return list(modalities)
    if not there:
        raise StoreError(f"The store {store.path} is empty.", remedy="Fill it with `c3 embed PATH`.")
    return there[:2]


def _pair_values(measured: Measured, *, seed: int, split: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "modalities": {name: found.to_dict() for name, found in measured.modalities.items()},
        "gap": asdict(measured.gap),
        "pairs": None if measured.pairs is None else asdict(measured.pairs),
        "retrieval": {name: space.recall for name, space in measured.spaces.items() if space.recall},
        "retrieval_intervals": {name: space.intervals for name, space in measured.spaces.items() if space.intervals},
        "spaces": {name: space.to_dict() for name, space in measured.spaces.items()},
        "assumptions": {found.name: asdict(found) for found in measured.assumptions},
        "noise": None if measured.noise is None else measured.noise.to_dict(),
        "subsets": measured.subsets,
        "sigma": {
            "candidates": {rule.name: rule.to_dict() for rule in measured.sigmas},
            "recommended": measured.recommended[0].name,
            "value": measured.recommended[0].sigma,
            "why": measured.recommended[1],
        },
        "provenance": {
            **measured.collected.provenance(),
            "split": split or "all",
            "seed": seed,
            "c3tools": __version__,
        },
        "notes": measured.notes,
    }
    return _with_verdict(values)


def _single_values(
    store: Store, found: ModalityMeasures, modality: str, split: str | None, row_notes: Iterable[str]
) -> dict[str, Any]:
    """Return the JSON object of one modality: what can be measured without another."""
    notes = [
        f"This report is on one modality, {modality}, so there are no gap and no pairs to measure."
        + (" Embed another modality into the same store for a full report." if len(store.modalities) == 1 else "")
    ]
    if found.limited_by_rows:
        notes.append(f"{found.n} rows span at most {found.n - 1} of {found.dim} dimensions.")
    values = {
        "schema": SCHEMA,
        "modalities": {modality: found.to_dict()},
        "gap": None,
        "pairs": None,
        "retrieval": {},
        "spaces": {},
        "assumptions": {},
        "provenance": {
            **store_facts(store),
            "rows": {modality: found.n},
            "split": split or "all",
            "c3tools": __version__,
        },
        "notes": [*notes, *row_notes],
    }
    return _with_verdict(values)
