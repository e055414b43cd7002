"""The data model: rows of one modality, and pairs of rows of two modalities that belong to one
item.

An *item* is what a row is about: an image has one row in the modality ``image`` and, with five
captions, five in the modality ``text``. The column ``image_key`` of texts (``pair_key`` of other
modalities) names the item; a row without one is an item of its own. Rows are paired by the keys of
their items, never by their order, and an item is in one split with all its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..arrays import Indices, Mask, Matrix
from ..corpus.splits import ALL, named_split, splits_of
from ..errors import StoreError
from ..reporter import counted
from ..seeds import stable_fractions

ITEM_COLUMNS = ("image_key", "pair_key")
HELD_OUT = 0.1
_MOST_BYTES = 2**31 - 1  # of the texts of an Arrow array with 32-bit offsets


@dataclass(frozen=True)
class Rows:
    """Rows of one modality.

    Attributes:
        modality: ``image``, ``text`` or another name.
        embeddings: float32 (n, d), or of the dtype that they were loaded as.
        table: an Arrow table of n rows with the column ``key``, of n unique keys, and the other
            columns.
    """

    modality: str
    embeddings: Matrix
    table: pa.Table

    def __post_init__(self) -> None:
        if len(self.embeddings) != self.table.num_rows:
            raise StoreError(
                f"The numbers of keys and embeddings differ: "
                f"{counted(self.table.num_rows, 'key')}, "
                f"{counted(len(self.embeddings), 'embedding')}.",
                remedy="Pass one key and one value per column for each embedding.",
            )

    @classmethod
    def of(
        cls,
        modality: str,
        keys: Sequence[str],
        embeddings: npt.ArrayLike,
        **columns: Sequence[Any] | None,
    ) -> Rows:
        """Make rows from arrays and lists.

        Args:
            modality: the modality of the embeddings.
            keys: n unique keys.
            embeddings: (n, d), converted to float32.
            columns: further columns of n values, such as ``image_key``, ``split`` and ``caption``;
                None leaves one out.

        Raises:
            StoreError, pyarrow.ArrowInvalid: if the lengths differ.
        """
        arrays = {}
        for name, values in {"key": keys, **columns}.items():
            if values is None:
                continue
            is_empty = all(value is None for value in values)
            arrays[name] = pa.array(list(values), pa.string() if is_empty else None)
        return cls(modality, np.asarray(embeddings, dtype=np.float32), pa.table(arrays))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.table.num_rows

    def __repr__(self) -> str:
        """Return the modality, the shape and the names of the columns."""
        shape = " x ".join(map(str, self.embeddings.shape))
        return f"Rows({self.modality}, {shape}, columns {', '.join(self.table.column_names)})"

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the rows, n of them."""
        return self.column("key")

    def column(self, name: str) -> list[Any]:
        """Return one column as a list of n Python values."""
        return self.table.column(name).to_pylist()

    @cached_property
    def captions(self) -> list[str]:
        """The column ``caption``, with an empty string for null."""
        return [caption or "" for caption in self.column("caption")]

    @cached_property
    def items(self) -> list[str]:
        """The key of each row's item: the key of the row if it belongs to no other item."""
        return own_items(self.table).to_pylist()  # type: ignore[no-any-return]

    @property
    def item_index(self) -> Indices:
        """The number of each row's item, int64 (n,), items numbered in the order of their first
        rows.
        """
        return integers(own_items(self.table).dictionary_encode().indices)

    @property
    def item_count(self) -> int:
        """The number of different items."""
        return len({*self.items})

    @cached_property
    def splits(self) -> list[str]:
        """The split of each row."""
        return row_splits(self.table)

    def select(self, rows: Indices | Mask) -> Rows:
        """Return the rows with these numbers, in this order, or those for which a mask (n,) is
        true.
        """
        numbers: Indices = np.arange(len(self))[rows]
        return Rows(self.modality, self.embeddings[numbers], self.table.take(numbers))

    def hash_order(self, salt: str) -> Indices:
        """Return the numbers of the rows, ordered by a stable hash of their keys, whatever the
        order of the shards.
        """
        return np.argsort(stable_fractions(self.keys, salt), kind="stable")

    def sample(self, fraction: float, salt: str = "train fraction") -> Rows:
        """Return all rows of ``fraction`` of the items, at least one, by a stable hash of their
        keys.

        A larger fraction contains a smaller one with the same salt.
        """
        ranked, count = _ranked(self.items, salt)
        return self.select(ranked < max(1, round(fraction * count)))

    def hold_out(self) -> tuple[Rows, Rows]:
        """Hold out the rows of a tenth of the items. Return (remaining, held out)."""
        is_held_out = held_out(self.items)
        return self.select(~is_held_out), self.select(is_held_out)


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
        """Pair rows by the keys of their items; if several first rows have the same item, the first
        of them is used.
        """
        return cls(first, second, match_items(item_keys(first.table), item_keys(second.table)))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.rows)

    @cached_property
    def rows(self) -> Indices:
        """The rows of ``second`` that are in a pair, ascending: int64 (pairs,)."""
        return np.flatnonzero(self.item_index >= 0)

    def arrays(self) -> tuple[Matrix, Matrix]:
        """Return the embeddings of both sides, row by row a pair: float32 (pairs, d) each."""
        rows_of_first = self.item_index[self.rows]
        return self.first.embeddings[rows_of_first], self.second.embeddings[self.rows]

    def captions_of_first(self) -> Rows:
        """Return the paired rows of ``second`` with the embeddings of ``first`` instead of their
        own.
        """
        embeddings, _ = self.arrays()
        table = self.second.table.take(self.rows)
        return Rows(self.first.modality, embeddings, table)


