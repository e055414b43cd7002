"""The reporter for the terminal: progress bars in a terminal, occasional lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from .reporter import Progress, Reporter

LINE_SECONDS = 30.0
BAR_SECONDS = 0.5


class TerminalReporter(Reporter):
    """Writes messages and progress to standard error, so that standard output only has results.

    Args:
        console: where to write; standard error by default.
        line_seconds: seconds between two lines of progress, if the console is not a terminal.
        bar_seconds: seconds before a progress bar is drawn, in a terminal.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        line_seconds: float = LINE_SECONDS,
        bar_seconds: float = BAR_SECONDS,
    ) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True)
        self.line_seconds = line_seconds
        self.bar_seconds = bar_seconds

    def message(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, markup=False)

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        """Draw a bar in a terminal; elsewhere print a line every `line_seconds`, and one at the end."""
        if not self.console.is_terminal:
            lines = _Lines(self.console, label, total, self.line_seconds)
            yield lines
            lines.finish()
            return
        known = (
            BarColumn(bar_width=20, table_column=_rigid()),
            MofNCompleteColumn(table_column=_rigid()),
            _RateColumn(table_column=_rigid()),
            TimeElapsedColumn(table_column=_rigid()),
            TextColumn("eta"),
            TimeRemainingColumn(table_column=_rigid()),
        )
        unknown = (
            TextColumn("{task.completed:,}", table_column=_rigid()),
            _RateColumn(table_column=_rigid()),
            TimeElapsedColumn(table_column=_rigid()),
        )
        columns = unknown if total is None else known
        bars = Bars(TextColumn("{task.description}"), *columns, _NoteColumn(), console=self.console)
        # an error at the start, as for a wrong setting, would leave the bar of work that never began
        timer = threading.Timer(self.bar_seconds, bars.start)
        timer.daemon = True
        timer.start()
        done = False
        try:
            yield _Bar(bars, label, total)
            done = True
        finally:
            timer.cancel()
            timer.join()
            if done and not bars.live.is_started:
                bars.start()  # shows where it ended
            bars.stop()


class _Bar(Progress):
    def __init__(self, bars: Bars, label: str, total: int | None) -> None:
        self._bars = bars
        self._task = bars.add_task(label, total=total, note="")

    def advance(self, count: int = 1, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self._bars.update(self._task, advance=count, **fields)  # type: ignore[arg-type]


class _Lines(Progress):
    """Progress for a log; nothing is printed if the work ends before the first line is due."""

    def __init__(self, console: Console, label: str, total: int | None, seconds: float) -> None:
        self._console, self._label, self._total, self._seconds = console, label, total, seconds
        self._earlier, self._done, self._printed, self._note = 0, 0, 0, ""
        self._started = self._last = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self._done += count
        self._note = self._note if note is None else note
        if time.monotonic() - self._last >= self._seconds:
            self._print()

    def resume(self, count: int, note: str | None = None) -> None:
        self._earlier += count
        self._printed += count
        self.advance(count, note)

    def finish(self) -> None:
        if self._last > self._started and self._printed < self._done:
            self._print()

    def _print(self) -> None:
        self._last, self._printed = time.monotonic(), self._done
        elapsed = self._last - self._started
        rate = (self._done - self._earlier) / max(elapsed, 1e-9)
        parts = [f"{self._label}: {self._done:,}" + ("" if self._total is None else f" of {self._total:,}")]
        parts += [_rate(rate), f"{_duration(elapsed)} elapsed"]
        if self._total is not None and rate > 0 and self._done < self._total:
            parts.append(f"eta {_duration((self._total - self._done) / rate)}")
        parts += [self._note] if self._note else []
        self._console.print(", ".join(parts), highlight=False, markup=False)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else _rate(speed), style="progress.data.speed")


class _NoteColumn(ProgressColumn):
    """The only column that becomes narrower in a narrow terminal."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields["note"]), style="dim", no_wrap=True, overflow="ellipsis")


def _rigid() -> Column:
    return Column(no_wrap=True)


def _rate(rate: float) -> str:
    return f"{rate:,.1f}/s" if rate >= 1 or rate == 0 else f"{rate:.2g}/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
