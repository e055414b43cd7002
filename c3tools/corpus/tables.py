"""Images of tables: Parquet and Arrow with images in a column, and lists of paths or URLs.

Rows with one key are one image with several captions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import CorpusError, UnreachableError
from ..io.locations import is_url
from ..io.parquet import UNREADABLE, open_parquet, record_batches
from ..reporter import counted
from .captions import (
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    SPLIT_COLUMN,
    CaptionRow,
    captions_of,
    pick_text_columns,
    read_captions,
    require_column,
)
from .images import cells_of_group, not_asked_for, resolve_inside
from .items import Entry, ImageItem, ImageSource, ReadOptions, Skipped, is_utf8, key_of_name, without_suffix
from .splits import split_in_name

# usual names of the column with the images, those of Hugging Face and img2dataset among them
_IMAGE_CELLS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "pixels")
_ID_COLUMNS = ("image_id", "img_id", "id")
_DICTIONARY_FILE = "dataset_dict.json"  # beside the folders of the splits
_DIGITS = 12  # of the checksum of an image, in a key
_FOLDERS = 10_000  # whose links are remembered while a list is read


def read_table(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of a Parquet or Arrow table, and the parts of it that cannot be read.

    No image is read, except to compare those whose rows have no key and the same file name.

    Raises:
        CorpusError: if it is no such table, or a column is missing.
    """
    rows: _Rows | None = None
    try:
        if path.suffix.lower() == ".arrow":
            for group, batch in enumerate(record_batches(path)):
                rows = rows or _Rows(path, batch.schema, options)
                yield from rows.add(group, batch)
        else:
            with open_parquet(path) as file:
                rows = _Rows(path, file.schema, options)
                for group, count in enumerate(file.row_counts):
                    first = rows.count
                    try:
                        for batch in file.batches(rows.columns, group=group):
                            yield from rows.add(group, batch)
                    except UNREADABLE as error:
                        damaged = f"row group {group} ({counted(count, 'row')}), from row {rows.count - first} on"
                        message = f"{damaged} cannot be read ({error}); copy the file again"
                        yield Skipped(f"{path.name}#group {group}", str(path), "DamagedTable", message)
                        rows.count = first + count  # the keys of the others are not known
    except UNREADABLE as error:
        reason = str(getattr(error, "strerror", None) or error)
        if rows is None:
            raise CorpusError(f"{path} is not a readable {path.suffix[1:].capitalize()} file ({reason}).") from error
        yield Skipped(path.name, str(path), "DamagedTable", reason)
    if rows is not None:
        yield from rows.images.values()
        if rows.renamed:
            several = counted(len(rows.renamed), "image has", "images have")
            yield (
                f"{path}: {several} the file name of another image. Digits of a checksum are added to their keys, "
                f"for example {rows.renamed[0]}. To use other keys, choose a column with --key-column."
            )


class _Rows:
    """The rows of a table as images.

    A key from the path in an image's cell may be that of several images: most writers leave the folders out.

    Attributes:
        columns: to read, for all but the images.
        images: by key, with their captions.
        renamed: keys to which digits of a checksum were added.
        count: rows up to here.

    Raises:
        CorpusError: if there is no image column, or a requested column is missing; lists the columns of the table.
    """

    def __init__(self, path: Path, schema: pa.Schema, options: ReadOptions) -> None:
        image = image_column(schema, options.image_column, path)
        if image is None:
            raise CorpusError(
                f"{path} has no column with images; its columns are: {', '.join(schema.names) or 'none'}.",
                remedy="Choose the column of images, or of their paths or URLs, with --image-column.",
            )
        kinds = {field.name: field.type for field in schema if field.name != image and not _holds_bytes(field.type)}
        self._texts = pick_text_columns(list(kinds), options.text_column, path)
        known = (name for name in (*KEY_COLUMNS, *IMAGE_COLUMNS, *_ID_COLUMNS) if name in kinds)
        usable = (name for name in known if _is_text(kinds[name]) or pa.types.is_integer(kinds[name]))
        self._key = require_column(list(kinds), options.key_column, "--key-column", path) or next(usable, "")
        self._names = [name for name in kinds if name in {*self._texts, self._key, SPLIT_COLUMN}]
        kind = schema.field(image).type
        has_path = pa.types.is_struct(kind) and any(f.name == "path" and _is_text(f.type) for f in kind)
        self._path, self._image = path, image if has_path else None
        self.columns = [*self._names, *([f"{image}.path"] if has_path else [])]
        split = path.parent.name if (path.parent.parent / _DICTIONARY_FILE).is_file() else None
        self._stem = f"{split}/{path.stem}" if split else path.stem
        self._split = split or split_in_name(path.stem)
        place = str(options.images_root or path.parent), options.follow_symlinks, options.download
        self._cell = ImageSource(str(path), 0, 0, image, *place)
        self._digests = lru_cache(2)(_digests)
        self._group = self._first = -1  # number of the group, and of its first row
        self.images: dict[str, tuple[ImageItem, list[str]]] = {}
        self.renamed: list[str] = []
        self.count = 0

    def add(self, group: int, batch: pa.RecordBatch) -> Iterator[Skipped]:
        """Add rows of a group; yield why captions or keys of them cannot be used."""
        if group != self._group:
            self._group, self._first = group, self.count
        cells: Any = batch.column(self._image) if self._image else None
        paths = [None] * len(batch) if cells is None else cells.field("path").to_pylist()
        for record, image_path in zip(batch.select(self._names).to_pylist(), paths, strict=True):
            number, self.count = self.count, self.count + 1
            name, where = f"{self._path.name}#{number}", f"{self._path}#{number}"
            value = record.get(self._key)
            named = "" if value is None else str(value)
            if named and self._key in IMAGE_COLUMNS:
                named = key_of_name(named)
            key = named or (key_of_name(image_path) if image_path else f"{self._stem}:{number}")
            captions: list[str] = []
            try:
                captions = captions_of(record, self._texts, where)
            except CorpusError as error:
                yield Skipped(name, where, "CaptionError", error.message)
            if not is_utf8(key):
                yield Skipped(name, where, "UnicodeError", "the key is not UTF-8")
                continue
            cell = self._cell._replace(start=group, place=number - self._first)
            if not named and key in self.images and self._digest(self.images[key][0].source) != self._digest(cell):
                key = f"{key}-{self._digest(cell)[:_DIGITS]}"
                if key not in self.images:
                    self.renamed.append(key)
            split = record.get(SPLIT_COLUMN) or self._split
            image = ImageItem(key, where, str(split) if split else None, None, cell)
            self.images.setdefault(key, (image, []))[1].extend(captions)

    def _digest(self, cell: ImageSource | None) -> str:
        """Return the digest of the image in a cell; that of one that cannot be read is like no other."""
        assert cell is not None
        digests = self._digests(cell._replace(place=0))
        return digests[cell.place] if cell.place < len(digests) else sha256(repr(cell).encode()).hexdigest()


