"""Read tables from strangers, Parquet and Arrow: what they declare is checked against their size on
disk first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import CorpusError
from .limits import LARGEST_IMAGE_FILE, UNPACKED_OF_ANY_FILE, TooLargeError, check_unpacked
from .locations import name_or_file, open_binary

# for damaged and hostile tables
UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError, TooLargeError)
_MOST_REPEATED = 1000  # times the size of a file: of values, which dictionaries repeat
_BATCH_BYTES = 1 << 25
_MOST_ROWS = 1 << 10  # of a batch, which becomes Python objects
_WIDEST = 8  # bytes of a number
_TAIL = 8  # bytes after the footer: its length, and the mark of the format
# A malformed footer can crash pyarrow, so it is parsed in a subprocess
_PARSE_FOOTER = """
import json, sys
import pyarrow as pa, pyarrow.parquet as pq
metadata = pq.read_metadata(pa.BufferReader(sys.stdin.buffer.read()))
groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
chunks = [[group.column(number) for number in range(group.num_columns)] for group in groups]
json.dump([[[c.path_in_schema, c.num_values, c.total_uncompressed_size, c.physical_type,
             c.encodings] for c in row] for row in chunks], sys.stdout)
"""


class _Chunk(NamedTuple):
    """The values of a column in one row group.

    Attributes:
        path: of the column, such as captions.list.element.
        values: their number.
        unpacked: bytes.
        kind: the physical type: BYTE_ARRAY for texts and bytes.
        encodings: names of the encodings.
    """

    path: str
    values: int
    unpacked: int
    kind: str
    encodings: list[str]

    @property
    def has_dictionary(self) -> bool:
        """True if texts or bytes are stored once, and may be those of every row."""
        is_dictionary = any("DICTIONARY" in encoding for encoding in self.encodings)
        return self.kind == "BYTE_ARRAY" and is_dictionary

    def bytes_of_row(self, rows: int) -> int:
        """Return the bytes of a row, dictionaries apart, if there are so many rows."""
        is_delta = any(encoding.startswith("DELTA_") for encoding in self.encodings)
        if is_delta and self.kind == "BYTE_ARRAY":
            # a difference may be to a text that has nearly the size of the whole column
            return self.unpacked
        return self.unpacked // max(1, rows)


@lru_cache
def _column_chunks(footer: bytes) -> list[list[_Chunk]]:
    """Return what the footer of a Parquet file says of its columns, by row group.

    Raises:
        pyarrow.ArrowInvalid: if it is damaged.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PARSE_FOOTER],
        input=b"PAR1" + footer,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise pa.ArrowInvalid("its footer is damaged")
    return [[_Chunk(*chunk) for chunk in group] for group in json.loads(done.stdout)]


@contextmanager
def open_parquet(path: Path) -> Iterator[_Reader]:
    """Open a Parquet file, on this machine or at a URL.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: if it is not a Parquet file.
    """
    with name_or_file(path) as source, pq.ParquetFile(source) as file, open_binary(path) as content:
        # Read what the footer says of the columns; the last bytes of the file are its length
        size = content.seek(0, 2)
        content.seek(size - _TAIL)
        footer_size = int.from_bytes(content.read(4), "little")
        content.seek(size - _TAIL - footer_size)
        chunks = _column_chunks(content.read())

        # Open the file a second time, to read dictionaries without the rows that repeat them
        dictionary_columns: set[str] = set()
        for group in chunks:
            dictionary_columns.update(chunk.path for chunk in group if chunk.has_dictionary)
        schema = file.metadata.schema
        columns = {schema.column(number).path for number in range(len(schema))}
        if not dictionary_columns <= columns:
            unknown = min(dictionary_columns - columns)
            raise pa.ArrowInvalid(f"its schema has no column {unknown!r}")
        with pq.ParquetFile(
            source, metadata=file.metadata, read_dictionary=sorted(dictionary_columns)
        ) as dictionaries:
            yield _Reader(file, dictionaries, chunks, size)


def read_parquet(path: Path) -> pa.Table:
    """Return the content of a Parquet file, with the metadata of its schema.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: if it cannot be read; TooLargeError if it would
            take far more memory than a file of its size has any reason to.
    """
    with open_parquet(path) as file:
        batches = list(file.batches())
        table = pa.Table.from_batches(batches, batches[0].schema if batches else file.schema)
        return table.replace_schema_metadata(file.schema.metadata)


def read_arrow(path: Path) -> pa.Table:
    """Return the content of an Arrow stream or file.

    Raises:
        CorpusError, OSError, ValueError: as `arrow_batches`.
    """
    return pa.Table.from_batches(list(arrow_batches(path)))


def arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an Arrow stream or file, with the values of dictionaries in their
    places.

    Raises:
        CorpusError: if the file is behind a URL.
        OSError, ValueError: if it cannot be read; TooLargeError if its dictionaries unpack to far
            more than its size.
    """
    size = path.stat().st_size
    for batch in record_batches(path):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if isinstance(column, pa.DictionaryArray):
                unpacked = _largest_repeated(column) * len(column)
                check_unpacked(f"its column {name!r}", unpacked, size)
        yield _without_dictionaries(batch)


class _Reader:
    """An open Parquet file, read in batches whose size does not depend on what the file
    declares.
    """

    def __init__(
        self,
        file: pq.ParquetFile,
        dictionaries: pq.ParquetFile,
        chunks: Sequence[Sequence[_Chunk]],
        size: int,
    ) -> None:
        self._file = file
        self._dictionaries = dictionaries
        self._chunks = chunks
        self._size = size
        # bytes that the values may come to
        self._most = max(UNPACKED_OF_ANY_FILE, _MOST_REPEATED * size)
        self._left = self._most
        self.schema = file.schema_arrow
        self.row_counts = [
            file.metadata.row_group(number).num_rows for number in range(len(chunks))
        ]

    def batches(
        self, columns: Sequence[str] | None = None, *, group: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, in batches of about 32 MiB.

        Args:
            columns: names, of parts of structs too (``image.path``); all by default.
            group: the row group to read; all by default.

        Raises:
            OSError, ValueError, pyarrow.ArrowException: if it cannot be read; TooLargeError if its
                values come to too much.
        """
        # the start of the path of each column to read, after a dot
        prefixes = (".",) if columns is None else tuple(f".{name}." for name in columns)
        names = None if columns is None else list(columns)
        for number in range(len(self.row_counts)) if group is None else [group]:
            chunks = [
                chunk for chunk in self._chunks[number] if f".{chunk.path}.".startswith(prefixes)
            ]
            for chunk in chunks:
                self._check_chunk(chunk)
            rows = min(_MOST_ROWS, max(1, _BATCH_BYTES // self._bytes_of_row(number, chunks)))
            for batch in self._file.iter_batches(rows, [number], names):
                decoded = _without_dictionaries(batch)
                self._left -= decoded.nbytes
                if self._left < 0:
                    raise self._too_large(f"its values need over {self._most:,} bytes")
                yield decoded

    def _check_chunk(self, chunk: _Chunk) -> None:
        """Refuse values of a column that would take too much memory.

        Raises:
            TooLargeError: with the bytes, or their number.
        """
        column = f"its column {chunk.path!r}"
        check_unpacked(column, chunk.unpacked, self._size)
        bytes_of_value = chunk.unpacked // max(1, chunk.values)
        if bytes_of_value > LARGEST_IMAGE_FILE:
            raise self._too_large(f"values of {column} have {bytes_of_value:,} bytes")
        if chunk.values * _WIDEST > self._most:
            raise self._too_large(f"{column} has {chunk.values:,} values")

    def _bytes_of_row(self, group: int, chunks: Sequence[_Chunk]) -> int:
        """Return the bytes that a row of a row group may take, at least 1."""
        row_count = self.row_counts[group]
        size = 1 + sum(chunk.bytes_of_row(row_count) for chunk in chunks)
        repeated = [chunk.path for chunk in chunks if chunk.has_dictionary]
        if repeated:
            # The first row has the dictionaries, with their largest values
            first = next(self._dictionaries.iter_batches(1, [group], repeated), None)
            columns = [] if first is None else first.columns
            size += sum(_largest_repeated(column) for column in columns)
        return size

    def _too_large(self, what: str) -> TooLargeError:
        return TooLargeError(f"{what}, but the file has {self._size:,} bytes")


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows with the values of dictionaries in their places."""
    columns = [
        each.dictionary_decode() if isinstance(each, pa.DictionaryArray) else each
        for each in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names) if columns else batch


def _largest_repeated(values: Any) -> int:
    """Return the size in bytes of the largest text, or bytes, in the dictionaries of an array."""
    if isinstance(values, pa.DictionaryArray):
        dictionary: Any = values.dictionary
        return pc.max(pc.binary_length(dictionary)).as_py() or 0
    if pa.types.is_struct(values.type):
        return sum(map(_largest_repeated, values.flatten()))
    return _largest_repeated(values.values) if hasattr(values, "values") else 0


def record_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an Arrow stream or file, which is mapped, not copied.

    Raises:
        CorpusError: if the file is behind a URL.
        OSError: where it is cut or damaged, after the batches before that place.
    """
    if not isinstance(path, Path):
        raise CorpusError(
            f"{path} cannot be read: Arrow files can only be read from a local disk.",
            remedy="Copy the folder to this machine, or convert its tables to Parquet.",
        )
    count = 0
    try:
        with pa.memory_map(str(path)) as source:
            batches: Iterator[pa.RecordBatch]
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                for column in batch.columns:  # what is mapped is taken as it lies in the file
                    column.validate(
                        full=not (
                            pa.types.is_decimal(column.type) or pa.types.is_temporal(column.type)
                        )
                    )
                str(batch.schema)  # decodes the names of all fields
                yield batch
                count += 1
    except KeyError as error:  # kinds of intervals that pyarrow has no name for
        raise OSError(0, f"a column of an unsupported type ({error})") from error
    except UNREADABLE as error:
        raise OSError(
            0,
            f"truncated or damaged after {count:,} record batches ({error}); copy it again, then "
            f"run the same command again",
        ) from error
