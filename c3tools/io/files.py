"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .locations import open_binary, upload_made


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, fsync it, and rename it to ``path``.

    A reader sees the old file or the new one, never a part of one; after a crash only a temporary name is left,
    which `remove_leftovers` clears away. Where ``path`` is a URL, the file is filled on this machine and put there as
    one object, which stores do whole or not at all.

    Raises:
        OSError: if it cannot be written, for example since the disk is full.
    """
    if not isinstance(path, Path):
        upload_made(path, write)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # of any machine
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only their owner may read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # how safetensors reports a full disk
            raise OSError(str(error)) from error
        raise
    _sync_folder(path.parent)


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `json_text` of ``value``, whole or not at all."""
    text = json_text(value)
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def json_text(value: Any) -> str:
    """The one way ``value`` is written as JSON: sorted, indented, ended by a newline."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed writer left in ``folder``, if it is on this machine."""
    if not isinstance(folder, Path):
        return
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
