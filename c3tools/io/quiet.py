"""Keep what libraries in C write to standard error for the message of the error that follows."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_MOST_BYTES = 1 << 14  # of what a library writes; what goes beyond the room of the pipe is lost
_MOST_NOTES = 4
_lock = threading.Lock()
_blocks = 0  # that are being run, in all threads
_kept: tuple[int, int, TextIO] | None = None  # the pipe's end, the real standard error, and Python's own


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what libraries write to standard error in the block; an exception gets the first lines as its notes.

    libtiff and libjpeg write a line for every tag they find odd. Python's own standard error goes on as it is, from all
    threads. Where several threads are in such a block, the lines go to the first that fails.
    """
    _begin()
    try:
        yield
    except Exception as error:
        for line in _lines()[:_MOST_NOTES]:
            error.add_note(line)
        raise
    finally:
        _end()


def _begin() -> None:
    global _blocks, _kept  # noqa: PLW0603 - descriptor 2 is one for the whole process
    with _lock:
        _blocks += 1
        if _blocks > 1 or os.name != "posix" or sys.stderr is None:
            return
        try:
            real = os.dup(2)
        except OSError:  # closed
            return
        read, write = os.pipe()
        for end in (read, write):
            os.set_blocking(end, False)  # a full pipe loses lines, and nobody waits
        os.dup2(write, 2)
        os.close(write)
        _kept = read, real, sys.stderr
        if _is_descriptor(sys.stderr, 2):
            sys.stderr.flush()
            sys.stderr = os.fdopen(
                real, "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1, closefd=False
            )


def _end() -> None:
    global _blocks, _kept  # noqa: PLW0603
    with _lock:
        _blocks -= 1
        if _blocks or _kept is None:
            return
        read, real, stderr = _kept
        _kept = None
        if sys.stderr is not stderr:
            sys.stderr.flush()
            sys.stderr = stderr
        os.dup2(real, 2)
        os.close(real)
        os.close(read)


def _lines() -> list[str]:
    """Return the distinct lines that were collected so far."""
    with _lock:
        try:
            content = os.read(_kept[0], _MOST_BYTES) if _kept is not None else b""
        except BlockingIOError:
            content = b""
    return list(dict.fromkeys(line.strip() for line in content.decode(errors="replace").splitlines() if line.strip()))


def _is_descriptor(file: TextIO, number: int) -> bool:
    try:
        return file.fileno() == number
    except (OSError, ValueError):
        return False
