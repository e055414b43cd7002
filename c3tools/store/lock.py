"""One writer at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError

LOCK_FILE = ".lock"


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Keep other writers off a store while the block runs; the lock goes with the process, however it ends.

    The folder is made where it is not there.

    Raises:
        StoreError: if another run is writing to it, it cannot be written, or a file is in the way.
    """
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
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(
                f"Another run is writing to {store}.", remedy="Wait for it to end, or use another --store."
            ) from None
        yield
    finally:
        os.close(descriptor)
