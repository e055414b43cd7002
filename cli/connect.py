"""`c3 connect`: contrastive training from pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c3tools.errors import C3Error
from c3tools.io.locations import location
from c3tools.reporter import counted

from ._console import message, print_table, reporter, write_json
from ._options import (
    DEFAULT_STORE,
    DeviceOption,
    DtypeOption,
    ImageArrayOption,
    ImageOption,
    JsonOption,
    MetaOption,
    ModelOption,
    OtherOption,
    OverwriteOption,
    PrecisionOption,
    RandomInitOption,
    SeedOption,
    StoreOption,
    TextArrayOption,
    TextMetaOption,
    TextOption,
    TrainSplitOption,
    arguments,
    command_group,
    named_files,
)

if TYPE_CHECKING:
    from c3tools.connect.inputs import PairedFeatures

DEFAULT_HEADS = Path("c3-heads")
DEFAULT_MODEL_FOLDER = Path("c3-model")
FEATURES = (
    *("image", "text", "other", "meta", "text_meta", "image_array", "text_array"),
    *("store", "second_store", "modalities"),
)
STORE_OPTIONS = ("store", "second_store", "modalities")
FILE_OPTIONS = ("meta", "text_meta", "image_array", "text_array")
SecondStoreOption = Annotated[
    Path | None,
    typer.Option(
        "--second-store",
        parser=location,
        metavar="PATH",
        help="Take the second modality from this store: a folder, or a URL.",
        show_default=False,
    ),
]
ModalitiesOption = Annotated[
    str | None, typer.Option("--modalities", metavar="A,B", help="Two modalities of the store.", show_default=False)
]
LossOption = Annotated[str, typer.Option("--loss", help="infonce or sigmoid.")]
LogitScaleOption = Annotated[
    str,
    typer.Option(
        "--logit-scale",
        help="1 / temperature: 100 (fixed), learned (from 14.3), learned:20, or 14:100 (rising over the steps).",
    ),
]
MaxLogitScaleOption = Annotated[
    float, typer.Option("--max-logit-scale", help="Largest logit scale; a learned one is clamped.")
]
CloseGapOption = Annotated[
    float, typer.Option("--close-gap", help="Weight of two terms that close the gap: pairs together, centroids apart.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Pairs per step, over all processes.")]
ChunkOption = Annotated[
    int | None,
    typer.Option(
        "--chunk", help="Pairs embedded at a time (gradient caching); default: the whole batch.", show_default=False
    ),
]
ConnectEpochsOption = Annotated[int, typer.Option("--epochs", help="Passes over the pairs, at most.")]
TowerEpochsOption = Annotated[
    int | None,
    typer.Option(
        "--epochs", help="Passes over the pairs, at most; default: 20 in lit, 10 in full.", show_default=False
    ),
]
LearningRateOption = Annotated[float, typer.Option("--learning-rate", help="Peak of AdamW's learning rate.")]
TowerLearningRateOption = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        help="Peak of AdamW's learning rate; default: 0.0005 in lit, 0.0001 in full.",
        show_default=False,
    ),
]
WeightDecayOption = Annotated[float, typer.Option("--weight-decay", help="Weight decay of AdamW, on matrices.")]
WarmupOption = Annotated[float, typer.Option("--warmup", help="Share of the steps in which the learning rate rises.")]
PatienceOption = Annotated[
    int, typer.Option("--patience", help="Stop after so many points of the log without a better recall@1; 0: never.")
]
LogEveryOption = Annotated[
    int | None,
    typer.Option("--log-every", help="Steps between points of the log; default: an epoch.", show_default=False),
]
PathsArgument = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Photos with captions.")]
CaptionsOption = Annotated[
    Path | None, typer.Option("--captions", help="A captions file, instead of those detected.", show_default=False)
]
ModelFolderOption = Annotated[Path, typer.Option("--output", "-o", help="The folder of the trained model.")]
HalfOption = Annotated[bool, typer.Option("--half", help="Store the weights as float16.")]


def heads(
    context: typer.Context,
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
    close_gap: CloseGapOption = 0.0,
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
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Train two small heads on frozen features: of a store's modalities, of two stores, or of two files of vectors.

    The folder gets the heads, the log of the geometry by step (geometry.json, geometry.svg) and a card. An interrupted
    training is continued by the same command. `c3 connect apply` makes a store of the result.
    """
    options, features = arguments(locals(), "context", "output", *FEATURES), _read_features(locals())
    from c3tools.connect import connect_heads

    connected = connect_heads(features, output, **options, reporter=reporter())
    _print(connected.to_dict(), output, json, f"c3 connect apply {output} …")


def apply(
    context: typer.Context,
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
    dtype: DtypeOption = "float16",
    json: JsonOption = None,
) -> None:
    """Embed features of the same towers by trained heads, with keys, splits and captions, into a new store."""
    features = _read_features(locals())
    from c3tools.connect import apply_heads

    report = apply_heads(folder, features, output, dtype=dtype, reporter=reporter())
    write_json(report.to_dict(), json)
    for note in report.notes:
        message(note)
    listing = ", ".join(f"{count:,} {name}" for name, count in report.rows.items())
    message(f"Wrote {listing} rows into {output} ({counted(report.pairs, 'pair')}). Next: c3 gap-report {output}")


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
    close_gap: CloseGapOption = 0.0,
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
    overwrite: OverwriteOption = False,
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
    close_gap: CloseGapOption = 0.0,
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
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Train both towers of an open_clip model on photos with captions.

    Large batches fit: --chunk pairs are embedded at a time (gradient caching). The folder is a model for every command
    (--model local-dir:c3-model), with a card and the log of the geometry. Interrupted, the same command continues;
    `torchrun` shares it among GPUs.
    """
    _connect_towers(mode="full", **locals())


def _read_features(values: dict[str, Any]) -> PairedFeatures:
    """Read the two modalities that the options of a command name."""
    from c3tools.connect import read_features

    options = {name: values[name] for name in FEATURES}
    _refuse_what_is_not_read(values["context"], bool(options["image"] or options["text"] or options["other"]))
    options["other"] = named_files(options["other"])
    if options["modalities"] is not None:
        options["modalities"] = [name.strip() for name in options["modalities"].split(",")]
    return read_features(**options, reporter=reporter())


def _refuse_what_is_not_read(context: typer.Context, from_files: bool) -> None:
    """Refuse options of stores beside files of vectors, and options of files without any.

    Raises:
        C3Error: with the option, and what is read instead.
    """
    ignored = STORE_OPTIONS if from_files else FILE_OPTIONS
    given = [name for name in ignored if _is_on_the_command_line(context, name)]
    if not given:
        return
    option = f"--{given[0].replace('_', '-')}"
    if from_files:
        raise C3Error(
            f"{option} is not read: the features come from the files that --image, --text or --other name.",
            remedy=f"Leave out {option}, or the files. What is written is named by --output.",
        )
    raise C3Error(
        f"{option} belongs to files of vectors, and none is given: the features would come from a store.",
        remedy=f"Name the files with --image, --text or --other, or leave out {option}.",
    )


def _is_on_the_command_line(context: typer.Context, name: str) -> bool:
    """Return whether an option was typed, and is neither a default nor from the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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
    if write_json(record, json):
        print_table(score_table(record))
    message(f"The result is in {output}/, its geometry by step in {output}/geometry.svg. Next: {following}")


group = command_group("Train with a contrastive loss on pairs, and log the geometry.", heads, apply, lit, full)
