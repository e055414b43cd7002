"""Two small heads on frozen features: what `c3 connect heads` trains.

A head standardises its features by mean and spread of the train split and maps them into the joint space, by one
linear layer or by a perceptron with one hidden layer. It can start in a cone: a random offset, one per modality, on
its last layer, as the outputs of a large random CLIP tower have one. Two cones are a gap.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import ConnectError
from ..io.files import write_atomically, write_json_atomically

FORMAT_VERSION = 1
RECORD_FILE = "connect.json"
WEIGHTS_FILE = "heads.safetensors"
_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class HeadShape:
    """The architecture of both heads.

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
        if self.dim < 2 or self.hidden < 0:
            raise ConnectError(f"A head has 2 dimensions or more, not {self.dim}, and a hidden width of 0 or more.")
        if not 0 <= self.dropout < 1:
            raise ConnectError(f"Dropout is at least 0 and below 1, not {self.dropout}.")
        if not self.cone >= 0:
            raise ConnectError(f"The cone is 0 or more, not {self.cone}.")


class Head(nn.Module):
    """From features (n, e) to the joint space (n, d), not yet normalised."""

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
        """Standardise and map."""
        return self.layers((features - self.mean) / self.spread)  # type: ignore[no-any-return]

    @torch.no_grad()
    def fit(self, features: npt.NDArray[np.floating[Any]], numbers: npt.NDArray[np.int64]) -> None:
        """Take mean and spread of the rows ``numbers`` of features (n, e); a constant feature has the spread 1."""
        total = np.zeros(features.shape[1])
        for block in _blocks(numbers):
            total += features[block].sum(axis=0, dtype=np.float64)
        mean = total / len(numbers)
        squares = np.zeros(features.shape[1])
        for block in _blocks(numbers):
            squares += np.square(features[block] - mean).sum(axis=0)
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
    """A trained pair of heads, with what made it.

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
        """Digest of names, shapes and values of all weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    def feature_dim(self, modality: str) -> int:
        """How many features the head of a modality takes."""
        return len(self._head(modality).mean)

    @torch.inference_mode()
    def embed(self, modality: str, features: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """L2-normalised embeddings, float32 (n, d), of features (n, e).

        Raises:
            ConnectError: if there is no head for the modality, or it takes another number of features.
        """
        head = self._head(modality)
        if features.shape[1] != len(head.mean):
            raise ConnectError(
                f"The {modality} head takes {len(head.mean)} features per row, not {features.shape[1]}.",
                remedy="Give the features of the tower that the heads were trained on.",
            )
        blocks = [
            nn.functional.normalize(head(torch.from_numpy(block.astype(np.float32))), dim=1).numpy()
            for block in _blocks(features)
        ]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.shape.dim), np.float32)

    def save(self, folder: Path) -> None:
        """Write weights and record, each whole or not at all; the record, which has the weights' digest, last."""
        tensors = self._tensors()
        write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path))
        shape = {"modalities": list(self.names), "shape": asdict(self.shape)}
        value = {"format_version": FORMAT_VERSION, "sha256": self.sha256, **shape, "record": self.record}
        write_json_atomically(folder / RECORD_FILE, value)

    @classmethod
    def load(cls, folder: Path) -> ConnectedHeads:
        """Read what `save` wrote.

        Raises:
            ConnectError: if there is nothing, it is damaged, or the weights are not those of the record.
        """
        try:
            value = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
            if int(value["format_version"]) > FORMAT_VERSION:
                raise ConnectError(f"{folder} was written by a newer c3tools.", remedy="pip install -U c3tools")
            shape = HeadShape(**value["shape"])
            tensors = load_file(folder / WEIGHTS_FILE)
            heads = {}
            for name in value["modalities"]:
                own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
                heads[name] = Head(len(own["mean"]), shape)
                heads[name].load_state_dict(own)
            loaded = cls(heads, shape, value["record"])
        except FileNotFoundError as error:
            raise ConnectError(
                f"There are no connected heads at {folder} ({Path(error.filename or RECORD_FILE).name} is not there).",
                remedy="Train them with `c3 connect heads`.",
            ) from None
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConnectError(
                f"The heads in {folder} are damaged ({error}).", remedy="Train them again with `c3 connect heads`."
            ) from error
        if loaded.sha256 != value["sha256"]:
            raise ConnectError(
                f"The weights in {folder} are not those that its {RECORD_FILE} names.",
                remedy="Bring both files of one training back, or train again.",
            )
        return loaded

    def _head(self, modality: str) -> Head:
        if modality not in self.heads:
            raise ConnectError(f"There is no head for {modality!r}; there are {' and '.join(self.heads)}.")
        return self.heads[modality]

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": tensor.detach().contiguous()
            for name, head in self.heads.items()
            for key, tensor in head.state_dict().items()
        }


def _blocks(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield rows[start : start + _BLOCK_ROWS]
