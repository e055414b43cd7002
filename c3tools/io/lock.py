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
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .files import make_folder, remove_leftovers
from .locations import read_all, remove, write_all

LOCK_FILE = ".lock"
HEARTBEAT_THREAD = "heartbeat of a lease"
HEARTBEAT = 3.0  # seconds between two signs of life
PATIENCE = 15.0  # seconds without one, after which a writer is taken for dead
SETTLING = 1.0  # seconds after which, of two writers that began at once, the later one has won
_OWNER_BYTES = 4096

_held: set[int] = set()  # descriptors of the locks of this process


@contextmanager
def locked(folder: Path, output: Path | None = None) -> Iterator[None]:
    """Keep other writers off a folder while the block runs.

    A lock in a folder ends with its process, however that ends, even if processes it has forked live on. It leaves
    nothing behind: the folder is made if it does not exist, and removed again if nothing is written to it.

    Args:
        folder: a folder, or a URL, that the lock is kept in.
        output: what the user knows the result as, for messages; None for the folder itself.

    Raises:
        OutputError: if another run is writing, with its process, host and start; if the folder cannot be written, or a
            file is in the way; for a URL also if another run took over.
    """
    shown = output or folder
    with _locked_folder(folder, shown) if isinstance(folder, Path) else _leased(folder, shown):
        yield


@contextmanager
def _leased(folder: Path, shown: Path) -> Iterator[None]:
    lease = Lease(folder, shown)
    lease.take()
    try:
        yield
    finally:
        lost = lease.end()
    if lost:
        raise OutputError(
            f"This run lost its connection to {shown}, and another run took over.",
            remedy="Run the same command again after the other run has finished, to add what is missing.",
        )


@contextmanager
def _locked_folder(folder: Path, shown: Path) -> Iterator[None]:
    made = not folder.exists()
    descriptor = _lock(folder, shown)
    _held.add(descriptor)
    try:
        remove_leftovers(folder)  # of a run that was killed: no other is writing now
        yield
    finally:
        if descriptor in _held:  # not in a forked process
            with suppress(OSError):
                if is_at(folder / LOCK_FILE, descriptor):
                    (folder / LOCK_FILE).unlink()
                if made:
                    folder.rmdir()  # unless something was written
            _held.remove(descriptor)
            os.close(descriptor)


def _lock(folder: Path, shown: Path) -> int:
    """Return the descriptor of the lock in a folder, taken by this process."""
    path = folder / LOCK_FILE
    while True:
        try:
            make_folder(folder)
            # never through a link: opening it for writing would touch a file elsewhere
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except (FileExistsError, NotADirectoryError):
            raise OutputError(f"{shown} is a file, but a folder is needed.", remedy="Choose another folder.") from None
        except FileNotFoundError:
            continue  # the run before removed the folder just now
        except OSError as error:
            raise OutputError(
                f"The lock file {path} cannot be opened ({error.strerror}).",
                remedy="Make the folder writable. If the lock file is a link, remove it.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, _OWNER_BYTES, 0)
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise _taken(shown, owner) from None
            raise OutputError(
                f"The file {path} cannot be locked ({error.strerror}).",
                remedy="The file system does not support locks. Write to a folder on another file system.",
            ) from error
        if is_at(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_this_run()).encode(), 0)
            return descriptor
        os.close(descriptor)  # the run before removed the file after this one had opened it


def lock_file(descriptor: int, path: Path) -> None:
    """Keep other runs off an open file on this machine, until it is closed.

    Raises:
        OutputError: if another run writes to it, or the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"Another run is writing to {path}.", remedy="Wait for it to finish, or write to another file."
        ) from None
    except OSError as error:
        raise OutputError(
            f"{path} cannot be locked ({error.strerror}).", remedy="Write to a file on another file system."
        ) from error


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the one at ``path``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _close_inherited_locks() -> None:
    """Close the locks that a forked process inherits: a lock lasts until its last descriptor is closed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_inherited_locks)


def _this_run() -> dict[str, Any]:
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    return {"process": os.getpid(), "host": platform.node(), "since": now}


def _taken(shown: Path, owner: bytes) -> OutputError:
    who = ""
    with suppress(ValueError, KeyError, TypeError):  # it has not written its name yet
        run = json.loads(owner)
        who = f" (process {run['process']} on {run['host']}, since {run['since']})"
    return OutputError(
        f"Another run is writing to {shown}{who}.", remedy="Wait for it to finish, or write to another folder."
    )


class Lease:
    """The right to write to a URL, kept up by a thread.

    Args:
        folder: the URL.
        shown: what messages call it; None for the URL.
        sleep: waits a number of seconds.
        clock: returns seconds; only differences count.
    """

    def __init__(
        self,
        folder: Path,
        shown: Path | None = None,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shown = shown or folder
        self._path = folder / LOCK_FILE
        self._sleep, self._clock = sleep, clock
        self._token = uuid.uuid4().hex
        self._run = _this_run()
        self._beat = 0
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._keep_up, name=HEARTBEAT_THREAD, daemon=True)

    def take(self) -> None:
        """Take the lease; wait first if another writer has it and shows no sign of life.

        Raises:
            OutputError: if another writer is alive.
        """
        found = self._read()
        started = self._clock()
        while found is not None and self._clock() - started < PATIENCE:
            self._sleep(HEARTBEAT / 3)
            now = self._read()
            if now is not None and now != found:
                raise _taken(self._shown, now)
            found = now
        self._write()
        self._sleep(SETTLING)
        if not self._is_own():
            raise _taken(self._shown, self._read() or b"")
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
        owner = {"token": self._token, "beat": self._beat, **self._run}
        write_all(self._path, json.dumps(owner).encode())
