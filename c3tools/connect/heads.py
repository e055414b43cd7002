"""Two small heads on frozen features: trained by `c3 connect heads`, used by `c3 connect apply`.

A head standardises its features by mean and spread of the train split and maps them into the joint space, by one
linear layer or by a perceptron with one hidden layer. It can start in a cone: a random offset, one per modality, on
its last layer, as the outputs of a large random CLIP tower have one. Two cones are a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..arrays import Indices, Matrix
from ..devices import Compute
from ..errors import ConnectError, StoreError
from ..identity import ModelIdentity
from ..io.artifact import Kind, digest_of, reading
from ..reporter import SILENT, Reporter
from ..seeds import generator
from ..store import Rows, StoreInfo
from ..store.import_embeddings import ImportReport, write_modalities
from ..training.sizes import require_valid
from .gradients import TwoTowers
from .losses import LogitScale
from .pairs import FeatureInputs, PairedFeatures, PairInputs
from .training import LOG_FILE, RECORD_FILE, Prepared, TrainingSettings, connect, score_table

WEIGHTS_FILE = "heads.safetensors"
HEADS_MODEL = "connected-heads"
_KIND = Kind(
    "pair of heads",
    RECORD_FILE,
    ConnectError,
    "c3 connect heads",
    "",
    ("outcome", "recall@1"),
    (WEIGHTS_FILE, LOG_FILE),
)
_BLOCK_ROWS = 8192
_SAMPLED_ROWS = 1024
_USAGE = """\
`c3 connect apply` turns features of the same towers into a store that every command takes. In Python:
`ConnectedHeads.load(folder).embed("text", features)`."""


@dataclass(frozen=True)
class HeadShape:
    """Architecture of both heads.

    Attributes:
        dim: dimension d of the joint space.
        hidden: width of the hidden layer; 0 for a linear head.
        dropout: of hidden units, while training.
        cone: length of the random offset of a head, as a multiple of the spread of its outputs; 0 for none. The gap
            at initialisation is then near ``cone * sqrt(2 / (1 + cone^2))``: 1.13 at 1.33.
    """

    dim: int = 256
    hidden: int = 512
    dropout: float = 0.0
    cone: float = 0.0

    def __post_init__(self) -> None:
        if self.dim < 2:
            raise ConnectError(f"A head needs at least 2 dimensions, not {self.dim}.")
        require_valid(self, not_negative=("hidden", "cone"), fractions=("dropout",), error=ConnectError)


class Head(nn.Module):
    """A map from features (n, e) to the joint space (n, d), not yet normalised."""

    mean: Tensor
    spread: Tensor

    def __init__(self, features: int, shape: HeadShape) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.layers: nn.Module
        if shape.hidden:
            self.layers = nn.Sequential(
                nn.Linear(features, shape.hidden),
                nn.ReLU(),
                nn.Dropout(shape.dropout),
                nn.Linear(shape.hidden, shape.dim),
            )
        else:
            self.layers = nn.Linear(features, shape.dim)

    def forward(self, features: Tensor) -> Tensor:
        """Standardise and map the features."""
        return self.layers((features - self.mean) / self.spread)  # type: ignore[no-any-return]

    @torch.no_grad()
    def fit(self, features: npt.NDArray[Any], numbers: Indices) -> None:
        """Take mean and spread of the rows ``numbers`` of features (n, e); a constant feature gets the spread 1."""
        blocks = list(_blocks(numbers))
        mean = sum(features[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(numbers)
        squares = sum(np.square(features[block] - mean).sum(axis=0) for block in blocks)
        spread = np.sqrt(squares / len(numbers))
        self.mean.copy_(torch.from_numpy(mean))
        self.spread.copy_(torch.from_numpy(np.where(spread > 1e-12, spread, 1.0)))

    @torch.no_grad()
    def start_in_cone(self, sample: Tensor, cone: float, generator: torch.Generator) -> None:
        """Put a random offset on the last layer, ``cone`` times as long as the outputs of ``sample`` are spread."""
        last = self.layers[-1] if isinstance(self.layers, nn.Sequential) else self.layers
        assert isinstance(last, nn.Linear)
        training = self.training
        outputs = self.eval()(sample)
        self.train(training)
        spread = (outputs - outputs.mean(dim=0)).square().sum(dim=1).mean().sqrt()
        direction = nn.functional.normalize(torch.randn(len(last.bias), generator=generator), dim=0)
        last.bias.add_(cone * spread * direction - outputs.mean(dim=0))


class ConnectedHeads:
    """A trained pair of heads, with the record of its training.

    Attributes:
        names: of the two modalities.
        heads: per modality.
        shape: of both.
        record: settings, data, scores: plain JSON values.
    """

    def __init__(self, heads: Mapping[str, Head], shape: HeadShape, record: dict[str, Any]) -> None:
        self.heads = {name: head.eval().requires_grad_(False).cpu() for name, head in heads.items()}
        self.names = tuple(heads)
        self.shape = shape
        self.record = record

    @property
    def sha256(self) -> str:
        """A digest of names, shapes and values of all weights."""
        tensors = sorted(self._tensors().items())
        return digest_of([name for name, _ in tensors], *(tensor.numpy() for _, tensor in tensors))

    @torch.inference_mode()
    def embed(self, modality: str, features: npt.NDArray[Any]) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of features (n, e).

        Raises:
            ConnectError: if there is no head for the modality, or it needs another number of features.
        """
        if modality not in self.heads:
            raise ConnectError(f"There is no head for {modality!r}. There are heads for {' and '.join(self.heads)}.")
        head = self.heads[modality]
        if features.shape[1] != len(head.mean):
            raise ConnectError(
                f"The {modality} head needs {len(head.mean)} features per row, not {features.shape[1]}.",
                remedy="Use features of the tower that the heads were trained on.",
            )
        parts = [
            nn.functional.normalize(head(torch.from_numpy(block.astype(np.float32))), dim=1).numpy()
            for block in _blocks(features)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.shape.dim), np.float32)

    def check_model(self, modality: str, model: Mapping[str, Any] | None) -> None:
        """Refuse features of another model than the one whose features the head was trained on.

        Args:
            modality: of the head.
            model: identity of the features' model, as a store keeps it; None or empty if it is unknown.

        Raises:
            ConnectError: with both identities, if they differ.
        """
        ModelIdentity(self.record.get("models", {}).get(modality, {})).require_same(
            ModelIdentity(model or {}),
            own=f"The {modality} head",
            theirs="these features",
            error=ConnectError,
            remedy="Use features of the tower that the heads were trained on, or train heads on these.",
        )

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights into a folder; return what its record says of them."""
        save_file(self._tensors(), folder / WEIGHTS_FILE)
        return {"modalities": list(self.names), "shape": asdict(self.shape)}

    @classmethod
    def load(cls, folder: str | Path) -> ConnectedHeads:
        """Load the heads that `c3 connect heads` wrote.

        Raises:
            ConnectError: if there are no heads, or they are damaged.
        """
        with reading(folder, _KIND) as (path, content):
            shape = HeadShape(**content["shape"])
            tensors = load_file(path / WEIGHTS_FILE)
            heads = {}
            for name in content["modalities"]:
                # copies, as these are views of the file, which may be written again while the heads are in use
                own = {k.removeprefix(f"{name}/"): t.clone() for k, t in tensors.items() if k.startswith(f"{name}/")}
                with torch.device("meta"):  # a damaged record could request a larger network than the file holds
                    heads[name] = Head(len(own["mean"]), shape)
                heads[name].load_state_dict(own, assign=True)
            return cls(heads, shape, content["record"])

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the training as JSON values."""
        return self.record

    def _repr_html_(self) -> str:
        title = f"Heads of {' and '.join(self.names)}, {self.shape.dim} dimensions"
        return score_table(self.record, title)._repr_html_()

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": tensor.detach().contiguous()
            for name, head in self.heads.items()
            for key, tensor in head.state_dict().items()
        }


