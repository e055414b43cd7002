"""`c3 connect`: contrastive training from pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._connecting import (
    BatchOption,
    ChunkOption,
    ConnectEpochsOption,
    ImageArrayOption,
    ImageOption,
    LearningRateOption,
    LogEveryOption,
    LogitScaleOption,
    LossOption,
    MaxLogitScaleOption,
    MetaOption,
    ModalitiesOption,
    OtherOption,
    PatienceOption,
    SecondStoreOption,
    TextArrayOption,
    TextMetaOption,
    TextOption,
    TrainSplitOption,
    WarmupOption,
    WeightDecayOption,
    read_sides,
    show_scores,
    tower_settings,
    training_settings,
)
from ._console import err, write_json
from ._options import (
    DEFAULT_STORE,
    DeviceOption,
    JsonCommand,
    JsonOption,
    ModelOption,
    PrecisionOption,
    RandomInitOption,
    SeedOption,
    StoreOption,
)

if TYPE_CHECKING:
    from c3tools.connect import TowerSettings, TrainingSettings

DEFAULT_HEADS = Path("c3-heads")
DEFAULT_MODEL_FOLDER = Path("c3-model")
HeadsOption = Annotated[Path, typer.Option("--output", "-o", help="The folder of the heads.")]
ModelFolderOption = Annotated[Path, typer.Option("--output", "-o", help="The folder of the trained model.")]
PathsArgument = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Photos with captions.")]
CaptionsOption = Annotated[
    Path | None, typer.Option("--captions", help="A captions file, instead of those found.", show_default=False)
]
AugmentOption = Annotated[
    bool, typer.Option("--augment/--no-augment", help="Show a random part of each photo, mirrored half the time.")
]
ImageHeadOption = Annotated[
    bool, typer.Option("--image-head", help="Train the projection head of the image tower too (towers from timm).")
]
HalfOption = Annotated[bool, typer.Option("--half", help="Store the weights as float16.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(no_args_is_help=True, help="Contrastive training from pairs, with a log of the geometry.")
    group.command("heads", cls=JsonCommand)(heads)
    group.command("apply", cls=JsonCommand)(apply)
    group.command("lit", cls=JsonCommand)(lit)
    group.command("full", cls=JsonCommand)(full)
    app.add_typer(group, name="connect")


def heads(
    image: ImageOption = None,
    text: TextOption = None,
    other: OtherOption = None,
    meta: MetaOption = None,
    text_meta: TextMetaOption = None,
    image_array: ImageArrayOption = None,
    text_array: TextArrayOption = None,
    store: StoreOption = DEFAULT_STORE,
    second_store: SecondStoreOption = None,
    modalities: ModalitiesOption = None,
    output: HeadsOption = DEFAULT_HEADS,
    dim: Annotated[int, typer.Option("--dim", help="Dimension of the joint space.")] = 256,
    hidden: Annotated[int, typer.Option("--hidden", help="Width of the hidden layer; 0 for linear heads.")] = 512,
    dropout: Annotated[float, typer.Option("--dropout", help="Of hidden units, in training.")] = 0.0,
    cone: Annotated[
        float,
        typer.Option("--cone", help="Start both heads in a cone, as a large random CLIP does: 1.33 is a gap of 1.1."),
    ] = 0.0,
    loss: LossOption = "infonce",
    logit_scale: LogitScaleOption = "learned",
    max_logit_scale: MaxLogitScaleOption = 100.0,
    batch_size: BatchOption = 512,
    chunk: ChunkOption = None,
    epochs: ConnectEpochsOption = 20,
    learning_rate: LearningRateOption = 1e-3,
    weight_decay: WeightDecayOption = 0.05,
    warmup: WarmupOption = 0.05,
    patience: PatienceOption = 5,
    log_every: LogEveryOption = None,
    train_split: TrainSplitOption = "train",
    seed: SeedOption = 0,
    device: DeviceOption = None,
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Train two small heads on frozen features: of a store's modalities, of two stores, or of two files of vectors.

    The folder gets the heads, the log of the geometry by step (geometry.json, geometry.svg) and a card. An interrupted
    training is continued by the same command. `c3 connect apply` makes a store of the result.
    """
    from c3tools import devices
    from c3tools.connect import HeadShape, connect_heads, processes
    from c3tools.reporter import track

    sides = read_sides(
        store,
        second_store,
        modalities,
        image=image,
        text=text,
        other=other,
        meta=meta,
        text_meta=text_meta,
        image_array=image_array,
        text_array=text_array,
    )
    connected = connect_heads(
        sides,
        output,
        HeadShape(dim, hidden, dropout, cone),
        training_settings(
            logit_scale,
            max_logit_scale,
            loss=loss,
            batch_size=batch_size,
            chunk=chunk,
            epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            patience=patience,
            log_every=log_every,
            seed=seed,
        ),
        train_split=train_split,
        compute=devices.pick(device, precision),
        progress=track,
        say=_say,
    )
    if not processes.is_main_process():
        return
    if json:
        write_json(connected.record, json)
    if json != "-":
        show_scores(connected.record)
    _say(f"Wrote {output}/, its geometry by step in {output}/geometry.svg. Next: c3 connect apply {output} …")


