"""The gap report: the geometry of two modalities of a store, or of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..errors import StoreError, TransformError
from ..io.files import json_text
from ..io.locations import location
from ..io.outputs import write_output
from ..lists import as_list
from ..metrics.retrieval import DEFAULT_KS
from ..metrics.significance import Estimate
from ..pages import FigureBlock, Section, Table, render_page, save_figure
from ..pages.render import interval, number
from ..reporter import SILENT, Reporter
from ..store import Store
from ..store.leaks import notes_on_leaks
from ..transforms import PRESETS
from ..transforms import sigma as sigma_rules
from ..transforms.presets import is_recipe_file
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
from .mixed_clusters import CLUSTERINGS, MixedClusters, measure_default_clusters
from .one_list import measure_one_list
from .rounding import rounded
from .spaces import (
    ALL_PRESETS_SCORES,
    COLLAPSE,
    RAW,
    RECALL_PRESETS,
    SpaceMeasures,
    TransformedRows,
    measure_space,
)
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
    """The geometry of one or two modalities of a store, shown in the terminal, as JSON, as a page
    and in figures.

    docs/reference/gap-report.md defines the measures.
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

        # The rules for sigma, and the one that is recommended
        sigma: dict[str, Any] | None = None
        if self.recommended is not None:
            rule, reason = self.recommended
            candidates = {}
            for candidate in self.sigmas:
                candidates[candidate.name] = {
                    "sigma": candidate.sigma,
                    "rests_on": candidate.rests_on,
                    "missing": candidate.missing or None,
                }
            sigma = {
                "candidates": candidates,
                "recommended": rule.name,
                "value": rule.sigma,
                "why": reason,
            }
        values = {
            "schema": SCHEMA,
            "modalities": {name: each.to_dict() for name, each in self.modalities.items()},
            "gap": None if self.gap is None else self.gap.to_dict(),
            "pairs": None if self.pairs is None else self.pairs.to_dict(),
            "retrieval": recall,
            "retrieval_intervals": recall_intervals,
            "spaces": {name: space.to_dict() for name, space in self.spaces.items()},
            "one_list": {name: each.to_dict() for name, each in self.one_list.items()},
            "clusters": None if self.mixed_clusters is None else self.mixed_clusters.to_dict(),
            "assumptions": _answers_to_dict(self.assumptions),
            "noise": None if self.noise is None else self.noise.to_dict(),
            "sigma": sigma,
            "provenance": self.provenance,
            "notes": self.notes,
            "verdict": _answers_to_dict(self.verdict),
        }
        return rounded(values)  # type: ignore[no-any-return]

    def summary(self) -> list[Section]:
        """Return the report in a few sentences."""
        sentences = [
            f"{answer.question} {answer.answer.capitalize()}. {answer.because}"
            for answer in self.verdict.values()
        ]
        return [Section("Verdict", sentences)]

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
        """Write JSON to a path or URL that ends in ``.json``, otherwise the HTML page; return the
        written file.
        """
        target = location(path)
        suffix = ".json" if target.suffix == ".json" else ".html"
        if suffix == ".json":
            text = json_text(self.to_dict(), indent=2, sort_keys=False)
        else:
            text = self.to_html()
        write_output(target, suffix, lambda file: file.write_text(text, encoding="utf-8"))
        return target

    def save_figures(self, folder: Path) -> list[Path]:
        """Write every figure as PNG and SVG, and return the files."""
        files = []
        for name, labelled in all_figures(self).items():
            for ending in ("png", "svg"):
                file = folder / f"{name}.{ending}"
                save_figure(labelled.figure, file)
                files.append(file)
        return files

    def _repr_html_(self) -> str:
        html = ""
        for section in self.sections():
            html += "".join(table._repr_html_() for table in section.tables)
        return html


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
    """Measure the geometry of one or two modalities of a store.

    Args:
        store: See `embed`.
        modalities: One or two modalities to measure. By default image and text or, if one is
            missing, the first two.
        split: Use only the rows of this split: train, val, test or a name of your own. By default
            all.
        presets: Presets or files of steps to measure recall for, in addition to raw and
            c2-collapse; for example gap-shift,whiten.
        by: A store column, such as width, by which the map on the page can be coloured.
        seed: Seed for all random numbers.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, a modality is missing or has fewer than 3 rows, rows are
            invalid, a preset is unknown, or no modality has the column.

    Example:
        >>> report = c3tools.gap_report("c3-store")
        >>> print(f"{report.gap.length.value:.2f}")
        1.02
        >>> print(f"{report.pairs.paired_cosine.value:.2f}")
        0.32
        >>> report.save("report.html").name
        'report.html'
    """
    modalities = as_list(modalities)
    presets = as_list(presets)
    store = Store.open(store, reporter=reporter)
    names = store.choose_modalities(modalities, "A report", least=1)

    # Refuse presets and columns that the report cannot use, before rows are read
    for name in presets or ():
        if name not in RECALL_PRESETS and not is_recipe_file(name):
            raise StoreError(
                f"The gap report cannot measure recall for {name!r}.",
                remedy=f"Use {', '.join(RECALL_PRESETS)}, or a file with steps; `c3 "
                "evaluate-captions` scores the others.",
            )
    if by is not None:
        columns: set[str] = set()
        for name in names:
            columns.update(next(store.batches(name)).schema.names)
        columns.discard("embedding")
        if by not in columns:
            raise StoreError(
                f"{store.path} has no column {by!r}.",
                remedy=f"It has {', '.join(sorted(columns))}.",
            )
    provenance: dict[str, Any] = {
        "store": str(store.path),
        "model": str(store.info.model),
        "dim": store.info.dim,
        "dtype": store.info.dtype,
        "split": split or "all",
        "seed": seed,
        "c3tools": __version__,
    }

    # One modality: its moments suffice
    if len(names) == 1:
        moments, items = collect_single(store, names[0], split=split)
        measures = {names[0]: measure_modality(moments, items)}
        notes = [
            f"This report covers one modality, {names[0]}, so there is no gap and there are no "
            f"pairs to measure. A full report needs a second modality in the same store.",
            *_row_limits(measures),
            *notes_on_leaks(store, names, split),
        ]
        return GapReport(measures, {**provenance, "rows": {names[0]: moments.n}}, notes)

    # Captions are read, and left, before the rows of the report are in memory
    spread = sigma_rules.SigmaRule(
        "caption_spread", sigma=None, rests_on="texts alone", missing="the store has no texts"
    )
    if "text" in store.modalities:
        spread = sigma_rules.spread_of_captions(store, most=SPREAD_ROWS)

    # Two modalities, each by itself
    data = collect(store, *names, split=split, seed=seed, reporter=reporter)
    working = data.working
    measures = {
        name: measure_modality(moments, data.independent[name])
        for name, moments in data.moments.items()
    }
    notes = [*data.notes, *_row_limits(measures), *_limits(data)]
    notes += notes_on_leaks(store, names, split)

    # The spaces before and after Collapse
    spaces = _measure_spaces(data, presets, seed, reporter)
    notes += spaces.notes
    unread = [name for name in store.modalities if name not in names]
    if unread and modalities is None:
        notes.append(
            f"The store also has {', '.join(unread)}; this report covers {names[0]} and "
            f"{names[1]}. Choose two modalities with --modalities A,B."
        )

    # The gap, the pairs and their noise
    noise = None
    if working.paired:
        differences = working.first[working.item_index] - working.second
        noise = residuals(differences, working.distinct_items[working.item_index], seed=seed)
    gap = measure_gap(data, seed)
    pairs = measure_pairs(data, seed)
    has_gap = judge_gap(gap, pairs, measures).answer == "yes"

    # What each rule gives for sigma
    residual = sigma_rules.SigmaRule(
        "residual_rms",
        sigma=pairs.residual_rms.value if pairs else None,
        rests_on="pairs, preferably not used to train the encoder: rms of (x - y) minus its mean",
        missing="" if pairs else "there are no pairs",
    )
    means = [data.fit_moments[name].mean for name in (data.first, data.second)]
    sigmas = [
        spread,
        sigma_rules.scaled_spread(spread),
        residual,
        sigma_rules.pair_cosine(working.first, working.second, working.item_index, means),
        sigma_rules.PUBLISHED,
    ]
    first_items, second_items = working.items
    return GapReport(
        modalities=measures,
        provenance={
            **provenance,
            "rows": {name: moments.n for name, moments in data.moments.items()},
            "items": data.items,
            "pairs": data.pairs,
            "working_set": {
                "complete": working.complete,
                data.first: len(working.first),
                data.second: len(working.second),
            },
            "fitted_on": data.fitted_on,
        },
        notes=notes,
        gap=gap,
        pairs=pairs,
        spaces=spaces.measures,
        one_list=measure_one_list(data, seed=seed) if working.paired else {},
        mixed_clusters=measure_default_clusters(data, seed=seed) if working.paired else None,
        assumptions=answer_questions(data, noise, has_gap=has_gap, seed=seed),
        noise=noise,
        sigmas=sigmas,
        recommended=sigma_rules.recommend(sigmas),
        collected=data,
        orthogonal={
            data.first: orthogonality(working.first, first_items, data.gap, seed=seed),
            data.second: orthogonality(working.second, second_items, data.gap, seed=seed),
        },
        transformed=spaces.transformed,
        draw_map=partial(gap_map, store, data, split=split, by=by),
    )


