"""The images of a corpus: the places of their bytes, which worker processes read without searching again."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import RefusedError, UnreachableError
from ..io.batches import largest_value
from ..io.limits import LARGEST_IMAGE_FILE
from ..io.locations import is_url, location, open_binary, read_all, retrying
from ..io.parquet import open_parquet
from .arrow import column_of_batch

DOWNLOAD_SCHEMES = ("http://", "https://", "s3://", "gs://", "hf://")
_DOWNLOAD_SECONDS = 30
_SLOWEST_DOWNLOAD = 120  # seconds for one image
_CHUNK = 2**16
_DOWNLOAD_ATTEMPTS = 3  # some addresses of a long list are always dead
_MOST_FOLDERS = 10_000  # whose place on the disk is remembered


class ByteRange(NamedTuple):
    """Part of a file: a member of a tar.

    Attributes:
        file: path or URL of the tar.
        offset: start of the member's content, in bytes.
        length: of the content, in bytes.
    """

    file: str
    offset: int
    length: int


class TableCell(NamedTuple):
    """A cell of a Parquet or Arrow file.

    Attributes:
        file: path or URL of the table.
        column: its name.
        group: number of the row group (Parquet) or record batch (Arrow).
        row: number of the row within the group.
        folder: paths in cells are relative to it.
        anywhere: paths in cells may lead out of the folder.
        download: URLs in cells may be downloaded.
    """

    file: str
    column: str
    group: int
    row: int
    folder: str
    anywhere: bool = False
    download: bool = False


class Download(NamedTuple):
    """A file that is fetched from a URL."""

    url: str


ImageSource = ByteRange | TableCell | Download


class ImageItem(NamedTuple):
    """An image of the corpus, not read yet.

    Attributes:
        key: unique in the corpus; for a file, the path relative to the corpus without its suffix.
        path: the location to show to people: a file, ``x.tar#member``, ``x.parquet#row``, or a URL.
        split: as the corpus names it, or None.
        size: bytes, to notice an image that changed; None if they are not known before it is read.
        source: the location of its bytes; None for the whole file at ``path``.
    """

    key: str
    path: str
    split: str | None
    size: int | None
    source: ImageSource | None = None


class NullImageError(ValueError):
    """The image column has no value in this row."""


class OutsideError(ValueError):
    """A path leads out of the folder it may point into."""


class SlowServerError(ValueError):
    """A server sends an image too slowly."""


class UrlNotAskedForError(ValueError):
    """An image is given by URL, but --download was not used."""

    def __init__(self, url: str) -> None:
        super().__init__(f"the image is at the URL {url[:200]}; --download downloads it")


class ImageReader:
    """A reader of images one after the other: the last tar stays open, the last rows of a table stay in memory."""

    def __init__(self) -> None:
        self._tar: tuple[str, BinaryIO] | None = None
        self._table: tuple[tuple[str, str, int], _Cells] | None = None

    def read(self, image: ImageItem) -> bytes:
        """Return the bytes of an image.

        Raises:
            UnreachableError: if the server of a tar, a table or a list does not answer, or refuses access.
            OSError: if it cannot be read.
            ValueError: if the row is null, or leads outside of where it may.
        """
        source = image.source
        if source is None:
            return read_file(location(image.path))
        if isinstance(source, Download):
            return download(source.url)
        return self._read_range(source) if isinstance(source, ByteRange) else self._read_cell(source)

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the open file."""
        if self._tar is not None:
            self._tar[1].close()
        self._tar = self._table = None

    def _read_range(self, source: ByteRange) -> bytes:
        _check_size(source.length)
        if self._tar is None or self._tar[0] != source.file:
            self.close()
            self._tar = (source.file, open_binary(location(source.file)))
        file = self._tar[1]
        file.seek(source.offset)
        content = file.read(source.length)
        if len(content) != source.length:
            raise OSError(0, f"only {len(content):,} of {source.length:,} bytes could be read; the file became shorter")
        return content

    def _read_cell(self, cell: TableCell) -> bytes:
        name = (cell.file, cell.column, cell.group)
        if self._table is None or self._table[0] != name or self._table[1].next_row > cell.row:
            self._table = (name, _Cells(cell))
        value = self._table[1].value(cell.row)
        if value is None:
            raise NullImageError(f"the column {cell.column!r} is null in this row")
        if isinstance(value, bytes):
            return value
        if is_url(str(value)):
            if not cell.download:
                raise UrlNotAskedForError(str(value))
            return download(str(value))
        try:
            return read_file(resolve_inside(location(cell.folder), str(value), anywhere=cell.anywhere))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                0, f"the row has no bytes, and its path {str(value)[:200]} does not exist"
            ) from error


class _Cells:
    """The cells of one group in ascending order, a few rows in memory at a time."""

    def __init__(self, cell: TableCell) -> None:
        self.next_row = 0
        self._batches = _columns(cell)
        self._batch: Any = None
        self._first = 0
        self._error: Exception | None = None

    def value(self, row: int) -> Any:
        while self._batch is None or row >= self._first + len(self._batch):
            batch = self._next_batch()
            self._first += 0 if self._batch is None else len(self._batch)
            self._batch = batch
            self.next_row = self._first
        return _bytes_or_path(self._batch, row - self._first)

    def _next_batch(self) -> Any:
        if self._error is not None:  # nothing after the damage can be read
            raise self._error.with_traceback(None)
        try:
            batch = next(self._batches, None)
            if batch is None:
                raise OSError(0, "the row is no longer in the table; the file changed")
        except Exception as error:
            self._error = error
            raise
        return batch


