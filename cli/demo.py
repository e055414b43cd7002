"""`c3 demo`: the whole method on the bundled photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._console import err, out, write_json
from ._options import JsonCommand, JsonOption

if TYPE_CHECKING:
    from c3tools.demo import DemoResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", cls=JsonCommand)(demo)


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder for stores, results and the page.")] = Path("c3-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per method.")] = 1,
    sigma: Annotated[
        float | None, typer.Option(min=0, help="Noise per dimension.", show_default="from the training captions")
    ] = None,
    size: Annotated[str, typer.Option(help="Size of the decoder: tiny, small or base.")] = "tiny",
    captions: Annotated[int | None, typer.Option(min=2, help="Train on this many captions only.")] = None,
    photos_to: Annotated[
        Path | None, typer.Option("--photos-to", metavar="FOLDER", help="Only copy the bundled photos to FOLDER.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Run the whole method on the bundled photos, offline, and write a page to look at."""
    from c3tools.demo import DemoOptions, copy_photos
    from c3tools.demo import demo as run
    from c3tools.demo.page import geometry_of, write_page
    from c3tools.reporter import track

    if photos_to is not None:
        count = copy_photos(photos_to)
        err.print(f"Copied {count} photos with captions to {photos_to}.", highlight=False)
        return
    options = DemoOptions(folder, seeds=range(seeds), sigma=sigma, size=size, limit=captions)
    result = run(options, track=track, say=lambda line: err.print(line, highlight=False))
    page = folder / "demo.html"
    write_page(result, page, geometry=geometry_of(result.photos))
    if json is not None:
        write_json([entry.to_json() for entry in result.runs], json)
    if json != "-":
        _show(result)
    err.print(f"The photos with their captions: {page}", highlight=False)


def _show(result: DemoResult) -> None:
    from rich.table import Table

    from c3tools.demo.page import METRICS, summary_rows

    table = Table(title=f"{len(result.references)} photos, sigma {result.sigma:.3f}", title_justify="left")
    table.add_column("method")
    table.add_column("steps")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for row in summary_rows(result.runs):
        cells = [
            f"{value:.1f}" + ("" if spread is None else f" ± {spread:.1f}") for value, spread in row["cells"].values()
        ]
        table.add_row(row["method"], row["summary"], *cells)
    out.print(table)
