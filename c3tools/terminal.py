"""Write to the terminal: text without control characters, and progress as a bar in a
terminal, as occasional lines elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .reporter import Progress, Reporter

CONTROL_CHARACTERS = frozenset(
    code
    for first, last in (
        # C0, DEL and C1 but tabs and line ends: ESC, for example, begins a command to the terminal
        (0x00, 0x08),
        (0x0B, 0x1F),
        (0x7F, 0x9F),
        # Format characters that reorder or hide text; not the joiners (U+200C and U+200D), which
        # Persian and emoji need
        (0xAD, 0xAD),
        (0x61C, 0x61C),
        (0x180E, 0x180E),
        (0x200B, 0x200B),
        (0x200E, 0x200F),
        (0x2028, 0x202E),
        (0x2060, 0x206F),
        (0xFEFF, 0xFEFF),
        (0xFFF9, 0xFFFB),
        (0xE0000, 0xE007F),
    )
    for code in range(first, last + 1)
)
"""Of Unicode; no terminal gets them in a text, since texts may be those of strangers."""
_REMOVED = dict.fromkeys(CONTROL_CHARACTERS)
_SECONDS_BETWEEN_LINES = 30  # of progress, where there is no terminal


class SafeConsole(Console):
    """A console that leaves out control characters of texts, which may be those of strangers."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield the pieces of what is printed; commands to the terminal are rich's own alone."""
        for piece in super().render(renderable, options):
            if piece.control:
                yield piece
            else:
                yield Segment(piece.text.translate(_REMOVED), piece.style)


class TerminalReporter(Reporter):
    """Writes messages and progress to standard error, so that standard output contains only
    results.

    Args:
        console: where to write; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or SafeConsole(stderr=True, soft_wrap=True)

    def message(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, markup=False)

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        """Draw a bar in a terminal; elsewhere print a line every 30 seconds, and one at the end if
        any was printed.
        """
        line_seconds = math.inf if self.console.is_terminal else _SECONDS_BETWEEN_LINES
        work = _Work(self, label, total, line_seconds)
        if not self.console.is_terminal:
            yield work
            work.finish()
            return
        from rich.live import Live

        with Live(get_renderable=work.bar, console=self.console, refresh_per_second=5) as live:
            try:
                yield work
            except BaseException:
                live.transient = work.done == 0  # an error at the start leaves no bar
                raise


class _Work(Progress):
    """The progress of one piece of work, as lines for a log or a bar for a terminal."""

    def __init__(
        self, reporter: TerminalReporter, label: str, total: int | None, line_seconds: float
    ) -> None:
        self._reporter = reporter
        self._label = label
        self._total = total
        self._line_seconds = line_seconds
        self.done = 0
        self._done_earlier = 0  # by a run that this one continues
        self._printed = 0  # as the last line said
        self._note = ""
        self._started = time.monotonic()
        self._last_line = self._started

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count items as done, and print a line if one is due."""
        self.done += count
        if note is not None:
            self._note = note
        if time.monotonic() - self._last_line >= self._line_seconds:
            self._print()

    def resume(self, count: int, note: str | None = None) -> None:
        """Count items that an earlier run has done."""
        self._done_earlier += count
        self.advance(count, note)

    def finish(self) -> None:
        """Print the last line; nothing if the work ended before the first line was due."""
        if self._last_line > self._started and self._printed < self.done:
            self._print()

    def bar(self) -> Table:
        """Return label, bar, numbers and note; the numbers and the note are cut in a narrow
        terminal.
        """
        cells: list[RenderableType] = [Text(self._label)]
        if self._total is not None:
            cells.append(ProgressBar(self._total, self.done, width=10))
        cells.append(Text(self._numbers(), no_wrap=True, overflow="ellipsis"))
        grid = Table.grid(padding=(0, 1))
        grid.add_row(*cells)
        return grid

    def _print(self) -> None:
        self._last_line = time.monotonic()
        self._printed = self.done
        self._reporter.message(f"{self._label}: {self._numbers()}")

    def _numbers(self) -> str:
        """Return items, rate, times and note, as in ``3 of 8, 1.5/s, 0:00:02 elapsed``."""
        elapsed = time.monotonic() - self._started
        rate = (self.done - self._done_earlier) / max(elapsed, 1e-9)
        parts = [f"{self.done:,}" if self._total is None else f"{self.done:,} of {self._total:,}"]
        parts.append(f"{rate:,.1f}/s" if rate >= 1 else f"{rate:.2g}/s")
        parts.append(f"{timedelta(seconds=round(elapsed))} elapsed")
        if self._total is not None and rate > 0 and self.done < self._total:
            seconds_left = (self._total - self.done) / rate
            parts.append(f"eta {timedelta(seconds=round(seconds_left))}")
        if self._note:
            parts.append(self._note)
        return ", ".join(parts)
