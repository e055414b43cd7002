"""Read Parquet files from strangers with memory that is bounded by their size on disk, not by what they declare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .files import most_unpacked
from .locations import name_or_file, size_of

_MOST_REPEATED = 1000  # times the size of the file, that its values may come to: dictionaries repeat values
_LARGEST_VALUE = 1 << 24  # bytes, on average over a column of a row group
_BATCH_BYTES = 1 << 25
_FIRST_ROWS, _MOST_ROWS = 16, 1 << 16


class PackedError(ValueError):
    """A file unpacks to more than its size allows."""


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the columns of a Parquet file; all by default.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: if it cannot be read; PackedError if it would take far more memory
            than a file of its size has any reason to.
    """
    size = size_of(path) or 0
    with name_or_file(path) as source, pq.ParquetFile(source) as file:
        metadata = file.metadata
        repeated = [name for name in _repeated_texts(file) if columns is None or name in columns]
    with name_or_file(path) as source, pq.ParquetFile(source, read_dictionary=repeated, metadata=metadata) as file:
        batches = list(_batches(file, size, columns))
        schema = (
            batches[0].schema
            if batches
            else pa.schema([field for field in _plain(file.schema_arrow) if columns is None or field.name in columns])
        )
        return pa.Table.from_batches(batches, schema)


def _batches(file: pq.ParquetFile, size: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches of about 32 MB; texts that the file keeps once are repeated when there is room."""
    chosen = None if columns is None else list(columns)
    _check_declared(file, size, chosen)
    total, most = 0, max(most_unpacked(0), _MOST_REPEATED * size)
    for group in range(file.metadata.num_row_groups):
        rows = _FIRST_ROWS
        for first in file.iter_batches(batch_size=_FIRST_ROWS, row_groups=[group], columns=chosen):
            rows = _BATCH_BYTES // max(1, first.nbytes // max(1, len(first)))
            break
        for batch in file.iter_batches(batch_size=min(_MOST_ROWS, max(1, rows)), row_groups=[group], columns=chosen):
            total += sum(_bytes_of(column) for column in batch.columns)
            if total > most:
                raise PackedError(f"its values need more than {most:,} bytes, but the file has only {size:,}")
            yield pa.RecordBatch.from_arrays([_repeated(c) for c in batch.columns], schema=_plain(batch.schema))


def _repeated_texts(file: pq.ParquetFile) -> list[str]:
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return [field.name for field in file.schema_arrow if any(is_text(field.type) for is_text in texts)]


def _plain(schema: pa.Schema) -> pa.Schema:
    kept = [field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in schema]
    return pa.schema(kept, schema.metadata)  # type: ignore[arg-type]


def _bytes_of(column: pa.Array[Any]) -> int:
    if not isinstance(column, pa.DictionaryArray):
        return column.nbytes
    lengths = pc.binary_length(column.dictionary).take(column.indices)  # type: ignore[call-overload]
    return int(pc.sum(lengths).as_py() or 0) + column.indices.nbytes


def _repeated(column: pa.Array[Any]) -> pa.Array[Any]:
    return column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column


def _check_declared(file: pq.ParquetFile, size: int, columns: Sequence[str] | None = None) -> None:
    """Refuse a file whose columns declare sizes that a file of its size has no reason to have; nothing is read.

    Raises:
        PackedError: with the column.
    """
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for position in range(group.num_columns):
            column = group.column(position)
            if columns is not None and column.path_in_schema.split(".")[0] not in columns:
                continue
            unpacked, values = column.total_uncompressed_size, max(1, column.num_values)
            if unpacked > most_unpacked(size):
                raise PackedError(
                    f"its column {column.path_in_schema!r} unpacks to {unpacked:,} bytes, but the file has only "
                    f"{size:,}"
                )
            if unpacked > most_unpacked(0) and unpacked // values > _LARGEST_VALUE:
                raise PackedError(f"values of its column {column.path_in_schema!r} have {unpacked // values:,} bytes")