class _Spaces(NamedTuple):
    """The measures by preset; the rows before and after Collapse; notes."""

    measures: dict[str, SpaceMeasures]
    transformed: dict[str, TransformedRows]
    notes: list[str]


def _measure_spaces(
    data: Collected, presets: Sequence[str] | None, seed: int, reporter: Reporter
) -> _Spaces:
    """Measure the spaces before and after Collapse, and those of other presets.

    Args:
        data: what was read.
        presets: to measure recall for; None for all if that is cheap.
        seed: of samples and resampling.
        reporter: shows the progress.
    """
    working = data.working
    scores = len(working.first) * len(working.second)
    is_cheap = working.complete and scores <= ALL_PRESETS_SCORES
    are_left_out = presets is None and not is_cheap
    if presets is None:
        presets = RECALL_PRESETS if is_cheap else ()
    names = list(dict.fromkeys([RAW, COLLAPSE, *presets]))

    notes = []
    spaces: dict[str, SpaceMeasures] = {}
    transformed: dict[str, TransformedRows] = {}
    with reporter.progress("Measuring spaces", len(names)) as progress:
        for name in names:
            progress.advance(note=name)
            try:
                spaces[name], rows = measure_space(name, data, before=spaces.get(RAW), seed=seed)
            except TransformError as error:
                notes.append(f"{name} cannot be applied here: {error.message}")
                continue
            if name in (RAW, COLLAPSE):
                transformed[name] = rows  # for the figure of both
    if are_left_out:
        notes.append(
            "Recall is measured before and after Collapse only. Choose other presets with "
            "--presets."
        )
    return _Spaces(spaces, transformed, notes)


