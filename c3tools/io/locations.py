"""Paths on this machine and URLs, behind one interface.

A local path needs neither fsspec nor universal_pathlib. A URL (``s3://``, ``gs://``, ``hf://``,
``http(s)://``) becomes an object with the interface of `pathlib.Path`, so that readers need not
know the difference. Its bytes are read in independent ranges, and a request that fails is retried
with growing pauses. The client of S3 makes one attempt at a time, because its attempts would
multiply these. Credentials come from the environment alone, as the client of each object store
reads them.
"""

from __future__ import annotations

import glob
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

from ..errors import (
    CorpusError,
    MissingExtraError,
    RefusedError,
    UnreachableError,
    optional_module,
)
from .limits import refusing_excess

ATTEMPTS = 6
FIRST_PAUSE = 0.5  # seconds, doubled after each attempt
_PATIENCE = 2.0  # seconds until a message says that a request is retried
BLOCK = 4 * 2**20  # bytes per request
# bytes per request where only a small part of a file is needed: its footer, one column
SMALL_BLOCK = 2**16
_MOST_NAMES = 100_000
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_GLOB = re.compile(r"[*?\[]")
_REFUSED_STATUS = (400, 401, 403, 405)
_GONE_STATUS = (404, 410)
_TOO_MANY_REQUESTS = 429
_CREDENTIAL_ERRORS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "DefaultCredentialsError",
}
_FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PERMANENT = (*_FILE_ERRORS, ImportError, ValueError, TypeError)  # another attempt would fail too
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_ONE_ATTEMPT = {"config_kwargs": {"retries": {"max_attempts": 0}}}  # of the client of s3://
_log = logging.getLogger(__name__)
T = TypeVar("T")


def is_url(text: str | Path) -> bool:
    """Return whether ``text`` is a URL."""
    return _URL.match(str(text)) is not None


def location(text: str | Path) -> Path:
    """Return a local path, or a path-like object for a URL.

    Raises:
        CorpusError: if the text is empty, the scheme of the URL is unknown, or the URL is
            malformed.
        MissingExtraError: if the package that reads it is not installed.
    """
    if not str(text):
        raise CorpusError(
            "An empty path was given.", remedy="Is a shell variable not set? Give a path."
        )
    if not isinstance(text, str):
        return text
    if not is_url(text):
        return Path(text)
    scheme = text.partition("://")[0].lower()
    try:
        from upath import UPath

        is_s3 = _EXTRAS.get(scheme) == "s3"
        path = UPath(text, **(_ONE_ATTEMPT if is_s3 else {}))
        files = path.fs  # imports the package that the scheme needs
        if is_s3:
            files.retries = 1
    except ValueError as error:
        raise CorpusError(
            f"{text} is not a URL that can be read ({error}).",
            remedy="Use s3://, gs://, hf://, http:// or https://.",
        ) from error
    except ImportError as error:
        raise MissingExtraError(
            error.name or scheme,
            extra=_EXTRAS.get(scheme, "url"),
            purpose=f"Reading {scheme}:// locations",
        ) from error
    return cast(Path, path)


def expand(text: str | Path) -> list[Path]:
    """Return the locations that a path or pattern stands for.

    Braces, ``{000..012}`` and ``{a,b}``, are expanded; ``*``, ``?`` and ``[`` are looked up. A
    pattern that is the name of an existing file is taken literally.

    Raises:
        CorpusError: if a pattern with ``*``, ``?`` or ``[`` matches nothing, cannot be looked up,
            or braces stand for more than 100,000 names.
        MissingExtraError: if there are braces, and bracex is not installed.
    """
    if isinstance(text, Path) or (not is_url(text) and os.path.exists(text)):  # noqa: PTH110 - of any length
        return [location(text)]

    names = [text]
    if "{" in text:
        bracex = optional_module(
            "bracex", "bracex", extra="url", purpose=f"The pattern {text[:200]}"
        )
        try:
            names = bracex.expand(text.replace("\\", "\\\\"), limit=_MOST_NAMES)
        except bracex.ExpansionLimitException:
            raise CorpusError(f"{text[:200]} expands to more than {_MOST_NAMES:,} names.") from None
    locations: list[Path] = []
    for name in names:
        # Web servers list no files: * and ? are part of the address
        is_web = name.lower().startswith(("http://", "https://"))
        if is_web or not _GLOB.search(name):
            locations.append(location(name))
        else:
            locations += _matches(name)
    return locations


def _matches(pattern: str) -> list[Path]:
    """Return the files that a pattern with ``*``, ``?`` or ``[`` matches, sorted.

    Raises:
        CorpusError: if there are none.
    """
    if is_url(pattern):
        filesystem = location(pattern).fs  # type: ignore[attr-defined]
        names = sorted(retrying(partial(filesystem.glob, pattern), pattern))
        matches = [location(filesystem.unstrip_protocol(name)) for name in names]
    else:
        names = sorted(_local_matches(pattern))
        matches = [Path(name) for name in names]
    if not matches:
        raise CorpusError(
            f"Nothing matches {pattern}.", remedy="Check the path before the first *, ? or [."
        )
    return matches


