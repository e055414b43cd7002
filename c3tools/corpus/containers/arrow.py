"""Arrow files of Hugging Face datasets (`save_to_disk`, the cache): record batches one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ...errors import CorpusError
from ..items import Sample, Skipped
from ..options import ReadOptions
from .cells import UNREADABLE, RowReader, image_table

DICTIONARY_FILE = "dataset_dict.json"  # beside the folders of the splits


def read(path: Path, options: ReadOptions) -> Iterator[Sample | Skipped]:
    """The rows of an Arrow stream or file, without their images, and where it is cut.

    Raises:
        CorpusError: if it is not Arrow, or a column is missing.
    """
    batches = _batches(path)
    first = next(batches, None)
    if first is None:
        return
    if isinstance(first, Skipped):
        raise CorpusError(f"{path} is not a readable Arrow file ({first.message}).")
    table = image_table(first.schema, options, path)
    saved = (path.parent.parent / DICTIONARY_FILE).is_file()
    rows = RowReader(path, table, options, path.parent.name if saved else None)
    group = 0
    batch: pa.RecordBatch | Skipped | None = first
    while batch is not None:
        if isinstance(batch, Skipped):
            yield batch
            break
        records = batch.select(list(table.names)).to_pylist() if table.names else [{}] * batch.num_rows
        paths = batch.column(table.image).field("path").to_pylist() if table.has_path else [None] * batch.num_rows
        for row, (record, image_path) in enumerate(zip(records, paths, strict=True)):
            problem = rows.add(group, row, record, image_path)
            if problem is not None:
                yield problem
        group += 1
        batch = next(batches, None)
    yield from rows.samples()


def column_of_batch(path: Path, number: int, column: str) -> pa.Array:
    """One column of one record batch; the file is mapped, not copied.

    Raises:
        OSError: if the file is damaged before it.
    """
    for position, batch in enumerate(_batches(path)):
        if isinstance(batch, Skipped):
            raise OSError(0, batch.message)
        if position == number:
            return batch.column(column)
    raise OSError(0, f"{path} has no record batch {number} any more")


def _batches(path: Path) -> Iterator[pa.RecordBatch | Skipped]:
    """The record batches, and at the end why there are no more, if that is not the file's end."""
    if not isinstance(path, Path):
        raise CorpusError(
            f"{path}: Arrow files are read from a disk only.", remedy="Copy the folder, or give its tables as Parquet."
        )
    count = 0
    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                for number in range(file.num_record_batches):
                    yield _checked(file.get_batch(number))
                    count += 1
                return
            source.seek(0)
            for batch in pa.ipc.open_stream(source):
                yield _checked(batch)
                count += 1
    except UNREADABLE as error:
        message = f"cut or damaged after {count:,} record batches ({error}); get it again, then run the same command"
        yield Skipped(path.name, str(path), "DamagedTable", message)


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, if its lengths, texts and names are sound: what is mapped is taken as it lies in the file.

    Raises:
        ArrowInvalid, UnicodeDecodeError: if they are not.
    """
    batch.validate(full=True)
    for field in batch.schema:
        _decode_names(field)
    return batch


def _decode_names(field: pa.Field) -> None:
    """Decode the name of a field and of those in it, which pyarrow does only when it is asked for them.

    Raises:
        UnicodeDecodeError: if one is not UTF-8.
    """
    assert isinstance(field.name, str)
    for number in range(field.type.num_fields):
        _decode_names(field.type.field(number))
