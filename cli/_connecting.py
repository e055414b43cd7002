"""Options that the commands of `c3 connect` share, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c3tools.io.locations import location

from ._console import err, out

if TYPE_CHECKING:
    from c3tools.connect import PairedFeatures, TowerSettings, TrainingSettings

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
MaxLogitScaleOption = Annotated[float, typer.Option("--max-logit-scale", help="A learned one is clamped here.")]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Pairs per step, over all processes.")]
ChunkOption = Annotated[
    int | None,
    typer.Option(
        "--chunk", help="Pairs embedded at a time (gradient caching); default: the whole batch.", show_default=False
    ),
]
ConnectEpochsOption = Annotated[int, typer.Option("--epochs", help="Passes over the pairs, at most.")]
LearningRateOption = Annotated[float, typer.Option("--learning-rate", help="AdamW's, at its peak.")]
WeightDecayOption = Annotated[float, typer.Option("--weight-decay", help="AdamW's, on matrices.")]
WarmupOption = Annotated[float, typer.Option("--warmup", help="Share of the steps that warms up.")]
PatienceOption = Annotated[
    int, typer.Option("--patience", help="Stop after so many points of the log without a better recall@1; 0: never.")
]
LogEveryOption = Annotated[
    int | None,
    typer.Option("--log-every", help="Steps between points of the log; default: an epoch.", show_default=False),
]
TrainSplitOption = Annotated[str, typer.Option("--train-split", help="The split to learn from.")]


def read_sides(
    store: Path,
    second_store: Path | None,
    modalities: str | None,
    *,
    image: Path | None,
    text: Path | None,
    other: list[str] | None,
    **files: Any,
) -> PairedFeatures:
    """The two sides that the options name: files where there are any, else stores."""
    from c3tools.connect import sides_of_files, sides_of_stores
    from c3tools.errors import ConnectError
    from c3tools.store import Store

    if image or text or other:
        return sides_of_files(image=image, text=text, others=named_files(other), **files)
    chosen = tuple(part.strip() for part in modalities.split(",")) if modalities else None
    if chosen is not None and (len(chosen) != 2 or not all(chosen)):
        raise ConnectError(
            f"--modalities {modalities} does not name two.", remedy="For example --modalities audio,text."
        )
    second = Store.open(second_store) if second_store else None
    return sides_of_stores(Store.open(store), second, chosen)


def named_files(items: list[str] | None) -> dict[str, Path]:
    """``NAME=FILE`` options as a mapping."""
    from c3tools.errors import C3Error

    files = {}
    for item in items or []:
        name, _, path = item.partition("=")
        if not name.isidentifier() or not path:
            raise C3Error(f"--other {item} is not NAME=FILE.", remedy="For example: --other audio=audio.npy")
        files[name] = Path(path)
    return files


def training_settings(logit_scale: str, max_logit_scale: float, **values: Any) -> TrainingSettings:
    """The settings that the options stand for."""
    from c3tools.connect import LogitScale, TrainingSettings

    return TrainingSettings(scale=LogitScale.parse(logit_scale, max_logit_scale), **values)


def tower_settings(mode: str, model: str | None, **values: Any) -> TowerSettings:
    """The settings of towers that the options stand for; without a model, one line names the default."""
    from c3tools.connect import TowerSettings
    from c3tools.encoders import DEFAULT_MODEL

    if model is None:
        err.print(f"Starting from the bundled model {DEFAULT_MODEL}; --model names another.", highlight=False)
    return TowerSettings(mode, model or DEFAULT_MODEL, **values)


def show_scores(record: dict[str, Any]) -> None:
    """A table of the geometry and recall of each scored split."""
    from rich.table import Table

    table = Table("split", "direction", "recall@1", "recall@5", "recall@10", "gap", "paired cosine", "unpaired")
    for role, score in record["scores"].items():
        for direction, recall in score["recall"].items():
            cells = [f"{100 * value:.1f} %" for value in recall.values()]
            geometry = [f"{score[name]:.3f}" for name in ("gap", "paired_cosine", "unpaired_cosine")]
            table.add_row(role, direction.replace("_to_", " → "), *cells, *geometry)
    out.print(table)
