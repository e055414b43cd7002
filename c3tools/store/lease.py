"""One writer at a time in an object store, by a lease.

Object stores have no locks that end with their process. So the writer puts an object ``.lock`` with a number that it
raises every few seconds. Who finds one watches it: a number that grows means that somebody is at work; one that
stands still that he is gone, and the lease is taken over. Only waiting counts, so clocks may differ.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from ..errors import StoreError
from ..io.locations import read_all, remove, write_all

LOCK_FILE = ".lock"
BEAT = 3.0  # seconds between two signs of life
PATIENCE = 15.0  # seconds without one, after which a writer is taken for dead
SETTLING = 1.0  # seconds after which of two writers that began at once the later one has won


def taken(store: Path) -> StoreError:
    """What a second writer is told."""
    return StoreError(f"Another run is writing to {store}.", remedy="Wait for it to end, or use another --store.")


class Lease:
    """The right to write to a store behind a URL, kept up by a thread."""

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
                raise taken(self._store)
            found = now
        self._write()
        time.sleep(SETTLING)
        if not self._is_own():
            raise taken(self._store)
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
        write_all(self._path, json.dumps(who).encode())
