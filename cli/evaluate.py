"""`c3 evaluate`: captions scored against what people wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._captioning import BeamsOption, LengthPenaltyOption, SteerOption, TemperatureOption, TopPOption
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
            help="Score the captions in this file (of c3 caption --json or --csv, or COCO's JSON) instead of new ones.",
            show_default=False,
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            "--references",
            help="Compare with the captions in this file (jsonl, csv, COCO's JSON) instead of those of the store.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            help="A second file of captions of the same images; tests whether the difference is significant.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    decoder: DecoderOption = None,
    split: Annotated[str, typer.Option("--split", help="The split to score: train, val, test or all.")] = "test",
    beams: BeamsOption = 1,
    length_penalty: LengthPenaltyOption = 0.7,
    top_p: TopPOption = None,
    temperature: TemperatureOption = 1.0,
    steer: SteerOption = None,
    seed: SeedOption = 0,
    meteor: Annotated[bool, typer.Option("--meteor", help="Add METEOR (needs Java).")] = False,
    spice: Annotated[bool, typer.Option("--spice", help="Add SPICE (needs Java and the Stanford models).")] = False,
    clip_score: Annotated[
        bool,
        typer.Option("--clip-score", help="Add CLIPScore and RefCLIPScore, computed with the encoder of the store."),
    ] = False,
    resamples: Annotated[
        int,
        typer.Option("--resamples", min=0, help="Number of bootstrap resamples for the intervals; 0: no intervals."),
    ] = 1000,
    coco: Annotated[
        str | None,
        typer.Option(
            "--coco", help="Also write the captions to this file, in COCO's results format.", show_default=False
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Score this folder of images, made by c3 generate.", show_default=False),
    ] = None,
    encoder: Annotated[
        list[str],
        typer.Option("--encoder", help="With --images: also score with the features of this model; may be repeated."),
    ] = [],  # noqa: B006
    inception: Annotated[
        Path | None,
        typer.Option(
            "--inception", help="With --images: Inception weights, for the standard FID and IS.", show_default=False
        ),
    ] = None,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Caption the test images of the store and score the captions, in percent.

    The images are captioned from their embeddings. With --images, generated images are compared with the photos of the
    store instead.
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
            copied = "" if result.copied is None else f"; {result.copied:.1%} are nearer than 99 % of real photos"
            rows = [[near["file"], near["photo"], f"{near['cosine']:.3f}"] for near in result.nearest[:3]]
            title = f"Images nearest to a training photo{copied}"
            print_table(Table(["image", "photo", "cosine"], rows, title=title, left=["photo"]))
    for note in result.notes:
        message(note)
