"""Two small heads on frozen features: trained by `c3 connect heads`, used by `c3 connect apply`.

A head standardises its features by mean and spread of the train split and maps them into the joint
space, by one linear layer or by a perceptron with one hidden layer. It can start in a cone: a
random offset, one per modality, on its last layer, as the outputs of a large random CLIP tower have
one. Two cones are a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..arrays import Indices, Matrix
from ..choices import AtLeastTwo, NonNegativeInt, NumberFormat, PositiveInt, Precision, checked
from ..devices import pick
from ..encoders.networks import weights_sha256
from ..errors import ConnectError
from ..identity import ModelIdentity
from ..inputs.import_embeddings import ImportReport, write_modalities
from ..io.artifact import ArtifactType, digest_of, reading, reserve_output
from ..reporter import SILENT, Reporter
from ..result_table import Table
from ..seeds import torch_seed
from ..store import Rows, StoreInfo
from ..training.sizes import require_valid
from .contrastive import (
    LOG_FILE,
    RECORD_FILE,
    PairTask,
    TrainingSettings,
    TwoTowers,
    scores_table,
)
from .training_pairs import PairedFeatures

_WEIGHTS_FILE = "heads.safetensors"
_KIND = ArtifactType(
    "pair of heads", RECORD_FILE, ConnectError, "c3 connect heads", "", (_WEIGHTS_FILE, LOG_FILE)
)
_BLOCK_ROWS = 8192
_SAMPLED_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """Architecture of both heads.

    Attributes:
        dim: dimension d of the joint space.
        hidden: width of the hidden layer; 0 for a linear head.
        dropout: of hidden units, while training.
        cone: length of the random offset of a head, as a multiple of the spread of its outputs; 0
            for none. The gap at initialisation is then near ``cone * sqrt(2 / (1 + cone^2))``: 1.13
            at 1.33.
    """

    dim: int
    hidden: int
    dropout: float
    cone: float

    def __post_init__(self) -> None:
        if self.dim < 2:
            raise ConnectError(f"A head needs at least 2 dimensions, not {self.dim}.")
        require_valid(
            self, not_negative=("hidden", "cone"), fractions=("dropout",), error=ConnectError
        )


@dataclass(frozen=True, kw_only=True)
class HeadsSettings(HeadShape, TrainingSettings):
    """The options of `connect_heads` that its result depends on, as its record has them.

    A field that is added needs the default that trains as before: `reserve_output` takes it for
    heads whose records lack the field.
    """

    precision: str


class _Head(nn.Module):
    """A map from features (n, e) to the joint space (n, d), not yet normalised."""

    mean: Tensor
    spread: Tensor

    def __init__(self, features: int, shape: HeadShape) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        inner: list[nn.Module] = []
        if shape.hidden:
            inner = [nn.Linear(features, shape.hidden), nn.ReLU(), nn.Dropout(shape.dropout)]
        self.layers = nn.Sequential(*inner, nn.Linear(shape.hidden or features, shape.dim))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise and map the features."""
        mapped: Tensor = self.layers((features - self.mean) / self.spread)
        return mapped

    @classmethod
    @torch.no_grad()
    def fitted(
        cls, features: npt.NDArray[Any], numbers: Indices, shape: HeadShape, seed: int, side: int
    ) -> _Head:
        """Return a head with random weights and the mean and spread of the rows ``numbers`` of
        features (n, e).

        A constant feature gets the spread 1. The offset of a cone is ``shape.cone`` times as long
        as the outputs of the first rows are spread.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "head", side))
            head = cls(features.shape[1], shape)

        # Mean and spread of the features, block by block
        starts = range(0, len(numbers), _BLOCK_ROWS)
        blocks = [numbers[start : start + _BLOCK_ROWS] for start in starts]
        total = sum(features[block].sum(axis=0, dtype=np.float64) for block in blocks)
        mean = total / len(numbers)
        squares = sum(np.square(features[block] - mean).sum(axis=0) for block in blocks)
        spread = np.sqrt(squares / len(numbers))
        head.mean.copy_(torch.from_numpy(mean))
        head.spread.copy_(torch.from_numpy(np.where(spread > 1e-12, spread, 1.0)))

        # The offset of the cone, from where the outputs of some rows lie to a random direction
        if shape.cone:
            sampled = features[numbers[:_SAMPLED_ROWS]].astype(np.float32)
            outputs = head.eval()(torch.from_numpy(sampled))
            rng = torch.Generator().manual_seed(torch_seed(seed, "cone", side))
            direction = nn.functional.normalize(torch.randn(shape.dim, generator=rng), dim=0)
            center = outputs.mean(dim=0)
            spread_of_outputs = (outputs - center).square().sum(dim=1).mean().sqrt()
            offset = shape.cone * spread_of_outputs * direction - center
            head.layers[-1].bias.add_(offset)  # type: ignore[operator]
        return head.train()


class ConnectedHeads:
    """A trained pair of heads, with the record of its training.

    Attributes:
        heads: in the order of the modalities.
        record: modalities, settings, data, scores: plain JSON values.
        names: of the two modalities.
    """

    def __init__(self, heads: Sequence[_Head], record: dict[str, Any]) -> None:
        self.record = record
        self.names = tuple(record["modalities"])
        self.heads = nn.ModuleList(heads).eval().cpu()

    @property
    def sha256(self) -> str:
        """A digest of names, shapes and values of all weights."""
        return weights_sha256(self.heads)

    def table(self) -> Table:
        """Return the scores of the training, as `c3 connect` prints them."""
        return scores_table(self.record)

    @torch.inference_mode()
    def embed(self, modality: str, features: npt.NDArray[Any]) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of features (n, e).

        Raises:
            ConnectError: if there is no head for the modality, or it needs another number of
                features.
        """
        heads: dict[str, Any] = dict(zip(self.names, self.heads, strict=True))
        if modality not in heads or features.shape[1] != len(heads[modality].mean):
            taken = " and ".join(
                f"{len(head.mean)} features of {name}" for name, head in heads.items()
            )
            raise ConnectError(
                f"The heads need {taken}, not {features.shape[1]} of {modality}.",
                remedy="Use features from the towers that the heads were trained on.",
            )
        embedded = []
        for start in range(0, max(1, len(features)), _BLOCK_ROWS):
            block = torch.from_numpy(features[start : start + _BLOCK_ROWS].astype(np.float32))
            embedded.append(nn.functional.normalize(heads[modality](block), dim=1))
        return torch.cat(embedded).numpy()

    @classmethod
    def load(cls, folder: str | Path) -> ConnectedHeads:
        """Load the heads that `c3 connect heads` wrote.

        Raises:
            ConnectError: if there are no heads, or they are damaged.
        """
        with reading(folder, _KIND) as (path, content):
            record = content["record"]
            in_record = [field.name for field in fields(HeadShape) if field.name in record]
            shape = HeadShape(**{name: record[name] for name in in_record})
            # Copies, as these are views of the file, which may be written again while the heads are
            # in use
            views = load_file(path / _WEIGHTS_FILE)
            tensors = {name: view.clone() for name, view in views.items()}
            # A damaged record could request a larger network than the file holds
            with torch.device("meta"):
                heads = [
                    _Head(len(tensors[f"{place}.mean"]), shape)
                    for place in range(len(record["modalities"]))
                ]
            nn.ModuleList(heads).load_state_dict(tensors, assign=True)
            return cls(heads, record)


