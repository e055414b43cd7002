"""`c3 generate`: images of texts, by a trained or a pre-trained generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import message, print_table, reporter, write_json
from ._options import (
    DEFAULT_GENERATOR,
    DEFAULT_STORE,
    BackendOption,
    DeviceOption,
    EmbeddingsKeyOption,
    EmbeddingsModalityOption,
    EmbeddingsOption,
    JsonOption,
    PrecisionOption,
    SeedOption,
    StoreOption,
    arguments,
    local_path,
)

_SHOWN = 20


def generate(
    texts: Annotated[list[str] | None, typer.Argument(help="What the images are to show.", show_default=False)] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="A file of captions: one of each image, drawn by the seed; of a .txt every line.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Of --captions: those of this split only.", show_default=False)
    ] = None,
    embeddings: EmbeddingsOption = None,
    modality: EmbeddingsModalityOption = "text",
    key: EmbeddingsKeyOption = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", help="Make variations of this photo; may be repeated.", show_default=False),
    ] = None,
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            metavar="PATH",
            help="The folder of a trained generator, or kandinsky-2.2:PATH|ID, karlo:PATH|ID, unclip:PATH|ID.",
        ),
    ] = str(DEFAULT_GENERATOR),
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="The folder of the images.")
    ] = Path("c3-images"),
    n: Annotated[int, typer.Option("-n", min=1, help="Images of each text.")] = 1,
    seed: SeedOption = 0,
    sampling_steps: Annotated[
        int, typer.Option("--sampling-steps", min=1, help="More are slower and a little sharper.")
    ] = 25,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="How much the text counts; 1 is as in training.", show_default="by generator"),
    ] = None,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Generate images of texts, captions, embeddings or photos, with a contact sheet and a page.

    The same text and seed give the same image. Images that are there already are not made again, so an interrupted
    command is continued by the same one. The store is needed by pre-trained generators alone.
    """
    options = arguments(locals(), "texts", "images")
    from c3tools.imaging.generation import PAGE_FILE, SHEET_FILE
    from c3tools.imaging.generation import generate as make
    from c3tools.tables import Table

    made = make(texts or (), images=images or (), **options, reporter=reporter())
    if write_json(made.to_dict(), json):
        rows = [[image.asked, image.file] for image in made.images[:_SHOWN]]
        print_table(Table(["asked for", "image"], rows, left=["image"]))
        if len(made.images) > _SHOWN:
            message(f"... and {len(made.images) - _SHOWN:,} more.")
    message(f"Wrote {output}/, all at a glance in {output}/{SHEET_FILE} and {output}/{PAGE_FILE}.")
