"""One writer at a time in a folder of this machine, with the name of the writer for the others.

The lock is a file beside the folder, because folders of results are renamed. It ends with its
process, however that ends, even if processes that it has forked live on. At a URL nothing is
locked: there the last writer notices that the record of the result has changed since it began
(`c3tools.store.manifest`).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import OutputError
from .files import make_folder, remove_leftovers

_STORE = "store.json"  # INFO_FILE of c3tools.store.shards, which this room may not import


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other writers off a folder while the block runs.

    The folder is made if it does not exist, and removed again if nothing is written to it.

    Args:
        folder: a folder, or a URL, where nothing is locked.

    Raises:
        OutputError: if another run is writing, with its process, host and start; if the folder
            cannot be written, is inside a store, or a file is in the way.
    """
    if not isinstance(folder, Path):
        yield
        return
    require_outside_stores(folder)
    made = not folder.exists()
    try:
        make_folder(folder)
    except (FileExistsError, NotADirectoryError):
        raise OutputError(
            f"{folder} is a file, but a folder is needed.", remedy="Choose another folder."
        ) from None
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be created ({error.strerror or error}).",
            remedy="Choose a writable folder.",
        ) from error
    with locked_file(folder):
        try:
            remove_leftovers(folder)  # of a run that was killed: no other is writing now
            yield
        finally:
            if made:
                with suppress(OSError):
                    folder.rmdir()  # unless something was written


def require_outside_stores(folder: Path) -> None:
    """Refuse a folder for results inside a store or an export, which would list them as its own.

    Raises:
        OutputError: with the store.
    """
    for parent in folder.resolve().parents:
        if (parent / _STORE).is_file():
            raise OutputError(
                f"{folder} is inside the store {parent}, which cannot contain other files.",
                remedy="Choose a folder outside the store. A relative path starts from the current "
                "folder.",
            )


def require_unlocked(folder: Path) -> None:
    """Refuse a folder that another run is writing to; at a URL nothing is locked.

    Raises:
        OutputError: with the process, host and start of the other run.
    """
    if isinstance(folder, Path) and _lock_path(folder).exists():
        with locked_file(folder):
            pass


@contextmanager
def locked_file(result: Path) -> Iterator[None]:
    """Keep other writers off a file or folder of this machine while the block runs; see `locked`.

    The lock file lies beside it; inside it if it is a folder whose parent cannot be written to.
    """
    make_folder(result.resolve().parent)
    path = _lock_path(result)
    lock = FileLock(path, timeout=0, thread_local=False, mode=0o666)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"Another run is writing to {result}{_owner(path)}.",
            remedy="Wait for it to finish, or write to another folder.",
        ) from None
    except OSError as error:
        raise OutputError(
            f"The lock file {path} cannot be used ({error.strerror or error}).",
            remedy="Make its folder writable, or write to a folder on another file system. If the "
            "lock file is a symbolic link, remove it.",
        ) from error
    process = os.getpid()
    try:
        started = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        with suppress(OSError):
            path.write_text(
                json.dumps({"process": process, "host": platform.node(), "since": started})
            )
        yield
    finally:
        if os.getpid() == process:  # not in a forked process
            with suppress(OSError):
                path.unlink()
            lock.release()


def _lock_path(result: Path) -> Path:
    place = result.resolve()
    beside = os.access(place.parent, os.W_OK) or not place.is_dir()
    return (place.parent if beside else place) / f".{place.name}.lock"


def _owner(path: Path) -> str:
    try:
        run = json.loads(path.read_text())
        return f" (process {run['process']} on {run['host']}, since {run['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written its name yet
        return ""
