"""`c3 demo`: the whole method on the bundled photos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import message, print_table, reporter, write_json
from ._console import out as console
from ._options import JsonOption, arguments


def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder for stores and pages.")] = Path("c3-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings per method.")] = 1,
    sigma: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Standard deviation of the noise, per dimension.",
            show_default="derived from the training captions",
        ),
    ] = None,
    size: Annotated[str, typer.Option(help="Size of the decoder: tiny, small or base.")] = "tiny",
    captions: Annotated[int | None, typer.Option(min=2, help="Train on this many captions only.")] = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images", help="Also generate images from captions. Needs the extra images and about ten more minutes."
        ),
    ] = False,
    photos_to: Annotated[
        Path | None, typer.Option("--photos-to", metavar="FOLDER", help="Only copy the bundled photos to FOLDER.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Caption the bundled photos, then run the whole method on them, offline.

    The captions of the bundled captioner are in OUT/captions.html within a minute. Then four decoders are trained and
    compared; their scores and captions are in OUT/demo.html.
    """
    options = arguments(locals(), "out", "photos_to")
    from c3tools.demo import copy_photos, run_demo

    if photos_to is not None:
        count = copy_photos(photos_to)
        message(f"Copied {count} photos with captions to {photos_to}.")
        return
    result = run_demo(out, **options, reporter=reporter())
    if write_json(result.to_dict()["runs"], json):
        print_table(result.table())
        for note in result.ablation.notes:
            console.print(note, highlight=False)
        if result.images is not None:
            for table in result.images.tables():
                print_table(table)
            for note in result.images.notes:
                console.print(note, highlight=False)
    message(f"The page with the table, the photos and their captions is {result.page}")
    if result.images is not None:
        message(f"The images that were generated from captions are in {out}/images/table.html")
