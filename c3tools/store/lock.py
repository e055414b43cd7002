"""One writer at a time: a lock of the operating system in a folder, a lease in an object store."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError
from .lease import LOCK_FILE, Lease, taken

_held: set[int] = set()  # descriptors of the locks of this process


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Keep other writers off a store while the block runs.

    A lock in a folder goes with the process, however it ends, and whatever processes it has forked live on; the folder
    is made where it is not there.

    Raises:
        StoreError: if another run is writing to it, it cannot be written, or a file is in the way; where the store is
            a URL, also if another run took over.
    """
    with _locked_folder(store) if isinstance(store, Path) else _leased(store):
        yield


@contextmanager
def _leased(store: Path) -> Iterator[None]:
    lease = Lease(store)
    lease.take()
    try:
        yield
    finally:
        lost = lease.end()
    if lost:
        raise StoreError(
            f"Another run took over {store} while this one was cut off from it.",
            remedy="Run the same command again when the other has ended: it adds what is missing.",
        )


@contextmanager
def _locked_folder(store: Path) -> Iterator[None]:
    try:
        store.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StoreError(f"{store} is a file, not a folder.", remedy="Name another store with --store.") from None
    try:
        # never through a link: opening it for writing would touch a file elsewhere
        descriptor = os.open(store / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StoreError(
            f"The lock {store / LOCK_FILE} cannot be opened ({error.strerror}).",
            remedy="Make the folder writable; if the lock is a link, remove it.",
        ) from error
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise taken(store) from None
        yield
    finally:
        if descriptor in _held:  # not in a forked process
            _held.remove(descriptor)
            os.close(descriptor)


def _let_go() -> None:
    """Close what a fork has inherited: a lock lasts until the last copy of its descriptor is closed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