def connect_heads(
    features: PairedFeatures,
    output: str | Path = "c3-heads",
    *,
    dim: int = 256,
    hidden: int = 512,
    dropout: float = 0.0,
    cone: float = 0.0,
    loss: str = "infonce",
    logit_scale: str = "learned",
    max_logit_scale: float = 100.0,
    close_gap: float = 0.0,
    batch_size: int = 512,
    chunk: int | None = None,
    epochs: int = 20,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
    patience: int = 5,
    log_every: int | None = None,
    train_split: str = "train",
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> ConnectedHeads:
    """Train two heads on paired features and write them to the folder ``output``.

    The folder contains the weights, the record, the log of the geometry as a table and as a figure, and a model card.
    The same call continues an interrupted run, and returns the heads of a finished run.

    Args:
        features: See `read_features`.
        output: The folder to write the heads to.
        dim: Dimension of the shared space.
        hidden: Width of the hidden layer; 0: linear heads.
        dropout: Dropout of the hidden units in training.
        cone: Start each modality in its own narrow cone, as a large random CLIP does; 1.33 gives a gap of 1.1.
        loss: The contrastive loss: infonce or sigmoid.
        logit_scale: 1 / temperature: a number such as 100 (fixed), learned (starts at 14.3), learned:20 (starts at 20),
            or 14:100 (rises from 14 to 100 over the steps).
        max_logit_scale: Upper limit of a learned logit scale.
        close_gap: Weight of two extra loss terms that close the gap: one pulls pairs together, one pushes centroids
            apart.
        batch_size: Number of pairs per step, over all processes.
        chunk: Number of pairs embedded at a time (gradient caching). By default the whole batch.
        epochs: Largest number of passes over the pairs.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, for matrices only.
        warmup: Fraction of the steps in which the learning rate rises.
        patience: Stop after this many log entries without a better recall@1; 0: never.
        log_every: Steps between log entries. By default one epoch.
        train_split: The split to train on.
        seed: Seed for all random numbers.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        overwrite: Replace an existing result that has other settings. It is kept as OUTPUT.previous.
        reporter: Shows messages and progress.

    Raises:
        ConnectError: if an option is not valid, there are too few pairs, or the training collapsed.
        OutputError: if ``output`` contains other heads or other files, or another run is writing to it.
    """
    shape = HeadShape(dim, hidden, dropout, cone)
    settings = TrainingSettings(
        loss,
        LogitScale.parse(logit_scale, max_logit_scale),
        close_gap,
        batch_size,
        chunk,
        epochs,
        learning_rate,
        weight_decay,
        warmup,
        log_every,
        patience,
        train_split,
        seed,
    )
    output, names = Path(output), features.names
    dims = {rows.modality: rows.embeddings.shape[1] for rows in (features.first, features.second)}
    models = {name: dict(model) for name, model in features.models.items() if model}
    trained: list[Head] = []

    def prepare(compute: Compute, reporter: Reporter) -> Prepared:
        for note in features.notes:
            reporter.message(note)
        pairs = features.inputs()
        train, val = pairs.train_and_val(train_split, names, reporter)
        trained[:] = new_heads(train, shape, seed)
        kind = f"a perceptron with {hidden} hidden units" if hidden else "a linear map"
        taken = " and ".join(f"{count} features of {name}" for name, count in dims.items())
        facts = [
            ("heads", f"{kind} on {taken}, to {dim} dimensions"),
            ("start in a cone", f"{cone:g} times the spread of the outputs" if cone else "no"),
        ]
        record = {"modalities": list(names), "features": dims, "models": models}
        return Prepared(TwoTowers(*trained), pairs, train, val, asdict(shape), record, facts)

    def connected(record: Mapping[str, Any]) -> ConnectedHeads:
        return ConnectedHeads(dict(zip(names, trained, strict=True)), shape, dict(record))

    load = partial(ConnectedHeads.load, output)
    record = connect(
        output,
        _KIND,
        settings,
        asdict(shape),
        names,
        prepare,
        lambda folder, loss: connected({}).save(folder),
        load,
        usage=_USAGE,
        overwrite=overwrite,
        device=device,
        precision=precision,
        reporter=reporter,
    )
    return load() if record is None else connected(record)


def new_heads(train: PairInputs, shape: HeadShape, seed: int) -> tuple[Head, Head]:
    """Return heads fitted to the features of the training pairs, with random weights from the seed."""
    heads = []
    for side, inputs, rows in ((0, train.first, train.first_rows), (1, train.second, train.second_rows)):
        assert isinstance(inputs, FeatureInputs)
        numbers, values = np.unique(rows), inputs.values
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(seed, "head", side).integers(2**62)))
            head = Head(values.shape[1], shape)
        head.fit(values, numbers)
        if shape.cone > 0:
            own = torch.Generator().manual_seed(int(generator(seed, "cone", side).integers(2**62)))
            head.start_in_cone(inputs.rows(numbers[:_SAMPLED_ROWS]), shape.cone, own)
        heads.append(head)
    return heads[0], heads[1]


