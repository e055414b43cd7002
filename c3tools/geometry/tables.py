"""The gap report as sentences and tables: `report_sections`, which terminal, page and notebook all show.

To show a further number of the JSON object, add it here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..metrics.retrieval import DEFAULT_KS
from ..pages.render import FigureBlock, Section, interval, number
from ..tables import Table
from ..transforms import PUBLISHED_SIGMA
from .measures import BIASED_ITEMS, Measured
from .spaces import COLLAPSE, RAW, SpaceMeasures, describe_preset

Values = Mapping[str, Any]
Figures = Mapping[str, FigureBlock]


def report_sections(values: Values, measured: Measured | None, figures: Figures | None = None) -> list[Section]:
    """Lay out the report of one pair of modalities, or of one modality.

    Args:
        values: the report's JSON object.
        measured: what it was computed from; None for one modality.
        figures: by name, for a page.
    """
    shown = figures or {}
    if measured is None:
        return [Section("The modality", tables=_modality_tables(values), figures=_take(shown, "spectrum"))]
    first, second = measured.collected.first, measured.collected.second
    names = "gap-length", "gap-direction", "orthogonality", "noise-marginals", "noise-size", "noise-direction"
    return [
        Section("How far apart the modalities are", tables=[_measures_table(values)]),
        Section(
            "Does the model of the paper hold here?",
            [
                "C3 assumes e_x − e_y = c + ε: a constant gap c that is orthogonal to the directions in which the "
                "modalities vary, and Gaussian noise ε of the same size in every direction."
            ],
            [_assumptions_table(values), *([_subsets_table(values)] if values["subsets"] else [])],
            _take(shown, *names),
            _figure_note(values, first, second),
        ),
        Section(
            "The two modalities",
            tables=[*_modality_tables(values), *([_gaps_table(values)] if values.get("modality_gaps") else [])],
            figures=_take(shown, "spectra", "projection"),
        ),
        Section(
            "What Collapse will do",
            [_describe_collapse(measured), f"Transforms are fitted on {values['provenance']['fitted_on']}."],
            [*([_recall_table(values), _hubs_table(values)] if values["retrieval"] else []), _spaces_table(values)],
            _take(shown, "recall"),
        ),
        Section("How much noise to add", [_describe_corrupt(measured)], [_sigma_table(values)]),
    ]


def extreme_sections(first: str, second: str, extremes: Mapping[str, Sequence[Values]]) -> list[Section]:
    """Lay out the pairs with the highest and lowest cosines (`c3tools.geometry.collect.extreme_pairs`)."""
    tables = []
    for side, title in (("closest", "The closest"), ("furthest", "The furthest apart")):
        rows = [[row["item"], row["text"] or row["key"], number(row["cosine"])] for row in extremes.get(side, ())]
        if rows:
            tables.append(Table([first, second, "cosine"], rows, title, left=(second,)))
    return [Section("Pairs at the extremes", tables=tables)] if tables else []


def report_tiles(values: Values) -> list[tuple[str, str, str, str]]:
    """Return the numbers to see first: value, name, meaning and unit of each."""
    tiles = []
    gap, pairs = values["gap"], values["pairs"]
    if gap:
        meaning = "Distance of the two means. 0 is no gap; CLIP on COCO has about 0.83."
        tiles.append((number(gap["length"]), "Gap length", meaning, ""))
    if pairs:
        unpaired = f"Unrelated rows have {number(pairs['unpaired_cosine'])}."
        tiles.append((number(pairs["paired_cosine"]), "Cosine of pairs", unpaired, ""))
        meaning = (
            "Distance of pairs relative to distances within a modality: 0 is perfect alignment; at 0.5 pairs are as "
            "far "
        )
        meaning += "apart as any two rows of a modality."
        tiles.append((number(gap["rmg"]), "Relative gap (RMG)", meaning, ""))
        meaning = "Difference within pairs after the mean gap is subtracted, per dimension."
        tiles.append((number(pairs["residual_rms"], 4), "Alignment noise", meaning, "rms"))
    for name, found in values["modalities"].items():
        meaning = f"Number of directions that contain 99 % of the variance of {found['n']:,} rows."
        dimension = str(found["effective_dimension"])
        tiles.append((dimension, f"Effective dimension, {name}", meaning, f"of {found['dim']}"))
    for direction, scores in values["retrieval"].get(RAW, {}).items():
        meaning = "How often the nearest row belongs to the same item, before any transform."
        name = f"Recall@1, {direction.replace('_', ' ')}"
        tiles.append((number(100 * scores["recall@1"], 1), name, meaning, "%"))
    return tiles


def report_facts(values: Values) -> dict[str, str]:
    """Return where the numbers of a report come from, by name."""
    known = values["provenance"]
    facts = {
        "Store": str(known["store"]),
        "Model": str(known["model"]),
        "Embeddings": f"{known['dim']} dimensions, stored as {known['dtype']}",
        "Rows": ", ".join(f"{n:,} {name}" for name, n in known["rows"].items()) + f" (split: {known['split']})",
    }
    if "working_set" in known:
        first, second = known["rows"]
        working = known["working_set"]
        sample = f"a sample of {working[first]:,} {first} and {working[second]:,} {second} rows"
        facts["Pairs"] = f"{known['pairs']:,} of {known['items']:,} {first} rows"
        facts["Recall and shapes from"] = f"{'every row' if working['complete'] else sample}, seed {known['seed']}"
    return facts | {"Made with": f"c3tools {known['c3tools']}"}


def summarize(measured: Measured) -> str:
    """Return one or two sentences on the space as it is."""
    gap, pairs = measured.gap, measured.pairs
    first, second = measured.collected.first, measured.collected.second
    text = f"The means of {first} and {second} embeddings are {gap.length:.2f} apart, on a sphere of radius 1."
    if pairs is None or pairs.unpaired_cosine is None:
        return text
    return (
        f"{text} The cosine of a {second} row is {number(pairs.paired_cosine, 2)} with its own {first} row and "
        f"{number(pairs.unpaired_cosine, 2)} with any other. Only the difference of these numbers separates pairs "
        "from unrelated rows, not their size."
    )


def with_interval(value: float | None, ends: Sequence[float] | None, digits: int = 3, scale: float = 1) -> str:
    """Return a number with its interval in brackets, both multiplied by ``scale``."""
    text = number(None if value is None else scale * value, digits)
    return text if ends is None else f"{text} ({interval(ends, digits, scale)})"


def numbers(values: Values, **digits: int) -> list[str]:
    """Return the named values as cells, each with so many decimals."""
    return [number(values.get(name), decimals) for name, decimals in digits.items()]


def _take(figures: Figures, *names: str) -> list[FigureBlock]:
    return [figures[name] for name in names if name in figures]


def _modality_tables(values: Values) -> list[Table]:
    spans, means = [], []
    for name, found in values["modalities"].items():
        span = f"{found['effective_dimension']} of {found['dim']}"
        spans.append([name, number(found["n"], 0), span, *numbers(found, effective_rank=1, participation_ratio=1)])
        angle = found["mean_direction_error_degrees"]
        direction = number(angle, 2) + ("" if angle is None else "°")
        counts = numbers(found, independent_rows=0, rows_for_one_degree=0)
        means.append([name, *numbers(found, mean_norm=3, mean_norm_error=4), direction, *counts])
    note = (
        "Collapse subtracts the mean, which is accurate enough if its direction is known to about one degree. The "
        "errors count independent rows only: all captions of an image count as one."
    )
    return [
        Table(["modality", "rows", "eff. dimension", "eff. rank", "participation ratio"], spans, "Dimensions"),
        Table(["modality", "length", "±", "direction ±", "independent", "rows for 1°"], means, "Means", note=note),
    ]


def _measures_table(values: Values) -> Table:
    gap, pairs = values["gap"], values["pairs"]
    rows = [
        ("gap length", gap, "length", "distance of the means; 0 is no gap"),
        ("gap length, debiased", gap, "length_debiased", "without what so few items show by chance"),
    ]
    if pairs:
        rows += [
            ("instance distance", gap, "instance_distance", "mean, over pairs"),
            ("relative gap (RMG)", gap, "rmg", "pairs, relative to distances within a modality; 0 is aligned"),
            ("paired cosine", pairs, "paired_cosine", f"over {pairs['n']:,} pairs"),
            ("unpaired cosine", pairs, "unpaired_cosine", "over all unrelated rows"),
            ("residual rms", pairs, "residual_rms", "alignment noise, per dimension"),
            (
                "residual rms, debiased",
                pairs,
                "residual_rms_debiased",
                "around the true mean, not that of so few items",
            ),
        ]
    few = bool(pairs) and pairs["items"] < BIASED_ITEMS
    cells = []
    for name, part, key, meaning in rows:
        ends = interval(part[f"{key}_interval"], 4 if key.startswith("residual") else 3)
        about = "≈ " if few and key in ("length", "residual_rms") else ""
        cells.append([name, number(part[key], 4), about + ends, meaning])
    note = f"≈: approximate with fewer than {BIASED_ITEMS} items; use the debiased interval." if few else ""
    return Table(["measure", "value", "95 %", "meaning"], cells, left=("meaning",), note=note)


def _gaps_table(values: Values) -> Table:
    gaps = values["modality_gaps"]
    rows = [[f"{gap['first']} and {gap['second']}", *numbers(gap, length=4, cosine_of_means=3)] for gap in gaps]
    note = "--modalities A,B reports on another pair, --modalities all on every pair."
    title = "Every pair of modalities in the store, from moments"
    return Table(["modalities", "gap length", "cosine of means"], rows, title, note=note)


def _recall_table(values: Values) -> Table:
    retrieval = values["retrieval"]
    directions = list(next(iter(retrieval.values())))
    heads = [f"to {direction.split('_to_')[-1]} @{k}" for direction in directions for k in DEFAULT_KS]
    rows = [
        [
            name,
            *(number(100 * found[direction][f"recall@{k}"], 1) for direction in directions for k in DEFAULT_KS),
            number(values["spaces"][name]["gap"]),
            number(values["spaces"][name]["gap_by_chance"]),
        ]
        for name, found in retrieval.items()
    ]
    note = "How often one of the k nearest rows belongs to the same item. By chance: the gap that so few rows "
    note += "show on average if there is none. The presets: "
    note += "; ".join(f"{name}: {describe_preset(name)}" for name in retrieval) + "."
    return Table(["preset", *heads, "gap left", "by chance"], rows, "Recall, %", note=note)


def _hubs_table(values: Values) -> Table:
    spaces = {name: values["spaces"][name]["hubness@10"] for name in values["retrieval"]}
    directions = list(next(iter(spaces.values())))
    ends = [direction.split("_to_")[-1] for direction in directions]
    heads = [f"{what}, {end}" for end in ends for what in ("skewness", "Gini", "CSLS @1")]
    rows = [
        [
            name,
            *(
                number(value, digits)
                for direction in directions
                for value, digits in (
                    (found[direction]["skewness"], 2),
                    (found[direction]["gini"], 2),
                    (100 * found[direction]["recall"]["recall@1"], 1),
                )
            ),
        ]
        for name, found in spaces.items()
    ]
    note = (
        "A hub is a row that is near to everything. Skewness and Gini coefficient measure how unevenly rows of the "
        "other modality occur among the ten nearest of all queries. Closing the gap can create hubs. CSLS is "
        "recall@1, %, after the mean cosine of each row with its ten nearest is subtracted."
    )
    return Table(["preset", *heads], rows, "Hubs", note=note)


def _spaces_table(values: Values) -> Table:
    heads = {RAW: ("before", "95 %"), COLLAPSE: ("after", "95 %")}
    spaces = {name: values["spaces"][name] for name in heads if name in values["spaces"]}

    def row(name: str, key: str, modality: str | None, digits: int, scale: float) -> list[str]:
        cells = [name]
        for space in spaces.values():
            value, ends = space[key], space[f"{key}_interval"]
            if modality is not None:
                value, ends = value[modality], ends[modality]
            cells += [number(None if value is None else scale * value, digits), interval(ends, digits, scale)]
        return cells

    rows = [row("linear separability, %", "separability", None, 1, 100)]
    for modality in values["modalities"]:
        rows.append(row(f"modality bias@10, %, {modality}", "modality_bias@10", modality, 1, 100))
    for modality in values["modalities"]:
        rows.append(row(f"uniformity, {modality}", "uniformity", modality, 3, 1))
    note = (
        "Separability: accuracy, on held-out rows, of a linear probe for the modality. Modality bias: share of the "
        "ten nearest rows of both modalities that have the modality of the query. 50 % is ideal for both. Uniformity: "
        "log E exp(−2 |x − x′|²); lower means more spread out."
    )
    columns = ["measure", *(head for name in spaces for head in heads[name])]
    return Table(columns, rows, "Before and after Collapse", note=note)


def _assumptions_table(values: Values) -> Table:
    rows = [[found["question"], found["answer"], found["because"]] for found in values["assumptions"].values()]
    return Table(["question", "answer", "because"], rows, left=("answer", "because"))


def _subsets_table(values: Values) -> Table:
    rows = [
        [
            str(row["value"]),
            *numbers(row, pairs=0, length=3, cosine_with_gap=3),
            number(None if row["difference"] is None else 100 * row["difference"], 1),
        ]
        for row in values["subsets"]
    ]
    note = (
        "Differs: distance of the subset's gap from that of all pairs, not counting what so few items differ by chance."
    )
    columns = ["subset", "pairs", "gap length", "cosine with the gap", "differs by, % of the gap"]
    return Table(columns, rows, "The gap by subset", note=note)


def _sigma_table(values: Values) -> Table:
    sigma = values["sigma"]
    options = {} if sigma["recommended"] == "pair_cosine" else {sigma["recommended"]: " (--sigma auto)"}
    options["pair_cosine"] = " (--sigma pairs)"
    rows = [
        [
            name.replace("_", " ") + options.get(name, ""),
            number(rule["sigma"], 4),
            rule["rests_on"] + (f"; not available here: {rule['missing']}" if rule["missing"] else ""),
        ]
        for name, rule in sigma["candidates"].items()
    ]
    return Table(["rule", "sigma", "rests on"], rows, left=("rests on",))


def _figure_note(values: Values, first: str, second: str) -> str:
    gap, pairs = values["gap"], values["pairs"]
    if not gap["group_length"]:
        return ""
    several = (
        f", so that {pairs['items']:,} {first} rows make {pairs['n']:,} pairs" if pairs["n"] > pairs["items"] else ""
    )
    return (
        f"Bars show shares. A pair is one {second} row with its {first}{several}. The gap length over groups is "
        f"{number(gap['group_length'][0])} ± {number(gap['group_length'][1])}; the line marks the length over all "
        "rows. For CLIP ViT-B/32 on COCO, the paper reports length 0.83 ± 0.01, direction 0.99, orthogonality "
        "0.00 ± 0.06 and noise direction 0.00 ± 0.10."
    )


def _describe_collapse(measured: Measured) -> str:
    raw, collapsed = measured.spaces.get(RAW), measured.spaces.get(COLLAPSE)
    if raw is None or collapsed is None:
        return "Collapse cannot be applied to these embeddings."
    text = f"Subtracting the mean of each modality reduces the gap from {raw.gap:.2f} to {collapsed.gap:.2f}"
    if raw.separability is not None and collapsed.separability is not None:
        text += (
            f", and the accuracy of a linear probe for the modality from {100 * raw.separability.value:.0f} % to "
            f"{100 * collapsed.separability.value:.0f} % (chance: 50 %)"
        )
    text += "."
    if raw.modality_bias and collapsed.modality_bias:
        biases = (raw.modality_bias, collapsed.modality_bias)
        before, after = (float(np.mean([found.value for found in bias.values()])) for bias in biases)
        text += (
            f" Among the ten nearest rows of both modalities, {100 * before:.0f} % have the query's own before it and "
        )
        text += f"{100 * after:.0f} % after it."
    if raw.recall and collapsed.recall:
        changes = [100 * (collapsed.recall[way]["recall@1"] - raw.recall[way]["recall@1"]) for way in raw.recall]
        listed = " and ".join(f"{change:+.1f}".replace("-", "−") for change in changes)
        text += f" Recall@1 changes by {listed} points in the two directions: "
        text += _describe_change(changes, _is_within_intervals(raw, collapsed))
    return text


def _describe_change(changes: list[float], uncertain: bool) -> str:
    if max(abs(change) for change in changes) <= 1:
        return "closing the gap hardly changes retrieval, which compares rows of one modality only."
    if uncertain:
        return "this is within the uncertainty of so few rows."
    if max(changes) < -1:
        return "closing the gap costs retrieval here."
    if min(changes) > 1:
        return "closing the gap also helps retrieval here."
    return "closing the gap affects the two directions differently."


def _is_within_intervals(raw: SpaceMeasures, collapsed: SpaceMeasures) -> bool:
    """Return whether recall@1 after Collapse lies, in both directions, in the interval of the one before."""
    recalls = ((raw.intervals[way]["recall@1"], scores["recall@1"]) for way, scores in collapsed.recall.items())
    return all(ends is not None and ends[0] <= score <= ends[1] for ends, score in recalls)


def _describe_corrupt(measured: Measured) -> str:
    rule, why = measured.recommended
    sigma = float(rule.sigma or 0.0)
    dim = next(iter(measured.modalities.values())).dim
    second = measured.collected.second
    norm = float(np.sqrt(np.trace(measured.collected.fit_moments[second].covariance)))
    cosine = norm / float(np.hypot(norm, sigma * np.sqrt(dim))) if norm > 0 else 0.0
    option = "pairs" if rule.name == "pair_cosine" else "auto"
    text = (
        f"--sigma {option} gives {sigma:.3f}: {why}. Noise of this size has norm {sigma * np.sqrt(dim):.2f}, and "
        f"centred vectors have norm {norm:.2f}, so the cosine of a {second} embedding with its noised copy is "
        f"{cosine:.2f}."
    )
    if measured.pairs is not None and measured.pairs.residual_rms > 0:
        ratio = PUBLISHED_SIGMA / measured.pairs.residual_rms
        text += f" The published {PUBLISHED_SIGMA:.4f} is {ratio:.1f} times the alignment noise measured here."
    return text
