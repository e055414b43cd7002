"""`c3 gap-report`: the geometry of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.io.locations import location

from ._console import err, write_json
from ._gap_tables import show_reports
from ._options import DEFAULT_STORE, JsonCommand, JsonOption, SeedOption, SplitOption, StoreOption

DEFAULT_PAGE = Path("gap-report.html")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("gap-report", cls=JsonCommand)
    def gap_report(
        stores: Annotated[
            list[Path] | None,
            typer.Argument(
                metavar="[STORE] [OTHER]",
                parser=location,
                help="One store, or two to compare: folders, or URLs (s3://, gs://).",
                show_default=False,
            ),
        ] = None,
        store: StoreOption = DEFAULT_STORE,
        split: SplitOption = None,
        modalities: Annotated[
            str | None,
            typer.Option(
                "--modalities", help="The two to compare, for example image,text; all: every pair.", show_default=False
            ),
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
        html: Annotated[
            Path,
            typer.Option("--html", parser=location, metavar="PATH", help="Where to write the page, here or by URL."),
        ] = DEFAULT_PAGE,
        figures: Annotated[
            Path | None,
            typer.Option(
                "--figures", parser=location, metavar="FOLDER", help="Also write every figure there, as PNG and SVG."
            ),
        ] = None,
        seed: SeedOption = 0,
        json_path: JsonOption = None,
    ) -> None:
        """The geometry of the store: gap, pairs, dimensions, recall, assumptions; a table, JSON and one HTML page."""
        from c3tools.geometry.gap_report import gap_document
        from c3tools.geometry.page import save_figures
        from c3tools.reporter import track

        with track("Reading rows", None) as tracker:
            document = gap_document(
                stores or [store],
                page_name=html.name,
                modalities=_names(modalities),
                split=split,
                by=by,
                skip_invalid=skip_invalid,
                presets=_names(presets),
                seed=seed,
                tracker=tracker,
            )
        if json_path != "-":
            show_reports(document.reports)
        if json_path is not None:
            write_json(document.values, json_path)
        for path in document.write_pages(html):
            err.print(f"Wrote {path}", highlight=False, markup=False)
        if figures is not None:
            for path in save_figures(document.reports, figures):
                err.print(f"Wrote {path}", highlight=False, markup=False)


def _names(value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]
