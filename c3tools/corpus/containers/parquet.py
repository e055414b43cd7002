"""Parquet tables with an image column, as Hugging Face and img2dataset write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from ...errors import CorpusError
from ...io.locations import name_or_file
from ..items import Sample, Skipped
from ..options import ReadOptions
from .cells import UNREADABLE, RowReader, image_table, pick_image_cells


def holds_images(path: Path, options: ReadOptions) -> bool:
    """Whether the file is a table with images in it, by its schema.

    Raises:
        CorpusError: if it cannot be read, or the image column asked for is not there.
    """
    try:
        with name_or_file(path) as source:
            return pick_image_cells(pq.read_schema(source), options.image_column, path) is not None
    except UNREADABLE as error:
        raise CorpusError(
            f"{path} is not a readable Parquet file ({error}).",
            remedy="A Parquet file that is cut has lost its end, and with it the place of every row: get it again.",
        ) from error


def read(path: Path, options: ReadOptions) -> Iterator[Sample | Skipped]:
    """The rows of a table, without their images, and the row groups that cannot be read.

    Raises:
        CorpusError: if it is not Parquet, or a column is missing.
    """
    try:
        with name_or_file(path) as source, pq.ParquetFile(source) as file:
            table = image_table(file.schema_arrow, options, path)
            rows = RowReader(path, table, options)
            columns = [*table.names, *([f"{table.image}.path"] if table.has_path else [])]
            for group in range(file.num_row_groups):
                yield from _read_group(file, group, columns, table.image if table.has_path else None, rows, path)
    except UNREADABLE as error:
        raise CorpusError(f"{path} is not a readable Parquet file ({error}).") from error
    yield from rows.samples()


def _read_group(
    file: pq.ParquetFile, group: int, columns: list[str], image: str | None, rows: RowReader, path: Path
) -> Iterator[Skipped]:
    count = file.metadata.row_group(group).num_rows
    try:
        records = file.read_row_group(group, columns=columns).to_pylist() if columns else [{}] * count
    except UNREADABLE as error:
        where = f"row group {group} ({count:,} rows) cannot be read ({error}); get the file again"
        yield Skipped(path.name, f"{path}#group {group}", "DamagedTable", where)
        rows.skip(count)  # their keys are not known
        return
    for row, record in enumerate(records):
        cell = record.get(image) if image else None
        problem = rows.add(group, row, record, cell.get("path") if isinstance(cell, dict) else None)
        if problem is not None:
            yield problem
