"""The base of encoder backends, and the probe that tells whether one computes what torch does."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..arrays import Matrix
from ..assets.paths import PHOTOS
from ..devices import Compute
from ..errors import MissingExtraError
from .encoder import Modality, ModelFacts

if TYPE_CHECKING:
    from torch import nn

AUTO = "auto"
AGREEMENT = 0.999  # least cosine of an embedding with that of torch in fp32
PROBE_TEXTS = (
    "a dog runs on the grass",
    "two people at a table",
    "an old red train in the snow",
    "food",
)
# photos, since random images are rounded by other amounts
PROBE_PHOTOS = [
    PHOTOS / f"images/{number:012d}.jpg" for number in (285, 785, 790, 872, 885, 1296, 2149, 2473)
]


class EncoderBackend(ABC):
    """A library that runs models of open_clip; an instance runs one model.

    A new backend is a subclass in a file of its own and a row in `c3tools.encoders.backends`. It
    also fulfils `c3tools.encoders.encoder.Backend`. It computes the embeddings that torch computes
    (cosine at least ``AGREEMENT``), since a store may have rows of several backends.

    Attributes:
        name: the value of ``--backend``.
        devices: where it runs, for users.
        module: the module that has to be installed; None if it is always there.
        extra: the extra of c3tools that installs it.
        reads_graphs: whether it runs ONNX graphs, as the bundled model has; see `from_graphs`.
        compute: device and precision.
        ahead: how many further batches to submit before waiting for the first.
    """

    name: ClassVar[str]
    devices: ClassVar[str]
    module: ClassVar[str | None] = None
    extra: ClassVar[str] = ""
    reads_graphs: ClassVar[bool] = False
    compute: Compute
    ahead: int

    @classmethod
    def is_installed(cls) -> bool:
        """Return whether the library is installed."""
        return cls.module is None or importlib.util.find_spec(cls.module) is not None

    @classmethod
    def require_installed(cls) -> None:
        """Refuse to go on without the library.

        Raises:
            MissingExtraError: if it is not installed.
        """
        if cls.module is not None and not cls.is_installed():
            raise MissingExtraError(cls.module, extra=cls.extra, purpose=f"The backend {cls.name}")

    @classmethod
    @abstractmethod
    def runs_on(cls, device_type: str) -> bool:
        """Return whether the library runs models on a device: ``cpu``, ``cuda`` or ``mps``."""

    @classmethod
    @abstractmethod
    def precisions(cls) -> tuple[str, ...]:
        """Return the precisions in which the installed library computes on this machine."""

    @classmethod
    @abstractmethod
    def convert(cls, model: nn.Module, facts: ModelFacts, compute: Compute, precision: str) -> Self:
        """Prepare a model to be run.

        Args:
            model: open_clip's module in float32. The backend may keep and change it, but leaves it
                as it was if it raises an error.
            facts: describe the model.
            compute: device and precision to run it on; for ``auto`` the device's own precision,
                which may be one that `precisions` lacks: then choose another.
            precision: as the user asked for it. For ``auto`` the result is in float32 if the
                embeddings of the probe agree too little (`AGREEMENT`) in the device's own.

        Raises:
            EncoderError: if the model cannot be converted, or its embeddings differ too much.
            MissingExtraError: if a package that the precision needs is not installed.
        """

    @classmethod
    def from_graphs(
        cls, graphs: Mapping[Modality, Path], facts: ModelFacts, compute: Compute, precision: str
    ) -> Self:
        """Run the ONNX graphs of the bundled model, which saves loading torch.

        It is called only if `reads_graphs` is True.

        Args:
            graphs: a file for each tower.
            facts: see `convert`.
            compute: see `convert`; the model's embeddings in bf16 are known to agree.
            precision: see `convert`.
        """
        raise NotImplementedError

    @abstractmethod
    def submit(self, modality: Modality, batch: Any) -> Callable[[], Matrix]:
        """Start a batch; see `c3tools.encoders.encoder.Backend`."""


def agrees(cosine: float) -> bool:
    """Return whether a cosine with the embedding by torch in fp32 is high enough; NaN is not."""
    return cosine >= AGREEMENT
