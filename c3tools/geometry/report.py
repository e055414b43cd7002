"""The gap report: the geometry of two modalities of a store, or of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import StoreError, TransformError
from ..io.files import write_text_atomically
from ..io.locations import location
from ..metrics.significance import to_json
from ..pages import Section, render_page, save_figure
from ..reporter import SILENT, Reporter
from ..store import Store
from ..transforms import sigma as sigma_rules
from . import tables
from .assumptions import answer_questions
from .collect import Collected, collect, collect_single
from .figures import all_figures, figure_blocks
from .measures import measure_gap, measure_pairs, orthogonality, residuals
from .spaces import ALL_PRESETS_SCORES, COLLAPSE, RAW, RECALL_PRESETS, SpaceMeasures, measure_space
from .spectrum import ModalityMeasures, measure_modality
from .verdict import Measured

SCHEMA = 1
SPREAD_ROWS = 50_000
"""Captions that sigma is derived from; trainings read ten times as many, which changes the fourth digit."""
BIASED_ITEMS = 300
"""With fewer items the plain length and residual have approximate intervals: see docs/results/geometry.md."""
TEMPLATE = Path(__file__).parent / "templates" / "gap_report.html"


class GapReport(Measured):
    """The geometry of two modalities of a store, or of one, which terminal, JSON, page and figures read.

    docs/reference/geometry.md defines the measures.
    """

    def __repr__(self) -> str:
        return f"GapReport({self.heading})"

    @property
    def heading(self) -> str:
        """Store and model."""
        return f"{self.provenance['store']}  ·  {self.provenance['model']}"

    def to_dict(self) -> dict[str, Any]:
        """Return what `c3 gap-report --json` prints."""
        spaces = to_json(self.spaces)
        recall, intervals = (
            {name: found for name, space in spaces.items() if (found := space.pop(key))}
            for key in ("recall", "recall_interval")
        )
        values = {
            "schema": SCHEMA,
            "modalities": self.modalities,
            "gap": self.gap,
            "pairs": self.pairs,
            "retrieval": recall,
            "retrieval_intervals": intervals,
            "spaces": spaces,
            "assumptions": {name: {"name": name, **vars(answer)} for name, answer in self.assumptions.items()},
            "noise": self.noise,
            "sigma": self.recommended
            and {
                "candidates": {
                    each.name: {"sigma": each.sigma, "rests_on": each.rests_on, "missing": each.missing or None}
                    for each in self.sigmas
                },
                "recommended": self.recommended[0].name,
                "value": self.recommended[0].sigma,
                "why": self.recommended[1],
            },
            "provenance": self.provenance,
            "notes": self.notes,
            "verdict": {name: {"name": name, **vars(answer)} for name, answer in self.verdict.items()},
        }
        return to_json(values)  # type: ignore[no-any-return]

    def summary(self) -> list[Section]:
        """Return the report in a few sentences."""
        said = (f"{each.question} {each.answer.capitalize()}. {each.because}" for each in self.verdict.values())
        return [Section("Verdict", list(said))]

    def sections(self) -> list[Section]:
        """Return the report as sentences and tables."""
        return [*self.summary(), *tables.report_sections(self)]

    def to_html(self) -> str:
        """Return the report as one self-contained page."""
        names = " and ".join(self.modalities) if self.gap else "one modality"
        return render_page(
            TEMPLATE,
            title=f"The geometry of {names}",
            verdict=self.summary(),
            notes=self.notes,
            sections=tables.report_sections(self, figure_blocks(self)),
        )

    def save(self, path: str | Path) -> Path:
        """Write JSON to a path or URL that ends in ``.json``, else the HTML page; return the written file."""
        target = location(path)
        values = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n" if target.suffix == ".json" else None
        write_text_atomically(target, values or self.to_html())
        return target

    def save_figures(self, folder: Path) -> list[Path]:
        """Write every figure as PNG and SVG, and return the files."""
        written = []
        for name, (figure, _) in all_figures(self).items():
            for ending in ("png", "svg"):
                written.append(folder / f"{name}.{ending}")
                save_figure(figure, written[-1])
        return written

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for section in self.sections() for table in section.tables)


def gap_report(
    store: Store | str | Path = "c3-store",
    *,
    modalities: Sequence[str] | None = None,
    split: str | None = None,
    presets: Sequence[str] | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> GapReport:
    """Measure the geometry of two modalities of a store, or of one.

    Args:
        store: See `embed`.
        modalities: The two modalities to compare, or one to measure alone; by default image and text, or the first two.
        split: Use only the rows of this split: train, val, test or all.
        presets: Measure recall for raw, c2-collapse and these presets, for example gap-shift,whiten.
        seed: Seed for all random numbers.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, a modality is missing or has fewer than 3 rows, or rows are invalid.
    """
    store = Store.open(store, reporter=reporter)
    there, info = store.modalities, store.info
    chosen = list(there[:2] if modalities is None else modalities)
    if not 1 <= len(chosen) <= 2 or len(set(chosen)) != len(chosen):
        raise StoreError(
            f"A report on {store.path} needs two different modalities, not {', '.join(chosen) or 'none'}.",
            remedy=f"The store has {', '.join(there) or 'none: fill it with `c3 embed PATH`'}.",
        )
    if unknown := [name for name in presets or () if name not in RECALL_PRESETS]:
        raise StoreError(
            f"The gap report cannot measure recall for {unknown[0]!r}.",
            remedy=f"Use {', '.join(RECALL_PRESETS)}; `c3 evaluate` scores the others.",
        )
    provenance = {"store": str(store.path), "model": str(info.model), "dim": info.dim, "dtype": info.dtype}
    settings = {"split": split or "all", "seed": seed, "c3tools": __version__}
    if len(chosen) == 1:
        measured = {chosen[0]: measure_modality(*collect_single(store, chosen[0], split=split))}
        alone = f"This report is on one modality, {chosen[0]}, so there are no gap and no pairs to measure."
        notes = [f"{alone} A full report needs another modality in the same store.", *_row_limits(measured)]
        rows = {name: found.n for name, found in measured.items()}
        return GapReport(measured, {**provenance, "rows": rows, **settings}, notes)
    # read before the rows of the report are in memory
    spread = sigma_rules.SigmaRule("caption_spread", None, "texts alone", "the store has no texts")
    if "text" in there:
        spread = sigma_rules.spread_of_captions(store, most=SPREAD_ROWS)
    data = collect(store, *chosen, split=split, seed=seed, reporter=reporter)
    first, second, working = data.first, data.second, data.working
    measured = {name: measure_modality(moments, data.independent[name]) for name, moments in data.moments.items()}
    notes = [*data.notes, *_row_limits(measured), *_limits(data)]
    cheap = working.complete and len(working.first) * len(working.second) <= ALL_PRESETS_SCORES
    names = dict.fromkeys([RAW, COLLAPSE, *(RECALL_PRESETS if presets is None and cheap else presets or ())])
    spaces: dict[str, SpaceMeasures] = {}
    transformed = {}
    with reporter.progress("Measuring spaces", len(names)) as progress:
        for name in names:
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
    others = [name for name in there if name not in chosen]
    if others and modalities is None:
        notes.append(
            f"The store also has {', '.join(others)}; this report is about {chosen[0]} and {chosen[1]}. Choose two "
            "modalities with --modalities A,B."
        )
    noise = None
    if working.paired:
        noise = residuals(working.first[working.item_index] - working.second, working.item_index, seed=seed)
    means = [data.fit_moments[name].mean for name in (first, second)]
    sigmas = [
        spread,
        sigma_rules.scaled_spread(spread),
        sigma_rules.residual_rms(data.sample.sums.variance if data.sample.paired else None),
        sigma_rules.pair_cosine(working.first, working.second, working.item_index, means),
        sigma_rules.PUBLISHED,
    ]
    sides = zip((first, second), (working.first, working.second), working.items, strict=True)
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
        assumptions=answer_questions(data, noise, seed=seed),
        noise=noise,
        sigmas=sigmas,
        recommended=sigma_rules.recommend(sigmas),
        collected=data,
        orthogonal={name: orthogonality(rows, items, data.gap, seed=seed) for name, rows, items in sides},
        transformed=transformed,
    )


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
        notes.append(
            f"With only {data.items} {first} rows, the length of the gap and the residual rms are biased and their "
            "intervals are approximate; use the debiased values."
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
