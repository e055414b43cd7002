"""The inputs of a store: the source files recorded in its shards, and inputs.parquet, which adds
facts that depend on the machine.

Shards have the path, size and SHA-256 of each file. `inputs.parquet` has them by key, with the time
of modification, the folder that a relative path starts from, so that a path means the same file
wherever a later run is started, and the list that names the file. It has the texts that a file
names by keys of their own, too. It is not part of the promise of the same bytes, and may be
missing: relative paths then start from the current folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..corpus.items import Corpus
from ..io.files import write_atomically
from ..io.locations import name_or_file
from ..store import Store
from ..store.dataset import with_column
from ..store.shards import CARRIED_TYPES, CORPUS_SPLIT, ShardName
from .checkouts import in_this_checkout
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
        ("is_text", pa.bool_()),
        ("list", pa.large_string()),  # absolute path of the list that names it; null for none
        ("store", pa.large_string()),  # absolute path of the store when this was recorded
    ]  # type: ignore[arg-type]
)
_FILE = pa.schema(
    [
        ("key", pa.large_string()),
        ("path", pa.large_string()),
        ("size", pa.int64()),
        ("sha256", pa.large_string()),
        ("split", pa.large_string()),
        (CORPUS_SPLIT, pa.large_string()),
    ]  # type: ignore[arg-type]
)
_TEXT = pa.schema(
    [(name, pa.large_string()) for name in ("key", "caption", "image_key", "split", CORPUS_SPLIT)]
)


@dataclass(frozen=True)
class StoredInputs:
    """The inputs of a store when a run begins.

    Attributes:
        tables: by modality, its rows, then its failures: key, part (the number of the shard),
            is_failure, split, corpus_split, columns (see `ImageItem`) and list, the absolute path
            of the list that names it; of texts caption and image_key; of others size, sha256,
            mtime, stored_path, which is absolute, and written_path, which is the same but for files
            of another checkout (`checkouts.py`), where it is the path that the shard has.
        recorded: the content of inputs.parquet, but for keys that the store does not have.
    """

    tables: Mapping[str, pa.Table]
    recorded: pa.Table

    @classmethod
    def read(cls, store: Store) -> StoredInputs:
        """Read the inputs of a store; no embeddings are read."""
        rows_of_media: dict[str, Any] = {
            modality: _read_rows(store, modality, _FILE) for modality in MEDIA
        }
        files = pa.concat_tables([rows.select(_FILE.names) for rows in rows_of_media.values()])
        checkout = in_this_checkout(store.path, _read_recorded(store.path), files)
        recorded: Any = checkout.to_record
        is_text: Any = pc.fill_null(recorded["is_text"], False)
        of_texts: Any = checkout.entries.filter(is_text)
        of_files: Any = checkout.entries.filter(pc.invert(is_text))
        texts: Any = _read_rows(store, "text", _TEXT)
        entries = of_texts.take(pc.index_in(texts["key"], of_texts["key"]))
        tables = {"text": texts.append_column("list", entries["list"])}
        for modality, of_modality in rows_of_media.items():
            rows = of_modality
            entries = of_files.take(pc.index_in(rows["key"], of_files["key"]))
            paths = absolute_paths(rows["path"], entries["root"])
            size = pc.coalesce(rows["size"], entries["size"])  # failures have none
            rows = rows.append_column("written_path", paths)
            if checkout.places:
                pairs = zip(rows["key"].to_pylist(), paths.to_pylist(), strict=True)
                places = [checkout.places.get(key, path) for key, path in pairs]
                paths = pa.array(places, pa.large_string())
            rows = rows.append_column("stored_path", paths).append_column("mtime", entries["mtime"])
            rows = rows.append_column("list", entries["list"])
            tables[modality] = with_column(rows, "size", size)
        of_files = recorded.filter(pc.invert(is_text))
        of_files = of_files.filter(pc.is_in(of_files["key"], files["key"]))
        of_texts = recorded.filter(is_text)
        of_texts = of_texts.filter(pc.is_in(of_texts["key"], texts["key"]))
        return cls(tables, pa.concat_tables([of_files, of_texts]))

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
    corpus: Corpus,
    made: Iterable[ShardName] = (),
    *,
    overwrite: bool,
    times: pa.Table | None = None,
) -> None:
    """Write inputs.parquet, if it changes.

    Args:
        store: the store.
        stored: its inputs before this run.
        tried: images, videos and sounds of this run, with the columns of `ImageItem`.
        corpus: of this run; entries of an older version learn from it which list names them.
        made: shards of images, videos and sounds that were written since ``stored`` was read.
        overwrite: replace the entries of inputs that are there already; else keep them.
        times: key and mtime of files that have the bytes that were embedded, of another time.
    """
    recorded: Any = stored.recorded
    is_text = pc.fill_null(recorded["is_text"], False)
    of_texts: Any = recorded.filter(is_text)
    entries: Any = recorded.filter(pc.invert(is_text))
    here = str(Path.cwd())
    store_path = absolute(str(store.path))
    tables = [_INPUTS.empty_table()]
    for items in tried:
        paths: list[Any] = items["path"].to_pylist()
        columns: dict[str, Any] = {
            "key": items["key"],
            "root": [None if absolute(path) == path else here for path in paths],
            "size": items["size"],
            "mtime": items["mtime"],
            "sha256": pa.nulls(len(items), pa.large_string()),
            "is_text": pa.repeat(False, len(items)),
            "list": absolute_paths(items["listed_in"]),
            "store": pa.repeat(store_path, len(items)),
        }
        tables.append(pa.table(columns, schema=_INPUTS))
    new: Any = pa.concat_tables(tables)
    if overwrite:
        entries = entries.filter(pc.invert(pc.is_in(entries["key"], new["key"])))
    else:
        new = new.filter(pc.invert(pc.is_in(new["key"], entries["key"])))
    entries = pa.concat_tables([entries, new])

    if times is not None:
        of_entries: Any = times["mtime"].take(pc.index_in(entries["key"], times["key"]))
        entries = with_column(entries, "mtime", pc.coalesce(of_entries, entries["mtime"]))

    # What shards say of the bytes that were embedded, the new ones first
    written = [
        pa.Table.from_batches([batch.select(_FILE.names).cast(_FILE)])
        for modality, part in made
        for batch in store.batches(modality, _FILE.names, parts=[part])
    ]
    files: Any = pa.concat_tables([*written, stored.files().select(_FILE.names)])
    files = files.take(pc.index_in(entries["key"], files["key"]))
    entries = with_column(entries, "size", pc.coalesce(files["size"], entries["size"]))
    entries = with_column(entries, "sha256", files["sha256"])

    # Lists of texts, and of files that an older version recorded
    entries = _with_lists(entries, corpus, store_path)
    texts: Any = corpus.texts.table
    texts = texts.filter(pc.is_valid(texts["listed_in"]))
    texts = texts.filter(pc.invert(pc.is_in(texts["key"], of_texts["key"])))
    listed_texts = {
        "key": texts["key"],
        "is_text": pa.repeat(True, len(texts)),
        "list": absolute_paths(texts["listed_in"]),
        "store": pa.repeat(store_path, len(texts)),
    }
    nulls = {name: pa.nulls(len(texts)) for name in _INPUTS.names if name not in listed_texts}
    new_texts = pa.table({**listed_texts, **nulls}).select(_INPUTS.names).cast(_INPUTS)
    entries = pa.concat_tables([entries, of_texts, new_texts])
    if len(entries) and not entries.equals(_read_recorded(store.path)):
        write_atomically(store.path / INPUTS_FILE, lambda path: pq.write_table(entries, path))


def _with_lists(entries: Any, corpus: Corpus, store: str) -> Any:
    """Return the entries of files, those of an older version with the lists of the corpus."""
    media: Any = pa.concat_tables(
        [items.table.select(["key", "listed_in"]) for items in corpus.media()]
    )
    found = pc.index_in(entries["key"], media["key"])
    is_to_learn = pc.and_(pc.is_null(entries["store"]), pc.is_valid(found))
    if not pc.any(is_to_learn, min_count=0).as_py():
        return entries
    lists = absolute_paths(media["listed_in"].take(found))
    for name, values in (("list", lists), ("store", pa.scalar(store, pa.large_string()))):
        column = pc.if_else(is_to_learn, values, entries[name])
        entries = with_column(entries, name, column)
    return entries


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
