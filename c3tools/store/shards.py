"""Shards on disk: their columns and file names, and writing a shard: rows, moments, then the done marker."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..corpus.splits import Kept
from ..errors import StoreError, UnreachableError
from ..io.files import remove_leftovers, sha256_of, sync_folder, write_atomically, write_json_atomically
from ..io.locations import download, kind_of, move, names_in, remove
from ..moments import Moments, save_moments
from .metadata import INFO_FILE, Failure, StoreInfo, read_marker, write_marker
from .rows import embedding_matrix, row_splits

METADATA_KEY = b"c3"
_MARKER = re.compile(r"(_?)part-(\d{5,9})\.json")
_OTHER_FILE = re.compile(r"_?part-(\d{5,9})\.(?:parquet|moments\.safetensors|faiss(?:\.json)?)")
ROW_GROUP_ROWS = 8192
MARKER, ROWS, MOMENTS = ".json", ".parquet", ".moments.safetensors"
FAISS, FAISS_RECORD = ".faiss", ".faiss.json"  # see `shard_indexes`; most stores have none
AS_REMOVED = (MARKER, FAISS_RECORD, FAISS, MOMENTS, ROWS)  # without its marker a shard does not exist
# pandas, pyarrow, Spark and others read a folder but for the files whose names begin with _ or a dot; patterns of
# shells (cp store/image/*) leave out the dot, and would lose the files
BESIDE_ROWS = "_"
REWRITTEN = ".rewritten"  # in the store: shards that are to take the place of others
_COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    "image": [
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("size", pa.int64()),
        ("split", pa.string()),
    ],
    "video": [
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("size", pa.int64()),
        ("frames", pa.int32()),
        ("duration", pa.float32()),
        ("split", pa.string()),
    ],
    "text": [("caption", pa.string()), ("image_key", pa.string()), ("split", pa.string())],
}
_OTHER_COLUMNS = [("pair_key", pa.string()), ("split", pa.string())]


@dataclass
class Shard:
    """The rows of one shard, ready to be written.

    Attributes:
        modality: ``image``, ``text``, or another name.
        index: the number in the file name.
        embeddings: (n, d), any float dtype.
        columns: ``key`` and the columns of the modality, n values each; a missing column is null.
        failures: the inputs of this shard that were not embedded.
        timings: seconds by stage.
    """

    modality: str
    index: int
    embeddings: npt.NDArray[np.floating[Any]]
    columns: Mapping[str, Sequence[Any]]
    failures: Sequence[Failure] = ()
    timings: Mapping[str, float] = field(default_factory=dict)


def part_path(store: Path, modality: str, index: int, suffix: str) -> Path:
    """Return the path of one file of a shard; the suffix is `ROWS`, `MOMENTS`, `MARKER`, …."""
    return store / part_name(modality, index, suffix)


def part_name(modality: str, index: int, suffix: str) -> str:
    """Return the name of one file of a shard, relative to the store: ``image/part-00000.parquet``.

    The others begin with `BESIDE_ROWS`: ``image/_part-00000.json``.
    """
    return f"{modality}/{'' if suffix == ROWS else BESIDE_ROWS}part-{index:05d}{suffix}"


def early_name(modality: str, index: int, suffix: str) -> str:
    """Return the name that early versions gave to a file of a shard: ``image/part-00000.json``."""
    return f"{modality}/part-{index:05d}{suffix}"


def finished_parts(names: Iterable[str]) -> dict[int, bool]:
    """Return the numbers of the shards that have their done marker, ascending, from the names in a modality's folder.

    Each has as its value whether marker and moments have the names of early versions.
    """
    found: dict[int, bool] = {}
    for match in filter(None, map(_MARKER.fullmatch, names)):
        number = int(match[2])
        found[number] = not match[1] and found.get(number, True)
    return dict(sorted(found.items()))


def part_number(name: str) -> int | None:
    """Return the number of the shard that a file is of, by its name; None for done markers and files of no shard."""
    found = _OTHER_FILE.fullmatch(name)
    return int(found[1]) if found else None


def rename_early_files(store: Path, modality: str) -> None:
    """Give the shards of early versions the names of today: a store has one kind of names once it is written to.

    A shard has a marker at every moment; after a crash the next call continues.
    """
    names = set(names_in(store / modality)[1])
    for part, early in finished_parts(names).items():
        marker_path, moments_path = (store / early_name(modality, part, suffix) for suffix in (MARKER, MOMENTS))
        if early:
            target = part_path(store, modality, part, MOMENTS)
            if moments_path.name in names:
                write_atomically(target, partial(download, moments_path))
            marker = read_marker(marker_path)
            digests = {target.name if name == moments_path.name else name: d for name, d in marker["sha256"].items()}
            write_marker(part_path(store, modality, part, MARKER), {**marker, "sha256": digests})
        for path in (marker_path, moments_path):
            if path.name in names:
                remove(path)


def shard_schema(modality: str, info: StoreInfo) -> pa.Schema:
    """Return the Arrow schema of a shard: key, embedding, and the columns of the modality.

    Modalities other than ``image``, ``video`` and ``text`` have ``pair_key`` (the key of the row's item) and ``split``.
    """
    value_type = pa.float16() if info.dtype == "float16" else pa.float32()
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(value_type, info.dim), nullable=False),
        *(pa.field(name, kind) for name, kind in _COLUMNS.get(modality, _OTHER_COLUMNS)),
    ]
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(info.to_dict(), sort_keys=True)})


def check_schema(schema: pa.Schema, modality: str, info: StoreInfo, columns: Sequence[str]) -> None:
    """Raise a ValueError if a column is missing, or the embeddings are not of the store's dimension and dtype."""
    expected = shard_schema(modality, info)
    missing = {"key", "embedding", *(name for name in columns if name in expected.names)} - set(schema.names)
    if missing:
        raise ValueError(f"it has no column {min(missing)!r}")
    wanted = expected.field("embedding").type
    if schema.field("embedding").type != wanted:
        raise ValueError(f"its embeddings are {schema.field('embedding').type}, but those of the store are {wanted}")
    texts = (column.name for column in expected if column.type == pa.string() and column.name in schema.names)
    for name in texts:
        kind = schema.field(name).type
        if kind not in (pa.string(), pa.large_string()):
            raise ValueError(f"its column {name!r} is {kind}, not text")


def parquet_writer(path: Path, schema: pa.Schema, *, split_bytes: bool = True) -> pq.ParquetWriter:
    """Open a writer of shards: zstd, byte-stream split on the embedding, dictionary on the key only.

    Measured on CLIP embeddings, this is the smallest of the layouts and as fast to read as any. DuckDB does not read
    it for float16: ``split_bytes=False`` writes plain values, for files that other programs are to read.
    """
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["key"],  # type: ignore[arg-type]
        use_byte_stream_split=["embedding.list.element"] if split_bytes else False,
        write_statistics=[name for name in schema.names if name != "embedding"],
    )


