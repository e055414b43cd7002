"""The data model: rows of one modality, and pairs of rows of two modalities that belong to one item.

An *item* is what a row is about: an image has one row in the modality ``image`` and, with five captions, five in the
modality ``text``. The column ``image_key`` of texts (``pair_key`` of other modalities) names the item; a row without
one is an item of its own. Rows are paired by the keys of their items, never by their order, and an item is in one
split with all its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..corpus.splits import ALL, STANDARD, Kept, split_of
from ..errors import StoreError
from ..io.float16 import to_float32
from ..reporter import counted
from ..seeds import stable_fraction

Matrix = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ITEM_COLUMNS = ("image_key", "pair_key")
HELD_OUT = 0.1
_HOLD_OUT_SALT = "validation"
_SAMPLE_SALT = "train fraction"


@dataclass(frozen=True)
class Rows:
    """Rows of one modality in memory.

    Attributes:
        modality: what the embeddings are of: ``image``, ``text`` or another name.
        keys: n unique keys.
        embeddings: float32 (n, d).
        table: the other columns, and ``key``, as an Arrow table of n rows.
        kept_splits: the splits whose rows stay in them (`Store.kept_splits`); None for all.
    """

    modality: str
    keys: Sequence[str]
    embeddings: Matrix
    table: pa.Table
    kept_splits: Kept = None

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.embeddings) == self.table.num_rows:
            raise StoreError(
                f"{len(self.keys)} keys, {len(self.embeddings)} embeddings and {self.table.num_rows} table rows do not "
                "form rows.",
                remedy="Give one key, and one value per column, for each embedding.",
            )

    @classmethod
    def of(cls, modality: str, keys: Sequence[str], embeddings: npt.ArrayLike, **columns: Sequence[Any] | None) -> Rows:
        """Make rows from arrays and lists.

        Args:
            modality: what the embeddings are of.
            keys: n unique keys.
            embeddings: (n, d), taken as float32.
            columns: further columns of n values, such as ``image_key``, ``split`` and ``caption``; None leaves one out.

        Raises:
            StoreError: if the lengths differ.
        """
        given = {"key": list(keys), **{name: list(v) for name, v in columns.items() if v is not None}}
        short = {name: len(values) for name, values in given.items() if len(values) != len(keys)}
        if short:
            name, count = next(iter(short.items()))
            raise StoreError(f"There are {len(keys)} keys and {count} values of {name}.")
        table = pa.table(
            {name: pa.array(values, pa.string() if _is_text(values) else None) for name, values in given.items()}
        )
        return cls(modality, keys, np.asarray(embeddings, dtype=np.float32), table)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    def column(self, name: str) -> list[Any]:
        """Return one column as a list of n Python values."""
        return self.table.column(name).to_pylist()

    @cached_property
    def captions(self) -> list[str]:
        """The column ``caption``, an empty string where it is null."""
        return [caption or "" for caption in self.column("caption")]

    @cached_property
    def items(self) -> list[str]:
        """The key of each row's item: its own key where it belongs to no other."""
        return row_items(self.table)

    @cached_property
    def item_index(self) -> Indices:
        """The number of each row's item, int64 (n,), items numbered in the order of their first rows."""
        return number(self.items)

    @cached_property
    def splits(self) -> list[str]:
        """The split of each row."""
        return row_splits(self.table, self.kept_splits)

    def select(self, rows: Indices | Mask) -> Rows:
        """Return the rows with these numbers, in this order, or where a mask (n,) is true."""
        chosen: Indices = np.arange(len(self))[rows]
        table = self.table.take(chosen)
        return Rows(self.modality, [self.keys[row] for row in chosen], self.embeddings[chosen], table, self.kept_splits)

    def where(self, split: str | None) -> Rows:
        """Return the rows of one split, see `split_mask`; all of them for None or ``all``."""
        return self if split in (None, ALL) else self.select(split_mask(self.table, split, self.kept_splits))

    def hash_order(self, salt: str) -> Indices:
        """Return the numbers of the rows by a stable hash of their keys: the same whatever the order of the shards."""
        return np.argsort([stable_fraction(key, salt) for key in self.keys], kind="stable").astype(np.int64)

    def sample(self, fraction: float, salt: str = _SAMPLE_SALT) -> Rows:
        """Return all rows of ``fraction`` of the items, at least one, by a stable hash of their keys.

        A larger fraction holds a smaller one of the same salt.
        """
        ranked = _ranked(self.items, salt)
        chosen = set(ranked[: max(1, round(fraction * len(ranked)))])
        return self.select(_among(self.items, chosen))

    def hold_out(self, share: float = HELD_OUT) -> tuple[Rows, Rows]:
        """Split off all rows of about ``share`` of the items: what is left, and what is held out.

        Of two items or more at least one is held out; which ones depends on their keys alone.
        """
        held = held_out(self.items, share)
        return self.select(~held), self.select(held)


