"""`c3 train-decoder`: the caption decoder, from text embeddings alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import err, out, write_json
from ._options import (
    DEFAULT_DECODER,
    DEFAULT_STORE,
    DeviceOption,
    JsonCommand,
    JsonOption,
    PrecisionOption,
    SeedOption,
    StoreOption,
    local_path,
)
from ._training import EpochsOption, SetOption, SizeOption


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("train-decoder", cls=JsonCommand)(train_decoder)


def train_decoder(
    sigma: Annotated[
        str | None,
        typer.Option(
            "--sigma",
            help="Noise per dimension; auto takes it from how far captions of one image lie apart.",
            show_default="auto",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", "-p", help="c3, c1, c2-collapse, c2-corrupt, capdec, ...", show_default="c3"),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="The decoder's folder.")
    ] = DEFAULT_DECODER,
    size: SizeOption = "small",
    changes: SetOption = [],  # noqa: B006
    epochs: EpochsOption = None,
    train_split: Annotated[str, typer.Option("--train-split", help="The split to learn from.")] = "train",
    train_fraction: Annotated[float, typer.Option("--train-fraction", help="Use this share of its images.")] = 1.0,
    patience: Annotated[
        int | None,
        typer.Option("--patience", min=0, help="Stop after so many epochs without gain.", show_default=False),
    ] = None,
    monitor: Annotated[
        str,
        typer.Option(
            "--monitor", help="Choose the checkpoint on text (captions alone) or cross-modal (captions of val images)."
        ),
    ] = "text",
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Continue from this decoder, with its transform.", show_default=False),
    ] = None,
    pairs: Annotated[
        float | None,
        typer.Option("--pairs", help="Learn from images and captions of this share of the images.", show_default=False),
    ] = None,
    seed: SeedOption = 0,
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="FOLDER", help="Also write the losses there for TensorBoard."),
    ] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Train the caption decoder on transformed text embeddings alone, and write it to c3-decoder/.

    With few pairs: train on texts first, then --from c3-decoder --pairs 0.01. An interrupted training is continued
    by the same command.
    """
    from c3tools import devices
    from c3tools.captioning import train as job
    from c3tools.captioning.tensorboard import tensorboard as recording
    from c3tools.reporter import track
    from c3tools.store import Store

    settings = job.DecoderSettings(
        preset=preset,
        sigma=None if sigma is None else job.parse_sigma(sigma),
        size=size,
        changes=tuple(changes),
        epochs=epochs,
        train_split=train_split,
        train_fraction=train_fraction,
        patience=patience,
        monitor=monitor,
        start=start,
        pairs=pairs,
        seed=seed,
    )
    with recording(tensorboard) as recorder:
        captioner = job.train_decoder(
            Store.open(store),
            output,
            settings,
            compute=devices.pick(device, precision),
            recorder=recorder,
            progress=track,
            say=lambda message: err.print(message, highlight=False, markup=False),
        )
    record = job.summary(captioner)
    if json:
        write_json(record, json)
    if json != "-":
        _show(record)
    err.print(
        f"Wrote {output}/, its training in {output}/{job.CURVES_FILE}. Next: c3 caption PATH, or c3 evaluate.",
        highlight=False,
    )


def _show(record: dict[str, object]) -> None:
    from rich.table import Table

    table = Table("epoch", "training loss", "validation loss", "tokens/s")
    history = record["history"]
    assert isinstance(history, list)
    start = record["start_val_loss"]
    if isinstance(start, float):
        table.add_row("before", "", f"{start:.3f}{' (kept)' if start == record['best_val_loss'] else ''}", "")
    for epoch in history:
        best = " (kept)" if epoch["val_loss"] == record["best_val_loss"] else ""
        rate = epoch["tokens"] / max(epoch["seconds"], 1e-9)
        table.add_row(
            str(epoch["epoch"]), f"{epoch['train_loss']:.3f}", f"{epoch['val_loss']:.3f}{best}", f"{rate:,.0f}"
        )
    out.print(table)