def _row_limits(modalities: Mapping[str, ModalityMeasures]) -> list[str]:
    """Return a note for each modality whose dimensions are limited by its number of rows."""
    return [
        f"{name}: {measures.n} rows span at most {measures.n - 1} of {measures.dim} dimensions, "
        f"so the number of rows limits the effective dimension."
        for name, measures in modalities.items()
        if measures.limited_by_rows
    ]


def _limits(data: Collected) -> list[str]:
    """Return notes on the limits of the numbers: few rows, no pairs, or a sample."""
    first, second = data.first, data.second
    working, sample = data.working, data.sample
    if not sample.paired:
        return [
            f"No {second} row belongs to any {first} row, so distances of pairs, RMG, alignment "
            f"noise and recall cannot be measured. The gap, the spectra and the modality bias can."
        ]
    notes = []
    if data.items < BIASED_ITEMS:
        notes.append(
            f"With only {data.items} paired {first} rows, the length of the gap and the residual "
            f"rms are biased and their intervals are approximate; use the debiased values."
        )
    if not working.complete:
        notes.append(
            f"Recall, uniformity, separability, modality bias and the shape of the noise are "
            f"measured on a seeded sample of {len(working.first):,} {first} rows with all their "
            f"{len(working.second):,} {second} rows, so recall is for a search among that many "
            f"rows."
        )
    if not sample.complete:
        notes.append(
            f"Distances and cosines of pairs are measured on a seeded sample of "
            f"{len(sample.second):,} pairs; their intervals show how precise they are."
        )
    return notes


