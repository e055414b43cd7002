"""The gap report: the geometry of two modalities of a store, or of one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import StoreError, TransformError
from ..io.files import write_text_atomically
from ..io.locations import location
from ..metrics.retrieval import DEFAULT_KS
from ..metrics.significance import Estimate
from ..pages import FigureBlock, Section, Table, render_page, save_figure
from ..pages.render import interval, number
from ..reporter import SILENT, Reporter
from ..store import Store
from ..transforms import PRESETS
from ..transforms import sigma as sigma_rules
from .assumptions import Answer, answer_questions
from .collect import Collected, collect, collect_single
from .figures import all_figures, figure_blocks
from .gap_map import gap_map
from .measures import (
    ModalityMeasures,
    measure_gap,
    measure_modality,
    measure_pairs,
    orthogonality,
    residuals,
)
from .one_list import measure_one_list
from .rounding import rounded
from .spaces import ALL_PRESETS_SCORES, COLLAPSE, RAW, RECALL_PRESETS, SpaceMeasures, measure_space
from .verdict import Measured, judge_gap

SCHEMA = 1
SPREAD_ROWS = 50_000
"""Captions that sigma is derived from; trainings read ten times as many, which changes the fourth
digit."""
BIASED_ITEMS = 300
"""With fewer items the plain length and residual have approximate intervals: see
docs/results/geometry.md."""
_PAPER_FIGURES = (
    "gap-length",
    "gap-direction",
    "orthogonality",
    "noise-marginals",
    "noise-size",
    "noise-direction",
)
TEMPLATE = Path(__file__).parent / "templates" / "gap_report.html"


class GapReport(Measured):
    """The geometry of two modalities of a store, or of one, which terminal, JSON, page and figures
    read.

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
        recall: dict[str, Any] = {}
        recall_intervals: dict[str, Any] = {}
        for name, space in self.spaces.items():
            if space.recall:
                recall[name] = space.recall_entries("value")
                recall_intervals[name] = space.recall_entries("interval")
        values = {
            "schema": SCHEMA,
            "modalities": {name: each.to_dict() for name, each in self.modalities.items()},
            "gap": None if self.gap is None else self.gap.to_dict(),
            "pairs": None if self.pairs is None else self.pairs.to_dict(),
            "retrieval": recall,
            "retrieval_intervals": recall_intervals,
            "spaces": {name: space.to_dict() for name, space in self.spaces.items()},
            "one_list": {name: each.to_dict() for name, each in self.one_list.items()},
            "assumptions": _answers_to_dict(self.assumptions),
            "noise": None if self.noise is None else self.noise.to_dict(),
            "sigma": self._sigma_to_dict(),
            "provenance": self.provenance,
            "notes": self.notes,
            "verdict": _answers_to_dict(self.verdict),
        }
        return rounded(values)  # type: ignore[no-any-return]

    def _sigma_to_dict(self) -> dict[str, Any] | None:
        """Return the rules for sigma, and the one that is recommended."""
        if self.recommended is None:
            return None
        rule, reason = self.recommended
        candidates = {}
        for each in self.sigmas:
            candidates[each.name] = {
                "sigma": each.sigma,
                "rests_on": each.rests_on,
                "missing": each.missing or None,
            }
        return {
            "candidates": candidates,
            "recommended": rule.name,
            "value": rule.sigma,
            "why": reason,
        }

    def summary(self) -> list[Section]:
        """Return the report in a few sentences."""
        said = (
            f"{each.question} {each.answer.capitalize()}. {each.because}"
            for each in self.verdict.values()
        )
        return [Section("Verdict", list(said))]

    def sections(self) -> list[Section]:
        """Return the report as sentences and tables."""
        return [*self.summary(), *_sections(self, {})]

    def to_html(self) -> str:
        """Return the report as one self-contained page."""
        names = " and ".join(self.modalities) if self.gap else "one modality"
        return render_page(
            TEMPLATE,
            title=f"The geometry of {names}",
            verdict=self.summary(),
            map=self.draw_map and self.draw_map(),
            notes=self.notes,
            sections=_sections(self, figure_blocks(self)),
        )

    def save(self, path: str | Path) -> Path:
        """Write JSON to a path or URL that ends in ``.json``, else the HTML page; return the
        written file.
        """
        target = location(path)
        values = (
            json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
            if target.suffix == ".json"
            else None
        )
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
        return "".join(
            table._repr_html_() for section in self.sections() for table in section.tables
        )


