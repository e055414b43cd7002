"""`c3 gap-report`: the geometry of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.io.locations import location

from ._console import message, out, print_sections, reporter, write_json
from ._options import (
    DEFAULT_STORE,
    JsonOption,
    SeedOption,
    SplitOption,
    StoreOption,
    arguments,
    extra_output,
    output_file,
    output_folder,
)

DEFAULT_PAGE = Path("gap-report.html")


def gap_report(
    stores: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[STORE] [OTHER]",
            parser=location,
            help="One store, or two stores to compare: folders or URLs (s3://, gs://).",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    split: SplitOption = None,
    modalities: Annotated[
        str | None,
        typer.Option(
            "--modalities",
            help="The two modalities to compare, for example image,text; all: every pair of them.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Also measure the gap for each value of this column.")
    ] = None,
    presets: Annotated[
        str | None,
        typer.Option(
            "--presets", help="Measure recall for raw, c2-collapse and these presets, for example gap-shift,whiten."
        ),
    ] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out rows that contain NaN or infinity or have norm 0.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Print every table, not only the verdict.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            parser=output_file,
            metavar="PATH",
            help="Path or URL of the HTML page.",
            show_default=f"{DEFAULT_PAGE}, none with --json",
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            parser=output_folder,
            metavar="FOLDER",
            help="Also write every figure to this folder, as PNG and SVG.",
        ),
    ] = None,
    seed: SeedOption = 0,
    json: JsonOption = None,
) -> None:
    """Measure the modality gap of a store, and predict whether Collapse and Corrupt will help.

    Prints a verdict in a few sentences, or every table with --full, and writes an HTML page with tables and figures.
    """
    options = arguments(locals(), "stores", "store", "modalities", "presets", "full", "html", "figures")
    page = extra_output(html, DEFAULT_PAGE, json)
    from c3tools.geometry.comparison import gap_reports

    chosen = {"modalities": _names(modalities), "presets": _names(presets)}
    report = gap_reports(stores or [store], **options, **chosen, reporter=reporter())
    if json != "-":
        out.print(report.heading, style="bold", markup=False, highlight=False)
        print_sections(report.sections() if full else report.summary(), report.notes)
        if not full:
            seen = f", {page} shows them with figures" if page else ""
            out.print(
                f"More: --full prints every table{seen}; docs/reference/geometry.md defines the terms.",
                style="dim",
            )
    write_json(report.to_dict(), json)
    written = report.save(page) if page else []
    for path in [*written, *(report.save_figures(figures) if figures else [])]:
        message(f"Wrote {path}")


def _names(value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]
