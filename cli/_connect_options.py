"""Options that the commands of `c3 connect` share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.errors import C3Error
from c3tools.io.locations import location

ImageOption = Annotated[
    Path | None,
    typer.Option("--image", help="Image features: npy, npz, pt, safetensors, csv, parquet.", show_default=False),
]
TextOption = Annotated[Path | None, typer.Option("--text", help="Text features, likewise.", show_default=False)]
OtherOption = Annotated[
    list[str] | None,
    typer.Option("--other", metavar="NAME=FILE", help="Features of another modality.", show_default=False),
]
MetaOption = Annotated[
    Path | None,
    typer.Option("--meta", help="Ids, captions, splits of the files, as in `c3 import`.", show_default=False),
]
TextMetaOption = Annotated[
    Path | None, typer.Option("--text-meta", help="The same with one row per text.", show_default=False)
]
ImageArrayOption = Annotated[
    str | None, typer.Option("--image-array", help="The array, tensor or column in --image.", show_default=False)
]
TextArrayOption = Annotated[
    str | None, typer.Option("--text-array", help="The array, tensor or column in --text.", show_default=False)
]
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
    str | None,
    typer.Option("--modalities", metavar="A,B", help="Two modalities of the store.", show_default=False),
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
TrainSplitOption = Annotated[str, typer.Option("--train-split", help="The split to learn from.")]
PathsArgument = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Photos with captions.")]
CaptionsOption = Annotated[
    Path | None, typer.Option("--captions", help="A captions file, instead of those detected.", show_default=False)
]
ModelFolderOption = Annotated[Path, typer.Option("--output", "-o", help="The folder of the trained model.")]
HalfOption = Annotated[bool, typer.Option("--half", help="Store the weights as float16.")]


def named_files(items: list[str] | None) -> dict[str, Path]:
    """Read ``NAME=FILE`` options as a mapping.

    Raises:
        C3Error: if one is of another form.
    """
    files = {}
    for item in items or []:
        name, _, path = item.partition("=")
        if not name.isidentifier() or not path:
            raise C3Error(f"--other {item} is not NAME=FILE.", remedy="For example: --other audio=audio.npy")
        files[name] = Path(path)
    return files


def names(text: str | None) -> list[str] | None:
    """Read names with commas between them."""
    return None if text is None else [name.strip() for name in text.split(",")]
