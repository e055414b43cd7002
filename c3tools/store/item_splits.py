"""The split of an item, which all its rows share: those that a store has, and those that are added to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from .keys import Hashes, SplitTable, contains, key_hashes
from .reader import Store
from .rows import ITEM_COLUMNS, row_items


def item_splits(stores: Sequence[Store], wanted: Hashes) -> SplitTable:
    """Return the splits of items as their first rows name them, with an empty name where these name none.

    The first store that has an item decides, and in it an image or a video before its texts.

    Args:
        stores: to read from.
        wanted: hashes of the items, ascending, each once.

    Raises:
        StoreError: if a shard cannot be read.
    """
    return SplitTable(_first_rows(stores, wanted) if len(wanted) else ())


def joined_splits(rows: pa.Table | pa.RecordBatch, splits: SplitTable) -> list[str | None]:
    """Return the split of each row: that of its item in ``splits``, else its own."""
    found = zip(splits.look_up(list(row_items(rows))), rows.column("split").to_pylist(), strict=True)
    return [own if of_item is None else of_item or None for of_item, own in found]


def _first_rows(stores: Sequence[Store], wanted: Hashes) -> Iterator[tuple[list[str], list[str]]]:
    """Yield blocks of items and splits, each item once but for repetitions within a block."""
    left = np.ones(len(wanted), bool)
    for store in stores:
        for modality in sorted(store.modalities, key=lambda name: name == "text"):
            for batch in store.batches(modality, ["key", *ITEM_COLUMNS, "split"]):
                items, splits = list(row_items(batch)), batch.column("split").to_pylist()
                hashes = key_hashes(items)
                rows = np.flatnonzero(contains(wanted, hashes))
                places = np.searchsorted(wanted, hashes[rows])
                rows, places = rows[left[places]], places[left[places]]
                left[places] = False
                yield [items[row] for row in rows], [splits[row] or "" for row in rows]
