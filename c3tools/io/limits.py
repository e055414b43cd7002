"""Limits of every reader: how much memory a file may take.

One rule: memory grows with what a file has on the disk, never with what it declares. A value has a
largest size, by its kind; what is packed may unpack to so many times the size of the file; and a
file that is read as a whole has a largest size. A file that breaks the rule ends in a
`TooLargeError` before its content is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, AnyStr

LARGEST_IMAGE_FILE = 1 << 28  # bytes of one image, in a file, a tar, a table or fetched
LARGEST_DECODED = 600 << 20  # bytes of an image's pixels and of what its decoder keeps beside them
LARGEST_TEXT = 1 << 24  # bytes of a line, of a text in a tar, of a text in a table
LARGEST_JSON = 1 << 29  # bytes of a file of JSON, which is read as a whole
# what is packed may unpack to this many bytes whatever the size of its file, and else to this many
# times that size
UNPACKED_OF_ANY_FILE = 1 << 26
MOST_UNPACKED = 100


class TooLargeError(ValueError):
    """A file would take more memory than a file of its size may."""


def check_unpacked(what: str, unpacked: int, size: int) -> None:
    """Refuse what would take far more memory than its file of ``size`` bytes has any reason to.

    Raises:
        TooLargeError: with both sizes in bytes.
    """
    if unpacked > _most_unpacked(size):
        raise TooLargeError(
            f"{what} unpacks to {unpacked:,} bytes, but the file has {size:,} bytes"
        )


def _most_unpacked(size: int) -> int:
    return max(UNPACKED_OF_ANY_FILE, MOST_UNPACKED * size)


@contextmanager
def refusing_excess(path: Path) -> Iterator[None]:
    """Tell a file that asks for too much memory, as a damaged one may, from a machine with too
    little.

    Raises:
        TooLargeError: if memory ran out in the block, but what a file of this size may take is
            free.
        MemoryError: if that is not free either.
    """
    try:
        yield
    except MemoryError:
        size = path.stat().st_size
        bytearray(_most_unpacked(size))
        raise TooLargeError(f"it asks for far more memory than its {size:,} bytes need") from None


def limited_lines(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """Yield the lines of a binary or text file, with their ends.

    Raises:
        TooLargeError: at a line of more than `LARGEST_TEXT` bytes or letters.
    """
    number = 0
    while line := file.readline(LARGEST_TEXT + 1):
        number += 1
        if len(line) > LARGEST_TEXT:
            raise TooLargeError(f"line {number:,} has more than {LARGEST_TEXT:,} bytes")
        yield line
