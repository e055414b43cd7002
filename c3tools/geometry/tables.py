"""Gap reports as sentences and tables, which terminal, page and notebook all show.

To show a further number of a report, add it here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..metrics.retrieval import DEFAULT_KS
from ..metrics.significance import Estimate
from ..pages.render import FigureBlock, Section, interval, number
from ..tables import Table
from ..transforms import PRESETS, PUBLISHED_SIGMA
from .collect import extreme_pairs
from .spaces import COLLAPSE, RAW
from .verdict import Measured

BIASED_ITEMS, FEW_ITEMS = 300, 100
"""With fewer items the plain length and residual, or recall and separability too, have approximate intervals: see
docs/reference/geometry.md for their coverage."""
_EXTREMES = 5


def report_sections(report: Measured, figures: Mapping[str, FigureBlock] | None = None) -> list[Section]:
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
            [Table(["question", "answer", "because"], assumptions, left=("answer", "because"))],
            shown(*drawn),
            _figure_note(report),
        ),
        Section("The two modalities", tables=_modalities(report), figures=shown("spectra", "projection")),
        Section(
            "What Collapse will do",
            [f"Transforms are fitted on {report.provenance['fitted_on']}."],
            [*_recall(report), _before_and_after(report)],
            shown("recall"),
        ),
        Section("How much noise to add", [_describe_corrupt(report)], [_sigmas(report)]),
    ]


def extreme_sections(report: Measured) -> list[Section]:
    """Lay out the pairs with the highest and with the lowest cosines."""
    found = extreme_pairs(report.collected, _EXTREMES) if report.collected else {}
    columns = [*report.modalities, "cosine"]
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
        title = "Every pair of modalities in the store, from moments; --modalities A,B reports on another pair"
        tables.append(Table(["modalities", "gap length", "cosine of means"], gaps, title))
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