def _sections(report: GapReport, figures: Mapping[str, FigureBlock]) -> list[Section]:
    """Lay out the report. To show a further number of a report, add it here, and nowhere else.

    Args:
        report: to show.
        figures: those of `figure_blocks`, by name; none outside a page.
    """
    if report.gap is None:
        return [
            Section(
                "The modality",
                tables=_modality_tables(report),
                figures=_present(figures, "spectra"),
            ),
            _settings_section(report),
        ]

    # The gap, the model of the paper, the modalities, and Collapse
    answers = [
        [answer.question, answer.answer, answer.because] for answer in report.assumptions.values()
    ]
    tables_of_spaces = [_before_and_after_table(report)]
    if report.pairs and report.spaces:
        tables_of_spaces.insert(0, _recall_table(report))
    sections = [
        Section("How far apart the modalities are", tables=[_measures_table(report)]),
        Section(
            "Does the model of the paper hold here?",
            [
                "C3 assumes e_x − e_y = c + ε: a constant gap c that is orthogonal to the "
                "directions in which the modalities vary, and Gaussian noise ε of the same size "
                "in every direction."
            ],
            [Table(["question", "answer", "because"], answers, left=("answer", "because"))],
            _present(figures, *_PAPER_FIGURES),
            "Bars show shares; the line in the gap's length marks that over all rows. For CLIP "
            "ViT-B/32 on COCO, the paper reports length 0.83 ± 0.01, direction 0.99, "
            "orthogonality 0.00 ± 0.06 and noise direction 0.00 ± 0.10.",
        ),
        Section(
            "The two modalities",
            tables=_modality_tables(report),
            figures=_present(figures, "spectra", "projection"),
        ),
        Section(
            "What Collapse will do",
            [f"Transforms are fitted on {report.provenance['fitted_on']}."],
            tables_of_spaces,
        ),
    ]

    # What can be done with both modalities at once, if there are enough pairs to measure it
    if report.one_list:
        sections.append(Section("One list of both modalities", tables=[_one_list_table(report)]))
    if report.mixed_clusters is not None:
        title = f"{report.mixed_clusters.clusters} clusters of both modalities"
        sections.append(Section(title, tables=[_clusters_table(report.mixed_clusters)]))

    # How much noise to add: what each rule gives, and which one is recommended
    assert report.recommended is not None
    rule, why = report.recommended
    option = "pairs" if rule.name == "pair_cosine" else "auto"
    sentence = f"--sigma {option} gives {number(rule.sigma)}: {why}."
    if report.pairs and report.pairs.residual_rms.value > 0:
        ratio = sigma_rules.PUBLISHED_SIGMA / report.pairs.residual_rms.value
        sentence += (
            f" The published {sigma_rules.PUBLISHED_SIGMA:.4f} is {ratio:.1f} times the "
            f"alignment noise measured here."
        )
    rows = []
    for candidate in report.sigmas:
        rests_on = candidate.rests_on
        if candidate.missing:
            rests_on += f"; {candidate.missing}"
        rows.append([candidate.name.replace("_", " "), number(candidate.sigma, 4), rests_on])
    table = Table(["rule", "sigma", "rests on"], rows, left=("rests on",))
    sections.append(Section("How much noise to add", [sentence], [table]))
    sections.append(_settings_section(report))
    return sections