def gap_report(
    store: Store | str | Path = "c3-store",
    *,
    modalities: Sequence[str] | None = None,
    split: str | None = None,
    presets: Sequence[str] | None = None,
    by: str | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> GapReport:
    """Measure the geometry of two modalities of a store, or of one.

    Args:
        store: See `embed`.
        modalities: The two modalities to compare, or one to measure alone; by default image and
            text, or the first two.
        split: Use only the rows of this split: train, val, test or all.
        presets: Measure recall for raw, c2-collapse and these presets, for example
            gap-shift,whiten.
        by: A column of the store, such as width, by which the map of the page can be coloured too.
        seed: Seed for all random numbers.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, a modality is missing or has fewer than 3 rows, or rows
            are invalid.
    """
    store = Store.open(store, reporter=reporter)
    there, info = store.modalities, store.info
    chosen = list(there[:2] if modalities is None else modalities)
    if not 1 <= len(chosen) <= 2 or len(set(chosen)) != len(chosen):
        raise StoreError(
            f"A report on {store.path} needs two different modalities, not "
            f"{', '.join(chosen) or 'none'}.",
            remedy=f"The store has {', '.join(there) or 'none: fill it with `c3 embed PATH`'}.",
        )
    if unknown := [name for name in presets or () if name not in RECALL_PRESETS]:
        raise StoreError(
            f"The gap report cannot measure recall for {unknown[0]!r}.",
            remedy=f"Use {', '.join(RECALL_PRESETS)}; `c3 evaluate` scores the others.",
        )
    columns = {
        column for name in chosen if by for column in next(store.batches(name)).schema.names
    } - {"embedding"}
    if by is not None and by not in columns:
        raise StoreError(
            f"{store.path} has no column {by!r}.", remedy=f"It has {', '.join(sorted(columns))}."
        )
    provenance: dict[str, Any] = {
        "store": str(store.path),
        "model": str(info.model),
        "dim": info.dim,
        "dtype": info.dtype,
        "split": split or "all",
        "seed": seed,
        "c3tools": __version__,
    }
    if len(chosen) == 1:
        alone = measure_modality(*collect_single(store, chosen[0], split=split))
        notes = [
            f"This report is on one modality, {chosen[0]}, so there are no gap and no pairs to "
            f"measure. A full report "
            "needs another modality in the same store.",
            *_row_limits({chosen[0]: alone}),
        ]
        return GapReport({chosen[0]: alone}, {**provenance, "rows": {chosen[0]: alone.n}}, notes)
    # read before the rows of the report are in memory
    spread = sigma_rules.SigmaRule("caption_spread", None, "texts alone", "the store has no texts")
    if "text" in there:
        spread = sigma_rules.spread_of_captions(store, most=SPREAD_ROWS)
    data = collect(store, *chosen, split=split, seed=seed, reporter=reporter)
    first, second, working = data.first, data.second, data.working
    measured = {
        name: measure_modality(moments, data.independent[name])
        for name, moments in data.moments.items()
    }
    notes = [*data.notes, *_row_limits(measured), *_limits(data)]
    cheap = working.complete and len(working.first) * len(working.second) <= ALL_PRESETS_SCORES
    names = dict.fromkeys(
        [RAW, COLLAPSE, *(RECALL_PRESETS if presets is None and cheap else presets or ())]
    )
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
        notes.append(
            "Recall is measured before and after Collapse only. Choose other presets with "
            "--presets."
        )
    others = [name for name in there if name not in chosen]
    if others and modalities is None:
        notes.append(
            f"The store also has {', '.join(others)}; this report is about {chosen[0]} and "
            f"{chosen[1]}. Choose two "
            "modalities with --modalities A,B."
        )
    noise = None
    if working.paired:
        differences = working.first[working.item_index] - working.second
        noise = residuals(differences, working.distinct_items[working.item_index], seed=seed)
    gap = measure_gap(data, seed)
    pairs = measure_pairs(data, seed)
    has_gap = judge_gap(gap, pairs, measured).answer == "yes"
    means = [data.fit_moments[name].mean for name in (first, second)]
    sigmas = [
        spread,
        sigma_rules.scaled_spread(spread),
        sigma_rules.SigmaRule(
            "residual_rms",
            pairs.residual_rms.value if pairs else None,
            "pairs, preferably not seen in training of the encoder: rms of (x - y) minus its mean",
            "" if pairs else "there are no pairs",
        ),
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
            "working_set": {
                "complete": working.complete,
                first: len(working.first),
                second: len(working.second),
            },
            "fitted_on": data.fitted_on,
        },
        notes=notes,
        gap=gap,
        pairs=pairs,
        spaces=spaces,
        one_list=measure_one_list(data, seed=seed) if working.paired else {},
        assumptions=answer_questions(data, noise, has_gap=has_gap, seed=seed),
        noise=noise,
        sigmas=sigmas,
        recommended=sigma_rules.recommend(sigmas),
        collected=data,
        orthogonal={
            name: orthogonality(rows, items, data.gap, seed=seed) for name, rows, items in sides
        },
        transformed=transformed,
        draw_map=partial(gap_map, store, data, split=split, by=by),
    )


