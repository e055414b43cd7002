"""`c3 train-decoder`: the caption decoder, from text embeddings alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._captioning import EpochsOption, SetOption, SizeOption
from ._console import message, print_table, reporter, write_json
from ._options import (
    DEFAULT_DECODER,
    DEFAULT_STORE,
    SIGMA_RULES,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    PrecisionOption,
    SeedOption,
    StoreOption,
    TrainSplitOption,
    arguments,
    local_path,
)


def train_decoder(
    sigma: Annotated[
        str | None,
        typer.Option(
            "--sigma",
            help=f"Standard deviation of the noise, per dimension. {SIGMA_RULES}",
            show_default="auto",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help="The preset: c3, c1, c2-collapse, c2-corrupt, capdec, ...", show_default="c3"
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="The folder to write the decoder to."),
    ] = DEFAULT_DECODER,
    size: SizeOption = "small",
    set: SetOption = [],  # noqa: B006
    unconditional: Annotated[
        bool,
        typer.Option(
            "--unconditional", help="Train a language model of the captions, which --steer steers, without a prefix."
        ),
    ] = False,
    epochs: EpochsOption = None,
    train_split: TrainSplitOption = "train",
    train_fraction: Annotated[
        float, typer.Option("--train-fraction", help="Use the captions of this fraction of the images.")
    ] = 1.0,
    patience: Annotated[
        int | None,
        typer.Option("--patience", min=0, help="Stop after this many epochs without improvement.", show_default=False),
    ] = None,
    monitor: Annotated[
        str,
        typer.Option(
            "--monitor",
            help="Choose the best epoch by the loss on val captions (text) or on captions of val images (cross-modal).",
        ),
    ] = "text",
    start: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Start from this decoder, and use its pipeline unless --preset is given.", show_default=False
        ),
    ] = None,
    pairs: Annotated[
        float | None,
        typer.Option(
            "--pairs",
            help="Train on pairs: the images and captions of this fraction of the images.",
            show_default=False,
        ),
    ] = None,
    esper: Annotated[
        bool,
        typer.Option("--esper", help="Put a mapper before the language model of --from; train it on images alone."),
    ] = False,
    seed: SeedOption = 0,
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="FOLDER", help="Also write the losses to this folder, for TensorBoard."),
    ] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "auto",
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Train the caption decoder on transformed text embeddings alone, and write it to c3-decoder/.

    If you have a few pairs, train on texts first, then run it again with --from c3-decoder --pairs 0.01 -o tuned. Run
    the same command again to continue an interrupted training. --overwrite replaces a decoder of other settings.
    """
    options = arguments(locals(), "store")
    from c3tools.captioning import train_captioner
    from c3tools.captioning.curves import CURVES_FILE

    captioner = train_captioner(store, **options, reporter=reporter())
    record = captioner.to_dict()
    if write_json(record, json):
        _show(record)
    message(
        f"Wrote the decoder to {output}/ and its losses to {output}/{CURVES_FILE}. Next: c3 caption PATH, or c3 "
        "evaluate."
    )


def _show(record: dict[str, Any]) -> None:
    from c3tools.tables import Table

    best, start, rows = record["best_val_loss"], record["start_val_loss"], []
    if start is not None:
        rows.append(["before", "", f"{start:.3f}{' (kept)' if start == best else ''}", ""])
    for epoch in record["history"]:
        val = f"{epoch['val_loss']:.3f}{' (kept)' if epoch['val_loss'] == best else ''}"
        rate = epoch["tokens"] / max(epoch["seconds"], 1e-9)
        rows.append([str(epoch["epoch"]), f"{epoch['train_loss']:.3f}", val, f"{rate:,.0f}"])
    print_table(Table(["epoch", "training loss", "validation loss", "tokens/s"], rows))
