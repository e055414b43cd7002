"""Parquet and Arrow tables with an image column, as Hugging Face datasets and img2dataset write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorpusError, UnreachableError
from ..io.batches import Budget
from ..io.locations import is_url, name_or_file, size_of
from ..io.parquet import ParquetReader, open_parquet
from ..reporter import counted
from .arrow import UNREADABLE, record_batches
from .captions import (
    ID_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    SPLIT_COLUMN,
    captions_of,
    pick_text_columns,
    require_column,
)
from .images import ImageItem, TableCell, digests_of_group
from .items import IMAGE_SUFFIXES, CaptionedKeys, Entry, ReadOptions, Skipped, is_utf8, without_suffix
from .splits import split_in_name

# usual names of the column with the images, those of Hugging Face and img2dataset among them
IMAGE_CELLS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "pixels")
_PATH = "image.path"  # no column that is read has this name
_DIGITS = 12  # of the checksum of an image, in a key
DICTIONARY_FILE = "dataset_dict.json"  # beside the folders of the splits


def holds_images(path: Path, options: ReadOptions) -> bool:
    """Return whether a Parquet file has a column of images, by its schema.

    Raises:
        CorpusError: if it cannot be read, or the requested image column is missing.
    """
    try:
        with name_or_file(path) as source:
            return pick_image_column(pq.read_schema(source), options.image_column, path) is not None
    except UNREADABLE as error:
        raise CorpusError(
            f"{path} is not a readable Parquet file ({error}).",
            remedy="The file may be cut short: the end of a Parquet file says where its rows are. Copy it again.",
        ) from error


def read_parquet(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of a Parquet table, and the row groups that cannot be read.

    No image is read, except to compare those whose rows have no key and the same file name.

    Raises:
        CorpusError: if it is not Parquet, or a column is missing.
    """
    try:
        with open_parquet(path) as file:
            table = _image_table(file.schema, options, path)
            rows = _Rows(path, table, options)
            columns = [*table.names, *([f"{table.image}.path"] if table.has_path else [])]
            for group, count in enumerate(file.row_counts):
                first = rows.count
                try:
                    for row, record in enumerate(_records_of_group(file, columns, group)):
                        cell = record.get(table.image) if table.has_path else None
                        yield from rows.add(group, row, record, cell.get("path") if isinstance(cell, dict) else None)
                except UNREADABLE as error:
                    read = rows.count - first
                    after = f" after its first {read:,}" if read else ""
                    damaged = f"row group {group} ({counted(count, 'row')})"
                    message = f"{damaged} cannot be read{after} ({error}); copy the file again"
                    yield Skipped(f"{path.name}#group {group}", str(path), "DamagedTable", message)
                    rows.count = first + count  # the keys of the others are not known
    except UNREADABLE as error:
        raise CorpusError(f"{path} is not a readable Parquet file ({error}).") from error
    yield from rows.entries()


