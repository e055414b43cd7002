"""Read Parquet files from strangers with memory that is bounded by their size on disk, not by what they declare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from .batches import Budget, without_dictionaries
from .footers import ColumnChunk, column_chunks
from .limits import LARGEST_IMAGE_FILE, TooLargeError, most_repeated, most_unpacked
from .locations import name_or_file

_BATCH_BYTES = 1 << 25
_MOST_ROWS = 1 << 16


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetReader]:
    """Open a Parquet file, on this machine or at a URL.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: if it is not a Parquet file.
    """
    with name_or_file(path) as source:
        with pq.ParquetFile(source) as plain:
            metadata = plain.metadata
            paths = {plain.schema.column(number).path for number in range(len(plain.schema))}
        chunks, size = _declared(source)
        # a text that is kept once stays once in memory; pyarrow has no such way for differences
        every = [chunk for group in chunks for chunk in group]
        repeated = {chunk.path for chunk in every if chunk.is_text} - {chunk.path for chunk in every if chunk.is_delta}
        if not isinstance(source, Path):
            source.seek(0)
        with pq.ParquetFile(source, read_dictionary=sorted(repeated & paths), metadata=metadata) as file:
            yield ParquetReader(file, chunks, size)


@contextmanager
def open_checked(path: Path, block: int | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of this package whose columns declare no more than a file of its size has reason to.

    Args:
        path: on this machine or at a URL.
        block: bytes of a request, see `open_binary`.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: if it is not a Parquet file; TooLargeError if it declares more.
    """
    with name_or_file(path, block) as source:
        chunks, size = _declared(source)
        for group in chunks:
            _check_chunks(group, size)
        if not isinstance(source, Path):
            source.seek(0)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            yield file


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the columns of a Parquet file; all by default.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: if it cannot be read; TooLargeError if it would take far more
            memory than a file of its size has any reason to.
    """
    with open_parquet(path) as file:
        batches = list(file.batches(columns))
        chosen = [field for field in file.schema if columns is None or field.name in columns]
        return pa.Table.from_batches(batches, batches[0].schema if batches else pa.schema(chosen, file.schema.metadata))  # type: ignore[arg-type]


class ParquetReader:
    """An open Parquet file, read in batches whose size does not depend on what the file declares.

    Attributes:
        schema: of the columns, without dictionaries.
        row_counts: rows of each row group.
    """

    def __init__(self, file: pq.ParquetFile, chunks: Sequence[Sequence[ColumnChunk]], size: int) -> None:
        self._file, self._chunks, self._size, self._budget = file, chunks, size, Budget(size)
        self.schema = without_dictionaries(file.schema_arrow)
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        self.row_counts = [group.num_rows for group in groups]
        if len(self._chunks) != len(self.row_counts):
            raise pa.ArrowInvalid("its footer is damaged")

    def batches(self, columns: Sequence[str] | None = None, *, group: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, in batches of about 32 MiB.

        Args:
            columns: names, of parts of structs too (``image.path``); all by default.
            group: the row group to read; all by default.

        Raises:
            OSError, ValueError, pyarrow.ArrowException: if it cannot be read; TooLargeError if its values come to too
                much.
        """
        names = None if columns is None else list(columns)
        groups = range(len(self.row_counts)) if group is None else [group]
        chosen = {
            number: [c for c in self._chunks[number] if names is None or _is_in(c.path, names)] for number in groups
        }
        for chunks in chosen.values():
            _check_chunks(chunks, self._size)
        for number, chunks in chosen.items():
            of_row = sum(chunk.unpacked for chunk in chunks) // max(1, self.row_counts[number])
            # a difference may be to a text that has nearly the size of the whole column
            of_row += sum(chunk.unpacked for chunk in chunks if chunk.is_delta)
            rows = min(_MOST_ROWS, max(1, _BATCH_BYTES // max(1, of_row)))
            for batch in self._file.iter_batches(batch_size=rows, row_groups=[number], columns=names):
                yield from self._budget.pieces(batch)


def _is_in(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _declared(source: Path | BinaryIO) -> tuple[list[list[ColumnChunk]], int]:
    """Return the metadata of a file about its columns, by row group, and the size of the file."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return column_chunks(file), source.stat().st_size
    return column_chunks(source), source.seek(0, 2)


def _check_chunks(chunks: Sequence[ColumnChunk], size: int) -> None:
    for name, values, width, unpacked, *_ in chunks:
        if unpacked > most_unpacked(size):
            raise TooLargeError(f"its column {name!r} unpacks to {unpacked:,} bytes, but the file has only {size:,}")
        if unpacked > most_unpacked(0) and unpacked // max(1, values) > LARGEST_IMAGE_FILE:
            raise TooLargeError(f"values of its column {name!r} have {unpacked // max(1, values):,} bytes")
        if values * width > most_repeated(size):
            raise TooLargeError(f"its column {name!r} has {values:,} values, but the file has only {size:,} bytes")
