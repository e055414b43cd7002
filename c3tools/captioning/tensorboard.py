"""Losses for TensorBoard (the extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MissingExtraError
from .training import Recorder


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Recorder | None]:
    """A recorder that writes event files to ``folder``; None where ``folder`` is.

    Raises:
        MissingExtraError: if tensorboard is not installed.
    """
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", extra="tensorboard", purpose="--tensorboard") from error
    with SummaryWriter(str(folder)) as writer:
        yield _Writer(writer)


class _Writer:
    def __init__(self, writer: object) -> None:
        self._writer = writer

    def scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)  # type: ignore[attr-defined]