def read_arrow(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of an Arrow stream or file, as `read_parquet` does, and where the file is cut.

    Raises:
        CorpusError: if it is not Arrow, or a column is missing.
    """
    rows: _Rows | None = None
    budget = Budget(size_of(path) or 0)
    try:
        for group, batch in enumerate(record_batches(path)):
            if rows is None:
                table = _image_table(batch.schema, options, path)
                saved = (path.parent.parent / DICTIONARY_FILE).is_file()
                rows = _Rows(path, table, options, path.parent.name if saved else None)
            for row, record in enumerate(_records(batch, table, budget)):
                yield from rows.add(group, row, record, record.get(_PATH))
    except UNREADABLE as error:
        reason = str(getattr(error, "strerror", None) or error)
        if rows is None:
            raise CorpusError(f"{path} is not a readable Arrow file ({reason}).") from error
        yield Skipped(path.name, str(path), "DamagedTable", reason)
    if rows is not None:
        yield from rows.entries()


def _records_of_group(file: ParquetReader, columns: Sequence[str], group: int) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(file.row_counts[group]))
        return
    for batch in file.batches(columns, group=group):
        yield from batch.to_pylist()


def _records(batch: pa.RecordBatch, table: _ImageTable, budget: Budget) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch without the images; the path in an image's cell is `_PATH`."""
    columns = {name: batch.column(name) for name in table.names}
    if table.has_path:
        columns[_PATH] = batch.column(table.image).field("path")  # type: ignore[attr-defined]
    if not columns:
        yield from ({} for _ in range(len(batch)))
        return
    for piece in budget.pieces(pa.RecordBatch.from_pydict(columns)):
        yield from piece.to_pylist()


@dataclass(frozen=True)
class _ImageTable:
    """The columns of a table, by what they contain.

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


class _Rows:
    """The rows of a table as images; rows with one key are one image with several captions.

    A key from the path in an image's cell may be that of several images: most writers leave the folders out.
    """

    def __init__(self, path: Path, table: _ImageTable, options: ReadOptions, split: str | None = None) -> None:
        self._path, self._table, self._options = path, table, options
        self._name = f"{split}/{path.stem}" if split else path.stem
        self._split = split or split_in_name(path.stem)
        self._images = CaptionedKeys()
        self._digests: dict[int, list[bytes]] = {}  # by group
        self._renamed: list[str] = []
        self.count = 0  # rows up to here

    def add(self, group: int, row: int, record: Mapping[str, Any], image_path: str | None) -> Iterator[Skipped]:
        """Add a row; yield why its captions cannot be used, if they cannot."""
        number, self.count = self.count, self.count + 1
        where = f"{self._path}#{number}"
        named = self._key(record)
        key = named or (key_of_name(image_path) if image_path else f"{self._name}:{number}")
        try:
            captions = captions_of(record, self._table.texts, where)
        except CorpusError as error:
            captions = []
            yield Skipped(f"{self._path.name}#{number}", where, "CaptionError", error.message)
        if not is_utf8(key):
            yield Skipped(f"{self._path.name}#{number}", where, "UnicodeError", "the key is not UTF-8")
            return
        options = self._options
        folder = str(options.images_root or self._path.parent)
        permissions = options.follow_symlinks, options.download
        cell = TableCell(str(self._path), self._table.image, group, row, folder, *permissions)
        before = self._images.image(key)
        if before is not None and not named and self._digest(before.source) != self._digest(cell):
            key = f"{key}-{self._digest(cell).hex()[:_DIGITS]}"
            before = self._images.image(key)
            if before is None:
                self._renamed.append(key)
        if before is not None:
            self._images.add_captions(key, captions)
            return
        split = record.get(SPLIT_COLUMN) or self._split
        self._images.add(key, captions, image=ImageItem(key, where, str(split) if split else None, None, cell))

    def entries(self) -> Iterator[Entry]:
        """Yield the images with their captions, and a note if several have one file name."""
        yield from self._images.images()
        if self._renamed:
            count = counted(len(self._renamed), "image has", "images have")
            yield (
                f"{self._path}: {count} the file name of another image. Digits of a checksum are added to their keys, "
                f"for example {self._renamed[0]}. To use other keys, choose a column with --key-column."
            )

    def _key(self, record: Mapping[str, Any]) -> str | None:
        value = record.get(self._table.key) if self._table.key else None
        if value is None or value == "":
            return None
        return key_of_name(str(value)) if self._table.key in IMAGE_COLUMNS else str(value)

    def _digest(self, source: object) -> bytes:
        """Return a digest of the image in a cell; that of one that cannot be read is like no other."""
        assert isinstance(source, TableCell)
        if source.group not in self._digests:
            self._digests[source.group] = list(_readable(digests_of_group(source)))
        digests = self._digests[source.group]
        return digests[source.row] if source.row < len(digests) else sha256(repr(source).encode()).digest()


def _readable(values: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the values before the first that cannot be read."""
    try:
        yield from values
    except UnreachableError:
        raise
    except Exception:  # a damaged or hostile cell may raise anything, as when images are decoded
        return


def key_of_name(name: str) -> str:
    """Return the key of an image by its file name: without the suffix of an image; of absolute paths the last part."""
    posix = PurePosixPath(name)
    short = posix.name if posix.is_absolute() or is_url(name) else posix.as_posix()
    return without_suffix(short) if PurePosixPath(short).suffix.lower() in IMAGE_SUFFIXES else short


def _image_table(schema: pa.Schema, options: ReadOptions, path: Path) -> _ImageTable:
    """Choose the columns of a table.

    Raises:
        CorpusError: if there is no image column, or a requested column is missing; lists the columns of the table.
    """
    image = pick_image_column(schema, options.image_column, path)
    if image is None:
        raise CorpusError(
            f"{path} has no column with images; its columns are: {', '.join(schema.names) or 'none'}.",
            remedy="Choose the column of images, or of their paths or URLs, with --image-column.",
        )
    others = [name for name in schema.names if name != image]
    texts = pick_text_columns(others, options.text_column, path)
    if options.text_column is None:
        texts = tuple(name for name in texts if not _holds_bytes(schema.field(name).type))
    key = require_column(others, options.key_column, "--key-column", path)
    if key is None:
        known = [name for name in (*KEY_COLUMNS, *IMAGE_COLUMNS, *ID_COLUMNS) if name in others]
        kinds = {name: schema.field(name).type for name in known}
        key = next((name for name, kind in kinds.items() if _is_text(kind) or pa.types.is_integer(kind)), None)
    kind = schema.field(image).type
    has_path = pa.types.is_struct(kind) and any(
        kind.field(i).name == "path" and _is_text(kind.field(i).type) for i in range(kind.num_fields)
    )
    names = [*texts, *([key] if key else []), *([SPLIT_COLUMN] if SPLIT_COLUMN in others else [])]
    return _ImageTable(image, has_path, texts, key, tuple(dict.fromkeys(names)))


def pick_image_column(schema: pa.Schema, wanted: str | None, path: Path) -> str | None:
    """Return the column that contains images in the file itself: the one wanted, of type Image, or known by name.

    None if there is none, or if the one wanted contains paths or URLs.

    Raises:
        CorpusError: if the one wanted is missing; names the columns that are.
    """
    require_column(schema.names, wanted, "--image-column", path)
    if wanted is not None:
        return wanted if _holds_bytes(schema.field(wanted).type) else None
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    declared = [name for name in _declared_images(schema) if name in candidates]
    usual = [name for name in IMAGE_CELLS if name in candidates]
    structs = [name for name in candidates if pa.types.is_struct(schema.field(name).type)]
    return next(iter([*declared, *usual, *structs]), None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _is_binary(kind.field(i).type) for i in range(kind.num_fields))
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == "binary_view")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view")


def _declared_images(schema: pa.Schema) -> list[str]:
    """Return the columns that Hugging Face datasets declares as images in the schema's metadata."""
    try:
        value = json.loads((schema.metadata or {})[b"huggingface"])
        features = value["info"]["features"]
        return [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return []
