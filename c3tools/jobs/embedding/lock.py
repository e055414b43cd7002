"""One writer at a time: a lock of the operating system in a folder, a lease in an object store.

Object stores have no locks that end with their process. There the writer puts an object ``.lock`` with a number that it
raises every few seconds. Who finds one watches it: a number that grows means that somebody is at work; one that
stands still that he is gone, and the lease is taken over. Only waiting counts, so clocks may differ.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import StoreError
from ...locations import read_all, remove, upload

LOCK_FILE = ".lock"
BEAT = 3.0  # seconds between two signs of life
PATIENCE = 15.0  # seconds without one, after which a writer is taken for dead
SETTLING = 1.0  # seconds after which of two writers that began at once the later one has won


@contextmanager
def only_writer(store: Path) -> Iterator[None]:
    """Keep a second run off the store while the block runs.

    Raises:
        StoreError: if another run is writing to it; where the store is a URL, also if another run took over.
    """
    if isinstance(store, Path):
        with _locked_folder(store):
            yield
        return
    lease = _Lease(store)
    lease.take()
    try:
        yield
    finally:
        lost = lease.end()
    if lost:
        raise StoreError(
            f"Another run took over {store} while this one was cut off from it.",
            remedy="Run the same command again when the other has ended: it embeds what is missing.",
        )


@contextmanager
def _locked_folder(store: Path) -> Iterator[None]:
    """The lock goes with the process, however it ends."""
    with (store / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _taken(store) from None
        yield


def _taken(store: Path) -> StoreError:
    return StoreError(f"Another run is writing to {store}.", remedy="Wait for it to end, or use another --store.")


class _Lease:
    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = store / LOCK_FILE
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def take(self) -> None:
        """Take the lease, after a while if the one before did not give it back."""
        found = self._read()
        waited = time.monotonic()
        while found is not None and time.monotonic() - waited < PATIENCE:
            time.sleep(BEAT / 3)
            now = self._read()
            if now is not None and now != found:
                raise _taken(self._store)
            found = now
        self._write()
        time.sleep(SETTLING)
        if not self._is_own():
            raise _taken(self._store)
        self._thread.start()

    def end(self) -> bool:
        """Give the lease back; whether it was another's by then."""
        self._stop.set()
        self._thread.join()
        if not self._lost:
            with suppress(OSError):
                remove(self._path)
        return self._lost

    def _keep(self) -> None:
        while not self._stop.wait(BEAT):
            with suppress(OSError):  # cut off for a while
                if not self._is_own():
                    self._lost = True
                    return
                self._beat += 1
                self._write()

    def _is_own(self) -> bool:
        content = self._read()
        return content is not None and self._token.encode() in content

    def _read(self) -> bytes | None:
        try:
            return read_all(self._path)
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        who = {"token": self._token, "beat": self._beat, "host": platform.node(), "process": os.getpid()}
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / LOCK_FILE
            local.write_text(json.dumps(who), encoding="utf-8")
            upload(local, self._path)
