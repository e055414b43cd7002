"""`c3 evaluate`: captions scored against what people wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._console import err, out, write_json
from ._generation import BeamsOption, LengthPenaltyOption, MagicOption, TemperatureOption, TopPOption, generation_config
from ._options import (
    DEFAULT_DECODER,
    DEFAULT_STORE,
    DecoderOption,
    DeviceOption,
    JsonCommand,
    JsonOption,
    PrecisionOption,
    SeedOption,
    StoreOption,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from c3tools.captioning.evaluate import Evaluation
    from c3tools.encoders import Encoder
    from c3tools.metrics import Comparison


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("evaluate", cls=JsonCommand)(evaluate)


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
        Path | None,
        typer.Option("--against", help="Other captions of the same images: is the difference significant?"),
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
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Caption the test images of the store from their embeddings, and score the captions (in percent)."""
    from c3tools import devices
    from c3tools.captioning import Captioner
    from c3tools.captioning import evaluate as job
    from c3tools.encoders import resolve_encoder
    from c3tools.metrics.files import coco_results, read_predictions, read_references
    from c3tools.store import Store

    java = [name for name, wanted in (("METEOR", meteor), ("SPICE", spice)) if wanted]
    if captions is None or references is None or clip_score:
        source = Store.open(store)
    known: Mapping[str, list[str]] = read_references(references) if references else job.store_references(source)
    left_out: list[str] = []
    encoder: Encoder | None = None
    if captions is not None:
        written = read_predictions(captions)
    else:
        captioner = Captioner.load(decoder, devices.pick(device).device)
        generation = generation_config(
            beams=beams, length_penalty=length_penalty, top_p=top_p, temperature=temperature, magic=magic, seed=seed
        )
        if magic:
            encoder = resolve_encoder(recorded=source.info.model, device=device, precision=precision)
        written = job.caption_store(source, captioner, split=split, generation=generation, encoder=encoder)
        written, left_out = job.with_references(written, known)
    result = job.evaluate_captions(written, known, java=java, resamples=resamples)
    if left_out:
        result.left_out.extend(left_out)
        result.notes.append(job.note_on(left_out))
    if clip_score:
        encoder = encoder or resolve_encoder(recorded=source.info.model, device=device, precision=precision)
        result.scores.update(job.clip_scores(source, encoder, written, known))
    differences: dict[str, Comparison] = {}
    if against is not None:
        other = job.evaluate_captions(read_predictions(against), known, java=java, resamples=0)
        differences = job.compare_evaluations(other, result)
    if coco:
        write_json(coco_results(result.captions), coco)
    if json:
        write_json({**result.to_json(), **job.differences_to_json(differences)}, json)
    if json != "-":
        _show(result, differences)
    for note in result.notes:
        err.print(note, highlight=False, markup=False)


def _show(result: Evaluation, differences: Mapping[str, Comparison]) -> None:
    from rich.table import Table

    table = Table("score", "%", "95 % interval", title=f"{len(result.captions):,} captions")
    if differences:
        table.add_column("difference")
        table.add_column("p")
    for name, value in result.scores.items():
        interval = result.intervals.get(name)
        row = [name, f"{value:.1f}", f"{interval.low:.1f} – {interval.high:.1f}" if interval else ""]
        if name in differences:
            change = differences[name]
            row += [f"{change.difference:+.1f} ({change.low:+.1f} – {change.high:+.1f})", f"{change.p_value:.3f}"]
        table.add_row(*row)
    out.print(table)
