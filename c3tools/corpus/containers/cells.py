"""What tables with an image column have in common, whichever format they are in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from ...errors import CorpusError
from ...io.locations import is_url
from ..formats.columns import (
    ID_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    SPLIT_COLUMN,
    captions_of,
    pick_text_columns,
    require_column,
)
from ..images import IMAGE_SUFFIXES, without_suffix
from ..items import Sample, Skipped
from ..options import ReadOptions
from ..places import TableCell
from ..splits import split_in_name

UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError)  # what pyarrow raises on damaged tables
# how tables of images name the column, Hugging Face and img2dataset among them
IMAGE_CELLS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "pixels")


@dataclass(frozen=True)
class ImageTable:
    """Which columns of a table hold what.

    Attributes:
        image: the column with the images: bytes, or a struct of bytes and path.
        has_path: whether it is such a struct.
        texts: the columns with the captions.
        key: the column with the key, or None.
        names: the columns to read for all but the images.
    """

    image: str
    has_path: bool
    texts: tuple[str, ...]
    key: str | None
    names: tuple[str, ...]


def pick_image_cells(schema: pa.Schema, wanted: str | None, path: Path) -> str | None:
    """The column that holds images in the file itself: that asked for, that of type Image, or one known by name.

    None if there is none, or if what was asked for holds paths or URLs.

    Raises:
        CorpusError: if what was asked for is not there; names the columns that are.
    """
    require_column(schema.names, wanted, "--image-column", path)
    if wanted is not None:
        return wanted if _holds_bytes(schema.field(wanted).type) else None
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    declared = [name for name in _declared_images(schema) if name in candidates]
    usual = [name for name in IMAGE_CELLS if name in candidates]
    structs = [name for name in candidates if pa.types.is_struct(schema.field(name).type)]
    return next(iter([*declared, *usual, *structs]), None)


def image_table(schema: pa.Schema, options: ReadOptions, path: Path) -> ImageTable:
    """Choose the columns.

    Raises:
        CorpusError: if there is no image column, or one that was asked for is not there; names the columns that are.
    """
    image = pick_image_cells(schema, options.image_column, path)
    if image is None:
        raise CorpusError(
            f"{path} has no column with images; its columns are: {', '.join(schema.names) or 'none'}.",
            remedy="Name the one with images, or with their paths or URLs, with --image-column.",
        )
    others = [name for name in schema.names if name != image]
    texts = pick_text_columns(others, options.text_column, path)
    key = require_column(others, options.key_column, "--key-column", path)
    if key is None:
        known = [name for name in (*KEY_COLUMNS, *IMAGE_COLUMNS, *ID_COLUMNS) if name in others]
        key = next((name for name in known if _may_be_key(schema.field(name).type)), None)
    kind = schema.field(image).type
    has_path = pa.types.is_struct(kind) and any(
        kind.field(i).name == "path" and _is_text(kind.field(i).type) for i in range(kind.num_fields)
    )
    names = [*texts, *([key] if key else []), *([SPLIT_COLUMN] if SPLIT_COLUMN in others else [])]
    return ImageTable(image, has_path, texts, key, tuple(dict.fromkeys(names)))


class RowReader:
    """Makes samples of rows; rows with one key are one image with several captions."""

    def __init__(self, path: Path, table: ImageTable, options: ReadOptions, split: str | None = None) -> None:
        self._path, self._table, self._options = path, table, options
        self._name = f"{split}/{path.stem}" if split else path.stem
        self._split = split or split_in_name(path.stem)
        self._samples: dict[str, Sample] = {}
        self._row = 0

    def add(self, group: int, row: int, record: Mapping[str, Any], image_path: str | None) -> Skipped | None:
        """Take in a row; why its captions cannot be used, where they cannot."""
        number, self._row = self._row, self._row + 1
        where = f"{self._path}#{number}"
        key = self._key(record, image_path, number)
        problem = None
        try:
            captions = captions_of(record, self._table.texts, where)
        except CorpusError as error:
            captions = []
            problem = Skipped(f"{self._path.name}#{number}", where, "CaptionError", error.message)
        if key in self._samples:
            self._samples[key].captions.extend(captions)
            return problem
        folder = self._options.images_root or self._path.parent
        place = TableCell(
            str(self._path), self._table.image, group, row, str(folder), self._options.follow_symlinks,
            self._options.download,
        )  # fmt: skip
        split = record.get(SPLIT_COLUMN) or self._split
        self._samples[key] = Sample(key, where, None, place, captions, str(split) if split else None)
        return problem

    def skip(self, count: int) -> None:
        """Leave out rows; those that follow keep their numbers."""
        self._row += count

    def samples(self) -> Iterator[Sample]:
        """What has come in, in order."""
        yield from self._samples.values()

    def _key(self, record: Mapping[str, Any], image_path: str | None, number: int) -> str:
        value = record.get(self._table.key) if self._table.key else None
        if value is not None and value != "":
            return name_as_key(str(value)) if self._table.key in IMAGE_COLUMNS else str(value)
        if image_path:
            return name_as_key(image_path)
        return f"{self._name}:{number}"


def name_as_key(name: str) -> str:
    """The key of an image by its file name: without the suffix of an image; of absolute paths the last part."""
    posix = PurePosixPath(name)
    short = posix.name if posix.is_absolute() or is_url(name) else posix.as_posix()
    return without_suffix(short) if PurePosixPath(short).suffix.lower() in IMAGE_SUFFIXES else short


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _is_binary(kind.field(i).type) for i in range(kind.num_fields))
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == "binary_view")


def _may_be_key(kind: pa.DataType) -> bool:
    return bool(_is_text(kind) or pa.types.is_integer(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view")


def _declared_images(schema: pa.Schema) -> list[str]:
    """Columns that Hugging Face datasets declares as images in the schema's metadata."""
    try:
        value = json.loads((schema.metadata or {})[b"huggingface"])
        features = value["info"]["features"]
        return [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return []
