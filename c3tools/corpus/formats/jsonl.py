"""JSON lines: `{"image", "captions": [...], "split"}`, the ImageFolder convention, or texts alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ...errors import CorpusError
from ..items import CaptionRow
from .columns import pick_image_column, pick_text_column, row_from_record


def read(path: Path, text_column: str | None) -> Iterator[CaptionRow]:
    """One row per line; the columns are those of the first line.

    Raises:
        CorpusError: for a line that is not a JSON object, or a missing column.
    """
    chosen: str | None = None
    image_column: str | None = None
    with path.open("rb") as file:
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
            if chosen is None:
                chosen = pick_text_column(record, text_column, path)
                image_column = pick_image_column(record)
            yield row_from_record(record, line, chosen, image_column, path)
