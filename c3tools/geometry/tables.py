"""Gap reports as sentences and tables, which terminal, page and notebook all show.

To show a further number of a report, add it here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..metrics.retrieval import DEFAULT_KS
from ..metrics.significance import Estimate
from ..pages.render import FigureBlock, Section, interval, number
from ..tables import Table
from ..transforms import PRESETS, PUBLISHED_SIGMA
from .collect import extreme_pairs
from .measures import BIASED_ITEMS, Measured
from .spaces import COLLAPSE, RAW
from .verdict import verdicts

Figures = Mapping[str, FigureBlock]

_COMPARED = {
    "length": "Gap length",
    "rmg": "Relative gap (RMG)",
    "paired_cosine": "Cosine of pairs",
    "unpaired_cosine": "Cosine of others",
    "residual_rms": "Alignment noise, rms per dimension",
}
"""Measures of gap and pairs that stand in tables of several reports."""


def verdict_section(report: Measured, title: str = "Verdict") -> Section:
    """Return the verdicts of a report as one sentence each, under a heading."""
    said = (f"{found.question} {found.answer.capitalize()}. {found.because}" for found in verdicts(report).values())
    return Section(title, list(said))


def report_sections(report: Measured, figures: Figures | None = None) -> list[Section]:
    """Lay out the report of two modalities, or of one; ``figures`` are those of a page."""

    def shown(*names: str) -> list[FigureBlock]:
        return [figures[name] for name in names if figures and name in figures]

    if report.gap is None:
        return [Section("The modality", tables=_modalities(report), figures=shown("spectrum"))]
    assumptions = [[found.question, found.answer, found.because] for found in report.assumptions.values()]
    drawn = "gap-length", "gap-direction", "orthogonality", "noise-marginals", "noise-size", "noise-direction"
    return [
        Section("How far apart the modalities are", tables=[_measures(report)]),
        Section(
            "Does the model of the paper hold here?",
            [
                "C3 assumes e_x − e_y = c + ε: a constant gap c that is orthogonal to the directions in which the "
                "modalities vary, and Gaussian noise ε of the same size in every direction."
            ],
            [Table(["question", "answer", "because"], assumptions, left=("answer", "because")), *_subsets(report)],
            shown(*drawn),
            _figure_note(report),
        ),
        Section("The two modalities", tables=_modalities(report), figures=shown("spectra", "projection")),
        Section(
            "What Collapse will do",
            [_describe_collapse(report), f"Transforms are fitted on {report.provenance['fitted_on']}."],
            [*_recall(report), _before_and_after(report)],
            shown("recall"),
        ),
        Section("How much noise to add", [_describe_corrupt(report)], [_sigmas(report)]),
    ]


def extreme_sections(report: Measured, count: int) -> list[Section]:
    """Lay out ``count`` pairs with the highest and as many with the lowest cosines."""
    if report.collected is None:
        return []
    found, columns = extreme_pairs(report.collected, count), [*report.modalities, "cosine"]
    titles = {"closest": "The closest", "furthest": "The furthest apart"}
    tables = [
        Table(columns, [[item, text, number(cosine)] for item, text, cosine in rows], titles[side], left=columns[1:2])
        for side, rows in found.items()
        if rows
    ]
    return [Section("Pairs at the extremes", tables=tables)] if tables else []


def tiles(report: Measured) -> list[tuple[str, str, str, str]]:
    """Return the numbers to see first: value, name, meaning and unit of each."""
    gap, pairs, found = report.gap, report.pairs, []
    if gap:
        meaning = "Distance of the two means. 0 is no gap; CLIP on COCO has about 0.83."
        found.append((_value(gap.length), "Gap length", meaning, ""))
    if gap and pairs:
        others = f"Unrelated rows have {_value(pairs.unpaired_cosine)}."
        found.append((_value(pairs.paired_cosine), "Cosine of pairs", others, ""))
        meaning = (
            "Distance of pairs relative to distances within a modality: 0 is perfect alignment; at 0.5 pairs are as "
            "far apart as any two rows of a modality."
        )
        found.append((_value(gap.rmg), "Relative gap (RMG)", meaning, ""))
        meaning = "Difference within pairs after the mean gap is subtracted, per dimension."
        found.append((_value(pairs.residual_rms, 4), "Alignment noise", meaning, "rms"))
    for name, own in report.modalities.items():
        meaning = f"Number of directions that contain 99 % of the variance of {own.n:,} rows."
        found.append((str(own.effective_dimension), f"Effective dimension, {name}", meaning, f"of {own.dim}"))
    if RAW in report.spaces:
        for way, recall in report.spaces[RAW].recall.items():
            meaning = "How often the nearest row belongs to the same item, before any transform."
            found.append((_value(recall["recall@1"], 1, 100), f"Recall@1, {_words(way)}", meaning, "%"))
    return found


def facts(report: Measured) -> dict[str, str]:
    """Return where the numbers of a report come from, by name."""
    known = report.provenance
    found = {
        "Store": str(known["store"]),
        "Model": str(known["model"]),
        "Embeddings": f"{known['dim']} dimensions, stored as {known['dtype']}",
        "Rows": ", ".join(f"{n:,} {name}" for name, n in known["rows"].items()) + f" (split: {known['split']})",
    }
    if working := known.get("working_set"):
        first, second = known["rows"]
        sample = f"a sample of {working[first]:,} {first} and {working[second]:,} {second} rows"
        found["Pairs"] = f"{known['pairs']:,} of {known['items']:,} {first} rows"
        found["Recall and shapes from"] = f"{'every row' if working['complete'] else sample}, seed {known['seed']}"
    return found | {"Made with": f"c3tools {known['c3tools']}"}


def lead(report: Measured) -> str:
    """Return one or two sentences on the space as it is; nothing about one modality."""
    if report.gap is None:
        return ""
    (first, second), pairs = report.modalities, report.pairs
    text = f"The means of {first} and {second} embeddings are {report.gap.length.value:.2f} apart, on a sphere of "
    text += "radius 1."
    if pairs is None or pairs.unpaired_cosine is None:
        return text
    return (
        f"{text} The cosine of a {second} row is {_value(pairs.paired_cosine, 2)} with its own {first} row and "
        f"{_value(pairs.unpaired_cosine, 2)} with any other. Only the difference of these numbers separates pairs "
        "from unrelated rows, not their size."
    )


def compare_stores(reports: Sequence[Measured], figures: Sequence[Figures] = ()) -> list[Section]:
    """Lay out the reports of two stores in one table, and on a page their figures side by side."""
    names = [name for name in reports[0].modalities if name in reports[1].modalities]
    stores = [report.provenance["store"] for report in reports]
    rows: list[list[str]] = [["Model", *(str(report.provenance["model"]) for report in reports)]]

    def add(name: str, found: Iterable[Estimate | None], digits: int = 3, scale: float = 1) -> None:
        cells = []
        for one in found:
            ends = f" ({interval(one.interval, digits, scale)})" if one and one.interval else ""
            cells.append(_value(one, digits, scale) + ends)
        rows.append([name, *cells])

    rows += [[f"Rows, {name}", *(number(report.modalities[name].n, 0) for report in reports)] for name in names]
    for key, name in _COMPARED.items():
        add(name, (_estimate(report, key) for report in reports), 4 if key == "residual_rms" else 3)
    for name in names:
        measured = [report.modalities[name] for report in reports]
        rows.append([f"Effective dimension, {name}", *(f"{one.effective_dimension} of {one.dim}" for one in measured)])
    for preset, when in ((RAW, "before"), (COLLAPSE, "after Collapse")):
        spaces = [report.spaces[preset] for report in reports if preset in report.spaces]
        if len(spaces) == 2:
            for way in (way for way in spaces[0].recall if way in spaces[1].recall):
                found = (space.recall[way]["recall@1"] for space in spaces)
                add(f"Recall@1, %, {_words(way)}, {when}", found, 1, 100)
            add(f"Linear separability, %, {when}", (space.separability for space in spaces), 1, 100)
    for name, answer in reports[0].assumptions.items():
        if name in reports[1].assumptions:
            rows.append([answer.question, *(report.assumptions[name].answer for report in reports)])
    table = Table(["Measure", *stores], rows, note="95 % bootstrap intervals over items are in brackets.")
    sections = [Section("Measures", tables=[table])]
    for key, title in (
        ("spectra", "Spectra"),
        ("projection", "In two dimensions"),
        ("orthogonality", "Orthogonality of the gap"),
        ("noise-size", "Size of the noise"),
        ("recall", "Recall under each preset"),
    ):
        pairs = zip(figures, stores, strict=False)
        blocks = [FigureBlock(own[key].svg, store, own[key].wide) for own, store in pairs if key in own]
        sections += [Section(title, figures=blocks)] if blocks else []
    return sections


def list_pairs(reports: Sequence[Measured], links: Sequence[str] = ()) -> list[Section]:
    """Lay out the reports of every pair of modalities of a store; ``links`` are the pages of the pairs."""
    names = [" and ".join(report.modalities) for report in reports]
    rows, recall = [], []
    for name, report in zip(names, reports, strict=True):
        cells = [_value(_estimate(report, key), 4 if key == "residual_rms" else 3) for key in _COMPARED]
        rows.append([name, number(report.pairs.n if report.pairs else None, 0), *cells])
        before, after = ({} if space is None else space.recall for space in map(report.spaces.get, (RAW, COLLAPSE)))
        for way in (way for way in before if way in after):
            recall.append([_words(way), *(_value(found[way]["recall@1"], 1, 100) for found in (before, after))])
    columns = ["modalities", "pairs", "gap length", "RMG", "cosine of pairs", "of others", "noise, rms"]
    note = "The gap length is the distance of the two means. A dash means that the two modalities have no pairs."
    questions = {name: found.question for name, found in reports[0].assumptions.items()}
    answers = [
        [label, *(report.assumptions[name].answer if name in report.assumptions else "" for name in questions)]
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
            tables=[Table(["modalities", *questions.values()], answers, left=list(questions.values()))],
        ),
    ]


def differences(reports: Sequence[Measured]) -> list[str]:
    """Return notes on differences of two stores other than their measures."""
    models, rows = ([report.provenance[key] for report in reports] for key in ("model", "rows"))
    notes = []
    if models[0] != models[1]:
        notes.append(
            f"The stores contain embeddings of two models, {' and '.join(models)}: their measures can be compared, but "
            "not their vectors."
        )
    if rows[0] != rows[1]:
        listed = " against ".join(", ".join(f"{n:,} {name}" for name, n in counts.items()) for counts in rows)
        notes.append(
            f"The stores have different numbers of rows ({listed}), and recall depends on the number of rows searched."
        )
    return notes


def _estimate(report: Measured, key: str) -> Estimate | None:
    """Return a measure of the gap or of the pairs by its name."""
    return getattr(report.gap, key, None) or getattr(report.pairs, key, None)


def _value(found: Estimate | None, digits: int = 3, scale: float = 1) -> str:
    """Return a measured number, multiplied by ``scale``, or a dash if there is none."""
    return number(None if found is None else scale * found.value, digits)


def _ends(found: Estimate | None, digits: int = 3, scale: float = 1) -> str:
    return interval(None if found is None else found.interval, digits, scale)


def _words(way: str) -> str:
    return way.replace("_", " ")


def _modalities(report: Measured) -> list[Table]:
    spans, means = [], []
    for name, found in report.modalities.items():
        ranks = number(found.effective_rank, 1), number(found.participation_ratio, 1)
        spans.append([name, number(found.n, 0), f"{found.effective_dimension} of {found.dim}", *ranks])
        angle, counts = found.mean_direction_error_degrees, (found.independent_rows, found.rows_for_one_degree)
        lengths = number(found.mean_norm), number(found.mean_norm_error, 4)
        direction = number(angle, 2) + ("" if angle is None else "°")
        means.append([name, *lengths, direction, *(number(count, 0) for count in counts)])
    note = (
        "Collapse subtracts the mean, which is accurate enough if its direction is known to about one degree. The "
        "errors count independent rows only: all captions of an image count as one."
    )
    tables = [
        Table(["modality", "rows", "eff. dimension", "eff. rank", "participation ratio"], spans, "Dimensions"),
        Table(["modality", "length", "±", "direction ±", "independent", "rows for 1°"], means, "Means", note=note),
    ]
    if report.modality_gaps:
        gaps = [
            [f"{gap['first']} and {gap['second']}", number(gap["length"], 4), number(gap["cosine_of_means"])]
            for gap in report.modality_gaps
        ]
        note = "--modalities A,B reports on another pair, --modalities all on every pair."
        title = "Every pair of modalities in the store, from moments"
        tables.append(Table(["modalities", "gap length", "cosine of means"], gaps, title, note=note))
    return tables


def _measures(report: Measured) -> Table:
    gap, pairs = report.gap, report.pairs
    assert gap is not None
    few = pairs is not None and pairs.items < BIASED_ITEMS
    rows: list[tuple[str, Estimate | None, str]] = [
        ("gap length", gap.length, "distance of the means; 0 is no gap"),
        ("gap length, debiased", gap.length_debiased, "without what so few items show by chance"),
    ]
    if pairs:
        true = "around the true mean, not that of so few items"
        rows += [
            ("instance distance", gap.instance_distance, "mean, over pairs"),
            ("relative gap (RMG)", gap.rmg, "pairs, relative to distances within a modality; 0 is aligned"),
            ("paired cosine", pairs.paired_cosine, f"over {pairs.n:,} pairs"),
            ("unpaired cosine", pairs.unpaired_cosine, "over all unrelated rows"),
            ("residual rms", pairs.residual_rms, "alignment noise, per dimension"),
            ("residual rms, debiased", pairs.residual_rms_debiased, true),
        ]
    cells = []
    for name, found, meaning in rows:
        about = "≈ " if few and name in ("gap length", "residual rms") else ""
        ends = _ends(found, 4 if name.startswith("residual") else 3)
        cells.append([name, _value(found, 4), about + ends, meaning])
    note = f"≈: approximate with fewer than {BIASED_ITEMS} items; use the debiased interval." if few else ""
    return Table(["measure", "value", "95 %", "meaning"], cells, left=("meaning",), note=note)


def _recall(report: Measured) -> list[Table]:
    """Lay out recall and hubs under each preset; nothing without pairs."""
    if not report.pairs or not report.spaces:
        return []
    ways = {way: way.split("_to_")[-1] for way in next(iter(report.spaces.values())).recall}
    recall, hubs = [], []
    for name, space in report.spaces.items():
        found = [_value(space.recall[way][f"recall@{k}"], 1, 100) for way in ways for k in DEFAULT_KS]
        recall.append([name, *found, number(space.gap), number(space.gap_by_chance)])
        cells = []
        for hub in map(space.hubness.__getitem__, ways):
            cells += [number(hub.skewness, 2), number(hub.gini, 2), number(100 * hub.recall["recall@1"], 1)]
        hubs.append([name, *cells])
    formulas = (f"{name}: {'norm(e)' if name == RAW else PRESETS[name].summary}" for name in report.spaces)
    note = (
        "How often one of the k nearest rows belongs to the same item. By chance: the gap that so few rows show on "
        f"average if there is none. The presets: {'; '.join(formulas)}."
    )
    about_hubs = (
        "A hub is a row that is near to everything. Skewness and Gini coefficient measure how unevenly rows of the "
        "other modality occur among the ten nearest of all queries. Closing the gap can create hubs. CSLS is "
        "recall@1, %, after the mean cosine of each row with its ten nearest is subtracted."
    )
    heads = [f"to {end} @{k}" for end in ways.values() for k in DEFAULT_KS]
    hub_heads = [f"{what}, {end}" for end in ways.values() for what in ("skewness", "Gini", "CSLS @1")]
    return [
        Table(["preset", *heads, "gap left", "by chance"], recall, "Recall, %", note=note),
        Table(["preset", *hub_heads], hubs, "Hubs", note=about_hubs),
    ]


def _before_and_after(report: Measured) -> Table:
    heads = {RAW: "before", COLLAPSE: "after"}
    spaces = [report.spaces[name] for name in heads if name in report.spaces]

    def row(name: str, found: Iterable[Estimate | None], digits: int, scale: float) -> list[str]:
        return [name, *(cell(one, digits, scale) for one in found for cell in (_value, _ends))]

    rows = [row("linear separability, %", (space.separability for space in spaces), 1, 100)]
    for name in report.modalities:
        biases = ((space.modality_bias or {}).get(name) for space in spaces)
        rows.append(row(f"modality bias@10, %, {name}", biases, 1, 100))
    for name in report.modalities:
        rows.append(row(f"uniformity, {name}", ((space.uniformity or {}).get(name) for space in spaces), 3, 1))
    note = (
        "Separability: accuracy, on held-out rows, of a linear probe for the modality. Modality bias: share of the "
        "ten nearest rows of both modalities that have the modality of the query. 50 % is ideal for both. Uniformity: "
        "log E exp(−2 |x − x′|²); lower means more spread out."
    )
    columns = ["measure", *(part for name in heads if name in report.spaces for part in (heads[name], "95 %"))]
    return Table(columns, rows, "Before and after Collapse", note=note)


def _subsets(report: Measured) -> list[Table]:
    rows = [
        [
            str(subset.value),
            number(subset.pairs, 0),
            number(subset.length),
            number(subset.cosine_with_gap),
            number(None if subset.difference is None else 100 * subset.difference, 1),
        ]
        for subset in report.subsets
    ]
    note = (
        "Differs: distance of the subset's gap from that of all pairs, not counting what so few items differ by chance."
    )
    columns = ["subset", "pairs", "gap length", "cosine with the gap", "differs by, % of the gap"]
    return [Table(columns, rows, "The gap by subset", note=note)] if rows else []


def _sigmas(report: Measured) -> Table:
    options = {report.recommended[0].name: " (--sigma auto)"} if report.recommended else {}
    options["pair_cosine"] = " (--sigma pairs)"
    rows = [
        [
            rule.name.replace("_", " ") + options.get(rule.name, ""),
            number(rule.sigma, 4),
            rule.rests_on + (f"; not available here: {rule.missing}" if rule.missing else ""),
        ]
        for rule in report.sigmas
    ]
    return Table(["rule", "sigma", "rests on"], rows, left=("rests on",))


def _figure_note(report: Measured) -> str:
    pairs, (first, second) = report.pairs, report.modalities
    if not pairs or not report.gap or not report.gap.group_length:
        return ""
    several = f", so that {pairs.items:,} {first} rows make {pairs.n:,} pairs" if pairs.n > pairs.items else ""
    mean, spread = report.gap.group_length
    return (
        f"Bars show shares. A pair is one {second} row with its {first}{several}. The gap length over groups is "
        f"{number(mean)} ± {number(spread)}; the line marks the length over all rows. For CLIP ViT-B/32 on COCO, the "
        "paper reports length 0.83 ± 0.01, direction 0.99, orthogonality 0.00 ± 0.06 and noise direction 0.00 ± 0.10."
    )


def _describe_collapse(report: Measured) -> str:
    raw, collapsed = report.spaces.get(RAW), report.spaces.get(COLLAPSE)
    if raw is None or collapsed is None:
        return "Collapse cannot be applied to these embeddings."
    text = f"Subtracting the mean of each modality reduces the gap from {raw.gap:.2f} to {collapsed.gap:.2f}"
    if raw.separability and collapsed.separability:
        text += (
            f", and the accuracy of a linear probe for the modality from {100 * raw.separability.value:.0f} % to "
            f"{100 * collapsed.separability.value:.0f} % (chance: 50 %)"
        )
    if raw.modality_bias and collapsed.modality_bias:
        biases = (raw.modality_bias, collapsed.modality_bias)
        before, after = (float(np.mean([found.value for found in bias.values()])) for bias in biases)
        text += (
            f". Among the ten nearest rows of both modalities, {100 * before:.0f} % have the query's own before it and "
            f"{100 * after:.0f} % after it"
        )
    if not raw.recall:
        return f"{text}."
    pairs = [(found["recall@1"], collapsed.recall[way]["recall@1"]) for way, found in raw.recall.items()]
    changes = [100 * (after.value - before.value) for before, after in pairs]
    if max(map(abs, changes)) <= 1:
        effect = "closing the gap hardly changes retrieval, which compares rows of one modality only"
    elif all(before.interval and before.interval[0] <= after.value <= before.interval[1] for before, after in pairs):
        effect = "this is within the uncertainty of so few rows"
    elif max(changes) < -1:
        effect = "closing the gap costs retrieval here"
    elif min(changes) > 1:
        effect = "closing the gap also helps retrieval here"
    else:
        effect = "closing the gap affects the two directions differently"
    listed = " and ".join(f"{change:+.1f}".replace("-", "−") for change in changes)
    return f"{text}. Recall@1 changes by {listed} points in the two directions: {effect}."


def _describe_corrupt(report: Measured) -> str:
    data = report.collected
    assert data is not None and report.recommended is not None
    rule, why = report.recommended
    sigma, moments = float(rule.sigma or 0.0), data.fit_moments[data.second]
    norm, noise = float(np.sqrt(np.trace(moments.covariance))), sigma * float(np.sqrt(moments.dim))
    cosine = norm / float(np.hypot(norm, noise)) if norm > 0 else 0.0
    option = "pairs" if rule.name == "pair_cosine" else "auto"
    text = (
        f"--sigma {option} gives {sigma:.3f}: {why}. Noise of this size has norm {noise:.2f}, and centred vectors have "
        f"norm {norm:.2f}, so the cosine of a {data.second} embedding with its noised copy is {cosine:.2f}."
    )
    if report.pairs is not None and report.pairs.residual_rms.value > 0:
        ratio = PUBLISHED_SIGMA / report.pairs.residual_rms.value
        text += f" The published {PUBLISHED_SIGMA:.4f} is {ratio:.1f} times the alignment noise measured here."
    return text
