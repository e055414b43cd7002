"""Images of tables: Parquet and Arrow with images in a column, and lists of paths or URLs.

Rows with one key are one image with several captions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ..errors import CorpusError, UnreachableError
from ..io.locations import is_url
from ..io.parquet import UNREADABLE, open_parquet, record_batches
from ..reporter import counted
from .captions import (
    ID_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    SPLIT_COLUMN,
    CaptionRow,
    captions_of,
    pick_text_columns,
    read_captions,
    require_column,
)
from .images import OutsideError, UrlNotAskedForError, cells_of_group, digest_of, resolve_inside
from .items import Entry, ImageItem, ImageSource, ReadOptions, Skipped, is_utf8, key_of_name, without_suffix
from .splits import split_in_name

# usual names of the column with the images, those of Hugging Face and img2dataset among them
IMAGE_CELLS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "pixels")
DICTIONARY_FILE = "dataset_dict.json"  # beside the folders of the splits
_DIGITS = 12  # of the checksum of an image, in a key
_FOLDERS = 10_000  # whose links are remembered while a list is read


def read_parquet_images(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of a Parquet table, and the row groups that cannot be read.

    No image is read, except to compare those whose rows have no key and the same file name.

    Raises:
        CorpusError: if it is not Parquet, or a column is missing.
    """
    try:
        with open_parquet(path) as file:
            columns = _image_columns(file.schema, options, path)
            rows = _Rows(path, columns, options)
            names = [*columns.names, *([f"{columns.image}.path"] if columns.has_path else [])]
            for group, count in enumerate(file.row_counts):
                first = rows.count
                try:
                    batches = file.batches(names, group=group) if names else [pa.table({"": pa.nulls(count)})]
                    records = (record for batch in batches for record in batch.to_pylist())
                    for row, record in enumerate(records):
                        cell = record.get(columns.image) if columns.has_path else None
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


