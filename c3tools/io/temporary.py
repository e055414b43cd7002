"""Temporary files for data that may not fit in memory. They have no name, so nothing is left behind."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import C3Error

CACHE_MIB = 96  # of a database; less than this never reaches the disk


@contextmanager
def using_temporary_files() -> Iterator[None]:
    """Turn a failure to use temporary files in the block into one clear error.

    Raises:
        C3Error: if they cannot be written or read, for example because the disk is full.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        usual = "/var/tmp" if isinstance(error, sqlite3.Error) and os.name == "posix" else tempfile.gettempdir()
        raise C3Error(
            f"Temporary files cannot be written ({getattr(error, 'strerror', None) or error}) to "
            f"{os.environ.get('TMPDIR') or usual}.",
            remedy="Free some space there, or set TMPDIR to a folder on another disk, then run the same command again.",
        ) from error


def open_database() -> sqlite3.Connection:
    """Return a new private database in one transaction that never ends: in memory up to `CACHE_MIB`, then in a file.

    SQLite removes the file, in ``TMPDIR`` or else in /var/tmp, as soon as it is opened, so a killed process leaves
    nothing. It is not for several threads at the same time.
    """
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode=off", "synchronous=off", "locking_mode=exclusive", f"cache_size=-{CACHE_MIB * 1024}"):
        database.execute(f"pragma {setting}")
    database.execute("begin")
    return database