def _row_limits(modalities: dict[str, ModalityMeasures]) -> list[str]:
    return [
        f"{name}: {found.n} rows span at most {found.n - 1} of {found.dim} dimensions, so the "
        f"number of rows limits "
        "the effective dimension."
        for name, found in modalities.items()
        if found.limited_by_rows
    ]


def _limits(data: Collected) -> list[str]:
    """Return notes on the limits of the numbers: few rows, no pairs, or a sample."""
    first, second, working, sample = data.first, data.second, data.working, data.sample
    if not sample.paired:
        return [
            f"No {second} row belongs to any {first} row, so distances of pairs, RMG, alignment "
            f"noise and recall "
            "cannot be measured. The gap, the spectra and the modality bias can."
        ]
    notes = []
    if data.items < BIASED_ITEMS:
        notes.append(
            f"With only {data.items} {first} rows, the length of the gap and the residual rms are "
            f"biased and their "
            "intervals are approximate; use the debiased values."
        )
    if not working.complete:
        notes.append(
            f"Recall, uniformity, separability, modality bias and the shape of the noise are "
            f"measured on a seeded "
            f"sample of {len(working.first):,} {first} rows with all their "
            f"{len(working.second):,} {second} rows, so "
            "recall is for a search among that many rows."
        )
    if not sample.complete:
        notes.append(
            f"Distances and cosines of pairs are those of a seeded sample of "
            f"{len(sample.second):,} pairs; their "
            "intervals say how exact they are."
        )
    return notes


