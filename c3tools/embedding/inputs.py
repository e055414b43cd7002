"""The inputs of a store: the source files recorded in its shards, and inputs.parquet, which adds
facts that depend on the machine.

Shards have the path, size and SHA-256 of each file. `inputs.parquet` has them by key, with the time
of modification and the folder that a relative path starts from, so that a path means the same file
wherever a later run is started. It is not part of the promise of the same bytes, and may be
missing: relative paths then start from the current folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..io.files import write_atomically
from ..io.locations import name_or_file
from ..store import Store
from ..store.shards import CARRIED_TYPES, ShardName
from .sources import absolute

INPUTS_FILE = "inputs.parquet"
MEDIA = ("image", "video", "audio")
_INPUTS = pa.schema(
    [
        ("key", pa.large_string()),
        ("root", pa.large_string()),  # null for an absolute path or a URL
        ("size", pa.int64()),  # bytes
        ("mtime", pa.int64()),  # nanoseconds
        ("sha256", pa.large_string()),  # null for a file that could not be embedded
    ]  # type: ignore[arg-type]
)
_FILE = pa.schema(
    [
        ("key", pa.large_string()),
        ("path", pa.large_string()),
        ("size", pa.int64()),
        ("sha256", pa.large_string()),
        ("split", pa.large_string()),
    ]  # type: ignore[arg-type]
)
_TEXT = pa.schema([(name, pa.large_string()) for name in ("key", "caption", "image_key", "split")])


@dataclass(frozen=True)
class StoredInputs:
    """The inputs of a store when a run begins.

    Attributes:
        tables: by modality, its rows, then its failures: key, part (the number of the shard),
            is_failure, split and columns (see `ImageItem`); of texts caption and image_key; of
            others size, sha256, mtime and stored_path, which is absolute.
        recorded: the content of inputs.parquet, but for keys that the store does not have.
    """

    tables: Mapping[str, pa.Table]
    recorded: pa.Table

    @classmethod
    def read(cls, store: Store) -> StoredInputs:
        """Read the inputs of a store; no embeddings are read."""
        recorded: Any = _read_recorded(store.path)
        tables = {"text": _read_rows(store, "text", _TEXT)}
        for modality in MEDIA:
            rows: Any = _read_rows(store, modality, _FILE)
            entries = recorded.take(pc.index_in(rows["key"], recorded["key"]))
            paths = absolute_paths(rows["path"], entries["root"])
            size = pc.coalesce(rows["size"], entries["size"])  # failures have none
            rows = rows.append_column("stored_path", paths).append_column("mtime", entries["mtime"])
            tables[modality] = rows.set_column(rows.column_names.index("size"), "size", size)
        opened = cls(tables, recorded)
        is_stored = pc.is_in(recorded["key"], opened.files()["key"])
        return replace(opened, recorded=recorded.filter(is_stored))

    def files(self) -> pa.Table:
        """Return the rows and failures of images, videos and sounds in one table."""
        return pa.concat_tables([self.tables[modality] for modality in MEDIA])


def absolute_paths(paths: Any, folders: Any = None) -> Any:
    """Return paths from the root of the file system, null where they are; relative ones start from
    ``folders``, null for the current one.
    """
    names = paths.to_pylist()
    starts = [None] * len(names) if folders is None else folders.to_pylist()
    found = [
        None if path is None else absolute(path, start)
        for path, start in zip(names, starts, strict=True)
    ]
    return pa.array(found, pa.large_string())


def record_inputs(
    store: Store,
    stored: StoredInputs,
    tried: Iterable[pa.Table],
    made: Iterable[ShardName] = (),
    *,
    overwrite: bool,
) -> None:
    """Write inputs.parquet, if it changes.

    Args:
        store: the store.
        stored: its inputs before this run.
        tried: images, videos and sounds of this run, with the columns of `ImageItem`.
        made: shards of images, videos and sounds that were written since ``stored`` was read.
        overwrite: replace the entries of inputs that are there already; else keep them.
    """
    entries: Any = stored.recorded
    here = str(Path.cwd())
    tables = [_INPUTS.empty_table()]
    for items in tried:
        paths: list[Any] = items["path"].to_pylist()
        roots = [None if absolute(path) == path else here for path in paths]
        no_digests = pa.nulls(len(items), pa.large_string())
        columns: list[Any] = [items["key"], roots, items["size"], items["mtime"], no_digests]
        tables.append(pa.table(columns, schema=_INPUTS))
    new: Any = pa.concat_tables(tables)
    if overwrite:
        entries = entries.filter(pc.invert(pc.is_in(entries["key"], new["key"])))
    else:
        new = new.filter(pc.invert(pc.is_in(new["key"], entries["key"])))
    entries = pa.concat_tables([entries, new])

    # What shards say of the bytes that were embedded, the new ones first
    written = [
        pa.Table.from_batches([batch.select(_FILE.names).cast(_FILE)])
        for modality, part in made
        for batch in store.batches(modality, _FILE.names, parts=[part])
    ]
    files: Any = pa.concat_tables([*written, stored.files().select(_FILE.names)])
    files = files.take(pc.index_in(entries["key"], files["key"]))
    size = pc.coalesce(files["size"], entries["size"])
    entries = pa.table(
        [entries["key"], entries["root"], size, entries["mtime"], files["sha256"]], schema=_INPUTS
    )
    if len(entries) and not entries.equals(_read_recorded(store.path)):
        write_atomically(store.path / INPUTS_FILE, lambda path: pq.write_table(entries, path))


def _read_recorded(store: Path) -> pa.Table:
    """Return the content of inputs.parquet; nothing if it is missing or damaged."""
    try:
        with name_or_file(store / INPUTS_FILE) as source:
            return pq.read_table(source, schema=_INPUTS)
    except (OSError, KeyError, pa.ArrowException):
        return _INPUTS.empty_table()


def _read_rows(store: Store, modality: str, schema: pa.Schema) -> pa.Table:
    """Return the rows and the failures of a modality in some columns, with part, is_failure and the
    columns that rows carry.
    """
    parts = store.parts(modality)
    kept = [pa.field(name, CARRIED_TYPES[kind]) for name, kind in store.info.columns.items()]
    wide_schema = pa.schema([*schema, *kept])
    batches = store.batches(modality, wide_schema.names, parts=parts)
    counts = [store.shards[modality, part].rows for part in parts]
    wide_rows = pa.Table.from_batches(
        [batch.select(wide_schema.names).cast(wide_schema) for batch in batches], wide_schema
    )
    rows = wide_rows.select(schema.names)
    rows = rows.append_column("part", pa.array(np.repeat(np.array(parts, np.int64), counts)))
    rows = rows.append_column("is_failure", pa.repeat(False, len(rows)))
    columns: Any = pa.nulls(len(rows), pa.struct([]))
    if kept:
        columns = wide_rows.select(list(store.info.columns)).to_struct_array()
    rows = rows.append_column("columns", columns)
    failures = [
        {"key": failure.key, "path": failure.path, "part": part, "is_failure": True}
        for part in parts
        for failure in store.shard_failures(modality, part)
    ]
    return pa.concat_tables([rows, pa.Table.from_pylist(failures, rows.schema)])
