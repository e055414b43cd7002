"""Paths on this machine and URLs, behind one interface.

A local path needs neither fsspec nor universal_pathlib. A URL (``s3://``, ``gs://``, ``hf://``, ``http(s)://``) becomes
an object with the interface of `pathlib.Path`, so that readers need not know the difference. Its bytes are read in
independent ranges, and a request that fails is retried with growing pauses. Credentials come from the environment
alone, as the client of each object store reads them.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from ..errors import CorpusError, MissingExtraError, RefusedError, UnreachableError

ATTEMPTS = 6
FIRST_PAUSE = 0.2  # seconds, doubled after each attempt
BLOCK = 4 * 2**20  # bytes per request
SMALL_BLOCK = 2**16  # bytes per request where only a small part of a file is needed: its footer, one column
_LARGEST_WHOLE = 2**30  # bytes of a file that is kept in memory because its server supports no ranges
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_REFUSED_STATUS, _GONE_STATUS = (400, 401, 403, 405), (404, 410)
_CREDENTIAL_ERRORS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"}
_FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PERMANENT = (*_FILE_ERRORS, ImportError, ValueError, TypeError)  # another attempt would fail too
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "url"}
T = TypeVar("T")


def is_url(text: str | Path) -> bool:
    """Return whether ``text`` is a URL."""
    return _URL.match(str(text)) is not None


def location(text: str | Path) -> Path:
    """Return a local path, or a path-like object for a URL.

    Raises:
        CorpusError: if the scheme of the URL is unknown, or the URL is malformed.
        MissingExtraError: if the package that reads it is not installed.
    """
    if not is_url(text) or not isinstance(text, str):
        return Path(text) if isinstance(text, str) else text
    scheme = text.split("://", 1)[0].lower()
    extra = _EXTRAS.get(scheme, "url")
    try:
        from fsspec import available_protocols
        from upath import UPath

        if scheme not in available_protocols():
            raise CorpusError(f"{text} has an unknown scheme.", remedy="Use s3://, gs://, hf://, http:// or https://.")
        path = UPath(text)
        path.fs  # noqa: B018 - imports the package that the scheme needs
    except ValueError as error:
        raise CorpusError(f"{text} is not a URL ({error}).", remedy="Check the server name.") from error
    except ImportError as error:
        package = error.name or scheme
        raise MissingExtraError(package, extra=extra, purpose=f"Reading {scheme}:// locations") from error
    return cast(Path, path)


def kind_of(path: Path) -> Literal["file", "folder"] | None:
    """Return what is at ``path``; None if nothing is.

    Raises:
        OSError: if it cannot be looked up.
    """
    if isinstance(path, Path):
        return "folder" if path.is_dir() else "file" if path.exists() else None
    try:
        info = _info(path)
    except FileNotFoundError:
        return None
    return "folder" if info["type"] == "directory" else "file"


def _info(path: Any) -> dict[str, Any]:
    """Return what the server says about a file or folder.

    `exists` of fsspec and similar functions cannot be used, because they treat every error as a missing file.
    """

    def ask() -> dict[str, Any]:
        path.fs.invalidate_cache(path.path)  # other processes write there too
        return dict(path.fs.info(path.path))

    return retrying(ask, str(path))


def names_in(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted; none if the folder does not exist.

    Raises:
        OSError: if it cannot be looked up.
    """
    if isinstance(folder, Path):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else []
        return [e.name for e in entries if e.is_dir()], [e.name for e in entries if not e.is_dir()]
    place: Any = folder

    def ask() -> list[dict[str, Any]]:
        place.fs.invalidate_cache(place.path)
        return list(place.fs.ls(place.path, detail=True))

    try:
        found = retrying(ask, str(folder))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    names = [(str(entry["name"]).rstrip("/").rpartition("/")[2], entry["type"]) for entry in found]
    folders = sorted(name for name, kind in names if kind == "directory")
    return folders, sorted(name for name, kind in names if kind != "directory")


