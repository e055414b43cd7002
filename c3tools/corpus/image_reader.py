"""Read the bytes of images (of files, members of tars, cells of tables, and URLs), frames of
videos, and sounds.
"""

from __future__ import annotations

import io
import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
from PIL import Image

from ..arrays import Floats
from ..errors import MissingExtraError, RefusedError, UnreachableError
from ..io.limits import LARGEST_IMAGE_FILE
from ..io.locations import is_url, location, open_binary, read_all, retrying
from ..io.parquet import open_parquet, record_batches
from .items import ImageItem, ImageSource, existing_file

_DOWNLOAD_SCHEMES = ("http://", "https://", "s3://", "gs://", "hf://")
_DOWNLOAD_SECONDS = 30
_SLOWEST_DOWNLOAD = 120  # seconds for one image
_CHUNK = 2**16
# the number of rows of each row group or record batch, and its batches
_Groups = Iterator[tuple[int, Iterable[pa.RecordBatch]]]
_LONGEST_SOUND = 300  # seconds
_DOWNLOAD_ATTEMPTS = 3  # some addresses of a long list are always dead


class ImageReader:
    """A reader of images one after the other: the last tar stays open, the last rows of a table
    stay in memory.
    """

    def __init__(self) -> None:
        self._tar: tuple[str, BinaryIO] | None = None
        self._first_cell: ImageSource | None = None  # of the last row group of a table
        self._cells: Iterator[Any]  # of this group, those that were not read yet
        self._next_place: int  # of the first of these in its group

    def read(self, image: ImageItem) -> bytes:
        """Return the bytes of an image.

        Raises:
            UnreachableError: if the server of a tar, a table or a list does not answer, or refuses
                access.
            OSError: if it cannot be read, or its path leads out of where it may.
            ValueError: if the row is null.
        """
        source = image.source
        if source is None:
            return _read_file(location(image.path))
        if source.column is not None:
            return self._read_cell(source)
        if source.download:
            return download(source.file)
        _check_size(source.place)
        if self._tar is None or self._tar[0] != source.file:
            self.close()
            self._tar = (source.file, open_binary(location(source.file)))
        file = self._tar[1]
        file.seek(source.start)
        content = file.read(source.place)
        if len(content) != source.place:
            raise OSError(
                0,
                f"only {len(content):,} of {source.place:,} bytes could be read; the file has "
                f"become shorter",
            )
        return content

    def _read_cell(self, cell: ImageSource) -> bytes:
        """Return the image in a cell of a table.

        The rows of a row group can only be read in their order, so the group is opened again if the
        cell is before the one that was read last.
        """
        first_cell = cell._replace(place=0)
        if first_cell != self._first_cell or cell.place < self._next_place:
            self._first_cell = first_cell
            self._cells = cells_of_group(first_cell)
            self._next_place = 0
        skipped = cell.place - self._next_place
        self._next_place = cell.place + 1
        try:
            value = next(islice(self._cells, skipped, None))
        except StopIteration:
            # A generator that has raised an error ends there, so damage hides the rows behind it
            raise OSError(
                0, "the row is no longer in the table, or comes after a damaged row"
            ) from None
        if value is None:
            raise ValueError(f"the column {cell.column!r} is null in this row")
        if isinstance(value, bytes):
            _check_size(len(value))
            return value
        if is_url(str(value)):
            if not cell.download:
                raise error_without_download(str(value))
            return download(str(value))
        try:
            return _read_file(
                resolve_inside(location(cell.folder or "."), str(value), anywhere=cell.anywhere)
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(
                0, f"the row has no bytes, and its path {str(value)[:200]} does not exist"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the open file."""
        if self._tar is not None:
            self._tar[1].close()
        self._tar = None
        self._first_cell = None


def cells_of_group(cell: ImageSource) -> Iterator[Any]:
    """Yield the images of a cell's column as bytes, or else as paths, from the start of its row
    group on.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: at a row that cannot be read.
    """
    column = str(cell.column)
    with open_image_table(location(cell.file)) as (_, read):
        _, batches = next(islice(read([column]), cell.start, None), (0, []))
        for batch in batches:
            for scalar in batch.column(column):
                value = scalar.as_py()
                if isinstance(value, dict):
                    value = value.get("bytes") or value.get("path")
                yield value


@contextmanager
def open_image_table(path: Path) -> Iterator[tuple[pa.Schema, Callable[[list[str]], _Groups]]]:
    """Yield the schema of a Parquet or Arrow table, and what reads columns: by group, its rows and
    its batches.
    """
    if path.suffix.lower() == ".arrow":
        batches = record_batches(path)
        first_batch = next(batches, None)
        if first_batch is None:
            raise OSError(0, "there are no rows in it")

        def read_batches(_: list[str]) -> _Groups:
            for batch in chain([first_batch], batches):
                yield len(batch), [batch]

        yield first_batch.schema, read_batches
        return
    with open_parquet(path) as file:

        def read_groups(names: list[str]) -> _Groups:
            for group, count in enumerate(file.row_counts):
                yield count, file.batches(names, group=group)

        yield file.schema, read_groups


def error_without_download(url: str) -> OSError:
    """Return the error for an image that is given by URL, where --download was not used."""
    return PermissionError(0, f"the image is at the URL {url[:200]}; --download downloads it")


def _check_size(size: int) -> None:
    if size > LARGEST_IMAGE_FILE:
        raise OSError(0, f"{size:,} bytes are too many for an image")


def _read_file(path: Path) -> bytes:
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


def resolve_inside(folder: Path, name: str, *, anywhere: bool) -> Path:
    """Return the file that a path in a list or table means, its name perhaps in another Unicode
    form; relative ones start from ``folder``.

    Raises:
        PermissionError: if it leads out of the folder, by itself or through a link, and may not go
            ``anywhere``.
    """
    # behind a URL there are no links, and nothing but what is below it is meant
    if not isinstance(folder, Path):
        if name.startswith("/") or ".." in name.split("/"):
            raise PermissionError(0, f"the path {name[:200]} leads out of {folder}")
        return location(f"{str(folder).rstrip('/')}/{name}")
    path = existing_file(folder, name)
    target = Path(os.path.realpath(path))
    if not anywhere and not target.is_relative_to(os.path.realpath(folder)):
        raise PermissionError(
            0,
            f"the path {name[:200]} leads out of {folder}; set the base folder with --images-root, "
            f"or read it anyway with --follow-symlinks",
        )
    return path


def download(url: str) -> bytes:
    """Fetch an image by its URL.

    Raises:
        OSError: if it cannot be fetched in several attempts, or is larger than 256 MiB.
        ValueError: if the URL is of a kind that images are not fetched from, or the server sends it
            too slowly.
    """
    if not url.lower().startswith(_DOWNLOAD_SCHEMES):
        raise ValueError(
            f"images are only downloaded from {', '.join(_DOWNLOAD_SCHEMES)}, not from {url[:200]}"
        )
    try:
        if url.lower().startswith("http"):
            content = retrying(lambda: _fetch(url), url, _DOWNLOAD_ATTEMPTS)
        else:
            content = read_all(location(url), LARGEST_IMAGE_FILE + 1)
    except UnreachableError as error:  # of this image alone: the others may be on other servers
        raise ConnectionError(0, str(error)) from error
    _check_size(len(content))
    return content


def _fetch(url: str) -> bytes:
    """Read the answer of a server within limits of size and time: a server could send a byte a
    minute for days.
    """
    content = bytearray()
    end = time.monotonic() + _SLOWEST_DOWNLOAD
    request = urllib.request.Request(url, headers={"User-Agent": "c3tools"})
    try:
        answer = urllib.request.urlopen(request, timeout=_DOWNLOAD_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()  # it may be kept until the last attempt
        raise
    with answer:
        while len(content) <= LARGEST_IMAGE_FILE:
            chunk = answer.read1(_CHUNK)
            if not chunk:
                break
            content += chunk
            if time.monotonic() > end:  # not an OSError, which would be tried again
                raise ValueError(
                    f"{url[:200]} sent {len(content):,} bytes and did not finish in time"
                )
    return bytes(content)


def read_sound(path: str | Path, rate: int) -> tuple[Floats, float]:
    """Return the first five minutes of a sound, (samples,), all channels as one, and its whole
    length in seconds.

    Args:
        path: a file.
        rate: samples per second to convert it to.

    Raises:
        OSError, ValueError: if it is no sound, or damaged.
        MissingExtraError: if soundfile is not installed.
    """
    try:
        import soundfile
    except ImportError:
        raise MissingExtraError("soundfile", extra="st", purpose="Reading audio") from None
    try:
        with soundfile.SoundFile(io.BytesIO(_read_file(location(path)))) as file:
            file_rate = file.samplerate
            length = file.frames / file_rate
            channels = file.read(_LONGEST_SOUND * file_rate, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:  # its text has the address of the stream
        raise ValueError(error.error_string) from None
    samples = channels.mean(axis=1)
    if not len(samples):
        raise ValueError("it contains no audio")
    if file_rate != rate:
        # Resample by frequencies: those above half the new rate are left out
        count = max(1, round(len(samples) * rate / file_rate))
        frequencies = np.fft.rfft(samples)
        samples = np.fft.irfft(frequencies, count) * (count / len(samples))
    return samples.astype(np.float32), length


def read_frames(
    path: str | Path, fps: float, time_limit: float | None = None
) -> Iterator[tuple[float, Image.Image]]:
    """Yield frames of a video and their times in seconds: the first one, and the first at or after
    each 1 / ``fps``.

    Frames are RGB images, turned as the video says. Sound and subtitles are not decoded.

    Args:
        path: a file.
        fps: frames per second; a video of fewer gives all that it has.
        time_limit: seconds that decoding may take until a frame is yielded.

    Raises:
        TimeoutError: if it takes longer.
        OSError, ValueError: if it is not a video, or damaged.
    """
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it contains no pictures")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames_per_second = float(stream.average_rate or 1)
        start: float | None = None  # time of the first frame
        next_frame = 0  # that is wanted, in units of 1 / fps
        began = time.monotonic()
        for number, frame in enumerate(container.decode(stream)):
            if time_limit is not None and time.monotonic() - began > time_limit:
                raise TimeoutError(
                    f"took longer than {time_limit:g} s to decode; --image-timeout allows more"
                )
            at = frame.time if frame.time is not None else number / frames_per_second
            if start is None:
                start = at
            elapsed = at - start
            if elapsed * fps >= next_frame - 1e-6:
                next_frame = int(elapsed * fps + 1e-6) + 1
                image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
                rotation = getattr(frame, "rotation", 0)
                yield elapsed, image.rotate(rotation, expand=True) if rotation else image
                began = time.monotonic()
        if start is None:
            raise ValueError("no frame of it can be decoded")