def create_store(path: Path, info: StoreInfo) -> None:
    """Make the folder and its store.json, or check that the store there contains the same kind of embeddings.

    Raises:
        StoreError: if a store of another model, dimension or dtype is there, or a file is in the way.
    """
    if kind_of(path) == "file":
        raise StoreError(f"{path} is a file, but a folder is needed.", remedy="Choose another store with --store.")
    if kind_of(path / INFO_FILE) != "file":
        write_json_atomically(path / INFO_FILE, info.to_dict())
        return
    present = StoreInfo.load(path)
    present.require_same_model(info.model, own=f"The store {path}", theirs="the new embeddings")
    for name in ("dim", "dtype", "normalised"):
        if getattr(present, name) != getattr(info, name):
            raise StoreError(
                f"The store {path} has {name} = {getattr(present, name)}, but {getattr(info, name)} was requested.",
                remedy="Use the same options as before, or choose another --store.",
            )
    for modality in names_in(path)[0]:
        remove_leftovers(path / modality)
        rename_early_files(path, modality)
    finish_rewriting(path)


def put_in_place(store: Path, modality: str, part: int) -> None:
    """Put a finished shard of the folder `REWRITTEN` in the place of the one of its number.

    The marker of the old one goes first, that of the new one comes last; after a crash the next call continues.
    """
    remove(part_path(store, modality, part, MARKER))
    staged = names_in(store / REWRITTEN / modality)[1]
    for suffix in (ROWS, MOMENTS, MARKER):
        source = part_path(store / REWRITTEN, modality, part, suffix)
        if source.name in staged:
            move(source, part_path(store, modality, part, suffix))
    sync_folder(store / modality)


def finish_rewriting(store: Path) -> None:
    """Put in place what an interrupted run had rewritten whole, and remove what it had not finished."""
    for modality in names_in(store / REWRITTEN)[0]:
        folder = store / REWRITTEN / modality
        for part in finished_parts(names_in(folder)[1]):
            put_in_place(store, modality, part)
        for name in names_in(folder)[1]:
            remove(folder / name)
    if isinstance(store, Path) and (store / REWRITTEN).is_dir():
        shutil.rmtree(store / REWRITTEN, ignore_errors=True)
        sync_folder(store)


def remove_unfinished(store: Path) -> None:
    """Finish rewriting; remove temporary files, and what is left of shards that were dropped or never finished."""
    finish_rewriting(store)
    for modality in names_in(store)[0]:
        folder = store / modality
        remove_leftovers(folder)
        names = names_in(folder)[1]
        finished = finished_parts(names)
        for name in names:
            part = part_number(name)
            if part is not None and part not in finished:
                remove(folder / name)
        sync_folder(folder)


