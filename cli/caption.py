"""`c3 caption`: captions of images, by a trained decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._captioning import BeamsOption, LengthPenaltyOption, MagicOption, TemperatureOption, TopPOption
from ._console import message, print_table, reporter, write_json
from ._options import (
    DEFAULT_DECODER,
    BackendOption,
    DecoderOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    RandomInitOption,
    SeedOption,
    arguments,
)


def caption(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders that are searched for them.")],
    decoder: DecoderOption = DEFAULT_DECODER,
    beams: BeamsOption = 1,
    length_penalty: LengthPenaltyOption = 0.7,
    top_p: TopPOption = None,
    temperature: TemperatureOption = 1.0,
    magic: MagicOption = False,
    seed: SeedOption = 0,
    model: ModelOption = None,
    random_init: RandomInitOption = None,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Caption images with a trained decoder and the model it was trained for."""
    options = arguments(locals(), "paths")
    from c3tools.captioning import caption_images
    from c3tools.errors import CorpusError
    from c3tools.tables import Table

    result = caption_images(paths, **options, reporter=reporter())
    if write_json(result.to_dict()["captions"], json) and result.captions:
        print_table(Table(["image", "caption"], list(result.captions.items()), left=["image", "caption"]))
    for path, reason in result.failures:
        message(f"Not read: {path} ({reason})")
    if result.failures:
        total = len(result.failures) + len(result.captions)
        raise CorpusError(
            f"{len(result.failures)} of {total} files could not be read as images.",
            remedy="The others are captioned; the files are named above.",
        )