def _local_matches(pattern: str) -> set[str]:
    """Return what a pattern matches on this machine. ``**`` enters no links to folders: they may
    lead back.
    """
    start, *rest = re.split(r"(?:^|(?<=/))\*\*/+", pattern, maxsplit=1)
    if not rest:
        return set(glob.glob(pattern))  # noqa: PTH207 - absolute ones
    matches: set[str] = set()
    for root in glob.glob(start) if start else [""]:  # noqa: PTH207
        for folder, folders, _ in os.walk(root or "."):
            folders[:] = [name for name in folders if not name.startswith(".")]
            matches |= _local_matches(f"{glob.escape(folder)}/{rest[0]}")
    return matches


def kind_of(path: Path) -> Literal["file", "folder"] | None:
    """Return what is at ``path``; None if nothing is.

    Raises:
        OSError: if it cannot be looked up.
    """
    if isinstance(path, Path):
        if path.is_dir():
            return "folder"
        return "file" if path.exists() else None
    try:
        return "folder" if _request(path, "info")["type"] == "directory" else "file"
    except FileNotFoundError:
        return None


def names_in(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted; none if the folder does
    not exist.

    Raises:
        OSError: if it cannot be looked up.
    """
    folders: list[str] = []
    files: list[str] = []
    if isinstance(folder, Path):
        if not folder.is_dir():
            return [], []
        for entry in os.scandir(folder):
            (folders if entry.is_dir() else files).append(entry.name)
    else:
        try:
            entries = _request(folder, "ls", detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        for entry in entries:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            (folders if entry["type"] == "directory" else files).append(name)
    return sorted(folders), sorted(files)


def names_below(folder: Path) -> list[str]:
    """Return the files in a folder and in its folders, relative to it, sorted; without hidden ones.

    Raises:
        OSError: if it cannot be looked up.
    """
    folders, names = names_in(folder)
    for inner in folders:
        if not inner.startswith("."):
            names += [f"{inner}/{name}" for name in names_below(folder / inner)]
    return sorted(name for name in names if not name.startswith("."))


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
            remedy="Check the address. The bucket has to exist, and files cannot be written to "
            "web servers.",
        ) from error


@contextmanager
def on_this_machine(path: Path) -> Iterator[Path]:
    """Yield a file on this machine: the file itself, or a copy of one at a URL, so that it is
    downloaded once.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        with open_binary(path) as file, copy.open("wb") as target:
            shutil.copyfileobj(file, target, BLOCK)
        yield copy


def remove(path: Path) -> None:
    """Remove a file if it exists."""
    with suppress(FileNotFoundError):
        if isinstance(path, Path):
            path.unlink()
        else:
            _request(path, "rm_file")


def move(source: Path, target: Path) -> None:
    """Give a file another name in the same store; at a URL it is copied there first, then removed.

    Raises:
        OSError: if it does not exist, or cannot be written.
    """
    if isinstance(source, Path):
        source.replace(target)
        return
    _request(source, "cp_file", target.path)
    remove(source)


def size_of(path: Path) -> int:
    """Return the size of a file in bytes."""
    if isinstance(path, Path):
        return path.stat().st_size
    return int(_request(path, "info")["size"])


def version_at(url: Path) -> object:
    """Return a value that changes when the object at a URL is replaced, its ETag if it has one."""
    return _request(url, "checksum")


def open_binary(path: Path, block: int | None = None) -> BinaryIO:
    """Open a seekable file for reading; a URL is read in ranges of ``block`` bytes (default
    `BLOCK`).

    Raises:
        OSError: if it cannot be read, after `ATTEMPTS` attempts if the error may be temporary.
    """
    if isinstance(path, Path):
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_RangeReader(path), block or BLOCK))


@contextmanager
def name_or_file(path: Path, block: int | None = None) -> Iterator[Path | BinaryIO]:
    """Yield the path of a local file, which libraries read faster by name, or an open file for a
    URL.
    """
    if isinstance(path, Path):
        yield path
        return
    with open_binary(path, block) as file:
        yield file


def read_all(path: Path, limit: int = -1) -> bytes:
    """Return the content of a file, or its first ``limit`` bytes."""
    if limit < 0 and not isinstance(path, Path):
        return bytes(_request(path, "cat_file"))
    with open_binary(path) as file:
        if limit < 0:
            return file.read()
        # A file object allocates as much as it is asked for, however small the file is
        blocks: list[bytes] = []
        while block := file.read(min(BLOCK, limit)):
            blocks.append(block)
            limit -= len(block)
        return b"".join(blocks)


