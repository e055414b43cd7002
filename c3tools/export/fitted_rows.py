"""The train rows that a fit was made of, compared with those of the store now.

The parts of an export have the key, the split, and the caption or the digest of the file of each
row, so they tell what was in a shard that has changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..corpus.splits import ALL
from ..errors import StoreError
from ..store import Store
from ..store.manifest import StoreWriter
from ..store.rows import ITEM_COLUMNS, keys_of, row_splits
from ..store.shards import ShardName, read_batches, shard_named
from ..transforms import Pipeline
from .record import ExportRecord, fitted_shards

_CONTENT = ("caption", "sha256")  # of texts, of files: what a row was embedded from


@dataclass(frozen=True)
class _Row:
    """A row without its embedding: its split, and what it was embedded from."""

    split: str
    content: str | None


def reason_to_refit(
    writer: StoreWriter, former: ExportRecord, store: Store, pipeline: Pipeline
) -> str | None:
    """Return why an export that is there cannot be brought up to date with its fit; None if it can.

    Rows that were fitted on must not be scored now. The steps of decap, clipre and c3-retrieval
    hold train rows of the store, which must be as they were.

    Args:
        writer: of the export.
        former: its record.
        store: as it is now.
        pipeline: the fit.
    """
    if not any(step.fits for step in pipeline.steps):
        return None
    memories = {vars(step)["memory"] for step in pipeline.steps if "memory" in step.state}
    shards_now = fitted_shards(store)
    for name, shard_then in former.fit.items():
        shard = shard_named(name)
        if shard is None or shards_now.get(name) == shard_then:
            continue
        train_rows = _train_rows_of_part(writer, former, shard)
        is_held = shard[0] in memories
        if train_rows is None:
            if is_held:
                return f"its pipeline holds {shard[0]} rows of shards that were changed or removed"
            continue
        rows_now = _rows_of_shard(store, shard) if name in shards_now else {}
        reason = _compare(train_rows, rows_now, shard[0], is_held=is_held)
        if reason is not None:
            return reason
    return None


def _compare(
    train_rows: dict[str, _Row], rows_now: dict[str, _Row], modality: str, *, is_held: bool
) -> str | None:
    """Return what is wrong with the fit, given the train rows of a shard that it was made of."""
    for key, row in train_rows.items():
        row_now = rows_now.get(key)
        if row_now is not None and row_now.split != "train":
            return (
                f"its pipeline was fitted on train rows that are {row_now.split} rows now, for "
                f"example {key!r}"
            )
        if is_held and (row_now != row or row.content is None):
            return (
                f"its pipeline holds {modality} rows that were changed or removed, for example "
                f"{key!r}"
            )
    return None


def _train_rows_of_part(
    writer: StoreWriter, former: ExportRecord, shard: ShardName
) -> dict[str, _Row] | None:
    """Return the train rows of a part by key; None if the export does not have them."""
    tables = [name for name in writer.parts().get(shard, []) if name.endswith(".parquet")]
    if not tables or former.settings.split not in (ALL, "train"):
        return None
    rows: dict[str, _Row] = {}
    for name in tables:
        path = writer.path / name
        try:
            for batch in read_batches(path, shard[0], writer.info, ["key", "split", *_CONTENT]):
                rows |= _rows_by_key(batch, batch.column("split").to_pylist())
        except StoreError:  # it is damaged, and is made again
            return None
    return {key: row for key, row in rows.items() if row.split == "train"}


def _rows_of_shard(store: Store, shard: ShardName) -> dict[str, _Row]:
    """Return the rows of a shard of the store that are not left out, by key, in the splits that all
    commands see.
    """
    modality, number = shard
    columns = ["key", "split", *ITEM_COLUMNS, *_CONTENT]
    rows: dict[str, _Row] = {}
    for batch in store.batches(modality, columns, split=ALL, parts=[number]):
        rows |= _rows_by_key(batch, row_splits(batch, store.kept_splits))
    return rows


def _rows_by_key(batch: pa.RecordBatch, splits: Sequence[Any]) -> dict[str, _Row]:
    contents: list[Any] = [None] * len(splits)
    # Rows of images have both in the layout of clip-retrieval; there the file counts
    for name in _CONTENT:
        if name in batch.schema.names:
            contents = batch.column(name).to_pylist()
    rows = zip(keys_of(batch), splits, contents, strict=True)
    return {key: _Row(split, content) for key, split, content in rows}