def write_shard(store: Path, info: StoreInfo, shard: Shard) -> None:
    """Write a shard whose rows are in memory; embeddings are cast to the dtype of the store."""
    write_batches(store, info, shard.modality, shard.index, [shard_batch(info, shard)], shard.failures, shard.timings)


def shard_batch(info: StoreInfo, shard: Shard) -> pa.RecordBatch:
    """Return the rows of a shard with the columns of its modality; embeddings are cast to the dtype of the store."""
    n = len(shard.columns["key"])
    flat = np.asarray(shard.embeddings).reshape(n, info.dim).astype(info.dtype).reshape(-1)
    schema = shard_schema(shard.modality, info)
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(flat), info.dim)
        if column.name == "embedding"
        else pa.array(shard.columns.get(column.name, [None] * n), type=column.type)
        for column in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def write_batches(
    store: Path,
    info: StoreInfo,
    modality: str,
    part: int,
    batches: Iterable[pa.RecordBatch],
    failures: Sequence[Failure] = (),
    timings: Mapping[str, float] | None = None,
) -> int:
    """Write a shard of rows that come in batches: Parquet rows, moments by split, done marker last.

    Args:
        store: the folder or URL.
        info: of the store; repeated in the metadata of the shard.
        modality: of the shard.
        part: number of the shard.
        batches: rows with the columns of the shard; the embedding has the dtype of the store.
        failures: the inputs of this shard that were not embedded.
        timings: seconds by stage.

    Returns:
        The number of rows.

    Raises:
        UnreachableError: if a URL cannot be written to, or a file was changed on the way there.
    """
    groups: dict[str, Moments] = {}
    count = 0

    def write_rows(path: Path) -> None:
        nonlocal count
        metadata = shard_schema(modality, info).metadata
        writer = None
        try:
            for batch in batches:
                if writer is None:
                    writer = parquet_writer(path, batch.schema.with_metadata(metadata))
                writer.write_batch(batch.replace_schema_metadata(metadata), row_group_size=ROW_GROUP_ROWS)
                add_moments(groups, batch)
                count += len(batch)
            writer = writer or parquet_writer(path, shard_schema(modality, info))
        finally:
            if writer is not None:
                writer.close()

    digests = _write_hashed(part_path(store, modality, part, ROWS), write_rows)
    digests |= write_moments(store, info, modality, part, groups)
    marker = {"rows": count, "failures": list(failures), "timings": dict(timings or {}), "sha256": digests}
    write_marker(part_path(store, modality, part, MARKER), marker)
    return count


def write_moments(
    store: Path, info: StoreInfo, modality: str, part: int, groups: Mapping[str, Moments]
) -> dict[str, str]:
    """Write the moments of a shard by split, and return the name of the file with its SHA-256."""
    path = part_path(store, modality, part, MOMENTS)
    total = groups or {"train": Moments.empty(info.dim)}
    return _write_hashed(path, lambda temporary: save_moments(temporary, total, {"modality": modality}))


def _write_hashed(path: Path, write: Callable[[Path], object]) -> dict[str, str]:
    """Write a file as `write_atomically` does, and return its name with the SHA-256 of what ``write`` wrote.

    Raises:
        UnreachableError: if what is at a URL then is something else.
    """
    digest = ""

    def write_and_hash(temporary: Path) -> None:
        nonlocal digest
        write(temporary)
        digest = sha256_of(temporary)

    write_atomically(path, write_and_hash)
    if not isinstance(path, Path) and sha256_of(path) != digest:
        raise UnreachableError(
            f"{path} was changed on the way: what is read back is not what was uploaded.",
            remedy="Run the same command again.",
        )
    return {path.name: digest}


def add_moments(groups: dict[str, Moments], batch: pa.RecordBatch, kept: Kept = None) -> None:
    """Add the rows of a batch to the moments of their splits, ``groups``; for ``kept`` see `row_splits`.

    The moments are those of the stored values, so that they can be checked against the rows.
    """
    matrix, splits = embedding_matrix(batch), np.array(row_splits(batch, kept), dtype=object)
    for split in sorted(set(splits)):
        moments = Moments.from_rows(matrix[splits == split])
        groups[split] = groups[split].merge(moments) if split in groups else moments


def merge_moments(parts: Iterable[dict[str, Moments]]) -> dict[str, Moments]:
    """Merge the moments by split of several shards."""
    total: dict[str, Moments] = {}
    for part in parts:
        for split, moments in part.items():
            total[split] = total[split].merge(moments) if split in total else moments
    return total


def rewrite_failures(store: Path, modality: str, index: int, failures: Iterable[Failure]) -> None:
    """Replace the failures in a done marker, when some of its inputs were embedded later."""
    path = part_path(store, modality, index, MARKER)
    write_marker(path, {**read_marker(path), "failures": list(failures)})