def _columns(cell: TableCell) -> Iterator[Any]:
    """Yield the column of a cell, from the start of its group on."""
    if cell.file.lower().endswith(".arrow"):
        yield column_of_batch(Path(cell.file), cell.group, cell.column)
        return
    with open_parquet(location(cell.file)) as table:
        for batch in table.batches([cell.column], group=cell.group):
            yield batch.column(0)


def _bytes_or_path(column: Any, row: int) -> Any:
    cell = column[row : row + 1]
    _check_size(largest_value(cell))
    value = cell[0].as_py()
    if isinstance(value, dict):
        return value.get("bytes") if value.get("bytes") is not None else value.get("path")
    return value


def digests_of_group(cell: TableCell) -> Iterator[bytes]:
    """Yield for each row of a cell's group the digest of its image, or of its path if the table has no bytes of it.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: at a row that cannot be read.
    """
    for column in _columns(cell):
        for row in range(len(column)):
            value = _bytes_or_path(column, row)
            yield hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).digest()


def _check_size(size: int) -> None:
    if size > LARGEST_IMAGE_FILE:
        raise OSError(0, f"{size:,} bytes are too many for an image")


def read_file(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        OSError: if it is missing, no regular file, too large for an image, or cannot be read.
    """
    if not isinstance(path, Path):
        try:
            content = read_all(path, LARGEST_IMAGE_FILE + 1)
        except RefusedError as error:  # to this file: others may be readable
            raise PermissionError(0, error.message) from error
        _check_size(len(content))
        return content
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "not a regular file")  # a pipe would never end
    _check_size(status.st_size)
    return path.read_bytes()


def resolve_inside(folder: Path, name: str, *, anywhere: bool, resolved: dict[str, str] | None = None) -> Path:
    """Return the file that a path in a list or table means.

    Args:
        folder: relative paths start here.
        anywhere: the path may lead out of the folder.
        resolved: the folders that were resolved before, for a list of many paths; others are added.

    Raises:
        OutsideError: if it leads out of the folder, by itself or through a link, and may not.
    """
    if not isinstance(folder, Path):  # behind a URL there are no links, and nothing but what is below it is meant
        if name.startswith("/") or ".." in name.split("/"):
            raise OutsideError(f"the path {name[:200]} leads out of {folder}")
        return location(f"{str(folder).rstrip('/')}/{name}")
    path = folder / name
    if not anywhere and not _is_inside(str(folder), str(path), {} if resolved is None else resolved):
        raise OutsideError(
            f"the path {name[:200]} leads out of {folder}; choose the folder to start from with --images-root, "
            "or read it anyway with --follow-symlinks"
        )
    return path


def _is_inside(folder: str, path: str, resolved: dict[str, str]) -> bool:
    """Return whether a path, links followed, is below a folder."""

    def real(name: str) -> str:
        if name not in resolved:
            if len(resolved) >= _MOST_FOLDERS:
                resolved.clear()
            resolved[name] = os.path.realpath(name)
        return resolved[name]

    root = real(folder)
    parent, name = os.path.split(path)
    target = os.path.realpath(path) if name == ".." or os.path.islink(path) else os.path.join(real(parent), name)  # noqa: PTH114, PTH118
    return target == root or target.startswith(root.rstrip("/") + "/")


def download(url: str) -> bytes:
    """Fetch an image by its URL.

    Raises:
        OSError: if it cannot be fetched in several attempts, or is larger than 256 MiB.
        ValueError: if the URL is of a kind that images are not fetched from.
    """
    if not url.lower().startswith(DOWNLOAD_SCHEMES):
        raise ValueError(f"images are only downloaded from {', '.join(DOWNLOAD_SCHEMES)}, not from {url[:200]}")
    try:
        if url.lower().startswith("http"):
            content = retrying(lambda: _fetch(url), url, _DOWNLOAD_ATTEMPTS)
        else:
            content = read_all(location(url), LARGEST_IMAGE_FILE + 1)
    except UnreachableError as error:  # of this image alone: the others may be on other servers
        raise ConnectionError(0, str(error)) from error
    _check_size(len(content))
    return content


def _read_within_limits(answer: BinaryIO, url: str) -> bytes:
    """Read the answer of a server within limits of size and time: a server could send a byte a minute for days."""
    content = bytearray()
    end = time.monotonic() + _SLOWEST_DOWNLOAD
    while chunk := answer.read1(_CHUNK):  # type: ignore[attr-defined]
        content += chunk
        if len(content) > LARGEST_IMAGE_FILE:
            break
        if time.monotonic() > end:
            raise SlowServerError(
                f"{url[:200]} sent {len(content):,} bytes in {_SLOWEST_DOWNLOAD} s and did not finish"
            )
    return bytes(content)


def _fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "c3tools"})
    try:
        with urllib.request.urlopen(request, timeout=_DOWNLOAD_SECONDS) as answer:
            return _read_within_limits(answer, url)
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise FileNotFoundError(0, f"{url}: the server answers {error.code}") from error
        if error.code in (400, 401, 403, 405, 451):
            raise PermissionError(0, f"{url}: the server answers {error.code}") from error
        raise
