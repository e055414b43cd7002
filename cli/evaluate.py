"""`c3 evaluate`: captions scored against what people wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._captioning import BeamsOption, LengthPenaltyOption, MagicOption, TemperatureOption, TopPOption
from ._console import message, print_table, reporter, write_json
from ._options import (
    DEFAULT_DECODER,
    DEFAULT_STORE,
    BackendOption,
    DecoderOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    SeedOption,
    StoreOption,
    arguments,
)


def evaluate(
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="Score this file (c3's or COCO's JSON) instead of captioning with the decoder.",
            show_default=False,
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            "--references",
            help="Score against this file (captions.jsonl, COCO's JSON) instead of the store's captions.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Other captions of the same images: is the difference significant?")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    decoder: DecoderOption = DEFAULT_DECODER,
    split: Annotated[str, typer.Option("--split", help="Images of this split: train, val, test, or all.")] = "test",
    beams: BeamsOption = 1,
    length_penalty: LengthPenaltyOption = 0.7,
    top_p: TopPOption = None,
    temperature: TemperatureOption = 1.0,
    magic: MagicOption = False,
    seed: SeedOption = 0,
    meteor: Annotated[bool, typer.Option("--meteor", help="Add METEOR (needs Java).")] = False,
    spice: Annotated[bool, typer.Option("--spice", help="Add SPICE (needs Java and the Stanford models).")] = False,
    clip_score: Annotated[
        bool, typer.Option("--clip-score", help="Add CLIPScore and RefCLIPScore by the store's encoder.")
    ] = False,
    resamples: Annotated[int, typer.Option("--resamples", min=0, help="Of the bootstrap; 0 leaves it out.")] = 1000,
    coco: Annotated[
        str | None, typer.Option("--coco", help="Also write the captions as COCO results.", show_default=False)
    ] = None,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Caption the test images of the store from their embeddings, and score the captions (in percent)."""
    options = arguments(locals(), "store", "coco")
    from c3tools.captioning import evaluate_captions
    from c3tools.metrics.files import coco_results

    result = evaluate_captions(store, **options, reporter=reporter())
    if coco:
        write_json(coco_results(result.captions), coco)
    if write_json(result.to_dict(), json):
        print_table(result.table())
    for note in result.notes:
        message(note)
