"""Files that appear complete or not at all, and reading JSON."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from ..errors import C3Error, reason_of
from .limits import LARGEST_JSON, LARGEST_TEXT, TooLargeError, refusing_excess
from .locations import open_binary, read_all, upload

T = TypeVar("T")
_LONGEST_NAME = 255  # bytes, of file systems and of what a record needs
# bytes of JSON per value, on average over a file of more than LARGEST_TEXT
_SMALLEST_VALUE = 8
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
_AROUND_TEMPORARY = len("..tmp.") + 16  # bytes that the name of a temporary file has more
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# errors raised by invalid JSON or an unexpected structure
MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
)


def write_atomically(path: Path, write: Callable[[Path], T]) -> T:
    """Let ``write`` fill a temporary file beside ``path``, fsync it, and rename it to ``path``;
    return what ``write`` returns.

    The file gets the usual permissions of a new file, whatever those of the former one were. A
    former file with the same content is not touched, so that programs that compare times, such as
    Make, see no change. A reader sees the old file or the new one, never a part of one. After a
    crash only a temporary file is left, which `remove_leftovers` removes. For a URL, the file is
    filled on this machine and uploaded as one object; into a device such as /dev/null or a pipe,
    which a rename would replace, its content is written.

    Raises:
        OSError: if it cannot be written, for example because the disk is full; with the path.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            result = write(Path(folder) / "object")
            upload(Path(folder) / "object", path)
        return result
    if is_device(path):
        with tempfile.TemporaryDirectory() as folder:
            result = write(Path(folder) / "object")
            path.write_bytes((Path(folder) / "object").read_bytes())
        return result
    make_folder(path.parent)
    # unique among all machines
    temporary = path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(8)}.tmp")
    try:
        with naming(path):
            result = write(temporary)
            if has_same_content(temporary, path):
                temporary.unlink()
            else:
                set_permissions_and_sync(temporary)
                temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return result


def is_device(path: Path) -> bool:
    """Return whether a path on this machine is that of a device or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


def has_same_content(new: Path, former: Path) -> bool:
    """Return whether two files of this machine have the same content; False if one cannot be
    read.
    """
    if not isinstance(former, Path):
        return False
    try:
        # Not by filecmp, which remembers answers by size and time
        has_same_size = new.stat().st_size == former.stat().st_size
        return has_same_size and sha256_of(new) == sha256_of(former)
    except OSError:
        return False


def _shortened(name: str) -> str:
    """Return a name, or its start, so that that of its temporary file is not too long."""
    return os.fsencode(name)[: _LONGEST_NAME - _AROUND_TEMPORARY].decode(errors="ignore")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to errors of the operating system in the block that name none, as of a full
    disk.
    """
    try:
        yield
    except C3Error:
        raise
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, reason_of(error), str(path)) from error


