"""The one progress display: what is done, of how much, how fast, how long still, how many failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class Tracker(Protocol):
    """What long-running functions report to."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Say that ``count`` more items are done; ``note`` replaces the text behind the bar."""

    def expect(self, total: int) -> None:
        """Say how many items there will be, where that was not known at the start."""


class SilentTracker:
    """Reports nowhere: the default of every library function."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Do nothing."""

    def expect(self, total: int) -> None:
        """Do nothing."""


def _rigid() -> Column:
    return Column(no_wrap=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class _NoteColumn(ProgressColumn):
    """The only column that gives way where the terminal is narrow."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields["note"]), style="dim", no_wrap=True, overflow="ellipsis")


class _BarTracker:
    def __init__(self, progress: Progress, task: int) -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: int = 1, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self._progress.update(self._task, advance=count, **fields)  # type: ignore[arg-type]

    def expect(self, total: int) -> None:
        self._progress.update(self._task, total=total)  # type: ignore[arg-type]


@contextmanager
def track(label: str, total: int | None, *, console: Console | None = None) -> Iterator[Tracker]:
    """Show a progress bar on standard error while the block runs.

    Args:
        label: what is being done, as the user would say it.
        total: number of items, or None when it is not known.
        console: where to draw; standard error by default, so that standard output stays clean.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20, table_column=_rigid()),
        MofNCompleteColumn(table_column=_rigid()),
        _RateColumn(table_column=_rigid()),
        TimeElapsedColumn(table_column=_rigid()),
        TextColumn("eta"),
        TimeRemainingColumn(table_column=_rigid()),
        _NoteColumn(),
        console=console or Console(stderr=True),
    )
    with progress:
        yield _BarTracker(progress, progress.add_task(label, total=total, note=""))
