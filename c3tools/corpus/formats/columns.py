"""Which columns hold the file name, the texts, the key and the split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CorpusError
from ..items import CaptionRow

IMAGE_COLUMNS = ("file_name", "image", "filename", "image_path", "filepath")
TEXT_COLUMNS = ("captions", "text", "caption", "sentences", "sentence", "description", "title")
KEY_COLUMNS = ("key", "__key__")
ID_COLUMNS = ("image_id", "img_id", "id")
SPLIT_COLUMN = "split"
_NUMBERED = re.compile(r"(captions?|texts?|sentences?)_?\d+")


@dataclass(frozen=True)
class Wanted:
    """Columns that were asked for by name; None for those with the usual names.

    Attributes:
        text: holds the text.
        image: holds the image, or its path or URL: the table is a list of images, and may be without texts.
        key: holds the key.
    """

    text: str | None = None
    image: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of one file; ``texts`` may be several (caption_0, caption_1, …)."""

    texts: tuple[str, ...]
    image: str | None
    key: str | None

    def names(self) -> list[str]:
        """All of them, and the split's."""
        return [name for name in (*self.texts, self.image, self.key, SPLIT_COLUMN) if name is not None]


def pick_columns(names: Iterable[str], wanted: Wanted, path: Path) -> Columns:
    """The columns of a captions file, or of a list of images where an image column is wanted.

    Raises:
        CorpusError: if one that is wanted is not there, or the file has neither texts nor images.
    """
    present = list(names)
    image = require_column(present, wanted.image, "--image-column", path)
    texts = pick_text_columns(present, wanted.text, path)
    if not texts and image is None:
        raise CorpusError(
            f"{path} has no text column that is known by name ({', '.join(TEXT_COLUMNS)}); "
            f"its columns are: {', '.join(present) or 'none'}.",
            remedy="Name the one to use with --text-column; one with images or their paths with --image-column.",
        )
    key = require_column(present, wanted.key, "--key-column", path)
    return Columns(
        texts,
        image or pick_image_column(present),
        key or next((name for name in KEY_COLUMNS if name in present), None),
    )


def require_column(present: list[str], wanted: str | None, option: str, path: Path) -> str | None:
    """``wanted``, if it is there or None.

    Raises:
        CorpusError: if it is not there; names the columns that are.
    """
    if wanted is None or wanted in present:
        return wanted
    raise CorpusError(
        f"{path} has no column {wanted!r}; its columns are: {', '.join(present) or 'none'}.",
        remedy=f"Name one of them with {option}.",
    )


def pick_text_columns(present: list[str], wanted: str | None, path: Path) -> tuple[str, ...]:
    """The columns that hold the texts: that asked for, else the first of the usual names, else caption_0, caption_1, ….

    Raises:
        CorpusError: if ``wanted`` is not there.
    """
    if wanted is not None:
        require_column(present, wanted, "--text-column", path)
        return (wanted,)
    usual = next((name for name in TEXT_COLUMNS if name in present), None)
    return (usual,) if usual else tuple(name for name in present if _NUMBERED.fullmatch(name))


def pick_image_column(names: Iterable[str]) -> str | None:
    """The column that names the image, or None for a file of texts alone."""
    present = set(names)
    return next((name for name in IMAGE_COLUMNS if name in present), None)


def row_from_record(record: Mapping[str, Any], line: int, columns: Columns, path: Path) -> CaptionRow:
    """A caption row from one record.

    Raises:
        CorpusError: if the text or the file name is of another type.
    """
    captions = captions_of(record, columns.texts, f"{path}, line {line}")
    name = record.get(columns.image) if columns.image else None
    if name is not None and not isinstance(name, str):
        raise CorpusError(f"{path}, line {line}: the column {columns.image!r} holds {name!r}, not a file name.")
    split, key = record.get(SPLIT_COLUMN), record.get(columns.key) if columns.key else None
    return CaptionRow(name or None, captions, str(split) if split else None, line, None if key is None else str(key))


def captions_of(record: Mapping[str, Any], texts: Iterable[str], where: str) -> list[str]:
    """The captions of a record: a text may be a string or a list of strings, null counts as no caption.

    Raises:
        CorpusError: if it is of another type.
    """
    captions: list[str] = []
    for column in texts:
        value = record.get(column)
        more = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(more, list) or not all(isinstance(caption, str) for caption in more):
            raise CorpusError(
                f"{where}: the column {column!r} holds {type(value).__name__}, not text or texts.",
                remedy="Name the column with the text by --text-column.",
            )
        captions += more
    return captions
