"""One writer at a time: a lock of the operating system in a folder, a lease in an object store.

Object stores have no locks that end with their process. There the writer keeps an object ``.lock`` with a number that
it raises every few seconds. A second writer watches that number: while it grows, the first one is at work; when it
stands still, the first one is gone and the lease is taken over. Only durations are compared, so clocks may differ.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreError
from ..io.locations import read_all, remove, write_all

LOCK_FILE = ".lock"
HEARTBEAT_THREAD = "heartbeat of a lease"
HEARTBEAT = 3.0  # seconds between two signs of life
PATIENCE = 15.0  # seconds without one, after which a writer is taken for dead
SETTLING = 1.0  # seconds after which, of two writers that began at once, the later one has won

_held: set[int] = set()  # descriptors of the locks of this process


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Keep other writers off a store while the block runs.

    A lock in a folder ends with its process, however that ends, even if processes it has forked live on. The folder is
    made if it does not exist.

    Raises:
        StoreError: if another run is writing to the store, it cannot be written, or a file is in the way; for a URL
            also if another run took over.
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
            raise _taken(store) from None
        yield
    finally:
        if descriptor in _held:  # not in a forked process
            _held.remove(descriptor)
            os.close(descriptor)


def _close_inherited_locks() -> None:
    """Close the locks that a forked process inherits: a lock lasts until its last descriptor is closed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_inherited_locks)


def _taken(store: Path) -> StoreError:
    return StoreError(f"Another run is writing to {store}.", remedy="Wait for it to end, or use another --store.")


class Lease:
    """The right to write to a store at a URL, kept up by a thread.

    Args:
        store: the URL.
        sleep: waits a number of seconds.
        clock: returns seconds; only differences count.
    """

    def __init__(
        self, store: Path, *, sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._path = store / LOCK_FILE
        self._sleep, self._clock = sleep, clock
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._keep_up, name=HEARTBEAT_THREAD, daemon=True)

    def take(self) -> None:
        """Take the lease; wait first if another writer has it and shows no sign of life.

        Raises:
            StoreError: if another writer is alive.
        """
        found = self._read()
        started = self._clock()
        while found is not None and self._clock() - started < PATIENCE:
            self._sleep(HEARTBEAT / 3)
            now = self._read()
            if now is not None and now != found:
                raise _taken(self._store)
            found = now
        self._write()
        self._sleep(SETTLING)
        if not self._is_own():
            raise _taken(self._store)
        self._thread.start()

    def end(self) -> bool:
        """Give the lease back; return whether another writer had taken it over."""
        self._stop.set()
        self._thread.join()
        if not self._lost:
            with suppress(OSError):
                remove(self._path)
        return self._lost

    def beat(self) -> None:
        """Give a sign of life, unless another writer has taken over."""
        if self._is_own():
            self._beat += 1
            self._write()
        else:
            self._lost = True

    def _keep_up(self) -> None:
        while not self._lost and not self._stop.wait(HEARTBEAT):
            with suppress(OSError):  # unreachable for a while
                self.beat()

    def _is_own(self) -> bool:
        content = self._read()
        return content is not None and self._token.encode() in content

    def _read(self) -> bytes | None:
        try:
            return read_all(self._path)
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        owner = {"token": self._token, "beat": self._beat, "host": platform.node(), "process": os.getpid()}
        write_all(self._path, json.dumps(owner).encode())
