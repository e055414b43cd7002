"""`c3 gap-report`: the geometry of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import err, out, write_json
from ._options import DEFAULT_STORE, JsonCommand, JsonOption, SeedOption, SplitOption, StoreOption

if TYPE_CHECKING:
    from c3tools.geometry.report import GapReport

DEFAULT_PAGE = Path("gap-report.html")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("gap-report", cls=JsonCommand)
    def gap_report(
        stores: Annotated[
            list[Path] | None,
            typer.Argument(metavar="[STORE] [OTHER]", help="One store, or two to compare.", show_default=False),
        ] = None,
        store: StoreOption = DEFAULT_STORE,
        split: SplitOption = None,
        modalities: Annotated[
            str | None,
            typer.Option("--modalities", help="The two to compare, for example image,text.", show_default=False),
        ] = None,
        by: Annotated[
            str | None,
            typer.Option("--by", metavar="COLUMN", help="Also give the gap for each value of this column."),
        ] = None,
        presets: Annotated[
            str | None,
            typer.Option("--presets", help="Measure recall under these presets only, for example raw,c2-collapse."),
        ] = None,
        skip_invalid: Annotated[
            bool, typer.Option("--skip-invalid", help="Leave rows with NaN, infinity or norm 0 out.")
        ] = False,
        html: Annotated[Path, typer.Option("--html", metavar="PATH", help="Where to write the page.")] = DEFAULT_PAGE,
        figures: Annotated[
            Path | None,
            typer.Option("--figures", metavar="FOLDER", help="Also write every figure there, as PNG and SVG."),
        ] = None,
        seed: SeedOption = 0,
        json_path: JsonOption = None,
    ) -> None:
        """The geometry of the store: gap, pairs, dimensions, recall, assumptions; a table, JSON and one HTML page."""
        from c3tools.errors import StoreError
        from c3tools.geometry.page import comparison_page, report_page, save_figures
        from c3tools.jobs.gap_report import compare, gap_report
        from c3tools.progress import track

        paths = stores or [store]
        if len(paths) > 2:
            raise StoreError(f"A report compares two stores, not {len(paths)}.", remedy="Name one or two.")
        reports = []
        for path in paths:
            with track(f"Reading {path}", None) as tracker:
                reports.append(
                    gap_report(
                        path,
                        modalities=_names(modalities),
                        split=split,
                        by=by,
                        skip_invalid=skip_invalid,
                        presets=_names(presets),
                        seed=seed,
                        tracker=tracker,
                    )
                )
        if len(reports) == 1:
            values, page = reports[0].values, report_page(reports[0])
        else:
            values, page = compare(reports[0], reports[1]), comparison_page(reports[0], reports[1])
        if json_path != "-":
            for report in reports:
                _show(report)
        if json_path is not None:
            write_json(values, json_path)
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page, encoding="utf-8")
        err.print(f"Wrote {html}", highlight=False, markup=False)
        if figures is not None:
            for path in save_figures(reports, figures):
                err.print(f"Wrote {path}", highlight=False, markup=False)


def _names(value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _show(report: GapReport) -> None:
    from rich.text import Text

    values = report.values
    facts = values["provenance"]
    out.print(Text(f"{facts['store']}  ·  {facts['model']}", style="bold"))
    out.print(_modalities(values))
    if values["gap"] is not None:
        out.print(_measures(values))
    if values["retrieval"]:
        out.print(_recall(values))
    if report.measured is not None:
        from c3tools.geometry.words import advise

        advice = advise(report.measured)
        out.print(_assumptions(values))
        for head, text in (("Collapse", advice.collapse), ("Corrupt", advice.corrupt)):
            out.print(Text.assemble((f"{head}: ", "bold"), text))
        out.print(Text(f"Transforms are fitted on {facts['fitted_on']}.", style="dim"))
    for note in values["notes"]:
        out.print(Text(f"Note: {note}", style="dim"))


def _table(*columns: str, title: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _modalities(values: dict[str, Any]) -> Any:
    from rich.markup import escape

    table = _table("modality", "rows", "dim", "eff. dim", "eff. rank", "part. ratio", "|mean|", title="Modalities")
    for name, found in values["modalities"].items():
        table.add_row(
            escape(name),
            f"{found['n']:,}",
            str(found["dim"]),
            str(found["effective_dimension"]),
            f"{found['effective_rank']:.1f}",
            f"{found['participation_ratio']:.1f}",
            f"{found['mean_norm']:.3f}",
        )
    return table


def _measures(values: dict[str, Any]) -> Any:
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
            ("relative gap (RMG)", gap["rmg"], None, "pairs against distances within a modality; 0 is aligned"),
            ("paired cosine", pairs["paired_cosine"], pairs["paired_cosine_interval"], f"over {pairs['n']:,} pairs"),
            ("unpaired cosine", pairs["unpaired_cosine"], None, "over all that do not match"),
            ("residual rms", pairs["residual_rms"], None, "alignment noise, per dimension"),
        ]
    for name, value, ends, meaning in rows:
        interval = "" if ends is None else f"{ends[0]:.3f} – {ends[1]:.3f}"
        table.add_row(name, "–" if value is None else f"{value:.4f}", interval, meaning)
    return table


def _recall(values: dict[str, Any]) -> Any:
    from rich.markup import escape

    directions = list(next(iter(values["retrieval"].values())))
    table = _table(
        "preset",
        *(f"to {direction.split('_to_')[-1]} @{k}" for direction in directions for k in (1, 5, 10)),
        "gap left",
        title="Recall, %",
    )
    table.columns[0].no_wrap = True
    for name, found in values["retrieval"].items():
        scores = [100 * found[direction][f"recall@{k}"] for direction in directions for k in (1, 5, 10)]
        table.add_row(escape(name), *(f"{score:.1f}" for score in scores), f"{values['spaces'][name]['gap']:.3f}")
    return table


def _assumptions(values: dict[str, Any]) -> Any:
    from rich.text import Text

    styles = {"yes": "green", "partly": "yellow", "no": "red"}
    table = _table("assumption", "answer", "because", title="Does the paper's model hold?")
    table.columns[1].justify = table.columns[2].justify = "left"
    for found in values["assumptions"].values():
        answer = Text(found["answer"], style=styles.get(found["answer"], "dim"))
        table.add_row(found["question"], answer, Text(found["because"]))
    return table
