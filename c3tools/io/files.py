"""Files that appear complete or not at all, files that carry a digest of themselves, and reading JSON and CSV."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError

from .limits import LARGEST_JSON, TooLargeError, check_json
from .locations import open_binary, read_all, unread_is_not_damaged, write_object

_DIGITS = 64
_LONGEST_NAME = 255  # bytes, of file systems and of what a record needs
_BEGIN, _END = b"[sha256-of-this-file:", b":sealed]"
_BLANK = b"-" * _DIGITS
_SEAL = re.compile(re.escape(_BEGIN) + rb"([0-9a-f]{64})" + re.escape(_END))
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
# what comes of reading a JSON file that is none, or of using a value in it that has another layout
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
SEAL_PLACE = (_BEGIN + _BLANK + _END).decode()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, fsync it, and rename it to ``path``.

    A reader sees the old file or the new one, never a part of one. After a crash only a temporary file is left, which
    `remove_leftovers` removes. For a URL, the file is filled on this machine and uploaded as one object.

    Raises:
        OSError: if it cannot be written, for example because the disk is full.
    """
    if not isinstance(path, Path):
        write_object(path, write)
        return
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # unique among all machines
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only their owner may read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # safetensors reports a full disk this way
            raise OSError(str(error)) from error
        raise
    sync_folder(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, complete or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `json_text` of ``value``, complete or not at all."""
    write_text_atomically(path, json_text(value))


def json_text(value: Any) -> str:
    """Return ``value`` as JSON in the one layout that stores use: sorted, indented, ending with a newline."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_csv(lines: Iterator[str], suffix: str) -> csv.DictReader[str]:
    """Return the rows of a table with a header, as its lines; ``suffix`` is .tsv for one with tabs."""
    header = next(lines, "")
    return csv.DictReader(chain([header], lines), delimiter=delimiter_of(header, suffix), skipinitialspace=True)


def delimiter_of(header: str, suffix: str = "") -> str:
    """Return the character between the columns of a table, by its first line: the most frequent of , ; | and tab."""
    return "\t" if suffix.lower() == ".tsv" else max(",;|\t", key=header.count)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError, RecursionError: if it is not JSON; TooLargeError if it would take more memory than it may.
            `MALFORMED` has both, and what comes of using a value that has another layout.
    """
    return json.loads(read_limited(path))


def read_limited(path: Path) -> bytes:
    """Return the content of a JSON file that Python can take in memory, see `check_json`.

    Raises:
        OSError: if it cannot be read.
        TooLargeError: if it is too long, or holds too many values.
    """
    if isinstance(path, Path) and path.stat().st_size > LARGEST_JSON:
        raise TooLargeError(f"it has more than {LARGEST_JSON:,} bytes")
    content = read_all(path, LARGEST_JSON + 1)
    check_json(content)
    return content


def recorded_file(folder: Path, name: object) -> Path:
    """Return the path of a file of a result, by the name that a record in its folder has for it.

    Raises:
        ValueError: if the name leads out of the folder, or no file can have it.
    """
    posix, windows = PurePosixPath(str(name)), PureWindowsPath(str(name))
    if not isinstance(name, str) or not posix.parts or ".." in windows.parts or posix.anchor or windows.anchor:
        raise ValueError(f"it names the file {str(name)[:200]!r}, which is not in its folder")
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise ValueError(f"it names the file {name[:200]!r}…, and a name has at most {_LONGEST_NAME} bytes")
    return folder / name


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed writer left in a folder on this machine, and no others."""
    for leftover in find_leftovers(folder):
        leftover.unlink(missing_ok=True)


def find_leftovers(folder: Path, names: Container[str] | None = None) -> list[Path]:
    """Return the temporary files that writers left in a folder on this machine, or have there just now.

    Args:
        folder: the folder; there are none at a URL.
        names: of the files that they were to become; None for all.
    """
    if not isinstance(folder, Path):
        return []
    found = [path for path in folder.glob(".*.tmp") if _TEMPORARY.fullmatch(path.name)]
    return [path for path in found if names is None or path.name[1:].rsplit(".", 2)[0] in names]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def seal(path: Path) -> None:
    """Fill in the digest of a file whose metadata contains `SEAL_PLACE` once, so that a change of any byte is detected.

    The digest is that of the file with `SEAL_PLACE` in it. So content and digest are in place with one rename, and
    readers that do not know of seals are not disturbed.

    Raises:
        ValueError: if the file contains `SEAL_PLACE` not at all or several times.
    """
    content = path.read_bytes()
    if content.count(SEAL_PLACE.encode()) != 1:
        raise ValueError(f"{path} has {content.count(SEAL_PLACE.encode())} places for a seal, not one")
    start = content.index(SEAL_PLACE.encode()) + len(_BEGIN)
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content[:start] + digest + content[start + _DIGITS :])


def check_seal(path: Path) -> bool | None:
    """Return whether a file is unchanged since `seal`; None if it has no seal.

    Raises:
        UnreachableError: if it is there and cannot be read.
        FileNotFoundError: if it is not there.
    """
    with unread_is_not_damaged(path):
        content = read_all(path)
    found = list(_SEAL.finditer(content))
    if not found:
        # half of a seal means that the other half was damaged
        return False if _BEGIN in content or _END in content else None
    start, stop = found[0].span(1)
    digest = hashlib.sha256(content[:start] + _BLANK + content[stop:]).hexdigest().encode()
    return len(found) == 1 and digest == found[0][1]


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def sync_tree(folder: Path) -> None:
    """Tell the disk to keep the files below a folder, and their names."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(parent) / name).open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing, and tell the disk to keep their names."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        with suppress(PermissionError):  # a folder that may be written to but not listed
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Tell the disk to keep the names in a folder; an object store does so by itself."""
    if os.name != "posix" or not isinstance(folder, Path):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