def _present(figures: Mapping[str, FigureBlock], *names: str) -> list[FigureBlock]:
    """Return the figures of these names that were drawn."""
    return [figures[name] for name in names if name in figures]


def _settings_section(report: GapReport) -> Section:
    """Show where the numbers come from."""
    rows = []
    for name, value in report.provenance.items():
        text = str(value)
        if isinstance(value, dict):
            text = ", ".join(f"{key} {part}" for key, part in value.items())
        rows.append([name.replace("_", " "), text])
    table = Table(["setting", "value"], rows, left=("value",))
    return Section("Data and settings", tables=[table])


def _answers_to_dict(answers: Mapping[str, Answer]) -> dict[str, Any]:
    """Return the answers to questions by name."""
    return {name: {"name": name, **vars(answer)} for name, answer in answers.items()}


def _cells(estimate: Estimate | None, digits: int, scale: float = 1) -> list[str]:
    """Return a measured number and its interval, multiplied by ``scale``, or dashes if there are
    none.
    """
    if estimate is None:
        return [number(None), interval(None)]
    return [number(scale * estimate.value, digits), interval(estimate.interval, digits, scale)]


def _modality_tables(report: GapReport) -> list[Table]:
    """Return a table of the dimensions of each modality, and one of the means."""
    dimensions = []
    means = []
    for name, measures in report.modalities.items():
        dimensions.append(
            [
                name,
                number(measures.n, 0),
                f"{measures.effective_dimension} of {measures.dim}",
                number(measures.effective_rank, 1),
                number(measures.participation_ratio, 1),
            ]
        )
        means.append(
            [
                name,
                number(measures.mean_norm),
                number(measures.mean_norm_error, 4),
                number(measures.mean_direction_error_degrees, 2),
                number(measures.independent_rows, 0),
                number(measures.rows_for_one_degree, 0),
            ]
        )
    note = (
        "Collapse subtracts the mean, which is accurate enough if its direction is known to about "
        "one degree. For the errors, all captions of an image count as one row."
    )
    return [
        Table(
            ["modality", "rows", "eff. dimension", "eff. rank", "participation ratio"],
            dimensions,
            "Dimensions",
        ),
        Table(
            ["modality", "length", "±", "direction ±, °", "independent", "rows for 1°"],
            means,
            "Means",
            note=note,
        ),
    ]


def _measures_table(report: GapReport) -> Table:
    """Return a table of the measures of the gap and of the pairs."""
    gap = report.gap
    pairs = report.pairs
    assert gap is not None
    rows = [
        ["gap length", *_cells(gap.length, 4), "distance of the means; 0 is no gap"],
        [
            "gap length, debiased",
            *_cells(gap.length_debiased, 4),
            "corrected for small-sample bias",
        ],
    ]
    if pairs:
        rows += [
            ["instance distance", *_cells(gap.instance_distance, 4), "mean, over pairs"],
            [
                "relative gap (RMG)",
                *_cells(gap.rmg, 4),
                "pairs, relative to distances within a modality; 0 is aligned",
            ],
            ["paired cosine", *_cells(pairs.paired_cosine, 4), f"over {pairs.n:,} pairs"],
            ["unpaired cosine", *_cells(pairs.unpaired_cosine, 4), "over all unrelated rows"],
            ["residual rms", *_cells(pairs.residual_rms, 4), "alignment noise, per dimension"],
            [
                "residual rms, debiased",
                *_cells(pairs.residual_rms_debiased, 4),
                "around the true mean, not the mean of a few items",
            ],
        ]
    return Table(["measure", "value", "95%", "meaning"], rows, left=("meaning",))


