"""Stores and shards made from others: they appear complete or not at all, and damage is not copied."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import StoreError, UnreachableError
from ..io.files import sha256_of, sync_folder
from ..io.locations import download, is_url, remove
from ..io.lock import LOCK_FILE, locked
from .manifest import record_again
from .metadata import CHECKSUM, Failure
from .reader import Store
from .rows import keys_of
from .shards import (
    AS_REMOVED,
    MOMENTS,
    REWRITTEN,
    ROWS,
    Shard,
    put_in_place,
    shard_batch,
    shard_schema,
    write_batches,
)


def new_folder(destination: str | Path) -> Path:
    """Return the folder on this machine that a new store is to be built in.

    Raises:
        StoreError: for a URL. An object store renames nothing, so half of a new store could be seen there.
    """
    if is_url(destination):
        raise StoreError(
            f"A new store cannot be written to {destination}: it is built in a folder on this machine, so that a run "
            "that fails leaves nothing behind.",
            remedy="Write to a local folder, then copy it, for example: aws s3 cp --recursive FOLDER s3://…",
        )
    return Path(destination)


@contextmanager
def new_store(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``path`` to build a store in; it is renamed to ``path`` when the block ends well.

    What a killed run left there is removed first.

    Raises:
        StoreError: if something is at ``path``, or it cannot be written.
        OutputError: if another run is building it.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreError(f"{path} already exists.", remedy="Choose a new folder for the store.")
    building = path.absolute().parent / f".{path.absolute().name}.unfinished"
    try:
        with locked(building):
            for left in building.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != LOCK_FILE:
                    left.unlink()
            try:
                yield building
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
            (building / LOCK_FILE).unlink()
            building.replace(path)
            sync_folder(path.absolute().parent)
    except UnreachableError:  # the source cannot be read; nothing is wrong here
        raise
    except OSError as error:
        raise StoreError(
            f"The store {path} cannot be written ({error.strerror or error}).",
            remedy="Nothing was written. Free some disk space, or check the disk, then run the same command again.",
        ) from error


@contextmanager
def local_shard(store: Store, modality: str, part: int, suffixes: Sequence[str] = (ROWS, MOMENTS)) -> Iterator[Store]:
    """Yield a store on this machine with files of one shard: the store itself, or a copy if it is at a URL.

    A shard that is read several times (for its checksum, for its rows) is so downloaded once, and takes the disk of
    one shard. Files that do not exist are left out.

    Raises:
        UnreachableError: if they cannot be downloaded.
    """
    if isinstance(store.path, Path):
        yield store
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = store.copy_in(Path(folder))
        (copy.path / modality).mkdir()
        for suffix in suffixes:
            with suppress(FileNotFoundError):
                source = store.file(modality, part, suffix)
                download(source, copy.path / modality / source.name)
        yield copy


@contextmanager
def intact_shard(store: Store, modality: str, part: int) -> Iterator[Store]:
    """Yield a store on this machine with the rows of one shard, checked against its done marker.

    Raises:
        StoreError: if the file is missing or its checksum differs.
    """
    marker = store.marker(modality, part)
    with local_shard(store, modality, part, (ROWS,)) as local:
        path = local.file(modality, part, ROWS)
        if not path.is_file() or sha256_of(path) != marker["sha256"].get(path.name):
            raise not_intact(store, store.file(modality, part, ROWS))
        yield local


def rewrite_shard(
    store: Store,
    modality: str,
    part: int,
    *,
    drop: Set[str] = frozenset(),
    new: Shard | None = None,
    began: float | None = None,
) -> None:
    """Write a shard again without some of its rows, and with others in their places; a crash loses neither of the two.

    A shard that is left without rows and failures is removed.

    Args:
        store: the store.
        modality: of the shard.
        part: its number.
        drop: keys of the rows, and of the failures, to leave out.
        new: rows that take the places of those with their keys. Those it lists as failed stay as they were.
        began: when the inputs were compared with the rows, as in the timings of `EmbedWork`; None leaves it as it was.

    Raises:
        StoreError: if the shard is not what its done marker says.
    """
    marker = store.marker(modality, part)
    with intact_shard(store, modality, part) as local:
        rows = pa.Table.from_batches(list(local.batches(modality, parts=[part])), shard_schema(modality, store.info))
    keys = keys_of(rows)
    chosen = np.array([row for row, key in enumerate(keys) if key not in drop], np.int64)
    failures = [Failure(**failure) for failure in marker["failures"]]
    if new is not None:
        places = {key: len(keys) + row for row, key in enumerate(new.columns["key"])}
        chosen = np.array([places.get(keys[row], row) for row in chosen], np.int64)
        rows = pa.concat_tables([rows, pa.Table.from_batches([shard_batch(store.info, new)], rows.schema)])
        failures += new.failures
    left = {keys[row] if row < len(keys) else new.columns["key"][row - len(keys)] for row in chosen}  # type: ignore[union-attr]
    failures = [failure for failure in failures if failure.key not in drop and failure.key not in left]
    if not len(chosen) and not failures:
        record_again(store.path, removed=[(modality, part)])
        for suffix in AS_REMOVED:
            remove(store.file(modality, part, suffix))
        # before any shard that is rewritten later: texts that come back without their image would stay for ever
        sync_folder(store.path / modality)
        return
    batches = rows.take(chosen).combine_chunks().to_batches()
    timings = timings_of(marker) | ({} if began is None else {"began": began})
    write_batches(store.path / REWRITTEN, store.info, modality, part, batches, failures, timings)
    put_in_place(store.path, modality, part)


def timings_of(marker: Mapping[str, Any]) -> dict[str, float]:
    """Return the timings in a done marker, for a shard made from its shard: inputs written since then have changed."""
    return {name: value for name, value in marker["timings"].items() if name != CHECKSUM}


def not_intact(store: Store, path: Path) -> StoreError:
    """Return the error for a file whose checksum is not the one in its done marker."""
    return StoreError(
        f"{path} does not match its done marker.", remedy=f"Check and repair the store first: c3 verify {store.path}"
    )


def replace_column(batch: pa.RecordBatch, name: str, values: Sequence[str | None]) -> pa.RecordBatch:
    """Return the batch with other values in one text column; the batch itself if it has no such column."""
    if name not in batch.schema.names:
        return batch
    position = batch.schema.get_field_index(name)
    arrays = [*batch.columns]
    arrays[position] = pa.array(values, type=batch.schema.field(position).type)
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)
