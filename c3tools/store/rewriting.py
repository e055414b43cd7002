"""Shards made from other shards, in bounded memory: rows pass through, moments are computed anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import StoreError
from ..io.files import sha256_of, write_atomically
from ..moments import Moments, save_moments
from .failures import Failure
from .info import StoreInfo
from .markers import write_marker
from .nearby import local_shard
from .reader import Store
from .rows import embedding_matrix, row_splits
from .schema import ROW_GROUP_ROWS, parquet_writer, shard_schema
from .writer import part_path


def write_batches(
    store: Path,
    info: StoreInfo,
    modality: str,
    part: int,
    batches: Iterable[pa.RecordBatch],
    failures: Sequence[Failure] = (),
) -> int:
    """Write a shard of rows that come in batches: rows, moments, done marker last; returns the number of rows.

    Args:
        store: the folder.
        info: of the store, for the metadata of the shard.
        modality: of the shard.
        part: its number.
        batches: in the shard's columns, the embedding of the store's dtype; other columns are kept.
        failures: the inputs of this shard that were not embedded.
    """
    groups: dict[str, Moments] = {}
    count = 0

    def write(path: Path) -> None:
        nonlocal count
        metadata = shard_schema(modality, info).metadata
        writer = None
        try:
            for batch in batches:
                if writer is None:
                    writer = parquet_writer(path, batch.schema.with_metadata(metadata))
                writer.write_batch(batch.replace_schema_metadata(metadata), row_group_size=ROW_GROUP_ROWS)
                add_rows(groups, batch)
                count += len(batch)
            writer = writer or parquet_writer(path, shard_schema(modality, info))
        finally:
            if writer is not None:
                writer.close()

    rows, moments = (part_path(store, modality, part, suffix) for suffix in (".parquet", ".moments.safetensors"))
    write_atomically(rows, write)
    total = groups or {"train": Moments.empty(info.dim)}
    write_atomically(moments, lambda path: save_moments(path, total, {"modality": modality}))
    digests = {path.name: sha256_of(path) for path in (rows, moments)}
    marker = {"rows": count, "failures": list(failures), "sha256": digests, "timings": {}}
    write_marker(part_path(store, modality, part, ".json"), marker)
    return count


@contextmanager
def intact_shard(store: Store, modality: str, part: int) -> Iterator[Store]:
    """A store on this machine with the rows of a shard, those that its done marker was written for.

    Raises:
        StoreError: if the file is missing or its checksum differs: damage is not copied on.
    """
    marker = store.marker(modality, part)
    with local_shard(store, modality, part, (".parquet",)) as nearby:
        path = part_path(nearby.path, modality, part, ".parquet")
        if not path.is_file() or sha256_of(path) != marker["sha256"].get(path.name):
            raise not_intact(store, part_path(store.path, modality, part, ".parquet"))
        yield nearby


def not_intact(store: Store, path: Path) -> StoreError:
    """What is said of a file whose checksum is not the one in its done marker."""
    return StoreError(
        f"{path} is not what its done marker says.",
        remedy=f"Check and mend the store first: c3 verify {store.path}",
    )


def moments_of_rows(store: Store, modality: str, part: int) -> dict[str, Moments]:
    """The moments of one shard by split, computed from its rows."""
    groups: dict[str, Moments] = {}
    for batch in store.batches(modality, parts=[part]):
        add_rows(groups, batch)
    return groups or {"train": Moments.empty(store.info.dim)}


def with_column(batch: pa.RecordBatch, name: str, values: Sequence[str | None]) -> pa.RecordBatch:
    """The batch with the values of one text column replaced; where it has no such column, the batch itself."""
    if name not in batch.schema.names:
        return batch
    position = batch.schema.get_field_index(name)
    field = batch.schema.field(position)
    arrays = [*batch.columns]
    arrays[position] = pa.array(values, type=field.type)
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def add_rows(groups: dict[str, Moments], batch: pa.RecordBatch) -> None:
    """Count the rows of a batch into the moments of their splits, ``groups``."""
    matrix, roles = embedding_matrix(batch), np.array(row_splits(batch), dtype=object)
    for role in sorted(set(roles)):
        moments = Moments.from_rows(matrix[roles == role])
        groups[role] = groups[role].merge(moments) if role in groups else moments