def upload(source: Path, target: Path) -> None:
    """Upload a local file to a URL; object stores show it complete or not at all.

    Raises:
        UnreachableError: if it cannot be uploaded.
    """
    place: Any = target
    try:
        retrying(lambda: place.fs.put_file(str(source), place.path), str(target))
    except (FileNotFoundError, NotImplementedError) as error:
        raise UnreachableError(
            f"{target} cannot be written ({_reason(error)}).",
            remedy="Check the address. The bucket has to exist, and files cannot be written to web servers.",
        ) from error


def download(source: Path, target: Path) -> None:
    """Copy a file or object to this machine in bounded memory.

    Raises:
        OSError: if it cannot be read or written.
    """
    if isinstance(source, Path):
        shutil.copyfile(source, target)
        return
    with open_binary(source) as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, BLOCK)


def write_all(path: Path, content: bytes) -> None:
    """Write a file on this machine, making its folder if needed, or one object at a URL.

    Raises:
        OSError: if it cannot be written.
    """
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return
    write_object(path, lambda local: local.write_bytes(content))


def write_object(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file on this machine, then upload it to a URL as one object.

    Raises:
        UnreachableError: if it cannot be uploaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "object"
        write(local)
        upload(local, target)


def remove(path: Path) -> None:
    """Remove a file if it exists."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    place: Any = path
    with suppress(FileNotFoundError):
        retrying(lambda: place.fs.rm_file(place.path), str(path))


def move(source: Path, target: Path) -> None:
    """Give a file another name in the same store; at a URL it is copied there first, then removed.

    Raises:
        OSError: if it does not exist, or cannot be written.
    """
    if isinstance(source, Path):
        source.replace(target)
        return
    place: Any = source
    retrying(lambda: place.fs.cp_file(place.path, target.path), str(target))
    remove(source)


def size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if it does not exist."""
    try:
        return path.stat().st_size if isinstance(path, Path) else int(_info(path)["size"])
    except FileNotFoundError:
        return None


def version_of(path: Path) -> str | None:
    """Return a text that changes with the file (size and time or tag); None if the server gives neither."""
    if isinstance(path, Path):
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    info = _info(path)
    mark = next((info[name] for name in ("ETag", "etag", "LastModified", "mtime", "updated") if info.get(name)), None)
    return None if mark is None else f"{info['size']} {mark}"


def open_binary(path: Path, block: int | None = None) -> BinaryIO:
    """Open a seekable file for reading; a URL is read in ranges of ``block`` bytes (default `BLOCK`).

    Raises:
        OSError: if it cannot be read, after `ATTEMPTS` attempts if the error may be temporary.
    """
    if isinstance(path, Path):
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_RangeReader(path), block or BLOCK))


@contextmanager
def name_or_file(path: Path, block: int | None = None) -> Iterator[Path | BinaryIO]:
    """Yield the path of a local file, which libraries read faster by name, or an open file for a URL."""
    if isinstance(path, Path):
        yield path
        return
    with open_binary(path, block) as file:
        yield file


def read_all(path: Path, limit: int | None = None) -> bytes:
    """Return the content of a file, or its first ``limit`` bytes."""
    if limit is None and not isinstance(path, Path):
        place: Any = path
        return retrying(lambda: bytes(place.fs.cat_file(place.path)), str(path))
    with open_binary(path) as file:
        return file.read(-1 if limit is None else limit)


