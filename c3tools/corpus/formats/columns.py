"""Which column holds the file name, the text and the split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import CorpusError
from ..items import CaptionRow

IMAGE_COLUMNS = ("file_name", "image", "filename", "image_path", "filepath")
TEXT_COLUMNS = ("captions", "text", "caption", "sentences", "sentence", "description", "title")
SPLIT_COLUMN = "split"


def pick_text_column(names: Iterable[str], wanted: str | None, path: Path) -> str:
    """The column that holds the text.

    Raises:
        CorpusError: if ``wanted`` is not there, or none of the usual names is.
    """
    present = list(names)
    if wanted is not None:
        if wanted in present:
            return wanted
        raise CorpusError(
            f"{path} has no column {wanted!r}; its columns are: {', '.join(present) or 'none'}.",
            remedy="Name one of them with --text-column.",
        )
    for name in TEXT_COLUMNS:
        if name in present:
            return name
    raise CorpusError(
        f"{path} has no text column that is known by name ({', '.join(TEXT_COLUMNS)}); "
        f"its columns are: {', '.join(present) or 'none'}.",
        remedy="Name the one to use with --text-column.",
    )


def pick_image_column(names: Iterable[str]) -> str | None:
    """The column that names the image, or None for a file of texts alone."""
    present = set(names)
    return next((name for name in IMAGE_COLUMNS if name in present), None)


def row_from_record(
    record: Mapping[str, Any], line: int, text_column: str, image_column: str | None, path: Path
) -> CaptionRow:
    """A caption row from one record; the text may be a string or a list of strings, null counts as no caption.

    Raises:
        CorpusError: if the text or the file name is of another type.
    """
    value = record.get(text_column)
    captions = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise CorpusError(
            f"{path}, line {line}: the column {text_column!r} holds {type(value).__name__}, not text or texts.",
            remedy="Name the column with the text by --text-column.",
        )
    name = record.get(image_column) if image_column else None
    if name is not None and not isinstance(name, str):
        raise CorpusError(f"{path}, line {line}: the column {image_column!r} holds {name!r}, not a file name.")
    split = record.get(SPLIT_COLUMN)
    return CaptionRow(name or None, captions, str(split) if split else None, line)
