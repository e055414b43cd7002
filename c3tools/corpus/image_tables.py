"""Images in cells of Parquet and Arrow tables, such as those of Hugging Face and img2dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ..errors import CorpusError, UnreachableError, reason_of
from ..io.parquet import UNREADABLE
from ..reporter import counted
from .caption_tables import (
    SPLIT_COLUMN,
    captions_of,
    pick_text_columns,
    require_column,
)
from .image_reader import cells_of_group, open_image_table
from .items import Corpus, ImageItem, ImageRow, ImageSource, ReadOptions, as_key, key_of_name
from .kept_columns import KeptColumns
from .tables import IMAGE_KEY, ROLES, pick

_DICTIONARY_FILE = "dataset_dict.json"  # beside the folders of the splits
_DIGITS = 12  # of the checksum of an image, in a key


class _Row(NamedTuple):
    """A row of a table.

    Attributes:
        number: of the row, from 0.
        cell: of its image.
        key: that of the key column; empty without one.
        image_path: the path in the cell; None without one.
        split: as the table names it; None if it names none.
        captions: of the image.
        columns: see `ImageItem`.
    """

    number: int
    cell: ImageSource
    key: str
    image_path: str | None
    split: str | None
    captions: list[str]
    columns: dict[str, Any] | None


@dataclass(frozen=True)
class _Columns:
    """The columns of a table.

    Attributes:
        image: with the images, as bytes or with paths.
        has_paths: whether its cells are structs with a path.
        key: with the keys; empty for none.
        texts: with captions.
        kept: those to keep.
    """

    image: str
    has_paths: bool
    key: str
    texts: tuple[str, ...]
    kept: KeptColumns


def has_images(path: Path, options: ReadOptions) -> bool:
    """Return whether a Parquet or Arrow table has a column with images, or cannot be read: its
    reader says why.
    """
    try:
        with open_image_table(path) as (schema, _):
            return _image_column(schema, options.image_column, path) is not None
    except (*UNREADABLE, CorpusError):
        return True


def split_of_data_set(path: Path) -> str | None:
    """Return the split that a table of a Hugging Face DatasetDict is in the folder of."""
    return path.parent.name if (path.parent.parent / _DICTIONARY_FILE).is_file() else None


def read_image_table(path: Path, options: ReadOptions, corpus: Corpus) -> Iterator[ImageRow]:
    """Yield the rows of a Parquet or Arrow table with their images.

    A key from the path in an image's cell may be that of several images, since most writers leave
    the folders out. These are compared; no other image is read.

    Raises:
        CorpusError: if it is no such table, or a column is missing.
    """
    split_folder = split_of_data_set(path)
    stem = as_key(f"{split_folder}/{path.stem}" if split_folder else path.stem)
    digests = _CellDigests()
    cells: dict[str, ImageSource] = {}  # of the first image with a key
    renamed: list[str] = []
    for row in image_rows(path, options, corpus):
        key = row.key
        if not key:
            key = key_of_name(row.image_path) if row.image_path else f"{stem}:{row.number}"
            if key in cells:
                digest = digests.of(row.cell)
                if digests.of(cells[key]) != digest:
                    key = f"{key}-{digest[:_DIGITS]}"
                    if key not in cells:
                        renamed.append(key)
        cells.setdefault(key, row.cell)
        place = f"{path}#{row.number}"
        image = ImageItem(key, place, row.split, None, row.cell, columns=row.columns)
        yield ImageRow(image, row.captions, place)
    if renamed:
        corpus.notes.append(
            f"{path}: {counted(len(renamed), 'image has', 'images have')} the file name of another "
            f"image. Checksum digits are added to their keys, for example {renamed[0]}. To use "
            f"other keys, choose a column with --key-column."
        )


class _CellDigests:
    """The digests of images in cells; the last two row groups stay in memory."""

    def __init__(self) -> None:
        self._of_group = lru_cache(2)(_digests)

    def of(self, cell: ImageSource) -> str:
        """Return the digest of the image in a cell; that of one that cannot be read is like no
        other.
        """
        digests = self._of_group(cell._replace(place=0))
        if cell.place < len(digests):
            return digests[cell.place]
        return sha256(repr(cell).encode()).hexdigest()


def _digests(group: ImageSource) -> list[str]:
    """Return the digests of the images of a row group, up to one that cannot be read."""
    digests = []
    try:
        for value in cells_of_group(group):
            content = value if isinstance(value, bytes) else repr(value).encode()
            digests.append(sha256(content).hexdigest())
    except UnreachableError:
        raise
    except Exception:  # a damaged or hostile cell may raise anything, as when images are decoded
        pass
    return digests


def image_rows(path: Path, options: ReadOptions, corpus: Corpus) -> Iterator[_Row]:
    """Yield the rows of a table; damaged groups of rows are skipped.

    Raises:
        CorpusError: if it is no such table, or a column is missing.
    """
    is_open = False
    first = 0  # the number of the first row of the group
    try:
        with open_image_table(path) as (schema, read_groups):
            columns = _columns(path, schema, options)
            is_open = True
            used = {columns.key, SPLIT_COLUMN, *columns.texts, *columns.kept.names}
            names = [name for name in schema.names if name in used]
            path_field = [f"{columns.image}.path"] if columns.has_paths else []
            for group, (count, batches) in enumerate(read_groups([*names, *path_field])):
                place = 0  # of the row in its group
                try:
                    for batch in batches:
                        image_paths: Sequence[str | None] = [None] * len(batch)
                        if columns.has_paths:
                            images: Any = batch.column(columns.image)
                            image_paths = images.field("path").to_pylist()
                        records = batch.select(names).to_pylist()
                        for record, image_path in zip(records, image_paths, strict=True):
                            cell = ImageSource(
                                file=str(path),
                                start=group,
                                place=place,
                                column=columns.image,
                                folder=str(options.images_root or path.parent),
                                anywhere=options.follow_symlinks,
                                download=options.download,
                            )
                            number = first + place
                            yield _row(number, record, cell, image_path, columns, corpus)
                            place += 1
                except UNREADABLE as error:
                    rows = f"row group {group} ({counted(count, 'row')}), from row {place} on"
                    message = f"{rows} cannot be read ({error}); copy the file again"
                    corpus.skip(f"{path.name}#group {group}", str(path), "DamagedTable", message)
                first += count
    except UNREADABLE as error:
        if not is_open:
            raise CorpusError(
                f"{path} is not a readable {path.suffix[1:].capitalize()} file "
                f"({reason_of(error)}).",
                remedy="It may be truncated. Copy it again.",
            ) from error
        corpus.skip(path.name, str(path), "DamagedTable", reason_of(error))


def _row(
    number: int,
    record: Mapping[str, Any],
    cell: ImageSource,
    image_path: str | None,
    columns: _Columns,
    corpus: Corpus,
) -> _Row:
    """Return a row from the values of its columns; captions that are no texts are skipped."""
    key = as_key(str(record[columns.key])) if record.get(columns.key) is not None else ""
    if key and columns.key.lower() in ROLES["image"]:
        key = key_of_name(key)
    try:
        captions = captions_of(record, columns.texts, f"{cell.file}#{number}")
    except CorpusError as error:
        captions = []
        corpus.skip(
            f"{Path(cell.file).name}#{number}",
            f"{cell.file}#{number}",
            "CaptionError",
            error.message,
        )
    split = record.get(SPLIT_COLUMN)
    kept_values = columns.kept.values_of(record)
    split_name = str(split) if split else None
    return _Row(number, cell, key, image_path, split_name, captions, kept_values)


def _columns(path: Path, schema: pa.Schema, options: ReadOptions) -> _Columns:
    """Choose the columns of a table.

    Raises:
        CorpusError: if there is no image column, or a requested column is missing; lists the
            columns of the table.
    """
    image = _image_column(schema, options.image_column, path)
    if image is None:
        raise CorpusError(
            f"{path} has no column with images; its columns are: "
            f"{', '.join(schema.names) or 'none'}.",
            remedy="Choose the column with the images, their paths or their URLs with "
            "--image-column.",
        )
    types = {
        field.name: field.type
        for field in schema
        if field.name != image and not _holds_bytes(field.type)
    }
    texts = pick_text_columns(list(types), options.text_column, path)
    key = require_column(list(types), options.key_column, "--key-column", path)
    if key is None:
        usable = [
            name for name, kind in types.items() if _is_text(kind) or pa.types.is_integer(kind)
        ]
        key = pick(usable, *IMAGE_KEY)
    image_type = schema.field(image).type
    has_paths = pa.types.is_struct(image_type) and any(
        field.name == "path" and _is_text(field.type) for field in image_type
    )
    options.note_use("image_column", "text_column", "key_column")
    if has_paths:
        options.note_use("images_root", "download")
    return _Columns(image, has_paths, key or "", texts, options.kept_columns)


def _image_column(schema: pa.Schema, wanted: str | None, path: Path) -> str | None:
    """Return the column that contains images in the file itself: the one wanted, known by name, or
    of bytes and path.

    None if there is none, or if the one wanted contains paths or URLs.

    Raises:
        CorpusError: if the one wanted is missing; names the columns that are.
    """
    column = require_column(schema.names, wanted, "--image-column", path)
    if column is not None:
        return column if _holds_bytes(schema.field(column).type) else None
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    structs = [name for name in candidates if pa.types.is_struct(schema.field(name).type)]
    return pick(candidates, "image_bytes") or next(iter(structs), None)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return str(kind) in ("binary", "large_binary", "binary_view")


def _is_text(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view")