def _recall_table(report: GapReport) -> Table:
    """Return a table of recall in both directions, one row per preset."""
    directions = list(next(iter(report.spaces.values())).recall)
    columns = ["preset"]
    for direction in directions:
        target = direction.split("_to_")[-1]
        columns += [f"to {target} @{k}" for k in DEFAULT_KS]
    rows = []
    formulas = []
    for name, space in report.spaces.items():
        row = [name]
        for direction in directions:
            recall = space.recall[direction]
            row += [number(100 * recall[f"recall@{k}"].value, 1) for k in DEFAULT_KS]
        rows.append([*row, number(space.gap)])
        formula = "norm(e)" if name == RAW else PRESETS.get(name, ("see the file",))[0]
        formulas.append(f"{name}: {formula}")
    note = (
        f"How often one of the k nearest rows belongs to the same item. The presets: "
        f"{'; '.join(formulas)}."
    )
    return Table([*columns, "gap left"], rows, "Recall, %", note=note)


def _one_list_table(report: GapReport) -> Table:
    """Return a table of the search in one list, one row per modality of the queries and list."""
    rows = []
    for asked, one_list in report.one_list.items():
        for name, recall in one_list.recall.items():
            other_modality = one_list.other_modality[name]
            rows.append(
                [f"{asked}, {name}", *_cells(other_modality, 1, 100), *_cells(recall, 1, 100)]
            )
    columns = [
        "queries, list",
        "other modality in the first ten, %",
        "95%",
        "answer in the first ten, %",
        "95%",
    ]
    chance = next(iter(report.one_list.values())).chance
    note = (
        f"The corpus has one row per item, half of them in each modality; the answer is not in the "
        f"query's modality. Without bias, half of the first ten hits are not either. Moments come "
        f"from other items. By chance, {100 * chance:.1f}% of the answers are in the first ten. "
        f"Calibrated: by the score of c3 search."
    )
    return Table(columns, rows, "One list", note=note)


def _clusters_table(mixed: MixedClusters) -> Table:
    """Return a table of three ways to cluster both modalities."""
    titles = ("k-means", "k-means after Collapse", "cross-centroids after Collapse")
    rows = []
    for title, name in zip(titles, CLUSTERINGS, strict=True):
        cells = _cells(mixed.kappa[name], 1, 100)
        rows.append([title, *cells, number(100 * mixed.one_kind[name], 1)])
    note = (
        "κ: share of pairs in one cluster, beyond chance, of pairs that had no part in making the "
        "clusters. U: how much a cluster reveals about the "
        "modality of its rows: 0% if clusters mix both as shuffling would, 100% if each has only "
        "one."
    )
    return Table(["clusters", "κ, %", "95%", "U, %"], rows, note=note)


def _before_and_after_table(report: GapReport) -> Table:
    """Return a table of what Collapse changes: measures before it and after it."""
    columns = ["measure"]
    spaces = []
    for name, title in ((RAW, "before"), (COLLAPSE, "after")):
        if name in report.spaces:
            columns += [title, "95%"]
            spaces.append(report.spaces[name])

    def row(
        measure: str, estimates: Iterable[Estimate | None], digits: int, scale: float
    ) -> list[str]:
        cells = [measure]
        for estimate in estimates:
            cells += _cells(estimate, digits, scale)
        return cells

    rows = [row("linear separability, %", [space.separability for space in spaces], 1, 100)]
    for name in report.modalities:
        biases = [space.modality_bias[name] for space in spaces]
        uniformities = [space.uniformity[name] for space in spaces]
        rows.append(row(f"modality bias@10, %, {name}", biases, 1, 100))
        rows.append(row(f"uniformity, {name}", uniformities, 3, 1))
    note = (
        "Separability: accuracy, on held-out rows, of a linear probe for the modality. Modality "
        "bias: share of the ten nearest rows of both modalities that have the modality of the "
        "query. 50% is ideal for both. Uniformity: log E exp(−2 |x − x′|²); lower means more "
        "spread out."
    )
    return Table(columns, rows, "Before and after Collapse", note=note)
