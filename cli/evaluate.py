"""`c3 evaluate`: captions scored against what people wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._captioning import BeamsOption, LengthPenaltyOption, MagicOption, TemperatureOption, TopPOption
from ._console import message, print_table, reporter, write_json
from ._options import (
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
    decoder: DecoderOption = None,
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
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Score this folder of generated images (c3 generate).", show_default=False),
    ] = None,
    encoder: Annotated[
        list[str],
        typer.Option("--encoder", help="Of --images: also score by this model's features; may be repeated."),
    ] = [],  # noqa: B006
    inception: Annotated[
        Path | None,
        typer.Option("--inception", help="Of --images: Inception weights, for FID and IS proper.", show_default=False),
    ] = None,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Caption the test images of the store from their embeddings, and score the captions in percent.

    With --images, score generated images against the real photos of the store instead.
    """
    if images is not None:
        _evaluate_images(images, store, split, encoder, inception, device, backend, precision, json)
        return
    options = arguments(locals(), "store", "coco", "images", "encoder", "inception")
    from c3tools.captioning import evaluate_captions
    from c3tools.metrics.files import coco_results

    result = evaluate_captions(store, **options, reporter=reporter())
    if coco:
        write_json(coco_results(result.captions), coco)
    if write_json(result.to_dict(), json):
        print_table(result.table())
    for note in result.notes:
        message(note)


def _evaluate_images(
    images: Path,
    store: Path,
    split: str,
    encoder: list[str],
    inception: Path | None,
    device: str | None,
    backend: str,
    precision: str,
    json: str | None,
) -> None:
    from c3tools.imaging import evaluate_images
    from c3tools.tables import Table

    result = evaluate_images(
        images,
        store,
        split=split,
        encoder=encoder,
        inception=inception,
        device=device,
        backend=backend,
        precision=precision,
        reporter=reporter(),
    )
    if write_json(result.to_dict(), json):
        print_table(result.table())
        if result.nearest:
            copied = "" if result.copied is None else f"; {result.copied:.1%} are nearer than 99 % of real photos are"
            rows = [[near["file"], near["photo"], f"{near['cosine']:.3f}"] for near in result.nearest[:3]]
            title = f"Nearest to photos that were learned from{copied}"
            print_table(Table(["image", "photo", "cosine"], rows, title=title, left=["photo"]))
    for note in result.notes:
        message(note)
