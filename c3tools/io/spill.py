"""Rows that may be larger than memory: an array, or a temporary file that is read where it is indexed.

A training asks for a few rows at a time, in an order that is drawn again in every epoch. The files of a store are
compressed in blocks of thousands of rows, so rows that do not fit in memory are written once, one after another, to a
temporary file. It is read by position, not mapped: the pages of a map count as memory of the process, and a disk that
fails would end the process by a signal, without a message. The file has no name, so nothing of it is left however
the process ends, and two runs cannot use the same file.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..arrays import Indices
from ..errors import OutputError
from .float16 import to_float32

MEMORY_LIMIT = 256 << 20  # bytes of rows, as they are used, up to which they stay in memory
BLOCK_ROWS = 8192

Array = npt.NDArray[Any]
R = TypeVar("R", bound=Any)


class Digest(Protocol):
    """A running digest, as hashlib makes them."""

    def update(self, data: Any, /) -> None:
        """Take more bytes."""


class FileRows:
    """Rows in a temporary file, indexed as a numpy array is along its first axis; what is indexed is read.

    float16 is only how they are kept: they are float32 to who reads them.

    Args:
        file: contains rows one after another; it is closed when the last `FileRows` over it is gone.
        stored: the dtype in the file.
        shape: of all rows, (n, ...).
        numbers: the rows of the file that are these rows, int64 (m,); None for all of them.
    """

    def __init__(
        self, file: _SharedFile, stored: npt.DTypeLike, shape: tuple[int, ...], numbers: Indices | None = None
    ) -> None:
        self._file, self._stored, self._numbers = file, np.dtype(stored), numbers
        self.shape = shape if numbers is None else (len(numbers), *shape[1:])
        self.dtype = np.dtype(np.float32) if self._stored == np.float16 else self._stored

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> Array:
        """Return the rows of a slice, of numbers (m,) or of a mask (n,), or the one row with a number.

        Raises:
            OSError: if the file cannot be read.
        """
        if isinstance(key, int | np.integer):
            return self[np.array([key])][0]  # type: ignore[no-any-return]
        numbers = self._chosen(key)
        return self._read(numbers if self._numbers is None else self._numbers[numbers])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Read all rows into memory."""
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def select(self, key: Any) -> FileRows:
        """Return the rows of a slice, of numbers (m,) or of a mask (n,) without reading them."""
        numbers = self._chosen(key)
        return FileRows(
            self._file, self._stored, self.shape, numbers if self._numbers is None else self._numbers[numbers]
        )

    def _chosen(self, key: Any) -> Indices:
        if isinstance(key, slice):
            return np.arange(*key.indices(len(self)), dtype=np.int64)
        chosen = np.asarray(key)
        if chosen.dtype == bool:
            if len(chosen) != len(self):
                raise IndexError(f"the mask has {len(chosen)} values, but there are {len(self)} rows")
            return np.flatnonzero(chosen)
        numbers = chosen.astype(np.int64, copy=False)
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"row {int(np.abs(numbers).max())} was requested, but there are only {len(self)} rows")
        return numbers

    def _read(self, numbers: Indices) -> Array:
        """Return rows of the file; consecutive rows are read together."""
        out = np.empty((len(numbers), *self.shape[1:]), self._stored)
        if not out.size:
            return out.astype(self.dtype)
        size = out[0].nbytes
        into = out.reshape(-1).view(np.uint8).data
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 2) != 1).tolist()
        for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
            self._file.read_into(into[start * size : stop * size], int(numbers[start]) * size)
        return to_float32(out) if self._stored == np.float16 else out


class _SharedFile:
    """A temporary file without a name that several `FileRows` read, from several threads or processes."""

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed below, with the last user
        except OSError as error:
            raise _no_room(error, 0) from error
        self._turn = threading.Lock()
        weakref.finalize(self, self._file.close)

    def append(self, block: Array) -> None:
        """Write a block behind those that are there.

        Raises:
            OutputError: if there is no room for it.
        """
        left = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _no_room(error, self._file.tell()) from error

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes at ``offset``."""
        while buffer:
            if hasattr(os, "preadv"):
                count = os.preadv(self._file.fileno(), [buffer], offset)
            else:
                with self._turn:
                    self._file.seek(offset)
                    count = self._file.readinto(buffer) or 0
            if count == 0:
                raise OSError("a temporary file in " + tempfile.gettempdir() + " was cut short")
            buffer, offset = buffer[count:], offset + count


def _no_room(error: OSError, written: int) -> OutputError:
    return OutputError(
        f"The rows do not fit in memory, and a temporary file in {tempfile.gettempdir()} cannot be written: "
        f"{error.strerror or error}, after {written / 2**20:,.0f} MiB.",
        remedy="Free some space there, or set the environment variable TMPDIR to another folder.",
    )


def collect_rows(blocks: Iterable[Array], shape: tuple[int, ...], dtype: npt.DTypeLike, *, spill: bool = True) -> Any:
    """Put blocks of rows (k, ...) together: in memory, or from `MEMORY_LIMIT` on in a temporary file.

    Args:
        blocks: of one dtype; float16 is taken to be storage of float32.
        shape: of one row.
        dtype: of the result, if there is no block.
        spill: whether a file may be used.

    Returns:
        An array, or a `FileRows`.

    Raises:
        OutputError: if the disk is full.
    """
    held: list[Array] = []
    file: _SharedFile | None = None
    count = 0
    stored = np.dtype(dtype)
    for block in blocks:
        stored, count = block.dtype, count + len(block)
        used = 4 if stored == np.float16 else stored.itemsize
        if spill and file is None and count * used * int(np.prod(shape)) > MEMORY_LIMIT:
            file = _SharedFile()
            while held:
                file.append(held.pop(0))
        if file is None:
            held.append(block)
        else:
            file.append(block)
    if file is not None:
        return FileRows(file, stored, (count, *shape))
    out = np.empty((count, *shape), np.float32 if stored == np.float16 else stored)
    end = count
    while held:  # from the last one, so that each is given back as soon as it is copied
        block = held.pop()
        out[end - len(block) : end] = to_float32(block) if stored == np.float16 else block
        end -= len(block)
    return out


def take_rows(rows: R, key: Any) -> R:
    """Return some of the rows: copied from an array, but of a file not read yet."""
    taken: R = rows.select(key) if isinstance(rows, FileRows) else rows[key]  # type: ignore[assignment]
    return taken


def blocks_of(rows: R) -> Iterator[R]:
    """Yield rows a few thousand at a time."""
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]


def hash_rows(digest: Digest, rows: Array | FileRows) -> None:
    """Update a digest with the bytes of rows."""
    for block in blocks_of(rows):
        digest.update(np.ascontiguousarray(block).data)
