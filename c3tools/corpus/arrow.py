"""Record batches of Arrow files, as Hugging Face datasets keeps them (`save_to_disk`, the cache)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import CorpusError
from ..io.limits import TooLargeError, most_unpacked

UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError, TooLargeError)  # for damaged and hostile tables


def record_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an Arrow stream or file, which is mapped, not copied.

    Raises:
        CorpusError: if the file is behind a URL.
        OSError: where it is cut or damaged, or unpacks to too much, after the batches before that place.
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
            whole = source.read(6) == b"ARROW1"
            _check_packed(source, 8 if whole else 0)
            source.seek(0)
            if whole:
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                for column in batch.columns:  # what is mapped is taken as it lies in the file
                    column.validate(full=not (pa.types.is_decimal(column.type) or pa.types.is_temporal(column.type)))
                for field in batch.schema:
                    _decode_names(field)
                yield batch
                count += 1
    except KeyError as error:  # kinds of intervals that pyarrow has no name for
        raise OSError(0, f"a column of a kind that is not read ({error})") from error
    except UNREADABLE as error:
        raise OSError(
            0,
            f"cut short or damaged after {count:,} record batches ({error}); copy it again, then run the same command "
            "again",
        ) from error


def column_of_batch(path: Path, number: int, column: str) -> pa.Array[Any]:
    """Return one column of one record batch.

    Raises:
        OSError: if the file is damaged before it, or has become shorter.
    """
    for position, batch in enumerate(record_batches(path)):
        if position == number:
            return batch.column(column)
    raise OSError(0, f"{path} has no record batch {number} any more")


def _check_packed(source: pa.NativeFile, start: int) -> None:
    """Refuse compressed batches that declare far more bytes than they contain; stop where an incomplete file ends.

    Raises:
        TooLargeError: with the sizes.
    """
    source.seek(start)
    try:
        for message in pa.ipc.MessageReader.open_stream(source):
            size = message.body.size if message.body is not None else 0
            unpacked = _unpacked_size(message) if size else 0
            if unpacked > most_unpacked(size):
                raise TooLargeError(f"a batch of {size:,} bytes unpacks to {unpacked:,}")
    except (pa.ArrowException, OSError, struct.error):
        return  # reading it stops at the same place


def _unpacked_size(message: Any) -> int:
    """Return the unpacked size that the buffers of a record batch declare; 0 if they are not compressed.

    pyarrow allocates that much before it unpacks, and has no function for it. The metadata is a flatbuffer: tables
    that begin with the distance to a list of where their fields are (Message.fbs of Apache Arrow, version 1.0).
    """
    data, body = memoryview(message.metadata), memoryview(message.body)

    def number(kind: str, place: int) -> int:
        return int(struct.unpack_from(f"<{kind}", data, place)[0])

    def field(table: int, position: int) -> int | None:
        """Return where a field of a table is; None if it has none."""
        fields = table - number("i", table)
        entry = 4 + 2 * position
        place = number("H", fields + entry) if entry < number("H", fields) else 0
        return table + place if place else None

    def target(place: int | None) -> int | None:
        return None if place is None else place + number("I", place)

    header = target(field(number("I", 0), 2))
    if message.type.startswith("dictionary") and header is not None:
        header = target(field(header, 1))
    buffers = None if header is None else target(field(header, 2))
    if header is None or buffers is None or field(header, 3) is None:
        return 0
    places = [struct.unpack_from("<qq", data, buffers + 4 + 16 * n) for n in range(number("I", buffers))]
    return sum(struct.unpack_from("<q", body, offset)[0] for offset, length in places if length >= 8)


def _decode_names(field: pa.Field[Any]) -> None:
    """Decode the names of a field and of those in it, which pyarrow does only on demand.

    Raises:
        UnicodeDecodeError: if one is not UTF-8.
    """
    assert isinstance(field.name, str)
    for number in range(field.type.num_fields):
        _decode_names(field.type.field(number))
