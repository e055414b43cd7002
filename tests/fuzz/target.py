"""A reader, and the files that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from c3tools.errors import C3Error

from .mutations import Mutation


@dataclass(frozen=True)
class Target:
    """A reader, and a valid input of it.

    Attributes:
        name: for the table.
        make: writes the valid files into a folder.
        vary: files that are changed, one a run, and how.
        read: reads the folder; may raise a C3Error and nothing else.
        agree: makes checksums agree with the changed files, so that what lies behind them is reached.
        share: how many of a thousand runs it gets.
    """

    name: str
    make: Callable[[Path], object]
    vary: Mapping[str, tuple[Mutation, ...]]
    read: Callable[[Path], object]
    agree: Callable[[Path], None] | None = None
    share: int = 10


def file(name: str, content: bytes) -> Callable[[Path], object]:
    """Return what writes a file into a folder."""
    return lambda folder: (folder / name).write_bytes(content)


def every(reads: Sequence[Callable[[], object]]) -> None:
    """Read in several ways; the first refusal is raised when all had their turn."""
    refusal = None
    for read in reads:
        try:
            read()
        except C3Error as error:
            refusal = refusal or error
    if refusal is not None:
        raise refusal
