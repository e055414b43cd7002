"""Sizes that the footer of a Parquet file declares.

pyarrow ends the process where it cannot make sense of what a footer says of a column, so its own view of the columns is
not used. A footer is a struct of Thrift's compact protocol; the numbers of its fields are those of parquet.thrift.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from operator import index
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

_ROW_GROUPS, _COLUMNS, _META_DATA = 4, 1, 3
_TYPE, _ENCODINGS, _PATH, _VALUES, _UNPACKED = 1, 2, 3, 5, 6
_BYTE_ARRAY, _DELTA_ENCODINGS = 6, (6, 7)  # DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY
_WIDTHS = {1: 4, 2: 8, 3: 12, 4: 4, 5: 8}  # bytes of INT32, INT64, INT96, FLOAT, DOUBLE
_END = 8  # bytes after the footer: its length, and the mark of the format


class ColumnChunk(NamedTuple):
    """The values of a column in one row group, as a footer describes them.

    Attributes:
        path: the name of the column, with those of its parts: ``captions.list.element``.
        values: their number.
        width: bytes of one value, 1 where they differ.
        unpacked: bytes that they are packed from.
        is_text: whether they are texts or bytes.
        is_delta: whether they are kept as differences to the value before.
    """

    path: str
    values: int
    width: int
    unpacked: int
    is_text: bool
    is_delta: bool


def column_chunks(file: BinaryIO) -> list[list[ColumnChunk]]:
    """Return what the footer of a Parquet file says of its columns, by row group.

    Raises:
        pyarrow.ArrowInvalid: if it is damaged.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END))
    length = int.from_bytes(file.read(4), "little")
    if length > size - _END:
        raise pa.ArrowInvalid("its footer is damaged")
    file.seek(size - _END - length)
    try:
        footer = _Compact(file.read(length)).struct()
        return [[_chunk(column[_META_DATA]) for column in group[_COLUMNS]] for group in footer.get(_ROW_GROUPS, [])]
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError, struct.error) as error:
        raise pa.ArrowInvalid(f"its footer is damaged ({error!r})") from error


def _chunk(said: dict[int, Any]) -> ColumnChunk:
    kind = said[_TYPE]
    return ColumnChunk(
        ".".join(part.decode("utf-8") for part in said[_PATH]),
        index(said[_VALUES]),
        _WIDTHS.get(kind, 1),
        index(said[_UNPACKED]),
        kind == _BYTE_ARRAY,
        kind == _BYTE_ARRAY and any(encoding in _DELTA_ENCODINGS for encoding in said[_ENCODINGS]),
    )


class _Compact:
    """A reader of Thrift's compact protocol: structs become the values of their fields by number."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = content, 0

    def struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):  # booleans of a list take a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return struct.unpack("<d", self._bytes(8))[0]
        if kind == 8:
            return self._bytes(self._count())
        if kind in (9, 10):
            return list(self._list())
        if kind == 12:
            return self.struct()
        raise TypeError(f"kind {kind}")

    def _list(self) -> Iterator[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._count()
        return (self._value(head & 15) for _ in range(count))

    def _byte(self) -> int:
        self._position += 1
        return self._content[self._position - 1]

    def _bytes(self, count: int) -> bytes:
        self._position += count
        if self._position > len(self._content):
            raise IndexError(count)
        return self._content[self._position - count : self._position]

    def _count(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise IndexError("a number of more than 64 bits")
        return value | byte << shift

    def _integer(self) -> int:
        value = self._count()
        return value >> 1 ^ -(value & 1)