def set_permissions_and_sync(path: Path) -> None:
    """Give a new file the usual permissions, 0o666 without the umask, and fsync it.

    Some writers make files that only their owner may read.
    """
    mask = os.umask(0o022)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_all(path: Path, content: bytes) -> None:
    """Write one object at a URL, or a file on this machine in its place, which may be a device such
    as /dev/stdout.

    Raises:
        OSError: if it cannot be written.
    """
    if isinstance(path, Path):
        path.write_bytes(content)
    else:
        write_atomically(path, lambda local: local.write_bytes(content))


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, complete or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `json_text` of ``value``, complete or not at all."""
    write_text_atomically(path, json_text(value))


def json_text(
    value: Any, *, indent: int | None = 1, sort_keys: bool = True, ensure_ascii: bool = False
) -> str:
    """Return ``value`` as JSON, by default in the one layout that stores use: sorted, indented,
    ending with a newline.

    JSON has no number for NaN and infinity: they become null.
    """
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
    text = json.dumps(finite, indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    return text + "\n"


def require_lines(path: Path, error: type[C3Error]) -> None:
    """Refuse a text file that is not made of lines in UTF-8.

    Excel and PowerShell write UTF-16, and some programs write one JSON list as .jsonl.

    Raises:
        C3Error: of the class ``error``, with what to do.
    """
    start = read_all(path, 64)
    if start.startswith(_UTF16_MARKS):
        suffix = ".tsv" if b"\t" in start else path.suffix  # Excel calls a table .txt
        raise error(
            f"{path} is in UTF-16, but text files are read as UTF-8.",
            remedy=f"Convert it: iconv -f utf-16 -t utf-8 {path.name} > new{suffix}",
        )
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson") and start.lstrip().startswith(b"["):
        raise error(
            f"{path} is one JSON list, but a {suffix} file has one object per line.",
            remedy=f"Rename it to {path.stem}.json.",
        )


@contextmanager
def reading(path: Path, error: type[C3Error]) -> Iterator[None]:
    """Turn whatever a missing or damaged file raises in the block into an error that names it.

    Raises:
        C3Error: of the class ``error``, also for a text file that is not made of lines in UTF-8;
            those that the block raises itself are left as they are.
    """
    try:
        require_lines(path, error)
        with refusing_excess(path):
            yield
    except (C3Error, MemoryError):
        raise
    except FileNotFoundError:
        raise error(
            f"The file {path} does not exist.",
            remedy="Check the path. A relative path starts from the current folder.",
        ) from None
    except UnicodeDecodeError as cause:
        raise error(
            f"{path} is not in UTF-8 ({reason_of(cause)}).",
            remedy="In Excel, save it as CSV UTF-8. Or convert it: iconv -f windows-1252 -t utf-8 "
            f"{path.name} > new{path.suffix}",
        ) from cause
    except Exception as cause:  # of a damaged file, nearly any
        first_line = next(iter(str(cause).splitlines()), type(cause).__name__)
        reason = first_line[:300].rstrip(".")
        remedy = "It may be truncated; create it again."
        if re.search(r"pickle|Python objects|weights_only", str(cause), re.IGNORECASE):
            # torch goes on with advice that unpickles the file
            reason = reason.partition(". ")[0]
            reason += (
                "; it contains objects that are not arrays, and unpickling them could run code"
            )
            remedy = (
                "Save plain arrays: np.save(path, array.astype(np.float32)), or use safetensors."
            )
        if isinstance(cause, TooLargeError):
            remedy = "If you trust it, save it again without compression or holes."
        raise error(f"{path} cannot be read ({reason}).", remedy=remedy) from cause


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError, RecursionError: if it is not JSON; TooLargeError if it would take more memory
            than it may. `MALFORMED` has both, and what comes of using a value that has another
            layout.
    """
    return json.loads(read_limited(path))


def read_limited(path: Path) -> bytes:
    """Return the content of a JSON file that Python can take in memory: a list that takes 3 bytes
    here takes 64 there.

    Raises:
        OSError: if it cannot be read.
        TooLargeError: if it is too long, or holds too many values.
    """
    content = read_all(path, LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise TooLargeError(f"it has more than {LARGEST_JSON:,} bytes")
    values = sum(map(content.count, (b",", b"[", b"{")))
    if len(content) > LARGEST_TEXT and values * _SMALLEST_VALUE > len(content):
        raise TooLargeError(f"it has {values:,} values in {len(content):,} bytes")
    return content


def recorded_file(folder: Path, name: object) -> Path:
    """Return the path of a file of a result, by the name that a record in its folder has for it.

    Raises:
        ValueError: if the name leads out of the folder, or no file can have it.
    """
    posix, windows = PurePosixPath(str(name)), PureWindowsPath(str(name))
    leads_out = not posix.parts or ".." in windows.parts or posix.anchor or windows.anchor
    if not isinstance(name, str) or leads_out or len(os.fsencode(name)) > _LONGEST_NAME:
        raise ValueError(f"it names the file {str(name)[:200]!r}, which is not in its folder")
    return folder / name


def remove_leftovers(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove the temporary files that a killed writer left in a folder, of all files or of those
    with ``names``.
    """
    shortened = None if names is None else {_shortened(name) for name in names}
    for path in folder.glob(".*.tmp") if isinstance(folder, Path) else ():
        match = _TEMPORARY.fullmatch(path.name)
        if match and (shortened is None or match[1] in shortened):
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing, and fsync their parents."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        with suppress(PermissionError):  # a folder that may be written to but not listed
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that renames in it survive a crash; an object store needs no such call."""
    if os.name != "posix" or not isinstance(folder, Path):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
