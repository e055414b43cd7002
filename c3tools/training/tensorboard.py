"""Scalars for TensorBoard (the extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError
from ..reporter import Progress, Reporter


class TensorBoardReporter(Reporter):
    """A reporter that also writes scalars as TensorBoard events; the rest goes to another reporter.

    Args:
        writer: a ``SummaryWriter`` of torch.
        reporter: shows messages, progress and scalars as well.
    """

    def __init__(self, writer: Any, reporter: Reporter) -> None:
        self._writer, self._reporter = writer, reporter

    def message(self, text: str) -> None:
        """Show one line."""
        self._reporter.message(text)

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        """Show the progress of the block."""
        with self._reporter.progress(label, total) as progress:
            yield progress

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write one value."""
        self._writer.add_scalar(name, value, step)
        self._reporter.scalar(name, value, step)


@contextmanager
def tensorboard(folder: str | Path | None, reporter: Reporter) -> Iterator[Reporter]:
    """Open a reporter that also writes event files to ``folder``; without a folder, give ``reporter`` itself.

    Raises:
        MissingExtraError: if tensorboard is not installed.
    """
    if folder is None:
        yield reporter
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", extra="tensorboard", purpose="--tensorboard") from error
    with SummaryWriter(str(folder)) as writer:
        yield TensorBoardReporter(writer, reporter)
