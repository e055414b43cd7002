"""Which rows of two modalities belong together, by key and never by order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..corpus.splits import ALL
from ..errors import StoreError
from ..store import Store
from ..store.rows import Indices, Mask, item_keys, match_items, split_mask

MAX_SUBSETS = 50


@dataclass
class Pairing:
    """The pairs of two modalities, as row numbers.

    Attributes:
        first: the modality with one row per item (images).
        second: the modality with any number of rows per item (captions).
        owner: int64 (rows of second,), the row of ``first`` it belongs to, or -1.
        keep_first: bool (rows of first,), the rows of the chosen split.
        keep_second: bool (rows of second,).
        subset: int32 (rows of second,) code of the user's column, or None; -1 where it is empty.
        subset_names: the values that the codes stand for.
        notes: what the reader should know about the pairing.
    """

    first: str
    second: str
    owner: Indices
    keep_first: Mask
    keep_second: Mask
    subset: npt.NDArray[np.int32] | None = None
    subset_names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """Number of pairs: rows of ``second`` whose owner is there."""
        return int(np.count_nonzero(self.owner >= 0))

    @property
    def items(self) -> Indices:
        """Rows of ``first`` that have at least one row of ``second``, ascending."""
        return np.flatnonzero(self.used)

    @property
    def used(self) -> Mask:
        """Whether each row of ``first`` has at least one row of ``second``: bool (rows of first,)."""
        used = np.zeros(len(self.keep_first), dtype=bool)
        used[self.owner[self.owner >= 0]] = True
        return used


def pair_rows(store: Store, first: str, second: str, *, split: str | None = None, by: str | None = None) -> Pairing:
    """Find the pairs of two modalities by key.

    A row's item is its ``image_key`` (texts), its ``pair_key`` where it has one (other modalities), or its own key.

    Args:
        store: the store.
        first: a modality.
        second: another.
        split: take the rows of this split only.
        by: a column of either modality that divides the pairs into subsets.

    Raises:
        StoreError: if a modality or the column is not there, or the column has too many values.
    """
    tables = {name: _columns(store, name, split, by) for name in (first, second)}
    items = {name: item_keys(table) for name, table in tables.items()}
    notes = []
    if _repeats(items[first]) and not _repeats(items[second]):
        first, second = second, first
    elif _repeats(items[first]):
        notes.append(
            f"Several {first} rows belong to one item; the first of them is paired with each {second} row of the item."
        )
    keep = {name: split_mask(tables[name], split) for name in (first, second)}
    known = items[first].filter(pa.array(keep[first]))
    rows = np.flatnonzero(keep[first])
    found = match_items(known, items[second])
    matched = (found >= 0) & keep[second]
    owner = np.where(matched, rows[np.maximum(found, 0)] if len(rows) else -1, -1)
    pairing = Pairing(first, second, owner, keep[first], keep[second], notes=notes)
    if by is not None:
        _add_subsets(pairing, tables, by)
    return pairing


def kept_rows(store: Store, modality: str, split: str | None) -> Mask:
    """The rows of a split, or all: bool (n,)."""
    return split_mask(_columns(store, modality, split, None), split)


def _columns(store: Store, modality: str, split: str | None, by: str | None) -> pa.Table:
    store.require(modality)
    wanted = {"key", "image_key", "pair_key"} | ({"split"} if split not in (None, ALL) else set())
    if by is not None:
        wanted.add(by)
    wanted.discard("embedding")
    # columns that are not there are passed over by the reader
    batches = list(store.batches(modality, columns=sorted(wanted), batch_rows=65536))
    if not batches:
        raise StoreError(f"The modality {modality!r} of the store {store.path} has no rows.")
    return pa.Table.from_batches(batches).combine_chunks()


def _flat(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    return array.cast(pa.string()) if not pa.types.is_string(array.type) else array


def _repeats(items: pa.Array) -> bool:
    valid = items.drop_null()
    return int(pc.count_distinct(valid).as_py()) < len(valid)


def _add_subsets(pairing: Pairing, tables: dict[str, pa.Table], by: str) -> None:
    found = [name for name in (pairing.second, pairing.first) if by in tables[name].schema.names]
    if not found:
        there: set[Any] = {name for table in tables.values() for name in table.schema.names}
        raise StoreError(
            f"There is no column {by!r} in the store.",
            remedy=f"Columns of {pairing.first} and {pairing.second}: {', '.join(sorted(there))}.",
        )
    owners = pa.array(np.where(pairing.owner >= 0, pairing.owner, 0), mask=pairing.owner < 0)
    columns = [
        _flat(tables[name], by) if name == pairing.second else _flat(tables[name], by).take(owners) for name in found
    ]
    # a pair has the value of its own row, or else that of its item
    values = pc.coalesce(*columns)
    if values.null_count == len(values):
        raise StoreError(
            f"The column {by!r} is empty for every pair of {pairing.first} and {pairing.second}.",
            remedy="Choose a column that has values, or leave --by out.",
        )
    encoded = values.dictionary_encode()
    if len(encoded.dictionary) > MAX_SUBSETS:
        raise StoreError(
            f"The column {by!r} has {len(encoded.dictionary)} values; the gap is compared over at most {MAX_SUBSETS}.",
            remedy="Choose a column that names a few groups, such as split.",
        )
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    pairing.subset = np.where(pairing.owner >= 0, codes, -1).astype(np.int32)
    pairing.subset_names = encoded.dictionary.to_pylist()