@dataclass(frozen=True)
class Pairs:
    """Rows of two modalities and which of them belong together.

    Attributes:
        first: one row per item (images).
        second: any number of rows per item (captions).
        item_index: int64 (rows of second,), the row of ``first`` with the same item, or -1.
    """

    first: Rows
    second: Rows
    item_index: Indices

    @classmethod
    def match(cls, first: Rows, second: Rows) -> Pairs:
        """Pair rows by the keys of their items; of several first rows of one item the first one counts."""
        return cls(first, second, match_items(item_keys(first.table), item_keys(second.table)))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return int(np.count_nonzero(self.item_index >= 0))

    @cached_property
    def rows(self) -> Indices:
        """The rows of ``second`` that are in a pair, ascending: int64 (pairs,)."""
        return np.flatnonzero(self.item_index >= 0)

    def arrays(self) -> tuple[Matrix, Matrix]:
        """Return the embeddings of both sides, row by row a pair: float32 (pairs, d) each."""
        return self.first.embeddings[self.item_index[self.rows]], self.second.embeddings[self.rows]

    def captions_of_first(self) -> Rows:
        """Return the paired rows of ``second`` with the embeddings of ``first`` in place of their own."""
        paired = self.second.select(self.rows)
        return Rows(self.first.modality, paired.keys, self.arrays()[0], paired.table, paired.kept_splits)


def number(values: Sequence[object]) -> Indices:
    """Return a number per value, int64 (n,), the same for equal values, in the order of their first appearance."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def match_items(first: pa.Array[Any], second: pa.Array[Any]) -> Indices:
    """Return for each key of ``second`` where ``first`` has it (first occurrence), or -1; null matches nothing."""
    found = pc.index_in(second, value_set=first, skip_nulls=True).fill_null(-1)
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)


def keys_of(table: pa.Table | pa.RecordBatch) -> list[str]:
    """Return the keys of n rows."""
    keys: list[Any] = table.column("key").to_pylist()
    return keys


def item_keys(table: pa.Table | pa.RecordBatch) -> pa.Array[Any]:
    """Return the key of each row's item as a string array; null for a text that belongs to no image.

    Rows of other modalities that name no item are items of their own.
    """
    names = table.schema.names
    if "image_key" in names:
        return _text(table, "image_key")
    key = _text(table, "key")
    return pc.coalesce(_text(table, "pair_key"), key) if "pair_key" in names else key


def row_items(table: pa.Table | pa.RecordBatch) -> list[str]:
    """Return the key of each row's item: its own key where it belongs to no other."""
    keys = keys_of(table)
    return [item or key for item, key in zip(item_keys(table).to_pylist(), keys, strict=True)]


def row_splits(table: pa.Table | pa.RecordBatch, kept: Kept = None) -> list[str]:
    """Return the split of each row: as the corpus says, else by a stable hash of the item's key.

    Rows of splits that are not in ``kept`` are split by the hash too; None keeps all.
    """
    names = table.schema.names
    keys = keys_of(table)
    splits = table.column("split").to_pylist() if "split" in names else None
    item_column = next((name for name in ITEM_COLUMNS if name in names), None)
    return splits_of(keys, table.column(item_column).to_pylist() if item_column else None, splits, kept)


def splits_of(
    keys: Sequence[str], items: Sequence[str | None] | None, splits: Sequence[str | None] | None, kept: Kept = None
) -> list[str]:
    """Return the split of each row from its key, its item's key and what the corpus says, None where it has none."""
    n = len(keys)
    rows = zip(splits or [None] * n, items or [None] * n, keys, strict=True)
    return [split_of(split, item or key, kept) for split, item, key in rows]


def split_mask(table: pa.Table | pa.RecordBatch, split: str | None, kept: Kept = None) -> Mask:
    """Return which rows are in a split: bool (n,), all of them for None or ``all``.

    ``train``, ``val`` and ``test`` are as all commands see them, given the splits that are ``kept``; another name is
    the corpus' own.
    """
    if split is None or split == ALL:
        return np.ones(table.num_rows, dtype=bool)
    if split in STANDARD:
        return np.array([own == split for own in row_splits(table, kept)], dtype=bool)
    return np.array([own == split.lower() for own in row_splits(table)], dtype=bool)


def held_out(items: Sequence[str], share: float = HELD_OUT) -> Mask:
    """Return which rows to hold out, bool (n,): see `Rows.hold_out`."""
    ranked = _ranked(items, _HOLD_OUT_SALT)
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    return _among(items, set(ranked[:count]) if count > 0 else set())


def embedding_matrix(table: pa.Table | pa.RecordBatch, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the column ``embedding`` as a matrix (n, d) of ``dtype``.

    Raises:
        StoreError: if a row has none.
    """
    column = table.column("embedding")
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if column.null_count:
        raise StoreError(
            f"{counted(column.null_count, 'row has', 'rows have')} no embedding.",
            remedy="Check the store with `c3 verify`.",
        )
    flat = column.flatten()  # type: ignore[attr-defined]
    # a view of the buffer: Array.to_numpy would import pandas where it is installed
    values = np.frombuffer(flat.buffers()[1], dtype=flat.type.to_pandas_dtype())[flat.offset : flat.offset + len(flat)]
    matrix = values.reshape(-1, column.type.list_size)
    if matrix.dtype == np.float16 and np.dtype(dtype) == np.float32:
        return to_float32(matrix)
    return matrix.astype(dtype, copy=False)


def positions(keys: Sequence[str]) -> Mapping[str, int]:
    """Return the row of each key; of a key that comes twice, the first."""
    found: dict[str, int] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, row)
    return found


def _ranked(items: Sequence[str], salt: str) -> list[str]:
    return sorted(set(items), key=lambda item: stable_fraction(item, salt=salt))


def _among(items: Sequence[str], chosen: set[str]) -> Mask:
    return np.array([item in chosen for item in items], dtype=bool)


def _text(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array[Any]:
    column = table.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    return column if pa.types.is_string(column.type) else column.cast(pa.string())  # type: ignore[return-value]


def _is_text(values: Sequence[Any]) -> bool:
    return all(value is None or isinstance(value, str) for value in values)
