"""The common part of the backends for converted models: several batches at a time, each on one thread of a CPU.

Each batch is computed by one thread, so the result does not depend on their number.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from abc import abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...arrays import Matrix
from ...devices import Compute
from ...errors import MissingExtraError
from .base import Backend, Modality

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1  # of converted models: raised when the graphs of the same weights change


class ConvertedBackend(Backend):
    """Towers that were converted from torch, in a folder.

    Args:
        folder: contains what `convert` wrote, or the towers as image.onnx and text.onnx.
        compute: device and precision.
        threads: batches computed at a time.

    Attributes:
        folder: what was opened.
        packages: what has to be installed, the one that runs the model first.
    """

    packages: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path, compute: Compute, threads: int) -> None:
        self.folder = folder
        self.compute = compute
        self.ahead = threads
        self._open_tower = cache(partial(self._open, folder, threads))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="c3-encoder")

    def submit(self, modality: Modality, batch: Any) -> Future[Matrix]:
        """Start a batch on a free thread."""
        return self._pool.submit(self._compute, self._open_tower(modality), np.ascontiguousarray(np.asarray(batch)))

    @classmethod
    def is_installed(cls) -> bool:
        """Return whether the packages are installed."""
        return all(importlib.util.find_spec(name) for name in cls.packages)

    @classmethod
    def require_installed(cls) -> None:
        """Raise a MissingExtraError that names the extra, if a package is not installed."""
        for name in cls.packages:
            if not importlib.util.find_spec(name):
                raise MissingExtraError(name, extra=cls.name, purpose=f"--backend {cls.name}")

    @classmethod
    def version(cls) -> str:
        """Return the version of the package that runs the model."""
        return importlib.metadata.version(cls.packages[0])

    @classmethod
    @abstractmethod
    def precisions(cls) -> tuple[str, ...]:
        """Return the precisions that this CPU computes in natively."""

    @classmethod
    def convert(cls, towers: dict[Modality, nn.Module], examples: dict[Modality, Tensor], folder: Path) -> None:
        """Write towers to a folder; examples have a batch of two, and any number may be run later."""
        import torch

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns of every size that it takes for a constant
            for modality, tower in towers.items():
                cls._convert(tower, examples[modality], folder, modality)

    @classmethod
    @abstractmethod
    def _convert(cls, tower: nn.Module, example: Tensor, folder: Path, modality: Modality) -> None: ...

    @abstractmethod
    def _open(self, folder: Path, threads: int, modality: Modality) -> Any: ...

    @abstractmethod
    def _compute(self, tower: Any, batch: np.ndarray[Any, Any]) -> Matrix: ...
