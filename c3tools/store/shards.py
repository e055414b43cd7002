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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, UnreachableError
from ..io.files import sha256_of, write_atomically
from ..io.locations import SMALL_BLOCK, name_or_file, names_in, unread_is_not_damaged
from ..moments import Moments
from .metadata import Failure, StoreInfo, digest_of
from .rows import embedding_matrix, row_splits

ShardName = tuple[str, int]  # modality and number
SplitMoments = dict[str, Moments]  # by the split that the rows name
METADATA_KEY, FAILURES_KEY, MADE_FROM_KEY = b"c3", b"c3.failures", b"c3.made_from"
ROW_GROUP_ROWS = 8192
_SHARD = re.compile(r"part-(\d{5,9})\.parquet")
_FILE: list[tuple[str, pa.DataType]] = [
    ("path", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("size", pa.int64()),
]
_COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    "image": [*_FILE, ("split", pa.string())],
    "video": [*_FILE, ("frames", pa.int32()), ("duration", pa.float32()), ("split", pa.string())],
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
    """

    modality: str
    index: int
    embeddings: npt.NDArray[np.floating[Any]]
    columns: Mapping[str, Sequence[Any]]
    failures: Sequence[Failure] = ()


class ShardHeader(NamedTuple):
    """Description of a shard, from the metadata of its file.

    Attributes:
        rows: their number.
        info: the copy of store.json.
        failures: the inputs of the shard that were not embedded.
        made_from: digest of the settings that the shard was made with.
    """

    rows: int
    info: dict[str, Any]
    failures: list[Failure]
    made_from: str


def part_name(modality: str, index: int) -> str:
    """Return the name of a shard, relative to the store: ``image/part-00000.parquet``."""
    return f"{modality}/part-{index:05d}.parquet"


def index_name(modality: str, index: int) -> str:
    """Return the name of the FAISS index of a shard; readers of a folder skip names that begin with _."""
    return f"{modality}/_part-{index:05d}.faiss"


def parts_in(folder: Path) -> list[int]:
    """Return the numbers of the shards in the folder of a modality, ascending."""
    return sorted(int(match[1]) for match in map(_SHARD.fullmatch, names_in(folder)[1]) if match)


def shards_in(store: Path) -> list[ShardName]:
    """Return all shards that are in a folder, listed in its manifest or not."""
    folders = [name for name in names_in(store)[0] if not name.startswith((".", "_"))]
    return [(modality, part) for modality in folders for part in parts_in(store / modality)]


def shard_schema(modality: str, info: StoreInfo) -> pa.Schema:
    """Return the Arrow schema of a shard: key, embedding, and the columns of the modality.

    Modalities other than ``image``, ``video`` and ``text`` have ``pair_key`` (the key of the row's item) and ``split``.
    """
    value_type = pa.float16() if info.dtype == "float16" else pa.float32()
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.field("element", value_type), info.dim), nullable=False),
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
        write_page_checksum=True,
    )


def write_shard(store: Path, info: StoreInfo, shard: Shard, made_from: str | None = None) -> str:
    """Write a shard; embeddings are cast to the dtype of the store. See `write_rows`."""
    return write_rows(store, info, shard.modality, shard.index, shard_table(info, shard), shard.failures, made_from)


def write_rows(
    store: Path,
    info: StoreInfo,
    modality: str,
    part: int,
    rows: pa.Table,
    failures: Sequence[Failure] = (),
    made_from: str | None = None,
    *,
    split_bytes: bool = True,
) -> str:
    """Write a table of rows as a shard of a store, and return its SHA-256; see `write_file`."""
    path = store / part_name(modality, part)
    return write_file(path, info, rows, failures, made_from, split_bytes=split_bytes)


def write_file(
    path: Path,
    info: StoreInfo,
    rows: pa.Table,
    failures: Sequence[Failure] = (),
    made_from: str | None = None,
    *,
    split_bytes: bool = True,
) -> str:
    """Write the file of a shard, complete or not at all, and return its SHA-256.

    Args:
        path: of the file, on this machine or at a URL.
        info: of the store; repeated in the metadata of the file.
        rows: with the columns of `shard_schema`, and others if there are any.
        failures: the inputs of this shard that were not embedded.
        made_from: digest of the settings; None for that of ``info``.
        split_bytes: see `parquet_writer`.

    Raises:
        OSError: if it cannot be written.
        UnreachableError: if a URL cannot be written to, or the file was changed on the way there.
    """
    digest = ""
    metadata = {
        METADATA_KEY: json.dumps(info.to_dict(), sort_keys=True),
        FAILURES_KEY: json.dumps([asdict(failure) for failure in failures]),
        MADE_FROM_KEY: made_from or digest_of(info.to_dict()),
    }
    schema = rows.schema.with_metadata(metadata)

    def write(temporary: Path) -> None:
        nonlocal digest
        with parquet_writer(temporary, schema, split_bytes=split_bytes) as writer:
            writer.write_table(rows.replace_schema_metadata(schema.metadata), row_group_size=ROW_GROUP_ROWS)
        digest = sha256_of(temporary)

    write_atomically(path, write)
    if not isinstance(path, Path) and sha256_of(path) != digest:
        raise UnreachableError(
            f"{path} was changed on the way: what is read back is not what was uploaded.",
            remedy="Run the same command again.",
        )
    return digest


def shard_table(info: StoreInfo, shard: Shard) -> pa.Table:
    """Return the rows of a shard with the columns of its modality; embeddings are cast to the dtype of the store."""
    n = len(shard.columns["key"])
    flat = np.asarray(shard.embeddings).reshape(n, info.dim).astype(info.dtype).reshape(-1)
    schema = shard_schema(shard.modality, info)
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(flat), type=column.type)
        if column.name == "embedding"
        else pa.array(shard.columns.get(column.name, [None] * n), type=column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


@contextmanager
def reading_shard(path: Path) -> Iterator[None]:
    """Turn what comes of reading a damaged shard in the block into a StoreError with the file and the remedy."""
    try:
        with unread_is_not_damaged(path):
            yield
    except UnreachableError:
        raise
    except (OSError, ValueError, KeyError, TypeError, MemoryError, RecursionError, pa.ArrowException) as error:
        raise StoreError(
            f"The shard {path} cannot be read ({error}).",
            remedy="Run `c3 verify --repair`, then the command that made the store again: it makes only this shard.",
        ) from error


def read_header(path: Path) -> ShardHeader:
    """Return what a shard says of itself; no row is read.

    Raises:
        StoreError: if it cannot be read.
    """
    with reading_shard(path), name_or_file(path, SMALL_BLOCK) as source, pq.ParquetFile(source) as file:
        metadata = file.schema_arrow.metadata or {}
        info, failures = json.loads(metadata[METADATA_KEY]), json.loads(metadata[FAILURES_KEY])
        if not isinstance(info, dict):
            raise ValueError("its copy of store.json is damaged")
        found = [Failure.of(failure) for failure in failures]
        return ShardHeader(file.metadata.num_rows, info, found, metadata[MADE_FROM_KEY].decode())


def read_batches(
    path: Path, modality: str, info: StoreInfo, columns: Sequence[str] | None = None, batch_rows: int = ROW_GROUP_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard; the checksums of its pages are compared.

    Raises:
        StoreError: if it cannot be read.
    """
    block = SMALL_BLOCK if columns and "embedding" not in columns else None
    with (
        reading_shard(path),
        name_or_file(path, block) as source,
        pq.ParquetFile(source, page_checksum_verification=True) as file,
    ):
        check_schema(file.schema_arrow, modality, info, columns or ())
        for batch in file.iter_batches(batch_size=batch_rows, columns=None if columns is None else list(columns)):
            batch.validate(full=True)  # text that is not UTF-8 would fail later
            yield batch


def add_moments(groups: SplitMoments, batch: pa.RecordBatch | pa.Table, kept: frozenset[str] | None = None) -> None:
    """Add rows to the moments of their splits, ``groups``; for ``kept`` see `row_splits`.

    The moments are those of the stored values, so that they can be checked against the rows.
    """
    matrix, splits = embedding_matrix(batch), np.array(row_splits(batch, kept), dtype=object)
    for split in sorted(set(splits)):
        moments = Moments.from_rows(matrix[splits == split])
        groups[split] = groups[split].merge(moments) if split in groups else moments
