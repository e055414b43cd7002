"""The columns of a shard and how they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .info import StoreInfo

METADATA_KEY = b"c3"
ROW_GROUP_ROWS = 8192
_COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    "image": [
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("size", pa.int64()),
        ("split", pa.string()),
    ],
    "text": [("caption", pa.string()), ("image_key", pa.string()), ("split", pa.string())],
}
_OTHER_COLUMNS = [("pair_key", pa.string()), ("split", pa.string())]


def shard_schema(modality: str, info: StoreInfo) -> pa.Schema:
    """The Arrow schema of a shard: key, embedding, and the columns of the modality.

    Modalities other than ``image`` and ``text`` have ``pair_key`` (what the row is paired with) and ``split``.
    """
    value_type = pa.float16() if info.dtype == "float16" else pa.float32()
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(value_type, info.dim), nullable=False),
        *(pa.field(name, kind) for name, kind in _COLUMNS.get(modality, _OTHER_COLUMNS)),
    ]
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(info.to_json(), sort_keys=True)})


def shard_table(
    modality: str, info: StoreInfo, embeddings: npt.NDArray[np.floating[Any]], columns: dict[str, list[Any]]
) -> pa.Table:
    """A table in the shard schema.

    Args:
        embeddings: (n, d) of any float dtype; cast to the store's dtype.
        columns: ``key`` and the columns of the modality, n values each; a missing column is null.
    """
    schema = shard_schema(modality, info)
    flat = np.ascontiguousarray(embeddings, dtype=np.dtype(info.dtype)).reshape(-1)
    arrays = []
    for field in schema:
        if field.name == "embedding":
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), info.dim))
        else:
            arrays.append(pa.array(columns.get(field.name, [None] * len(embeddings)), type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a shard at once, laid out by `parquet_writer`."""
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)


def parquet_writer(path: Path, schema: pa.Schema, *, split_bytes: bool = True) -> pq.ParquetWriter:
    """A writer of shards: zstd, byte-stream split on the embedding, dictionary on the key only.

    Measured on CLIP embeddings, this is the smallest of the layouts and as fast to read as any. DuckDB does not read
    it for float16: ``split_bytes=False`` writes plain values, for files that other programs are to read.
    """
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["key"],
        use_byte_stream_split=["embedding.list.element"] if split_bytes else False,
        write_statistics=[name for name in schema.names if name != "embedding"],
    )
