"""The reporter: messages, progress and scalars of long-running functions.

Library functions send messages and progress to a ``reporter``; the default one ignores them. The
commands pass a `TerminalReporter` (terminal.py). This file imports nothing else, so that numpy-only
code can use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Progress:
    """The progress of one piece of work: this one shows nothing."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more items as done; ``note`` replaces the text behind the bar."""

    def resume(self, count: int, note: str | None = None) -> None:
        """Count the items that an earlier run has done; the rate and the time that is left do not
        depend on them.
        """
        self.advance(count, note)


class Reporter:
    """Receives messages and progress from long-running functions. This base class ignores them."""

    def message(self, text: str) -> None:
        """Show a message to the user."""

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        """Show the progress of the block.

        Args:
            label: a short description of the work, for the user.
            total: number of items; None if it is unknown.
        """
        yield Progress()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Record one value, such as a loss, at one optimiser step."""


SILENT = Reporter()


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, as messages say it: ``1 image``, ``2,000 images``; ``plural``
    is noun + s.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def counted_rows(rows: Mapping[str, int]) -> str:
    """Return numbers of rows by modality, as messages say them: ``2 image, 4 text rows``."""
    return ", ".join(f"{count:,} {modality}" for modality, count in rows.items()) + " rows"
