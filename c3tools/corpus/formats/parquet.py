"""Parquet tables with a text column."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import CorpusError
from ...io.locations import name_or_file
from ..items import CaptionRow
from .columns import Wanted, pick_columns, row_from_record


def read(path: Path, wanted: Wanted) -> Iterator[CaptionRow]:
    """One row per record, a batch in memory at a time.

    Raises:
        CorpusError: if the file is not Parquet or a column is missing.
    """
    try:
        with name_or_file(path) as source, pq.ParquetFile(source) as file:
            names = file.schema_arrow.names
            columns = pick_columns(names, wanted, path)
            line = 0
            for batch in file.iter_batches(columns=[name for name in columns.names() if name in names]):
                for record in batch.to_pylist():
                    line += 1
                    yield row_from_record(record, line, columns, path)
    except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
        raise CorpusError(f"{path} is not a readable Parquet file ({error}).") from error