@checked
def connect_heads(
    features: PairedFeatures,
    *,
    output: str | Path = "c3-heads",
    dim: AtLeastTwo = 256,
    hidden: int = 512,
    dropout: float = 0.0,
    cone: float = 0.0,
    logit_scale: str = "learned",
    close_gap: float = 0.0,
    batch_size: PositiveInt = 512,
    epochs: PositiveInt = 20,
    learning_rate: float = 1e-3,
    patience: NonNegativeInt = 5,
    train_split: str = "train",
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> ConnectedHeads:
    """Train two heads on paired features and write them to the folder ``output``.

    The folder contains the weights, the record, and the log of the geometry as a table and as a
    figure. The same call continues an interrupted run, and returns the heads of a finished run.

    Args:
        features: See `read_features`.
        output: The folder to write the heads to.
        dim: Dimension of the shared space.
        hidden: Width of the hidden layer; 0 for linear heads.
        dropout: Dropout rate of the hidden units.
        cone: Start each modality in its own narrow cone, as a large CLIP with random weights does.
            1.33 gives a gap of 1.1.
        logit_scale: Logit scale (1 / temperature): a fixed number such as 100, learned (starts at
            14.3, at most 100), or learned:20 (starts at 20).
        close_gap: Weight of two extra loss terms that close the gap: one pulls pairs together, the
            other pushes centroids apart.
        batch_size: Number of pairs per step.
        epochs: Maximum number of passes over the pairs.
        learning_rate: Peak learning rate of AdamW.
        patience: Stop after this many epochs without a better recall@1; 0 to never stop early.
        train_split: The split to train on, or all.
        seed: Seed for all random numbers.
        device: cpu, cuda, cuda:1 or mps. By default the fastest device.
        precision: Number format of computations. auto: bf16 if the hardware supports it, otherwise
            fp32.
        overwrite: Replace an existing result that has other settings; it is kept as
            OUTPUT.previous.
        reporter: Shows messages and progress.

    Raises:
        ConnectError: if an option is not valid, or there are too few pairs.
        OutputError: if ``output`` contains other heads or other files, or another run is writing to
            it.
    """
    shape = HeadShape(dim=dim, hidden=hidden, dropout=dropout, cone=cone)
    training = TrainingSettings(
        logit_scale=logit_scale,
        close_gap=close_gap,
        batch_size=batch_size,
        chunk=None,
        epochs=epochs,
        learning_rate=learning_rate,
        patience=patience,
        train_split=train_split,
        seed=seed,
    )
    compute = pick(device, precision)
    settings = HeadsSettings(**asdict(training), **asdict(shape), precision=compute.precision)
    with reserve_output(
        Path(output), _KIND, settings, overwrite=overwrite, reporter=reporter
    ) as target:
        for note in features.notes:
            reporter.message(note)
        sides = (features.first, features.second)
        names = (features.first.modality, features.second.modality)
        pairs = features.inputs()
        train, val = pairs.train_and_val(train_split, names, reporter)
        heads = []
        for number, side in enumerate(sides):
            train_rows = np.unique(train.rows[number])
            heads.append(_Head.fitted(side.embeddings, train_rows, shape, seed, number))

        # What `apply_heads` compares: dimension, model and space of each modality's features
        dims = {side.modality: side.embeddings.shape[1] for side in sides}
        models = {name: dict(space.model) for name, space in features.spaces.items() if space.model}
        spaces = {
            name: {"steps": space.steps, "digest": space.digest}
            for name, space in features.spaces.items()
        }
        record = {
            "modalities": list(names),
            "features": dims,
            **asdict(shape),
            "models": models,
            "spaces": spaces,
        }

        towers = TwoTowers(heads[0], heads[1], compute)
        task = PairTask(towers, train, val, training, names, made_from=shape)
        return task.connect(
            target,
            pairs,
            record,
            save=lambda folder: save_file(towers.sides.state_dict(), folder / _WEIGHTS_FILE),
            load=ConnectedHeads.load,
        )


@checked
def apply_heads(
    heads: ConnectedHeads | str | Path,
    features: PairedFeatures,
    *,
    output: str | Path = "c3-connected",
    dtype: NumberFormat = "float16",
    reporter: Reporter = SILENT,
) -> ImportReport:
    """Apply heads to features of both modalities, paired or not, and write a store with keys,
    splits and captions.

    Args:
        heads: The folder of the heads.
        features: See `read_features`.
        output: The folder of the new store.
        dtype: See `embed`.
        reporter: Shows messages and progress.

    Raises:
        ConnectError: if a modality has no head, or features of another number, of another model,
            or that went through other steps or noise than those that its head was trained on.
        StoreError: if the store has rows of these modalities already, or the dtype is unknown.
        OutputError: if another run is writing to it.
    """
    heads = heads if isinstance(heads, ConnectedHeads) else ConnectedHeads.load(heads)
    trained_models = heads.record.get("models", {})
    trained_spaces = heads.record.get("spaces", {})
    embedded = []
    digests = {}
    for side in (features.first, features.second):
        modality = side.modality

        # Features in files have no space, and are taken as they are
        space = features.spaces.get(modality)
        ModelIdentity(trained_models.get(modality, {})).require_same(
            space.model if space else None,
            own=f"The {modality} head",
            theirs="these features",
            error=ConnectError,
            remedy="Use features from the tower that the heads were trained on, or train heads on "
            "these features.",
        )
        trained_space = trained_spaces.get(modality)
        if space and trained_space and trained_space["digest"] != space.digest:
            raise ConnectError(
                f"The {modality} head was trained on features {trained_space['steps']}, but those "
                f"of {space.owner} are {space.steps}.",
                remedy="Use features like those that the heads were trained on, or train heads on "
                "these features.",
            )
        if space and modality in space.noised:
            raise ConnectError(
                f"The {modality} rows of {space.owner} have noise, as inputs of a training.",
                remedy="Export the store again with --role inference.",
            )

        embedded.append(Rows(modality, heads.embed(modality, side.embeddings), side.table))
        digests[modality] = digest_of(side.embeddings)
    model = ModelIdentity(name="connected-heads", weights_sha256=heads.sha256)
    info = StoreInfo(
        model=model,
        dim=heads.record["dim"],
        dtype=dtype,
        columns=dict(features.columns),
        extra={"connected": digests},
    )
    report = write_modalities(Path(output), info, embedded, reporter=reporter)
    return replace(report, pairs=len(features), notes=list(features.notes))
