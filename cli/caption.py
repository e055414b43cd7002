"""`c3 caption`: captions of images, by a trained decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import err, out, write_json
from ._generation import BeamsOption, LengthPenaltyOption, MagicOption, TemperatureOption, TopPOption, generation_config
from ._options import (
    DEFAULT_DECODER,
    DecoderOption,
    DeviceOption,
    JsonCommand,
    JsonOption,
    ModelOption,
    PrecisionOption,
    RandomInitOption,
    SeedOption,
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("caption", cls=JsonCommand)(caption)


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
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Caption images with a trained decoder and the model it was trained for."""
    from c3tools import devices
    from c3tools.captioning import Captioner
    from c3tools.captioning.images import caption_images, find
    from c3tools.encoders import load_encoder, resolve_encoder
    from c3tools.errors import CorpusError
    from c3tools.reporter import track

    generation = generation_config(
        beams=beams, length_penalty=length_penalty, top_p=top_p, temperature=temperature, magic=magic, seed=seed
    )
    find(paths)  # a wrong path is said before any model is loaded
    captioner = Captioner.load(decoder, devices.pick(device).device)
    recorded = captioner.record.get("model")
    if model is None and random_init is None and recorded:
        encoder = resolve_encoder(recorded=recorded, device=device, precision=precision)
    else:
        encoder = load_encoder(model or "c3-mini", random_init=random_init, device=device, precision=precision)
    result = caption_images(
        paths,
        captioner,
        encoder,
        generation=generation,
        progress=track,
    )
    if json:
        write_json([{"key": key, "caption": text} for key, text in result.captions.items()], json)
    if json != "-" and result.captions:
        _show(result.captions)
    for path, reason in result.failures:
        err.print(f"Not read: {path} ({reason})", highlight=False, markup=False, soft_wrap=True)
    if result.failures:
        total = len(result.failures) + len(result.captions)
        raise CorpusError(
            f"{len(result.failures)} of {total} files could not be read as images.",
            remedy="The others are captioned; the files are named above.",
        )


def _show(captions: dict[str, str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("image", "caption")
    for key, text in captions.items():
        table.add_row(escape(key), escape(text))
    out.print(table)
