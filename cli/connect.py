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
    typed_option,
)

if TYPE_CHECKING:
    from c3tools.connect.features import PairedFeatures

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
        help="Take the second modality from this store: a folder or a URL.",
        show_default=False,
    ),
]
ModalitiesOption = Annotated[
    str | None,
    typer.Option(
        "--modalities",
        metavar="A,B",
        help="The two modalities of the store to use, for example image,text.",
        show_default=False,
    ),
]
LossOption = Annotated[str, typer.Option("--loss", help="The contrastive loss: infonce or sigmoid.")]
LogitScaleOption = Annotated[
    str,
    typer.Option(
        "--logit-scale",
        help="1 / temperature: a number such as 100 (fixed), learned (starts at 14.3), learned:20 (starts at 20), or "
        "14:100 (rises from 14 to 100 over the steps).",
    ),
]
MaxLogitScaleOption = Annotated[float, typer.Option("--max-logit-scale", help="Upper limit of a learned logit scale.")]
CloseGapOption = Annotated[
    float,
    typer.Option(
        "--close-gap",
        help="Weight of two extra loss terms that close the gap: one pulls pairs together, one pushes centroids apart.",
    ),
]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Number of pairs per step, over all processes.")]
ChunkOption = Annotated[
    int | None,
    typer.Option(
        "--chunk",
        help="Number of pairs embedded at a time (gradient caching).",
        show_default="the whole batch for heads, 64 for lit and full",
    ),
]
ConnectEpochsOption = Annotated[int, typer.Option("--epochs", help="Largest number of passes over the pairs.")]
TowerEpochsOption = Annotated[
    int | None,
    typer.Option("--epochs", help="Largest number of passes over the pairs.", show_default="20 for lit, 10 for full"),
]
LearningRateOption = Annotated[float, typer.Option("--learning-rate", help="Peak learning rate of AdamW.")]
TowerLearningRateOption = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        help="Peak learning rate of AdamW.",
        show_default="0.0005 for lit, 0.0001 for full",
    ),
]
WeightDecayOption = Annotated[float, typer.Option("--weight-decay", help="Weight decay of AdamW, for matrices only.")]
WarmupOption = Annotated[
    float, typer.Option("--warmup", help="Fraction of the steps in which the learning rate rises.")
]
PatienceOption = Annotated[
    int, typer.Option("--patience", help="Stop after this many log entries without a better recall@1; 0: never.")
]
LogEveryOption = Annotated[
    int | None,
    typer.Option("--log-every", help="Steps between log entries.", show_default="one epoch"),
]
PathsArgument = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Photos with captions, as for c3 embed."),
]
CaptionsOption = Annotated[
    str | None,
    typer.Option("--captions", help="A file of captions, instead of those that are detected.", show_default=False),
]
ModelFolderOption = Annotated[Path, typer.Option("--output", "-o", help="The folder to write the trained model to.")]
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
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write the heads to.")] = DEFAULT_HEADS,
    dim: Annotated[int, typer.Option("--dim", help="Dimension of the shared space.")] = 256,
    hidden: Annotated[int, typer.Option("--hidden", help="Width of the hidden layer; 0: linear heads.")] = 512,
    dropout: Annotated[float, typer.Option("--dropout", help="Dropout of the hidden units in training.")] = 0.0,
    cone: Annotated[
        float,
        typer.Option(
            "--cone",
            help="Start each modality in its own narrow cone, as a large random CLIP does; 1.33 gives a gap of 1.1.",
        ),
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
    """Train two small heads on frozen features: two modalities of a store, two stores, or two files of vectors.

    The output folder contains the heads, a log of the geometry by step (geometry.json, geometry.svg) and a model card.
    Run the same command again to continue an interrupted training. `c3 connect apply` makes a store with the heads.
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
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the new store.")] = Path("c3-connected"),
    dtype: DtypeOption = "float16",
    json: JsonOption = None,
) -> None:
    """Apply trained heads to features of the same towers, and write the result to a new store.

    Keys, splits and captions are copied.
    """
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
        bool,
        typer.Option("--image-head", help="Also train the projection head of the image tower (for towers from timm)."),
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
    """Train the text tower of an open_clip model on photos with captions; the image tower stays frozen.

    The photos are encoded once. The output folder is a model for every command (--model local-dir:c3-model), with a
    model card and a log of the geometry. Run the same command again to continue an interrupted training; run it with
    `torchrun` to use several GPUs.
    """
    _connect_towers(mode="lit", **locals())


def full(
    paths: PathsArgument,
    output: ModelFolderOption = DEFAULT_MODEL_FOLDER,
    captions: CaptionsOption = None,
    model: ModelOption = None,
    random_init: RandomInitOption = None,
    augment: Annotated[
        bool, typer.Option("--augment/--no-augment", help="Train on random crops of the photos, half of them mirrored.")
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

    Large batches fit into memory, because --chunk pairs are embedded at a time (gradient caching). The output folder is
    a model for every command (--model local-dir:c3-model), with a model card and a log of the geometry. Run the same
    command again to continue an interrupted training; run it with `torchrun` to use several GPUs.
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
    """Refuse store options together with files of vectors, and file options without files.

    Raises:
        C3Error: if such an option was given.
    """
    option = typed_option(context, *(STORE_OPTIONS if from_files else FILE_OPTIONS))
    if option is None:
        return
    if from_files:
        raise C3Error(
            f"{option} cannot be used here: the features come from the files given by --image, --text or --other.",
            remedy=f"Leave out {option}, or leave out the files. --output names the result.",
        )
    raise C3Error(
        f"{option} describes a file of vectors, but no file is given, so the features come from a store.",
        remedy=f"Give the files with --image, --text or --other, or leave out {option}.",
    )


def _connect_towers(*, output: Path, json: str | None, **options: Any) -> None:
    """Train towers; the options have the names of the arguments of `connect_towers`."""
    from c3tools.connect import connect_towers

    connected = connect_towers(output=output, **options, reporter=reporter())
    _print(connected.to_dict(), output, json, f"c3 embed --model local-dir:{output} …")


def _print(record: dict[str, Any], output: Path, json: str | None, following: str) -> None:
    """Print the scores of a training, in the main process only."""
    from c3tools.connect.processes import is_main_process
    from c3tools.connect.run import score_table

    if not is_main_process():
        return
    if write_json(record, json):
        print_table(score_table(record))
    message(f"Wrote {output}/. The geometry by step is drawn in {output}/geometry.svg. Next: {following}")


group = command_group(
    "Train heads or towers on pairs with a contrastive loss, and log the geometry.", heads, apply, lit, full
)
