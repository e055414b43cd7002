"""`c3 train-generator`: an image generator, from photos and their embeddings alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import message, print_table, reporter, write_json
from ._options import (
    DEFAULT_GENERATOR,
    DEFAULT_STORE,
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


def train_generator(
    sigma: Annotated[
        str | None,
        typer.Option(
            "--sigma",
            help="Standard deviation of the noise, per dimension. auto: derived from the distance of photos to their "
            "nearest neighbour. pairs: from the cosine of at least 10 photos with their captions, those of the val "
            "split or of all splits but test.",
            show_default="auto",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help="The preset: c3, c1, c2-collapse, c2-corrupt, lafite, ...", show_default="c3"
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=local_path, metavar="PATH", help="The folder to write the generator to."),
    ] = DEFAULT_GENERATOR,
    size: Annotated[
        str,
        typer.Option(
            "--size",
            help="Size of the images: tiny (32 pixels, for a CPU), small (64 pixels) or base (128 pixels, for a GPU).",
        ),
    ] = "tiny",
    set: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of --size, such as learning_rate=5e-4 or batch_size=32; may be repeated.",
        ),
    ] = [],  # noqa: B006
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Number of training steps.", show_default="depends on --size")
    ] = None,
    train_split: TrainSplitOption = "train",
    train_fraction: Annotated[float, typer.Option("--train-fraction", help="Use this fraction of the photos.")] = 1.0,
    download: Annotated[bool, typer.Option("--download", help="Download photos that are given by URL.")] = False,
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
    """Train an image generator on the store's photos and their image embeddings alone, and write it to c3-generator/.

    Training reads no text; afterwards, `c3 generate "a dog on the beach"` makes images from texts. The photos are read
    from the paths in the store. Run the same command again to continue an interrupted training. --overwrite replaces a
    generator of other settings.
    """
    options = arguments(locals(), "store")
    from c3tools.imaging import train_generator as train
    from c3tools.imaging.train import SAMPLES_FILE

    generator = train(store, **options, reporter=reporter())
    record = generator.to_dict()
    if write_json(record, json):
        _show(record)
    message(f'Wrote {output}/ with samples in {output}/{SAMPLES_FILE}. Next: c3 generate "a dog on the beach"')


def _show(record: dict[str, Any]) -> None:
    from c3tools.tables import Table

    best, trace = record["best_val_loss"], record["trace"]
    rows = []
    for step, loss in record["validations"]:
        trained = next((value for at, value in trace if at >= step), trace[-1][1])
        rows.append([f"{step:,}", f"{trained:.4f}", f"{loss:.4f}{' (kept)' if loss == best else ''}"])
    print_table(Table(["step", "training loss", "validation loss"], rows))
