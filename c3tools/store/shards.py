"""One file a shard: its columns, its name, what its metadata say, and writing it.

    image/part-00000.parquet    key, embedding, and the columns of the modality

A shard takes a fixed block of inputs. The metadata of its file have a copy of store.json, the inputs that failed, and
``made_from``, a digest of the settings that the shard was made with. It is written under a temporary name and renamed,
so it exists whole or not at all, and every page has a checksum.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, UnreachableError
from ..io.files import MALFORMED, write_atomically
from ..io.locations import SMALL_BLOCK, name_or_file, names_in, unread_is_not_damaged
from ..moments import Moments
from .metadata import Failure, StoreInfo, digest_of
from .rows import embedding_matrix, row_splits

ShardName = tuple[str, int]  # modality and number
SplitMoments = dict[str, Moments]  # by the split that the rows name
METADATA_KEY, FAILURES_KEY, MADE_FROM_KEY = b"c3", b"c3.failures", b"c3.made_from"
ROW_GROUP_ROWS = 8192
_SHARD = re.compile(r"part-(\d{5,9})\.parquet")
_FILE = {"path": pa.string(), "width": pa.int32(), "height": pa.int32(), "size": pa.int64()}
_COLUMNS: dict[str, dict[str, Any]] = {
    "image": _FILE,
    "video": {**_FILE, "frames": pa.int32(), "duration": pa.float32()},
    "text": {"caption": pa.string(), "image_key": pa.string()},
}


class ShardHeader(NamedTuple):
    """The metadata of a shard: number of rows, copy of store.json, failed inputs, digest of the settings."""

    rows: int
    info: dict[str, Any]
    failures: list[Failure]
    made_from: str


def part_name(modality: str, index: int) -> str:
    """Return the name of a shard, relative to the store: ``image/part-00000.parquet``."""
    return f"{modality}/part-{index:05d}.parquet"


def shards_in(store: Path) -> list[ShardName]:
    """Return all shards that are in a folder, listed in its manifest or not, ascending."""
    folders = [name for name in names_in(store)[0] if not name.startswith((".", "_"))]
    found = [(name, _SHARD.fullmatch(file)) for name in folders for file in names_in(store / name)[1]]
    return sorted((modality, int(match[1])) for modality, match in found if match)


def shard_schema(modality: str, info: StoreInfo) -> pa.Schema:
    """Return the Arrow schema of a shard: key, embedding, and the columns of the modality.

    Modalities other than ``image``, ``video`` and ``text`` have ``pair_key`` (the key of the row's item) and ``split``.
    """
    value_type = pa.float16() if info.dtype == "float16" else pa.float32()
    columns = {**_COLUMNS.get(modality, {"pair_key": pa.string()}), "split": pa.string()}
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.field("element", value_type), info.dim), nullable=False),
        *(pa.field(name, kind) for name, kind in columns.items()),
    ]
    return pa.schema(fields)


def check_schema(schema: pa.Schema, modality: str, info: StoreInfo) -> None:
    """Raise a ValueError if a column of the modality is missing, or of another type."""
    for field in shard_schema(modality, info):
        if field.name not in schema.names:
            raise ValueError(f"it has no column {field.name!r}")
        if (found := schema.field(field.name).type) != field.type:
            raise ValueError(f"its column {field.name!r} is {found}, but that of the store is {field.type}")


def shard_table(
    info: StoreInfo, modality: str, embeddings: npt.NDArray[np.floating[Any]], columns: Mapping[str, Sequence[Any]]
) -> pa.Table:
    """Return the rows of a shard with the columns of its modality.

    Args:
        info: of the store; embeddings are cast to its dtype.
        modality: ``image``, ``text``, or another name.
        embeddings: (n, d), of any float dtype.
        columns: ``key`` and the columns of the modality, n values each; a missing column is null.
    """
    n, schema = len(columns["key"]), shard_schema(modality, info)
    flat = np.asarray(embeddings).reshape(n, info.dim).astype(info.dtype).reshape(-1)
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(flat), type=column.type)
        if column.name == "embedding"
        else pa.array(columns.get(column.name, [None] * n), type=column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def write_rows(
    path: Path,
    info: StoreInfo,
    rows: pa.Table,
    failures: Sequence[Failure] = (),
    made_from: str | None = None,
    *,
    split_bytes: bool = True,
) -> None:
    """Write the file of a shard, complete or not at all: zstd, byte-stream split on the embedding, dictionary on keys.

    Measured on CLIP embeddings, this is the smallest of the layouts and as fast to read as any.

    Args:
        path: of the file, on this machine or at a URL.
        info: of the store; repeated in the metadata of the file.
        rows: with the columns of `shard_schema`, and others if there are any.
        failures: the inputs of this shard that were not embedded.
        made_from: digest of the settings; None for that of ``info``.
        split_bytes: False for files that other programs are to read: DuckDB reads no byte-stream split of float16.

    Raises:
        OSError: if it cannot be written.
    """
    metadata = {
        METADATA_KEY: json.dumps(info.to_dict(), sort_keys=True),
        FAILURES_KEY: json.dumps([asdict(failure) for failure in failures]),
        MADE_FROM_KEY: made_from or digest_of(info.to_dict()),
    }
    names, values = rows.column_names, "embedding.list.element"
    # plain values hardly get smaller, and are written and read in half the time as they are
    compression: Any = {**dict.fromkeys(names, "zstd"), values: "zstd" if split_bytes else "none"}
    options: Any = {
        "row_group_size": ROW_GROUP_ROWS,
        "compression": compression,
        "use_dictionary": ["key"],
        "use_byte_stream_split": [values] if split_bytes else False,
        "write_statistics": [name for name in names if name != "embedding"],
        "write_page_checksum": True,
    }
    write_atomically(path, lambda file: pq.write_table(rows.replace_schema_metadata(metadata), file, **options))


@contextmanager
def _reading_shard(path: Path) -> Iterator[None]:
    """Turn what comes of reading a damaged shard in the block into a StoreError with the file and the remedy."""
    try:
        with unread_is_not_damaged(path):
            yield
    except UnreachableError:
        raise
    except (OSError, *MALFORMED, MemoryError, pa.ArrowException) as error:
        raise StoreError(
            f"The shard {path} cannot be read ({error}).",
            remedy="Run `c3 verify --repair`, then the command that made the store again: it makes only this shard.",
        ) from error


def read_header(path: Path) -> ShardHeader:
    """Return what a shard says of itself; no row is read.

    Raises:
        StoreError: if it cannot be read.
    """
    with _reading_shard(path), name_or_file(path, SMALL_BLOCK) as source, pq.ParquetFile(source) as file:
        metadata = file.schema_arrow.metadata or {}
        info = msgspec.json.decode(metadata[METADATA_KEY], type=dict[str, Any])
        failures = msgspec.json.decode(metadata[FAILURES_KEY], type=list[Failure])
        return ShardHeader(file.metadata.num_rows, info, failures, metadata[MADE_FROM_KEY].decode())


def read_batches(
    path: Path, modality: str, info: StoreInfo, columns: Sequence[str] | None = None, batch_rows: int = ROW_GROUP_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard; the checksums of its pages are compared.

    Raises:
        StoreError: if it cannot be read.
    """
    block = SMALL_BLOCK if columns and "embedding" not in columns else None
    with (
        _reading_shard(path),
        name_or_file(path, block) as source,
        pq.ParquetFile(source, page_checksum_verification=True) as file,
    ):
        check_schema(file.schema_arrow, modality, info)
        for batch in file.iter_batches(batch_size=batch_rows, columns=None if columns is None else list(columns)):
            batch.validate(full=True)  # text that is not UTF-8 would fail later
            yield batch


def add_moments(groups: SplitMoments, batch: pa.RecordBatch | pa.Table, kept: frozenset[str] | None = None) -> None:
    """Add rows to the moments of their splits, ``groups``; for ``kept`` see `row_splits`.

    The moments are those of the stored values, so that they can be checked against the rows.
    """
    column = batch.schema.field("embedding").type.value_type.to_pandas_dtype()
    matrix, splits = embedding_matrix(batch, column), np.array(row_splits(batch, kept), dtype=object)
    for split in sorted(set(splits)):
        fold(groups, split, Moments.from_rows(matrix[splits == split]))


def fold(groups: dict[str, Moments], name: str, moments: Moments) -> None:
    """Merge moments into those of a group."""
    groups[name] = groups[name].merge(moments) if name in groups else moments
