"""Record batches of Arrow files, as Hugging Face datasets keeps them (`save_to_disk`, the cache)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import CorpusError

UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError)  # what pyarrow raises for damaged tables


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
            if source.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                batch.validate(full=True)  # what is mapped is taken as it lies in the file
                for field in batch.schema:
                    _decode_names(field)
                yield batch
                count += 1
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


def _decode_names(field: pa.Field[Any]) -> None:
    """Decode the names of a field and of those in it, which pyarrow does only on demand.

    Raises:
        UnicodeDecodeError: if one is not UTF-8.
    """
    assert isinstance(field.name, str)
    for number in range(field.type.num_fields):
        _decode_names(field.type.field(number))
