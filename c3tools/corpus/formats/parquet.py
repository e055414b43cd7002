"""Parquet tables with a text column."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import CorpusError
from ..items import CaptionRow
from .columns import SPLIT_COLUMN, pick_image_column, pick_text_column, row_from_record


def read(path: Path, text_column: str | None) -> Iterator[CaptionRow]:
    """One row per record, a batch in memory at a time.

    Raises:
        CorpusError: if the file is not Parquet or a column is missing.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            chosen = pick_text_column(names, text_column, path)
            image_column = pick_image_column(names)
            wanted = [name for name in (chosen, image_column, SPLIT_COLUMN) if name in names]
            line = 0
            for batch in file.iter_batches(columns=wanted):
                for record in batch.to_pylist():
                    line += 1
                    yield row_from_record(record, line, chosen, image_column, path)
    except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
        raise CorpusError(f"{path} is not a readable Parquet file ({error}).") from error
