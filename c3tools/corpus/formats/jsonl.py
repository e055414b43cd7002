"""JSON lines: `{"image", "captions": [...], "split"}`, the ImageFolder convention, or texts alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ...errors import CorpusError
from ...io.locations import open_binary
from ..items import CaptionRow
from .columns import Columns, Wanted, pick_columns, row_from_record


def read(path: Path, wanted: Wanted) -> Iterator[CaptionRow]:
    """One row per line; the columns are those of the first line.

    Raises:
        CorpusError: for a line that is not a JSON object, or a missing column.
    """
    columns: Columns | None = None
    with open_binary(path) as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw)
            except (ValueError, RecursionError) as error:
                raise CorpusError(
                    f"{path}, line {line} is not JSON ({error}).",
                    remedy="Each line has to be one JSON object.",
                ) from error
            if not isinstance(record, dict):
                raise CorpusError(f"{path}, line {line} is not a JSON object.")
            if columns is None:
                columns = pick_columns(record, wanted, path)
            yield row_from_record(record, line, columns, path)
