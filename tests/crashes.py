"""Kill a function at one of its operations on files, as `kill -9` does, or let the operation
fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_listener: Callable[[str, Path], None] | None = None
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if (
        _listener is None
        or not arguments
        or not isinstance(arguments[0], str | bytes | os.PathLike)
    ):
        return
    if event in _CHANGES or (event == "open" and (arguments[2] or 0) & _WRITING):
        _listener(event, Path(os.path.join(os.getcwd(), os.fsdecode(arguments[0]))))  # noqa: PTH109, PTH118


@contextmanager
def at_operation(folder: Path, number: int, act: Callable[[Path], None]) -> Iterator[list[str]]:
    """Call ``act`` before the operation of this number below a folder; what is yielded lists all of
    them."""
    global _listener, _installed  # noqa: PLW0603
    if not _installed:
        sys.addaudithook(_hook)  # it stays for the life of the process
        _installed = True
    done: list[str] = []

    def listen(event: str, path: Path) -> None:
        if path.is_relative_to(folder):
            done.append(f"{event} {path.relative_to(folder)}")
            if len(done) == number + 1:
                act(path)

    _listener = listen
    try:
        yield done
    finally:
        _listener = None


def operations(folder: Path, run: Callable[[], object]) -> list[str]:
    """Run a function, and return its operations on files below a folder."""
    with at_operation(folder, -1, lambda path: None) as done:
        run()
    return done


def kill_at(folder: Path, number: int, run: Callable[[], object]) -> bool:
    """Run a function in a forked process that ends at the operation of this number; return whether
    it got there."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with at_operation(folder, number, lambda path: os._exit(9)):
                run()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), f"the process ended with {status}"
    return status == 9


def fail_at(folder: Path, number: int, error: int, run: Callable[[], object]) -> None:
    """Run a function whose operation of this number fails with an error of the operating system."""

    def fail(path: Path) -> None:
        raise OSError(error, os.strerror(error), str(path))

    with at_operation(folder, number, fail):
        run()