def apply_heads(
    heads: ConnectedHeads | str | Path,
    features: PairedFeatures,
    output: str | Path = "c3-connected",
    *,
    dtype: str = "float16",
    reporter: Reporter = SILENT,
) -> ImportReport:
    """Apply heads to features of both modalities, paired or not, and write a store with keys, splits and captions.

    Args:
        heads: The folder of the heads.
        features: See `read_features`.
        output: The folder of the new store.
        dtype: Number format of the embeddings on disk: float16 or float32.
        reporter: Shows messages and progress.

    Raises:
        ConnectError: if a modality has no head, another number of features, or features of another model.
        StoreError: if the store has rows of these modalities already, or the dtype is unknown.
        OutputError: if another run is writing to it.
    """
    if dtype not in ("float16", "float32"):
        raise StoreError(f"There is no dtype {dtype!r}.", remedy="Use float16 or float32.")
    heads = heads if isinstance(heads, ConnectedHeads) else ConnectedHeads.load(heads)
    modalities, digests = [], {}
    for rows in (features.first, features.second):
        heads.embed(rows.modality, rows.embeddings[:1])  # refuses other features before anything is written
        heads.check_model(rows.modality, features.models.get(rows.modality))
        modalities.append(Rows(rows.modality, heads.embed(rows.modality, rows.embeddings), rows.table))
        digests[rows.modality] = digest_of(rows.embeddings)
    model = ModelIdentity(name=HEADS_MODEL, weights_sha256=heads.sha256)
    info = StoreInfo(model=model, dim=heads.shape.dim, dtype=dtype, extra={"connected": digests})
    result = write_modalities(Path(output), info, modalities, reporter=reporter)
    return ImportReport(Path(output), result.rows, len(features), result.failures, list(features.notes))


def _blocks(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield some thousand rows at a time."""
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield rows[start : start + _BLOCK_ROWS]
