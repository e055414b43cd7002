"""Reading two modalities side by side in bounded memory."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from queue import Full, Queue
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..io.float16 import to_float32
from ..store import Store, embedding_matrix
from ..store.rows import Indices

Rows = npt.NDArray[np.floating[Any]]

MAX_WINDOW_ROWS = 131_072
_AHEAD = 2


class Batches:
    """The keys and rows of one modality, read and decoded in a thread of its own, a few batches ahead."""

    def __init__(self, store: Store, modality: str, dtype: np.dtype[Any]) -> None:
        self._store, self._modality, self._dtype = store, modality, dtype
        self._queue: Queue[Any] = Queue(maxsize=_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"read {modality}", daemon=True)

    def __enter__(self) -> Batches:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[tuple[pa.Array, Rows]]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _read(self) -> None:
        try:
            for batch in self._store.batches(self._modality, columns=["key", "embedding"]):
                rows = embedding_matrix(batch, np.dtype(self._store.info.dtype))
                rows = (to_float32(rows) if rows.dtype == np.float16 else rows).astype(self._dtype, copy=False)
                if not self._put((batch.column("key"), rows)):
                    return
            self._put(None)
        except BaseException as error:  # handed to the thread that reads from here
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False


class Window:
    """Rows of a stream by number, in any order that stays near the stream's own.

    Args:
        stream: batches of rows, in order.
        numbers: int64, all numbers that will be asked for, in the order they will be; -1 is skipped.
        dim: d.
        dtype: of the rows.
    """

    def __init__(self, stream: Iterator[Rows], numbers: Indices, dim: int, dtype: np.dtype[Any]) -> None:
        self._stream = stream
        self._wanted = numbers
        # the smallest number still to come after each position: rows below it can go
        ahead = np.where(numbers >= 0, numbers, np.iinfo(np.int64).max)
        self._lowest_ahead = np.minimum.accumulate(ahead[::-1])[::-1]
        self._asked = np.flatnonzero(numbers >= 0)
        self._done = 0
        self._start = 0
        self._held: Rows = np.empty((0, dim), dtype=dtype)
        self._file: Any = None
        if self._width() > MAX_WINDOW_ROWS:
            self._file = tempfile.TemporaryFile(prefix="c3-rows-")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._held = self._held[:0]
            self._file.close()

    def rows(self, numbers: Indices) -> Rows:
        """The rows (len(numbers), d); call it with the announced numbers in the announced order."""
        if self._file is not None and not len(self._held):
            self._spill()
        if self._file is None:
            self._advance(int(numbers.max()), int(self._lowest_ahead[self._asked[self._done]]))
        self._done += len(numbers)
        local = numbers - self._start
        if len(local) and int(local[-1]) - int(local[0]) == len(local) - 1 and np.all(np.diff(local) == 1):
            return self._held[local[0] : local[-1] + 1]
        return self._held[local]

    def finish(self) -> None:
        """Read the stream to its end, for what else watches it."""
        for _ in self._stream:
            pass

    def _width(self) -> int:
        if not len(self._asked):
            return 0
        highest = np.maximum.accumulate(self._wanted)
        return int((highest - self._lowest_ahead)[self._asked].max()) + 1

    def _advance(self, highest: int, lowest: int) -> None:
        while self._start + len(self._held) <= highest:
            drop = min(max(lowest - self._start, 0), len(self._held))
            following = next(self._stream)
            rest = self._held[drop:]
            self._start += drop
            self._held = np.concatenate([rest, following]) if len(rest) else following

    def _spill(self) -> None:
        count = 0
        for rows in self._stream:
            rows.tofile(self._file)
            count += len(rows)
        self._file.flush()
        shape = (count, self._held.shape[1])
        self._held = np.memmap(self._file, dtype=self._held.dtype, mode="r", shape=shape)