def apply(
    folder: Annotated[Path, typer.Argument(metavar="[HEADS]", help="The folder of the heads.")] = DEFAULT_HEADS,
    image: ImageOption = None,
    text: TextOption = None,
    other: OtherOption = None,
    meta: MetaOption = None,
    text_meta: TextMetaOption = None,
    image_array: ImageArrayOption = None,
    text_array: TextArrayOption = None,
    store: StoreOption = DEFAULT_STORE,
    second_store: SecondStoreOption = None,
    modalities: ModalitiesOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The new store.")] = Path("c3-connected"),
    dtype: Annotated[str, typer.Option("--dtype", help="float16 or float32, as stored.")] = "float16",
    json: JsonOption = None,
) -> None:
    """Embed features of the same towers by trained heads, with keys, splits and captions, into a new store."""
    from c3tools.connect import ConnectedHeads, apply_heads
    from c3tools.reporter import track

    connected = ConnectedHeads.load(folder)
    sides = read_sides(
        store,
        second_store,
        modalities,
        image=image,
        text=text,
        other=other,
        meta=meta,
        text_meta=text_meta,
        image_array=image_array,
        text_array=text_array,
    )
    with track("Embedding", len(sides.first) + len(sides.second)) as tracker:
        report = apply_heads(connected, sides, output, dtype=dtype, tracker=tracker)
    if json:
        write_json(report.to_dict(), json)
    for note in report.notes:
        _say(note)
    listing = ", ".join(f"{count:,} {name}" for name, count in report.rows.items())
    _say(f"Wrote {listing} rows into {output} ({report.pairs:,} pairs). Next: c3 gap-report {output}")


def lit(
    paths: PathsArgument,
    output: ModelFolderOption = DEFAULT_MODEL_FOLDER,
    captions: CaptionsOption = None,
    model: ModelOption = None,
    random_init: RandomInitOption = None,
    image_head: ImageHeadOption = False,
    half: HalfOption = False,
    loss: LossOption = "infonce",
    logit_scale: LogitScaleOption = "learned",
    max_logit_scale: MaxLogitScaleOption = 100.0,
    batch_size: BatchOption = 256,
    chunk: ChunkOption = 64,
    epochs: ConnectEpochsOption = 20,
    learning_rate: LearningRateOption = 5e-4,
    weight_decay: WeightDecayOption = 0.05,
    warmup: WarmupOption = 0.05,
    patience: PatienceOption = 5,
    log_every: LogEveryOption = None,
    train_split: TrainSplitOption = "train",
    seed: SeedOption = 0,
    device: DeviceOption = None,
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Train the text tower of an open_clip model towards its frozen image tower, on photos with captions.

    The photos are encoded once. The folder is a model for every command (--model local-dir:c3-model), with a card and
    the log of the geometry. Interrupted, the same command continues; `torchrun` shares it among GPUs.
    """
    settings = training_settings(
        logit_scale,
        max_logit_scale,
        loss=loss,
        batch_size=batch_size,
        chunk=chunk,
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        patience=patience,
        log_every=log_every,
        seed=seed,
    )
    towers = tower_settings(
        "lit",
        model,
        random_init=random_init,
        image_head=image_head,
        augment=False,
        half=half,
        train_split=train_split,
    )
    _train(paths, output, towers, settings, captions, device, precision, json)


def full(
    paths: PathsArgument,
    output: ModelFolderOption = DEFAULT_MODEL_FOLDER,
    captions: CaptionsOption = None,
    model: ModelOption = None,
    random_init: RandomInitOption = None,
    augment: AugmentOption = True,
    half: HalfOption = False,
    loss: LossOption = "infonce",
    logit_scale: LogitScaleOption = "learned",
    max_logit_scale: MaxLogitScaleOption = 100.0,
    batch_size: BatchOption = 256,
    chunk: ChunkOption = 64,
    epochs: ConnectEpochsOption = 10,
    learning_rate: LearningRateOption = 1e-4,
    weight_decay: WeightDecayOption = 0.05,
    warmup: WarmupOption = 0.05,
    patience: PatienceOption = 5,
    log_every: LogEveryOption = None,
    train_split: TrainSplitOption = "train",
    seed: SeedOption = 0,
    device: DeviceOption = None,
    precision: PrecisionOption = "auto",
    json: JsonOption = None,
) -> None:
    """Train both towers of an open_clip model on photos with captions.

    Large batches fit: --chunk pairs are embedded at a time (gradient caching). The folder is a model for every command
    (--model local-dir:c3-model), with a card and the log of the geometry. Interrupted, the same command continues;
    `torchrun` shares it among GPUs.
    """
    settings = training_settings(
        logit_scale,
        max_logit_scale,
        loss=loss,
        batch_size=batch_size,
        chunk=chunk,
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        patience=patience,
        log_every=log_every,
        seed=seed,
    )
    towers = tower_settings("full", model, random_init=random_init, augment=augment, half=half, train_split=train_split)
    _train(paths, output, towers, settings, captions, device, precision, json)


def _train(
    paths: list[Path],
    output: Path,
    towers: TowerSettings,
    settings: TrainingSettings,
    captions: Path | None,
    device: str | None,
    precision: str,
    json: str | None,
) -> None:
    from c3tools import devices
    from c3tools.connect import connect_towers, processes
    from c3tools.reporter import track

    record = connect_towers(
        paths,
        output,
        towers,
        settings,
        captions=captions,
        compute=devices.pick(device, precision),
        progress=track,
        say=_say,
    )
    if not processes.is_main_process():
        return
    if json:
        write_json(record, json)
    if json != "-":
        show_scores(record)
    _say(f"Wrote {output}/, its geometry by step in {output}/geometry.svg. Next: c3 embed --model local-dir:{output} …")


def _say(message: str) -> None:
    err.print(message, highlight=False, markup=False)