@contextmanager
def unread_is_not_damaged(path: Path) -> Iterator[None]:
    """Turn an error of the operating system in the block into one that says nothing about the
    content of the file.

    Raises:
        MemoryError, TooLargeError: see `refusing_excess`.
        UnreachableError: if the file is there and cannot be read, for example because too many
            files are open.
    """
    try:
        with refusing_excess(path):
            yield
    except (UnreachableError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno is None:  # of a library that finds fault with the content
            raise
        raise UnreachableError(
            f"{path} cannot be read ({error.strerror or error}). The file itself may be intact.",
            remedy="Check its permissions, the disk, and the limit on open files (ulimit -n), then "
            "try again.",
        ) from error


def retrying(call: Callable[[], T], where: str, attempts: int | None = None) -> T:
    """Return the result of ``call``; retry temporary errors (of the server, of the connection) with
    growing pauses.

    A warning in the log, which Python writes to standard error, says so after a few seconds.

    Args:
        call: one request.
        where: the path or URL, for messages.
        attempts: how many times to try, without a warning; None for `ATTEMPTS`.

    Raises:
        FileNotFoundError, ValueError: at once.
        UnreachableError: at once if access is refused, otherwise when all attempts have failed.
    """
    from tenacity import (
        RetryCallState,
        Retrying,
        retry_if_exception,
        stop_after_attempt,
        wait_exponential,
        wait_random,
    )

    is_silent = attempts is not None
    attempts = ATTEMPTS if attempts is None else attempts

    def warn(state: RetryCallState) -> None:
        if not is_silent and (state.seconds_since_start or 0) > _PATIENCE:
            # as a literal, without control characters
            _log.warning(
                "%r could not be reached yet (attempt %d of %d); trying again.",
                where,
                state.attempt_number,
                attempts,
            )

    retry = Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(FIRST_PAUSE) + wait_random(0, FIRST_PAUSE),
        retry=retry_if_exception(lambda error: _verdict(error) == "temporary"),
        before_sleep=warn,
        reraise=True,
    )
    try:
        return retry(call)
    except Exception as error:  # every client has its own exceptions
        verdict = _verdict(error)
        if verdict == "refused":
            raise RefusedError(
                f"Access to {where} was refused ({_reason(error)}).",
                remedy="Check the address, the credentials in the environment (for s3://: "
                "AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL) and their permissions.",
            ) from error
        if verdict == "gone":
            raise FileNotFoundError(
                0, f"{where}: the server answers {getattr(error, 'status', '')}"
            ) from error
        if verdict == "permanent":
            raise
        raise UnreachableError(
            f"{where} could not be reached in {attempts} attempts ({_reason(error)}).",
            remedy="Check the address and the credentials in the environment, then run the same "
            "command again.",
        ) from error


def _verdict(error: BaseException) -> Literal["refused", "gone", "temporary", "permanent"]:
    """Return what an error means; fsspec reports a web server that is down as a missing file."""
    cause = error.__cause__
    status_of_error = getattr(error, "status", None)
    status = status_of_error or getattr(cause, "status", None)
    is_refused = isinstance(error, PermissionError) or type(error).__name__ in _CREDENTIAL_ERRORS
    if is_refused or status in _REFUSED_STATUS:
        return "refused"
    if status_of_error in _GONE_STATUS:
        return "gone"
    if not isinstance(error, Exception):
        return "permanent"
    if not isinstance(error, _PERMANENT):
        return "temporary"
    if status is not None:
        is_temporary = int(status) == _TOO_MANY_REQUESTS or int(status) >= 500
    else:
        # A file that is missing because of an error of the connection
        lost_connection = isinstance(cause, OSError) and not isinstance(cause, _FILE_ERRORS)
        is_temporary = isinstance(error, FileNotFoundError) and lost_connection
    return "temporary" if is_temporary else "permanent"


def _reason(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__


def _request(path: Any, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of the file system of a URL.

    `exists` and similar functions cannot be called, because they treat every error as a missing
    file.
    """

    def call() -> Any:
        path.fs.invalidate_cache(path.path)  # other processes write there too
        return getattr(path.fs, method)(path.path, *arguments, **options)

    return retrying(call, str(path))


class _RangeReader(io.RawIOBase):
    """A file at a URL, read range by range; no connection stays open in between."""

    def __init__(self, path: Any) -> None:
        self._path = path
        self._position = 0
        # of a server that ignores ranges, or does not say how long a file is
        self._whole: bytes | None = None
        size = _request(path, "info")["size"]
        if size is None:
            self._whole = _request(path, "cat_file")
        self._size = len(self._whole) if self._whole is not None else int(size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        position = starts[whence] + offset
        if position < 0:
            raise ValueError(f"negative position in {self._path}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        start = self._position
        stop = min(start + len(buffer), self._size)
        if stop <= start:
            return 0
        if self._whole is None:
            content = retrying(lambda: self._part(start, stop), str(self._path))
        if self._whole is not None:
            content = self._whole[start:stop]
        buffer[: len(content)] = content
        self._position = stop
        return len(content)

    def _part(self, start: int, stop: int) -> bytes:
        content: bytes = self._path.fs.cat_file(self._path.path, start=start, end=stop)
        if len(content) == self._size:
            self._whole = content
        elif len(content) != stop - start:
            raise ConnectionError(
                f"{stop - start:,} bytes were requested, but {len(content):,} were received"
            )
        return content
