"""`c3 connect`: contrastive training from pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._connect_options import (
    BatchOption,
    CaptionsOption,
    ChunkOption,
    ConnectEpochsOption,
    HalfOption,
    ImageArrayOption,
    ImageOption,
    LearningRateOption,
    LogEveryOption,
    LogitScaleOption,
    LossOption,
    MaxLogitScaleOption,
    MetaOption,
    ModalitiesOption,
    ModelFolderOption,
    OtherOption,
    PathsArgument,
    PatienceOption,
    SecondStoreOption,
    TextArrayOption,
    TextMetaOption,
    TextOption,
    TowerEpochsOption,
    TowerLearningRateOption,
    TrainSplitOption,
    WarmupOption,
    WeightDecayOption,
    named_files,
    names,
)
from ._console import print_table, reporter, write_json
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

DEFAULT_HEADS = Path("c3-heads")
DEFAULT_MODEL_FOLDER = Path("c3-model")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(no_args_is_help=True, help="Contrastive training from pairs, with a log of the geometry.")
    for command in (heads, apply, lit, full):
        group.command(command.__name__, cls=JsonCommand)(command)
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
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the heads.")] = DEFAULT_HEADS,
    dim: Annotated[int, typer.Option("--dim", help="Dimension of the joint space.")] = 256,
    hidden: Annotated[int, typer.Option("--hidden", help="Width of the hidden layer; 0 for linear heads.")] = 512,
    dropout: Annotated[float, typer.Option("--dropout", help="Dropout of hidden units, in training.")] = 0.0,
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
    from c3tools.connect import connect_heads, read_features

    features = read_features(
        image=image,
        text=text,
        other=named_files(other),
        meta=meta,
        text_meta=text_meta,
        image_array=image_array,
        text_array=text_array,
        store=store,
        second_store=second_store,
        modalities=names(modalities),
    )
    connected = connect_heads(
        features,
        output,
        dim=dim,
        hidden=hidden,
        dropout=dropout,
        cone=cone,
        loss=loss,
        logit_scale=logit_scale,
        max_logit_scale=max_logit_scale,
        batch_size=batch_size,
        chunk=chunk,
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        patience=patience,
        log_every=log_every,
        train_split=train_split,
        seed=seed,
        device=device,
        precision=precision,
        reporter=reporter(),
    )
    _print(connected.to_dict(), output, json, f"c3 connect apply {output} …")


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
    from c3tools.connect import ConnectedHeads, apply_heads, read_features

    connected = ConnectedHeads.load(folder)
    features = read_features(
        image=image,
        text=text,
        other=named_files(other),
        meta=meta,
        text_meta=text_meta,
        image_array=image_array,
        text_array=text_array,
        store=store,
        second_store=second_store,
        modalities=names(modalities),
    )
    report = apply_heads(connected, features, output, dtype=dtype, reporter=reporter())
    if json:
        write_json(report.to_dict(), json)
    for note in report.notes:
        reporter().message(note)
    listing = ", ".join(f"{count:,} {name}" for name, count in report.rows.items())
    reporter().message(f"Wrote {listing} rows into {output} ({report.pairs:,} pairs). Next: c3 gap-report {output}")


def lit(
    paths: PathsArgument,
    output: ModelFolderOption = DEFAULT_MODEL_FOLDER,
    captions: CaptionsOption = None,
    model: ModelOption = None,
    random_init: RandomInitOption = None,
    image_head: Annotated[
        bool, typer.Option("--image-head", help="Train the projection head of the image tower too (towers from timm).")
    ] = False,
    half: HalfOption = False,
    loss: LossOption = "infonce",
    logit_scale: LogitScaleOption = "learned",
    max_logit_scale: MaxLogitScaleOption = 100.0,
    batch_size: BatchOption = 256,
    chunk: ChunkOption = 64,
    epochs: TowerEpochsOption = None,
    learning_rate: TowerLearningRateOption = None,
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
    _connect_towers(mode="lit", **locals())


def full(
    paths: PathsArgument,
    output: ModelFolderOption = DEFAULT_MODEL_FOLDER,
    captions: CaptionsOption = None,
    model: ModelOption = None,
    random_init: RandomInitOption = None,
    augment: Annotated[
        bool, typer.Option("--augment/--no-augment", help="Show a random part of each photo, mirrored half the time.")
    ] = True,
    half: HalfOption = False,
    loss: LossOption = "infonce",
    logit_scale: LogitScaleOption = "learned",
    max_logit_scale: MaxLogitScaleOption = 100.0,
    batch_size: BatchOption = 256,
    chunk: ChunkOption = 64,
    epochs: TowerEpochsOption = None,
    learning_rate: TowerLearningRateOption = None,
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
    _connect_towers(mode="full", **locals())


def _connect_towers(*, output: Path, json: str | None, **options: Any) -> None:
    """Train towers; every option is the argument of `connect_towers` that has its name."""
    from c3tools.connect import connect_towers

    connected = connect_towers(output=output, **options, reporter=reporter())
    _print(connected.to_dict(), output, json, f"c3 embed --model local-dir:{output} …")


def _print(record: dict[str, Any], output: Path, json: str | None, following: str) -> None:
    """Print the scores of a training; of several processes, only the main one does."""
    from c3tools.connect.processes import is_main_process
    from c3tools.connect.run import score_table

    if not is_main_process():
        return
    if json:
        write_json(record, json)
    if json != "-":
        print_table(score_table(record))
    reporter().message(f"Wrote {output}/, its geometry by step in {output}/geometry.svg. Next: {following}")