@contextmanager
def unread_is_not_damaged(path: Path) -> Iterator[None]:
    """Turn an error of the operating system in the block into one that says nothing about the content of the file.

    Raises:
        UnreachableError: if the file is there and cannot be read, for example because too many files are open.
    """
    try:
        yield
    except (UnreachableError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno is None:  # of a library that finds fault with the content
            raise
        raise UnreachableError(
            f"{path} cannot be read ({error.strerror or error}). The file itself may be intact.",
            remedy="Look at its permissions, the disk, and the number of open files (ulimit -n), then try again.",
        ) from error


@contextmanager
def open_text(path: Path, *, errors: str = "strict", newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """Open a file as UTF-8 text, with or without a byte order mark."""
    with open_binary(path) as file:
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors=errors, newline=newline)


def retrying(call: Callable[[], T], where: str, attempts: int | None = None) -> T:
    """Return the result of ``call``; retry temporary errors (of the server, of the connection) with growing pauses.

    Args:
        call: one request.
        where: the path or URL, for messages.
        attempts: how many times to try; None for `ATTEMPTS`.

    Raises:
        FileNotFoundError, ValueError: at once.
        UnreachableError: at once if access is refused, otherwise when all attempts have failed.
    """
    attempts = ATTEMPTS if attempts is None else attempts
    again = Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(FIRST_PAUSE, max=60) + wait_random(0, FIRST_PAUSE),
        retry=retry_if_exception(_may_be_temporary),
        reraise=True,
    )
    try:
        return again(call)
    except Exception as error:  # every client has its own exceptions
        if _is_refusal(error):
            raise RefusedError(
                f"Access to {where} was refused ({_reason(error)}).",
                remedy="Check the address, the credentials in the environment (for s3://: AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL) and their permissions.",
            ) from error
        if getattr(error, "status", None) in _GONE_STATUS:
            raise FileNotFoundError(0, f"{where}: the server answers {getattr(error, 'status', '')}") from error
        if not _may_be_temporary(error):
            raise
        raise UnreachableError(
            f"{where} could not be reached in {attempts} attempts ({_reason(error)}).",
            remedy="Check the address and the credentials in the environment, then run the same command again.",
        ) from error


def _may_be_temporary(error: BaseException) -> bool:
    """Return whether another attempt may help; fsspec reports a web server that is down as a missing file."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if _is_refusal(error) or getattr(error, "status", None) in _GONE_STATUS or not isinstance(error, Exception):
        return False
    if not isinstance(error, _PERMANENT):
        return True
    if status is not None:
        return int(status) == 429 or int(status) >= 500
    return isinstance(error, FileNotFoundError) and isinstance(cause, OSError) and not isinstance(cause, _FILE_ERRORS)


def _is_refusal(error: BaseException) -> bool:
    """Return whether the server refuses access, so that retrying does not help."""
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)
    return isinstance(error, PermissionError) or status in _REFUSED_STATUS or type(error).__name__ in _CREDENTIAL_ERRORS


def _reason(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__


class _RangeReader(io.RawIOBase):
    """A file at a URL, read range by range; no connection stays open in between."""

    def __init__(self, path: Any) -> None:
        self._url = str(path)
        self._filesystem, self._name = path.fs, path.path
        self._position = 0
        self._whole: bytes | None = None
        size = _info(path)["size"]
        # some servers do not say how long a file is
        self._size = len(self._fetch_whole()) if size is None else int(size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative position in {self._url}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        content = self._fetch(self._position, stop)
        buffer[: len(content)] = content
        self._position = stop
        return len(content)

    def _fetch(self, start: int, stop: int) -> bytes:
        if self._whole is None:
            content = retrying(lambda: self._part(start, stop), self._url)
            if len(content) == stop - start:
                return content
            self._keep(content)
        assert self._whole is not None
        return self._whole[start:stop]

    def _part(self, start: int, stop: int) -> bytes:
        content: bytes = self._filesystem.cat_file(self._name, start=start, end=stop)
        if len(content) not in (stop - start, self._size):
            raise ConnectionError(f"{stop - start:,} bytes were requested, but {len(content):,} were received")
        return content

    def _fetch_whole(self) -> bytes:
        self._keep(retrying(lambda: self._filesystem.cat_file(self._name), self._url))
        assert self._whole is not None
        return self._whole

    def _keep(self, content: bytes) -> None:
        """Keep the content of a file whose server ignores ranges and always sends the whole file."""
        if len(content) > _LARGEST_WHOLE:
            raise OSError(
                0,
                f"the server of {self._url} does not support range requests, which large files need; download the file "
                "first",
            )
        self._whole = content