def one_array(column: pa.Array[Any] | pa.ChunkedArray[Any]) -> pa.Array[Any]:
    """Return a column as one array, texts with 64-bit offsets where 32 bits are not enough."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if pa.types.is_string(column.type) and column.nbytes > _MOST_BYTES:
        column = column.cast(pa.large_string())
    return pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])


def text_scalar(text: str) -> pa.StringScalar:
    """Return a text as an Arrow scalar.

    This and the next two functions are for opening and searching an index, which would take longer
    with pandas: `pa.scalar`, `pa.array`, ``fill_null`` and `np.asarray` of an Arrow array import
    it.
    """
    content = text.encode()
    offsets = pa.py_buffer(np.array([0, len(content)], np.int32).tobytes())
    return pa.StringArray.from_buffers(1, offsets, pa.py_buffer(content))[0]


def integer_array(numbers: Indices) -> pa.Array[Any]:
    """Return whole numbers (n,) as an Arrow array."""
    content = np.ascontiguousarray(numbers, np.int64).tobytes()
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(content)])


def true_mask(values: pa.Array[Any] | pa.ChunkedArray[Any]) -> Mask:
    """Return which of n booleans are true, and not null: bool (n,)."""
    is_true = pc.and_kleene(values.is_valid(), values)
    return np.from_dlpack(one_array(is_true.cast(pa.uint8()))).view(bool)


def match_items(first: pa.Array[Any], second: pa.Array[Any]) -> Indices:
    """Return for each key of ``second`` where ``first`` has it (first occurrence), or -1; null
    matches nothing.
    """
    return integers(pc.index_in(second, value_set=first, skip_nulls=True).fill_null(-1))


def keys_of(table: pa.Table | pa.RecordBatch) -> list[str]:
    """Return the keys of n rows."""
    keys: list[Any] = table.column("key").to_pylist()
    return keys


def item_keys(table: pa.Table | pa.RecordBatch) -> pa.Array[Any]:
    """Return the key of each row's item as a string array; null for a text that belongs to no
    image.

    Rows of other modalities that name no item are items of their own.
    """
    names = table.schema.names
    if "image_key" in names:
        return one_array(table.column("image_key"))
    keys = one_array(table.column("key"))
    if "pair_key" not in names:
        return keys
    return pc.coalesce(one_array(table.column("pair_key")), keys)


def own_items(table: pa.Table | pa.RecordBatch) -> Any:
    """Return the key of each row's item as a string array: its own key if it belongs to no
    other.
    """
    items: Any = item_keys(table)
    names_no_item = pc.equal(pc.coalesce(items, ""), pa.scalar(""))
    return pc.if_else(names_no_item, one_array(table.column("key")), items)


def row_splits(table: pa.Table | pa.RecordBatch) -> list[str]:
    """Return the split of each row: that of the column ``split``, which older versions wrote as the
    corpus says; else by a stable hash of the item's key.
    """
    splits: list[str | None] = [None] * table.num_rows
    if "split" in table.schema.names:
        splits = table.column("split").to_pylist()
    names = {split: named_split(split) for split in set(splits)}
    if all(names.values()):
        return [names[split] for split in splits]
    return splits_of(own_items(table).to_pylist(), splits)


def without_splits(table: pa.Table) -> pa.Table:
    """Return rows whose column ``split`` names nothing."""
    place = table.schema.get_field_index("split")
    field = table.schema.field(place)
    return table.set_column(place, field, pa.nulls(len(table), field.type))


def split_mask(table: pa.Table | pa.RecordBatch, split: str | None) -> Mask:
    """Return which rows are in a split: bool (n,), all of them for None and ``all``."""
    if split in (None, ALL):
        return np.ones(table.num_rows, dtype=bool)
    return np.array([name == split.lower() for name in row_splits(table)], dtype=bool)


def held_out(items: Sequence[str]) -> Mask:
    """Return which rows to hold out, bool (n,): those of about a tenth of the items, by a stable
    hash of their keys.

    Of at least two items, at least one is held out.
    """
    ranked, count = _ranked(items, "validation")
    most = count - 1  # so that one is left
    return np.asarray(ranked < min(max(1, round(HELD_OUT * count)), most))


def embedding_matrix(
    table: pa.Table | pa.RecordBatch, dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[Any]:
    """Return the column ``embedding`` as a matrix (n, d) of ``dtype``.

    Raises:
        StoreError: if a row has none.
    """
    column: Any = one_array(table.column("embedding"))
    if column.null_count:
        raise StoreError(
            f"{counted(column.null_count, 'row has', 'rows have')} no embedding.",
            remedy="Check the store with `c3 verify`.",
        )
    return (
        np.from_dlpack(column.flatten())
        .reshape(-1, column.type.list_size)
        .astype(dtype, copy=False)
    )


def _ranked(items: Sequence[str], salt: str) -> tuple[Indices, int]:
    """Return the place of each row's item among all items by a stable hash of their keys, and the
    number of items.
    """
    different, index = np.unique(stable_fractions(items, salt), return_inverse=True)
    return index, len(different)


def integers(array: pa.Array[Any]) -> Indices:
    """Return an Arrow array of n whole numbers without nulls as int64 (n,)."""
    return np.from_dlpack(array).astype(np.int64)