def _digests(group: ImageSource) -> list[str]:
    """Return the digests of the images of a row group, up to one that cannot be read."""
    digests = []
    try:
        for value in cells_of_group(group):
            digests.append(sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest())
    except UnreachableError:
        raise
    except Exception:  # a damaged or hostile cell may raise anything, as when images are decoded
        pass
    return digests


def image_column(schema: pa.Schema, wanted: str | None, path: Path) -> str | None:
    """Return the column that contains images in the file itself: the one wanted, known by name, or of bytes and path.

    None if there is none, or if the one wanted contains paths or URLs.

    Raises:
        CorpusError: if the one wanted is missing; names the columns that are.
    """
    if require_column(schema.names, wanted, "--image-column", path) is not None:
        return wanted if _holds_bytes(schema.field(str(wanted)).type) else None
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    structs = [name for name in candidates if pa.types.is_struct(schema.field(name).type)]
    return next((name for name in (*_IMAGE_CELLS, *structs) if name in candidates), None)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return str(kind) in ("binary", "large_binary", "binary_view")


def _is_text(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def read_list(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of a list in its order; paths are relative to ``images_root``, or to the list's folder.

    Raises:
        CorpusError: if the list cannot be read or a column is missing.
    """
    images: dict[str, tuple[ImageItem, list[str]]] = {}
    names: dict[str, str] = {}  # by key
    real = lru_cache(_FOLDERS)(os.path.realpath)
    for row in read_captions(path, options, images=True):
        name, problem = row.file_name, None
        if name is None:
            problem = "NullImage", "the row does not name an image"
        elif not is_utf8(f"{row.key}{name}"):
            problem = "UnicodeError", "the key or path is not UTF-8"
        else:
            key = row.key or _key_in_list(name, options)
            if names.get(key, name) != name:
                message = f"{names[key]} has the same key {key}; choose another column of keys with --key-column"
                problem = "DuplicateKey", message
            else:
                try:
                    if key not in images:
                        images[key] = _listed_image(path, row, name, key, options, real), []
                        names[key] = name
                    images[key][1].extend(row.captions)
                except (OSError, ValueError) as error:
                    problem = type(error).__name__, f"{name[:200]}: {getattr(error, 'strerror', None) or error}"
        if problem is not None:
            yield Skipped(f"{path.name}#{row.line}", f"{path}#{row.line}", *problem)
    yield from images.values()


def _listed_image(path: Path, row: CaptionRow, name: str, key: str, options: ReadOptions, real: Any) -> ImageItem:
    split = row.split or split_in_name(path.stem)
    if is_url(name):
        if not options.download:
            raise not_asked_for(name)
        return ImageItem(key, name, split, None, ImageSource(name, 0, 0, download=True))
    file = resolve_inside(options.images_root or path.parent, name, anywhere=options.follow_symlinks, real=real)
    if not isinstance(file, Path):  # behind a URL each would cost a request
        return ImageItem(key, str(file), split, None)
    status = file.stat()
    return ImageItem(key, str(file), split, status.st_size, mtime=status.st_mtime_ns)


def _key_in_list(name: str, options: ReadOptions) -> str:
    if is_url(name):
        address, _, query = name.partition("://")[2].partition("#")[0].partition("?")
        return without_suffix(address) + (f"?{query}" if query else "")
    if options.images_root is not None and Path(name).is_absolute() and Path(name).is_relative_to(options.images_root):
        name = Path(name).relative_to(options.images_root).as_posix()
    return key_of_name(name)
