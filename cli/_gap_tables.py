"""The tables that `c3 gap-report` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ._console import out

if TYPE_CHECKING:
    from c3tools.geometry.report import GapReport


def show_reports(reports: Sequence[GapReport]) -> None:
    """Print one report, two below each other, or one table of many."""
    if len(reports) > 2:
        facts = reports[0].values["provenance"]
        out.print(Text(f"{facts['store']}  ·  {facts['model']}", style="bold"))
        out.print(_pairs_of_modalities([report.values for report in reports]))
        for note in dict.fromkeys(note for report in reports for note in report.values["notes"]):
            out.print(Text(f"Note: {note}", style="dim"))
        return
    for report in reports:
        _show(report)


def _show(report: GapReport) -> None:

    values = report.values
    facts = values["provenance"]
    out.print(Text(f"{facts['store']}  ·  {facts['model']}", style="bold"))
    out.print(_modalities(values))
    out.print(_means(values))
    if values["gap"] is not None:
        out.print(_measures(values))
    if len(values.get("modality_gaps", [])) > 1:
        out.print(_gaps(values))
    if values["retrieval"]:
        out.print(_recall(values))
    if report.measured is not None:
        out.print(_spaces(values))
    if report.measured is not None:
        from c3tools.geometry.words import summarize

        advice = summarize(report.measured)
        out.print(_assumptions(values))
        for head, text in (("Collapse", advice.collapse), ("Corrupt", advice.corrupt)):
            out.print(Text.assemble((f"{head}: ", "bold"), text))
        out.print(Text(f"Transforms are fitted on {facts['fitted_on']}.", style="dim"))
    for note in values["notes"]:
        out.print(Text(f"Note: {note}", style="dim"))


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        # the first column names the row: the others give way before it does
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold", no_wrap=number == 0)
    return table


def _modalities(values: dict[str, Any]) -> Table:
    table = _table("modality", "rows", "dim", "eff. dim", "eff. rank", "part. ratio", title="Modalities")
    for name, found in values["modalities"].items():
        table.add_row(
            escape(name),
            f"{found['n']:,}",
            str(found["dim"]),
            str(found["effective_dimension"]),
            f"{found['effective_rank']:.1f}",
            f"{found['participation_ratio']:.1f}",
        )
    return table


def _means(values: dict[str, Any]) -> Table:
    table = _table("modality", "length", "±", "direction ±", "rows", "rows for 1°", title="Means")
    for name, found in values["modalities"].items():
        angle, enough = found["mean_direction_error_degrees"], found["rows_for_one_degree"]
        table.add_row(
            escape(name),
            f"{found['mean_norm']:.3f}",
            _number(found["mean_norm_error"], 4),
            "–" if angle is None else f"{angle:.2f}°",
            f"{found['independent_rows']:,}",
            "–" if enough is None else f"{enough:,}",
        )
    return table


def _measures(values: dict[str, Any]) -> Table:
    gap, pairs = values["gap"], values["pairs"]
    table = _table("measure", "value", "95 %", "meaning", title="Gap and pairs")
    table.columns[3].justify = "left"
    rows = [("gap length", gap["length"], gap["length_interval"], "distance of the means; 0 is no gap")]
    if pairs is not None:
        rows += [
            (
                "instance distance",
                gap["instance_distance"],
                gap["instance_distance_interval"],
                "mean, over pairs",
            ),
            (
                "relative gap (RMG)",
                gap["rmg"],
                gap["rmg_interval"],
                "pairs against distances within a modality; 0 is aligned",
            ),
            ("paired cosine", pairs["paired_cosine"], pairs["paired_cosine_interval"], f"over {pairs['n']:,} pairs"),
            (
                "unpaired cosine",
                pairs["unpaired_cosine"],
                pairs["unpaired_cosine_interval"],
                "over all that do not match",
            ),
            (
                "residual rms",
                pairs["residual_rms"],
                pairs["residual_rms_interval"],
                "alignment noise, per dimension",
            ),
        ]
    for name, value, ends, meaning in rows:
        table.add_row(name, _number(value, 4), _ends(ends, 4 if name == "residual rms" else 3), meaning)
    return table


def _gaps(values: dict[str, Any]) -> Table:
    table = _table("modalities", "gap length", "cosine of means", title="Every pair of modalities, from moments")
    for row in values["modality_gaps"]:
        table.add_row(
            escape(f"{row['first']} and {row['second']}"), _number(row["length"], 4), _number(row["cosine_of_means"], 3)
        )
    return table


def _spaces(values: dict[str, Any]) -> Table:
    table = _table("measure", "before", "95 %", "after", "95 %", title="Before and after Collapse")
    spaces = [values["spaces"][name] for name in ("raw", "c2-collapse") if name in values["spaces"]]
    cells = [
        part for space in spaces for part in (_share(space["separability"]), _shares(space["separability_interval"]))
    ]
    table.add_row("linear separability, %", *cells)
    for key, label, show, show_ends in (
        ("modality_bias@10", "bias@10, %", _share, _shares),
        ("uniformity", "uniformity", _number, _ends),
    ):
        for modality in values["modalities"]:
            cells = [
                part
                for space in spaces
                for part in (show(space[key][modality]), show_ends(space[f"{key}_interval"][modality]))
            ]
            table.add_row(escape(f"{label}, {modality}"), *cells)
    return table


def _pairs_of_modalities(reports: list[dict[str, Any]]) -> Table:
    table = _table(
        "modalities",
        "pairs",
        "gap",
        "RMG",
        "paired",
        "others",
        "noise",
        "recall@1, %",
        title="Every pair of modalities",
    )
    for values in reports:
        pairs, raw = values["pairs"] or {}, values["retrieval"].get("raw", {})
        table.add_row(
            escape(" and ".join(values["modalities"])),
            f"{pairs['n']:,}" if pairs else "–",
            _number(values["gap"]["length"]),
            _number(values["gap"]["rmg"]),
            _number(pairs.get("paired_cosine")),
            _number(pairs.get("unpaired_cosine")),
            _number(pairs.get("residual_rms"), 4),
            " / ".join(f"{100 * scores['recall@1']:.1f}" for scores in raw.values()) or "–",
        )
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _ends(ends: Sequence[float] | None, digits: int = 3) -> str:
    return "" if ends is None else f"{ends[0]:.{digits}f} – {ends[1]:.{digits}f}"


def _share(value: float | None) -> str:
    return _number(None if value is None else 100 * value, 1)


def _shares(ends: Sequence[float] | None) -> str:
    return _ends(None if ends is None else [100 * end for end in ends], 1)


def _recall(values: dict[str, Any]) -> Table:
    directions = list(next(iter(values["retrieval"].values())))
    table = _table(
        "preset",
        *(f"to {direction.split('_to_')[-1]} @{k}" for direction in directions for k in (1, 5, 10)),
        "gap left",
        title="Recall, %",
    )
    for name, found in values["retrieval"].items():
        scores = [100 * found[direction][f"recall@{k}"] for direction in directions for k in (1, 5, 10)]
        table.add_row(escape(name), *(f"{score:.1f}" for score in scores), f"{values['spaces'][name]['gap']:.3f}")
    return table


def _assumptions(values: dict[str, Any]) -> Table:
    styles = {"yes": "green", "partly": "yellow", "no": "red"}
    table = _table("assumption", "answer", "because", title="Does the paper's model hold?")
    table.columns[1].justify = table.columns[2].justify = "left"
    for found in values["assumptions"].values():
        answer = Text(found["answer"], style=styles.get(found["answer"], "dim"))
        table.add_row(found["question"], answer, Text(found["because"]))
    return table