def read_arrow_images(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of an Arrow stream or file, as `read_parquet_images` does, and where the file is cut.

    Raises:
        CorpusError: if it is not Arrow, or a column is missing.
    """
    rows: _Rows | None = None
    try:
        for group, batch in enumerate(record_batches(path)):
            if rows is None:
                columns = _image_columns(batch.schema, options, path)
                saved = (path.parent.parent / DICTIONARY_FILE).is_file()
                rows = _Rows(path, columns, options, path.parent.name if saved else None)
            arrays = {name: batch.column(name) for name in columns.names}
            if columns.has_path:
                arrays[columns.image] = batch.column(columns.image).field("path")  # type: ignore[attr-defined]
            whole = pa.RecordBatch.from_pydict(arrays or {"": pa.nulls(len(batch))})
            for row, record in enumerate(whole.to_pylist()):
                yield from rows.add(group, row, record, record.get(columns.image))
    except UNREADABLE as error:
        reason = str(getattr(error, "strerror", None) or error)
        if rows is None:
            raise CorpusError(f"{path} is not a readable Arrow file ({reason}).") from error
        yield Skipped(path.name, str(path), "DamagedTable", reason)
    if rows is not None:
        yield from rows.entries()


def read_list(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of a list in its order; paths are relative to ``images_root``, or to the list's folder.

    Raises:
        CorpusError: if the list cannot be read or a column is missing.
    """
    images: dict[str, tuple[ImageItem, list[str], str]] = {}
    real = lru_cache(_FOLDERS)(os.path.realpath)
    for row in read_captions(path, options, images=True):
        name, key, problem = row.file_name, row.key, None
        if name is None:
            problem = "NullImageError", "the row does not name an image"
        elif not is_utf8(f"{key}{name}"):
            problem = "UnicodeError", "the key or path is not UTF-8"
        else:
            key = key or _key_in_list(name, options)
            before = images.get(key)
            if before is None:
                try:
                    images[key] = _listed_image(path, row, name, key, options, real), list(row.captions), name
                except (OSError, ValueError) as error:  # OutsideError and UrlNotAskedForError among them
                    problem = type(error).__name__, str(error)
            elif before[2] == name:
                before[1].extend(row.captions)
            else:
                message = f"{before[2]} has the same key {key}; choose another column of keys with --key-column"
                problem = "DuplicateKey", message
        if problem is not None:
            yield Skipped(f"{path.name}#{row.line}", f"{path}#{row.line}", *problem)
    for image, captions, _ in images.values():
        yield image, captions


def _listed_image(path: Path, row: CaptionRow, name: str, key: str, options: ReadOptions, real: Any) -> ImageItem:
    split = row.split or split_in_name(path.stem)
    if is_url(name):
        if not options.download:
            raise UrlNotAskedForError(name)
        return ImageItem(key, name, split, None, ImageSource(name, 0, 0, download=True))
    folder = options.images_root or path.parent
    try:
        file = resolve_inside(folder, name, anywhere=options.follow_symlinks, real=real)
        status = file.stat() if isinstance(file, Path) else None  # behind a URL, one request each
    except OutsideError:
        raise
    except (OSError, ValueError) as error:
        raise type(error)(f"{folder / name}: {getattr(error, 'strerror', None) or error}") from error
    if status is None:
        return ImageItem(key, str(file), split, None)
    return ImageItem(key, str(file), split, status.st_size, mtime=status.st_mtime_ns)


def _key_in_list(name: str, options: ReadOptions) -> str:
    if is_url(name):
        address, _, query = name.partition("://")[2].partition("#")[0].partition("?")
        return without_suffix(address) + (f"?{query}" if query else "")
    if options.images_root is not None and Path(name).is_absolute() and Path(name).is_relative_to(options.images_root):
        return key_of_name(Path(name).relative_to(options.images_root).as_posix())
    return key_of_name(name)


class _ImageColumns(NamedTuple):
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
    """The rows of a table as images.

    A key from the path in an image's cell may be that of several images: most writers leave the folders out.
    """

    def __init__(self, path: Path, columns: _ImageColumns, options: ReadOptions, split: str | None = None) -> None:
        self._path, self._columns, self._options = path, columns, options
        self._name = f"{split}/{path.stem}" if split else path.stem
        self._split = split or split_in_name(path.stem)
        self._images: dict[str, tuple[ImageItem, list[str]]] = {}
        self._digests: dict[int, list[bytes]] = {}  # by group
        self._renamed: list[str] = []
        self.count = 0  # rows up to here

    def add(self, group: int, row: int, record: Mapping[str, Any], image_path: str | None) -> Iterator[Skipped]:
        """Add a row; yield why its captions cannot be used, if they cannot."""
        columns, options = self._columns, self._options
        number, self.count = self.count, self.count + 1
        name, where = f"{self._path.name}#{number}", f"{self._path}#{number}"
        value = record.get(columns.key) if columns.key else None
        named = None if value in (None, "") else str(value)
        if named and columns.key in IMAGE_COLUMNS:
            named = key_of_name(named)
        key = named or (key_of_name(image_path) if image_path else f"{self._name}:{number}")
        try:
            captions = captions_of(record, columns.texts, where)
        except CorpusError as error:
            captions = []
            yield Skipped(name, where, "CaptionError", error.message)
        if not is_utf8(key):
            yield Skipped(name, where, "UnicodeError", "the key is not UTF-8")
            return
        folder = str(options.images_root or self._path.parent)
        permissions = options.follow_symlinks, options.download
        cell = ImageSource(str(self._path), group, row, columns.image, folder, *permissions)
        before = self._images.get(key)
        if before is not None and not named and self._digest(before[0].source) != self._digest(cell):
            key = f"{key}-{self._digest(cell).hex()[:_DIGITS]}"
            before = self._images.get(key)
            if before is None:
                self._renamed.append(key)
        if before is not None:
            before[1].extend(captions)
            return
        split = record.get(SPLIT_COLUMN) or self._split
        self._images[key] = ImageItem(key, where, str(split) if split else None, None, cell), captions

    def entries(self) -> Iterator[Entry]:
        """Yield the images with their captions, and a note if several have one file name."""
        yield from self._images.values()
        if self._renamed:
            count = counted(len(self._renamed), "image has", "images have")
            yield (
                f"{self._path}: {count} the file name of another image. Digits of a checksum are added to their keys, "
                f"for example {self._renamed[0]}. To use other keys, choose a column with --key-column."
            )

    def _digest(self, cell: ImageSource | None) -> bytes:
        """Return a digest of the image in a cell; that of one that cannot be read is like no other."""
        assert cell is not None
        digests = self._digests.get(cell.start)
        if digests is None:
            digests = self._digests[cell.start] = []
            try:
                digests.extend(map(digest_of, cells_of_group(cell)))
            except UnreachableError:
                raise
            except Exception:  # a damaged or hostile cell may raise anything, as when images are decoded
                pass
        return digests[cell.place] if cell.place < len(digests) else sha256(repr(cell).encode()).digest()


def _image_columns(schema: pa.Schema, options: ReadOptions, path: Path) -> _ImageColumns:
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
        known = (name for name in (*KEY_COLUMNS, *IMAGE_COLUMNS, *ID_COLUMNS) if name in others)
        kinds = ((name, schema.field(name).type) for name in known)
        key = next((name for name, kind in kinds if _is_text(kind) or pa.types.is_integer(kind)), None)
    kind = schema.field(image).type
    has_path = pa.types.is_struct(kind) and any(field.name == "path" and _is_text(field.type) for field in kind)
    names = [*texts, *([key] if key else []), *([SPLIT_COLUMN] if SPLIT_COLUMN in others else [])]
    return _ImageColumns(image, has_path, texts, key, tuple(dict.fromkeys(names)))


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
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        declared = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        declared = []
    structs = [name for name in candidates if pa.types.is_struct(schema.field(name).type)]
    return next((name for name in (*declared, *IMAGE_CELLS, *structs) if name in candidates), None)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view")


def _is_text(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view")