def _sections(report: GapReport, figures: Mapping[str, FigureBlock]) -> list[Section]:
    """Lay out the report. To show a further number of a report, add it here, and nowhere else."""

    def shown(*names: str) -> list[FigureBlock]:
        return [figures[name] for name in names if name in figures]

    known = [[name.replace("_", " "), _listed(value)] for name, value in report.provenance.items()]
    settings = Section(
        "Data and settings", tables=[Table(["setting", "value"], known, left=("value",))]
    )
    if report.gap is None or report.recommended is None:
        return [
            Section("The modality", tables=_modalities(report), figures=shown("spectra")),
            settings,
        ]
    pairs, (rule, why) = report.pairs, report.recommended
    assumptions = [
        [found.question, found.answer, found.because] for found in report.assumptions.values()
    ]
    option = "pairs" if rule.name == "pair_cosine" else "auto"
    noise = f"--sigma {option} gives {number(rule.sigma)}: {why}."
    if pairs and pairs.residual_rms.value > 0:
        ratio = sigma_rules.PUBLISHED_SIGMA / pairs.residual_rms.value
        noise += (
            f" The published {sigma_rules.PUBLISHED_SIGMA:.4f} is {ratio:.1f} times the "
            f"alignment noise measured here."
        )
    sigmas = [
        [
            each.name.replace("_", " "),
            number(each.sigma, 4),
            each.rests_on + (each.missing and f"; {each.missing}"),
        ]
        for each in report.sigmas
    ]
    return [
        Section("How far apart the modalities are", tables=[_measures(report)]),
        Section(
            "Does the model of the paper hold here?",
            [
                "C3 assumes e_x − e_y = c + ε: a constant gap c that is orthogonal to the "
                "directions in which the "
                "modalities vary, and Gaussian noise ε of the same size in every direction."
            ],
            [Table(["question", "answer", "because"], assumptions, left=("answer", "because"))],
            shown(*_PAPER_FIGURES),
            "Bars show shares; the line in the gap's length marks that over all rows. For CLIP "
            "ViT-B/32 on COCO, the "
            "paper reports length 0.83 ± 0.01, direction 0.99, orthogonality 0.00 ± 0.06 and "
            "noise direction "
            "0.00 ± 0.10.",
        ),
        Section(
            "The two modalities", tables=_modalities(report), figures=shown("spectra", "projection")
        ),
        Section(
            "What Collapse will do",
            [f"Transforms are fitted on {report.provenance['fitted_on']}."],
            [*([_recall(report)] if pairs and report.spaces else []), _before_and_after(report)],
        ),
        *(
            [Section("One list of both modalities", tables=[_one_list(report)])]
            if report.one_list
            else []
        ),
        Section(
            "How much noise to add",
            [noise],
            [Table(["rule", "sigma", "rests on"], sigmas, left=("rests on",))],
        ),
        settings,
    ]


def _listed(value: Any) -> str:
    return (
        ", ".join(f"{name} {part}" for name, part in value.items())
        if isinstance(value, dict)
        else str(value)
    )


def _answers_to_dict(answers: Mapping[str, Answer]) -> dict[str, Any]:
    """Return the answers to questions by name."""
    return {name: {"name": name, **vars(answer)} for name, answer in answers.items()}


def _cells(found: Estimate | None, digits: int, scale: float = 1) -> list[str]:
    """Return a measured number and its interval, multiplied by ``scale``, or dashes if there are
    none.
    """
    if found is None:
        return [number(None), interval(None)]
    return [number(scale * found.value, digits), interval(found.interval, digits, scale)]


def _modalities(report: GapReport) -> list[Table]:
    spans, means = [], []
    for name, found in report.modalities.items():
        ranks = number(found.effective_rank, 1), number(found.participation_ratio, 1)
        spans.append(
            [name, number(found.n, 0), f"{found.effective_dimension} of {found.dim}", *ranks]
        )
        angle, counts = (
            found.mean_direction_error_degrees,
            (found.independent_rows, found.rows_for_one_degree),
        )
        lengths = number(found.mean_norm), number(found.mean_norm_error, 4)
        means.append([name, *lengths, number(angle, 2), *(number(count, 0) for count in counts)])
    note = (
        "Collapse subtracts the mean, which is accurate enough if its direction is known to about "
        "one degree. The "
        "errors count independent rows only: all captions of an image count as one."
    )
    return [
        Table(
            ["modality", "rows", "eff. dimension", "eff. rank", "participation ratio"],
            spans,
            "Dimensions",
        ),
        Table(
            ["modality", "length", "±", "direction ±, °", "independent", "rows for 1°"],
            means,
            "Means",
            note=note,
        ),
    ]


