"""Two modalities, pair by pair: which rows belong together, by key, and reading them in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Full, Queue
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..arrays import Floats, Indices, Mask
from ..corpus.splits import ALL
from ..errors import StoreError
from ..io.float16 import to_float32
from ..io.spill import collect_rows
from ..store import Store, embedding_matrix
from ..store.rows import item_keys, match_items, row_items, split_mask

MAX_SUBSETS = 50
MAX_WINDOW_ROWS = 131_072
_AHEAD = 2


@dataclass
class Pairing:
    """Pairs of two modalities, as row numbers of the store.

    Attributes:
        first: the modality with one row per item (images).
        second: the modality with any number of rows per item (captions).
        item_index: int64 (rows of second,), the row of ``first`` with the same item, or -1.
        keep_first: bool (rows of first,), the rows of the chosen split.
        keep_second: bool (rows of second,).
        subset: int32 (rows of second,), the code of the user's column; -1 if it is empty. None without a column.
        subset_names: the values that the codes stand for.
        notes: what the reader should know about the pairing.
    """

    first: str
    second: str
    item_index: Indices
    keep_first: Mask
    keep_second: Mask
    subset: npt.NDArray[np.int32] | None = None
    subset_names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return int(np.count_nonzero(self.item_index >= 0))

    @property
    def items(self) -> Indices:
        """Rows of ``first`` that are in a pair, ascending."""
        return np.flatnonzero(self.paired_first)

    @property
    def paired_first(self) -> Mask:
        """Mask of the rows of ``first`` that are in a pair: bool (rows of first,)."""
        paired = np.zeros(len(self.keep_first), dtype=bool)
        paired[self.item_index[self.item_index >= 0]] = True
        return paired

    def only(self, first: Mask, second: Mask) -> Pairing:
        """Return the pairs of which both rows are in these masks."""
        both = second & (self.item_index >= 0) & first[np.maximum(self.item_index, 0)]
        subset = None if self.subset is None else np.where(both, self.subset, -1).astype(np.int32)
        index = np.where(both, self.item_index, -1)
        return Pairing(self.first, self.second, index, first, second, subset, self.subset_names, self.notes)


def pair_rows(store: Store, first: str, second: str, *, split: str | None = None, by: str | None = None) -> Pairing:
    """Pair the rows of two modalities by the keys of their items (`c3tools.store.rows.item_keys`).

    Args:
        store: the store.
        first: a modality.
        second: another; the two change places where only ``second`` has one row per item.
        split: take the rows of this split only.
        by: a column of either modality that divides the pairs into subsets.

    Raises:
        StoreError: if a modality or the column is missing, or the column has too many values.
    """
    tables = {name: _read_columns(store, name, split, by) for name in (first, second)}
    items = {name: item_keys(table) for name, table in tables.items()}
    repeats = {name: pc.count_distinct(keys).as_py() < len(keys) - keys.null_count for name, keys in items.items()}
    notes = []
    if repeats[first] and not repeats[second]:
        first, second = second, first
    elif repeats[first]:
        notes.append(
            f"Several {first} rows belong to the same item. The first of them is paired with each {second} row of the "
            "item."
        )
    keep = {name: split_mask(tables[name], split, store.kept_splits) for name in (first, second)}
    kept = np.flatnonzero(keep[first])
    found = match_items(items[first].filter(pa.array(keep[first])), items[second])
    matched = (found >= 0) & keep[second]
    item_index = np.where(matched, kept[np.maximum(found, 0)] if len(kept) else -1, -1)
    pairing = Pairing(first, second, item_index, keep[first], keep[second], notes=notes)
    if by is not None:
        pairing.subset, pairing.subset_names = _subsets(pairing, tables, by)
    return pairing


def kept_rows(store: Store, modality: str, split: str | None) -> Mask:
    """Return which rows of a modality are in a split: bool (n,), all of them for None or ``all``."""
    return split_mask(_read_columns(store, modality, split, None), split, store.kept_splits)


def distinct_items(store: Store, modality: str, keep: Mask) -> int:
    """Return the number of items that the kept rows of a modality belong to; captions of one image have one item."""
    return row_items(_read_columns(store, modality, None, None)).take(keep).distinct


class Batches:
    """Keys and rows of one modality, read and decoded a few batches ahead in a background thread."""

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

    def __iter__(self) -> Iterator[tuple[pa.Array[Any], Floats]]:
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
        except BaseException as error:  # raised again in the thread that iterates
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
    """Rows of a stream, looked up by number in nearly the order of the stream.

    Rows that are not needed again are dropped. If the two orders differ so much that more than
    `MAX_WINDOW_ROWS` rows would be held, the whole stream is read first (`c3tools.io.spill.collect_rows`).

    Args:
        stream: batches of rows, in order.
        numbers: int64, all numbers that will be looked up, in this order; -1 is skipped.
        dim: d.
        dtype: of the rows.
    """

    def __init__(self, stream: Iterator[Floats], numbers: Indices, dim: int, dtype: np.dtype[Any]) -> None:
        self._stream = stream
        self._wanted = numbers
        # the smallest number still to come after each position: rows below it can go
        ahead = np.where(numbers >= 0, numbers, np.iinfo(np.int64).max)
        self._lowest_ahead = np.minimum.accumulate(ahead[::-1])[::-1]
        self._asked = np.flatnonzero(numbers >= 0)
        self._done = 0
        self._start = 0
        self._held: Floats = np.empty((0, dim), dtype=dtype)
        self._whole = self._width() > MAX_WINDOW_ROWS

    def rows(self, numbers: Indices) -> Floats:
        """Return the rows (len(numbers), d); to be called with the announced numbers in the announced order."""
        if self._whole and not len(self._held):
            self._held = collect_rows(self._stream, self._held.shape[1:], self._held.dtype)
        if not self._whole:
            self._advance(int(numbers.max()), int(self._lowest_ahead[self._asked[self._done]]))
        self._done += len(numbers)
        local = numbers - self._start
        if len(local) and int(local[-1]) - int(local[0]) == len(local) - 1 and np.all(np.diff(local) == 1):
            return self._held[local[0] : local[-1] + 1]
        return self._held[local]

    def finish(self) -> None:
        """Read the stream to its end, so that it has seen every row."""
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


def _read_columns(store: Store, modality: str, split: str | None, by: str | None) -> pa.Table:
    """Read the columns that pairing needs; the reader skips those that a modality does not have."""
    store.require(modality)
    wanted = {"key", "image_key", "pair_key", *(["split"] if split not in (None, ALL) else []), *([by] if by else [])}
    batches = list(store.batches(modality, columns=sorted(wanted - {"embedding"}), batch_rows=65536))
    if not batches:
        raise StoreError(f"The modality {modality!r} of the store {store.path} has no rows.")
    return pa.Table.from_batches(batches).combine_chunks()


def _subsets(pairing: Pairing, tables: dict[str, pa.Table], by: str) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Return the codes (rows of second,) and values of a column: a pair has the value of its own row, or its item's."""
    found = [name for name in (pairing.second, pairing.first) if by in tables[name].column_names]
    if not found:
        there = {name for table in tables.values() for name in table.column_names}
        raise StoreError(
            f"The store has no column {by!r}.",
            remedy=f"The columns of {pairing.first} and {pairing.second} are {', '.join(sorted(there))}.",
        )
    columns = {name: pc.cast(tables[name].column(by), pa.string()) for name in found}
    if pairing.first in columns:
        index = pa.array(np.maximum(pairing.item_index, 0), pa.int64(), mask=pairing.item_index < 0)
        columns[pairing.first] = columns[pairing.first].take(index)
    values = pc.coalesce(*columns.values())
    if values.null_count == len(values):
        raise StoreError(
            f"The column {by!r} is empty for every pair of {pairing.first} and {pairing.second}.",
            remedy="Choose a column with values, or leave out --by.",
        )
    encoded = values.combine_chunks().dictionary_encode()
    if len(encoded.dictionary) > MAX_SUBSETS:
        raise StoreError(
            f"The column {by!r} has {len(encoded.dictionary)} values, but the gap can be compared for at most "
            f"{MAX_SUBSETS}.",
            remedy="Choose a column with a few groups, such as split.",
        )
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    names = [str(value) for value in encoded.dictionary.to_pylist()]
    return np.where(pairing.item_index >= 0, codes, -1).astype(np.int32), names
