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
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts that say what the images show.", show_default=False)
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="A file of captions. One caption of each image is drawn with the seed; from a .txt file every line is "
            "used.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="With --captions: use only this split.", show_default=False)
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
            help="The folder of a trained generator, hf-hub:ORG/NAME, or kandinsky-2.2:PATH|ID, karlo:PATH|ID, "
            "unclip:PATH|ID.",
        ),
    ] = str(DEFAULT_GENERATOR),
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="The folder to write the images to."),
    ] = Path("c3-images"),
    n: Annotated[int, typer.Option("-n", min=1, help="Number of images per text.")] = 1,
    seed: SeedOption = 0,
    sampling_steps: Annotated[
        int,
        typer.Option(
            "--sampling-steps",
            min=1,
            help="Number of sampling steps. More steps are slower and give slightly sharper images.",
        ),
    ] = 25,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            help="Weight of the text; 1 is the weight in training.",
            show_default="depends on the generator",
        ),
    ] = None,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Generate images from texts, captions, embeddings or photos, with a contact sheet and a page.

    The same text and seed give the same image. Run the same command again to continue an interrupted run: existing
    images are kept. Only pre-trained generators need the store.
    """
    options = arguments(locals(), "texts", "images")
    from c3tools.imaging.generation import PAGE_FILE, SHEET_FILE
    from c3tools.imaging.generation import generate as make
    from c3tools.tables import Table

    made = make(texts or (), images=images or (), **options, reporter=reporter())
    if write_json(made.to_dict(), json):
        rows = [[image.asked, image.file] for image in made.images[:_SHOWN]]
        print_table(Table(["text", "image"], rows, left=["image"]))
        if len(made.images) > _SHOWN:
            message(f"... and {len(made.images) - _SHOWN:,} more.")
    message(f"Wrote {output}/. Overviews: {output}/{SHEET_FILE} and {output}/{PAGE_FILE}.")