def _measures(report: GapReport) -> Table:
    gap, pairs = report.gap, report.pairs
    assert gap is not None
    rows: list[tuple[str, Estimate | None, str]] = [
        ("gap length", gap.length, "distance of the means; 0 is no gap"),
        ("gap length, debiased", gap.length_debiased, "without what so few items show by chance"),
    ]
    if pairs:
        true = "around the true mean, not that of so few items"
        rows += [
            ("instance distance", gap.instance_distance, "mean, over pairs"),
            (
                "relative gap (RMG)",
                gap.rmg,
                "pairs, relative to distances within a modality; 0 is aligned",
            ),
            ("paired cosine", pairs.paired_cosine, f"over {pairs.n:,} pairs"),
            ("unpaired cosine", pairs.unpaired_cosine, "over all unrelated rows"),
            ("residual rms", pairs.residual_rms, "alignment noise, per dimension"),
            ("residual rms, debiased", pairs.residual_rms_debiased, true),
        ]
    cells = [[name, *_cells(found, 4), meaning] for name, found, meaning in rows]
    return Table(["measure", "value", "95 %", "meaning"], cells, left=("meaning",))


def _recall(report: GapReport) -> Table:
    ways = list(next(iter(report.spaces.values())).recall)
    rows = [
        [
            name,
            *(
                number(100 * space.recall[way][f"recall@{k}"].value, 1)
                for way in ways
                for k in DEFAULT_KS
            ),
            number(space.gap),
        ]
        for name, space in report.spaces.items()
    ]
    formulas = (
        f"{name}: {'norm(e)' if name == RAW else PRESETS[name][0]}" for name in report.spaces
    )
    note = (
        f"How often one of the k nearest rows belongs to the same item. The presets: "
        f"{'; '.join(formulas)}."
    )
    heads = [f"to {way.split('_to_')[-1]} @{k}" for way in ways for k in DEFAULT_KS]
    return Table(["preset", *heads, "gap left"], rows, "Recall, %", note=note)


def _one_list(report: GapReport) -> Table:
    rows = []
    for asked, found in report.one_list.items():
        for name in found.recall:
            measured = found.other_modality[name], found.recall[name]
            rows.append(
                [f"{asked}, {name}", *(cell for one in measured for cell in _cells(one, 1, 100))]
            )
    heads = [
        "queries, list",
        "other modality in the first ten, %",
        "95 %",
        "answer in the first ten, %",
        "95 %",
    ]
    note = (
        "The corpus has one row an item, half of each modality; the answer is of the other "
        "modality than the query. Without bias half of the first ten are. Moments are of other "
        f"items. By chance, {100 * found.chance:.1f} % of the answers are in the first ten. "
        "Calibrated: docs/results/fair-search.md."
    )
    return Table(heads, rows, "One list", note=note)


def _before_and_after(report: GapReport) -> Table:
    heads = {
        name: head for name, head in ((RAW, "before"), (COLLAPSE, "after")) if name in report.spaces
    }
    spaces = [report.spaces[name] for name in heads]

    def row(name: str, found: Iterable[Estimate | None], digits: int, scale: float) -> list[str]:
        return [name, *(cell for one in found for cell in _cells(one, digits, scale))]

    rows = [row("linear separability, %", (space.separability for space in spaces), 1, 100)]
    for name in report.modalities:
        rows.append(
            row(
                f"modality bias@10, %, {name}",
                (space.modality_bias[name] for space in spaces),
                1,
                100,
            )
        )
        rows.append(row(f"uniformity, {name}", (space.uniformity[name] for space in spaces), 3, 1))
    note = (
        "Separability: accuracy, on held-out rows, of a linear probe for the modality. Modality "
        "bias: share of the "
        "ten nearest rows of both modalities that have the modality of the query. 50 % is ideal "
        "for both. Uniformity: "
        "log E exp(−2 |x − x′|²); lower means more spread out."
    )
    columns = ["measure", *(part for head in heads.values() for part in (head, "95 %"))]
    return Table(columns, rows, "Before and after Collapse", note=note)
