"""`c3 caption`: captions of images or embeddings, by a trained decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.io.locations import is_url

from ._captioning import BeamsOption, LengthPenaltyOption, SteerOption, TemperatureOption, TopPOption
from ._console import message, print_table, reporter, write_json
from ._options import (
    BackendOption,
    DecoderOption,
    DeviceOption,
    EmbeddingsKeyOption,
    EmbeddingsModalityOption,
    EmbeddingsOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    RandomInitOption,
    SeedOption,
    arguments,
    output_file,
)

_SHOWN = 20  # rows of the printed table if the captions are also in a file


def caption(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Images, or folders of images.", show_default=False)
    ] = None,
    embeddings: EmbeddingsOption = None,
    modality: EmbeddingsModalityOption = "image",
    key: EmbeddingsKeyOption = None,
    decoder: DecoderOption = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            parser=output_file,
            metavar="PATH",
            help="Also write the captions to a CSV file.",
            show_default=False,
        ),
    ] = None,
    txt: Annotated[
        bool,
        typer.Option("--txt", help="Write each caption to photo.txt beside photo.jpg, the layout of training sets."),
    ] = False,
    xmp: Annotated[
        bool, typer.Option("--xmp", help="Write each caption to photo.xmp beside photo.jpg, for photo managers.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            parser=output_file,
            metavar="PATH",
            help="Also write an HTML page with the photos and their captions.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace existing captions: the files beside photos and the rows of --json and --csv."
        ),
    ] = False,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Also read symbolic links that lead out of the given folders.")
    ] = False,
    beams: BeamsOption = 1,
    length_penalty: LengthPenaltyOption = 0.7,
    top_p: TopPOption = None,
    temperature: TemperatureOption = 1.0,
    steer: SteerOption = None,
    seed: SeedOption = 0,
    model: ModelOption = None,
    random_init: RandomInitOption = None,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Caption images, or embeddings, with a trained decoder.

    The images are encoded with the model that the decoder was trained for. Each caption is written as soon as it is
    made. Run the same command again to continue an interrupted run: existing captions are kept.
    """
    options = arguments(locals(), "paths")
    from c3tools.captioning import caption_images
    from c3tools.errors import CorpusError
    from c3tools.tables import Table

    in_file = json is not None and json != "-" and not is_url(json)
    result = caption_images(paths or (), **options, json=json if in_file else None, reporter=reporter())
    if (in_file or write_json(result.to_dict()["captions"], json)) and result.captions:
        rows = list(result.captions.items())
        shown = rows[:_SHOWN] if result.files else rows
        print_table(Table(["image", "caption"], shown, left=["image", "caption"]))
        if len(shown) < len(rows):
            message(f"... and {len(rows) - len(shown):,} more.")
    for path, reason in result.failures:
        message(f"Could not read {path}: {reason}")
    written = [name for name in (result.files, str(html or "")) if name]
    if written:
        message(f"Wrote {' and '.join(written)}")
    if result.failures:
        total = len(result.failures) + len(result.captions)
        raise CorpusError(
            f"{len(result.failures)} of {total} files could not be read as images. They are named above.",
            remedy="The other images have captions. Replace or remove these files.",
        )
