"""A corpus: its images, videos and texts as Arrow tables, skipped inputs, and the options for
reading it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from posixpath import splitext
from typing import Any, NamedTuple, TypeVar
from unicodedata import normalize

import pyarrow as pa

from ..io.locations import is_url, location
from .kept_columns import KeptColumns
from .splits import choose_split, splits_of_folders

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .png .webp .bmp .gif .tif .tiff .avif .jp2 .j2k .heic .heif".split()
)
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
# the media types of sounds by their suffix
AUDIO_TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
}
AUDIO_SUFFIXES = frozenset(AUDIO_TYPES)
# items that are kept as objects before they become Arrow columns: small columns waste memory
_BLOCK = 1 << 16
# of network drives and macOS: thumbnails, what was deleted, attributes of files
_NOT_ENTERED = frozenset({"@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "__MACOSX"})


def is_hidden(name: str) -> bool:
    """Return whether a file of this name, or what is in a folder of this name, is left out."""
    return name in _NOT_ENTERED or (name.startswith(".") and name not in (".", ".."))


def is_sound(path: str | Path) -> bool:
    """Return whether a file has the name of a sound."""
    return Path(path).suffix.lower() in AUDIO_SUFFIXES


class ImageSource(NamedTuple):
    """The part of a file that contains an image: a member of a tar, or a cell of a table.

    Attributes:
        file: path or URL of the tar or table.
        start: where the member begins, in bytes; of a cell, the number of its row group or record
            batch.
        place: the length of the member, in bytes; of a cell, the number of its row within the
            group. For a whole file at a URL both are 0.
        column: of the cell; None for a tar.
        folder: paths in the cell are relative to it; None for a tar.
        anywhere: paths in the cell may lead out of the folder.
        download: URLs in the cell may be downloaded.
    """

    file: str
    start: int = 0
    place: int = 0
    column: str | None = None
    folder: str | None = None
    anywhere: bool = False
    download: bool = False


class ImageItem(NamedTuple):
    """An image of the corpus, not read yet.

    Attributes:
        key: unique in the corpus; for a file, the path relative to the corpus without its suffix.
        path: the location to show to people: a file, ``x.tar#member``, ``x.parquet#row``, or a URL.
        split: as the corpus names it, or None.
        size: bytes, to notice an image that changed; None if they are not known before it is read.
        source: the tar or table that contains it, or the URL to download; None for the whole file
            at ``path``.
        mtime: of a file on this machine, the time of its last modification in nanoseconds.
        columns: the values of the columns to keep; None where no table has them.
        listed_in: path of the list that names it; None without one.
        settled: the split of its row, if neither ``split`` nor its key decides.
    """

    key: str
    path: str
    split: str | None
    size: int | None
    source: ImageSource | None = None
    mtime: int | None = None
    columns: dict[str, Any] | None = None
    listed_in: str | None = None
    settled: str | None = None


class ImageRow(NamedTuple):
    """A sample of a tar, or a row of a table or list: an image, with captions.

    Attributes:
        image: several rows may have its key.
        captions: of the image, in this row.
        place: of the row, for messages: ``x.tar#member``, ``x.parquet#row`` or ``x.csv#line``.
    """

    image: ImageItem
    captions: list[str]
    place: str


class TextItem(NamedTuple):
    """A caption, or a text without an image.

    Attributes:
        key: unique in the corpus; ``<image key>#<number>`` for a caption.
        caption: the text.
        image_key: the key of its image or video, or None for a text without one.
        split: as the corpus names it, or None.
        columns: see `ImageItem`.
        listed_in: path of the file that names it by a key of its own; None for the caption of an
            image that was read, and for a text whose key is its line.
        settled: see `ImageItem`.
    """

    key: str
    caption: str
    image_key: str | None
    split: str | None
    columns: dict[str, Any] | None = None
    listed_in: str | None = None
    settled: str | None = None


@dataclass(frozen=True)
class Failure:
    """An input that was not embedded, and why: in the metadata of its shard, and a row of
    `failures.parquet`.

    Attributes:
        key: of the input, or while inputs are listed the name of its file.
        path: see `ImageItem`.
        stage: ``list`` if it was refused before encoding began, else ``read``, ``decode`` or
            ``import``.
        error: the kind of error.
        message: the reason in words.
    """

    key: str
    path: str
    stage: str
    error: str
    message: str


class Refusal(NamedTuple):
    """The reason why a file, or a part of one, is not read: the kind of error, and words."""

    error: str
    message: str


Item = TypeVar("Item", ImageItem, TextItem)
_TEXT, _NUMBER = pa.large_string(), pa.int64()
# no dictionaries in a struct that may be null: Ray's own way to pickle tables fails at these
_SOURCE = pa.struct(
    [
        ("file", _TEXT),
        ("start", _NUMBER),
        ("place", _NUMBER),
        ("column", _TEXT),
        ("folder", _TEXT),
        ("anywhere", pa.bool_()),
        ("download", pa.bool_()),
    ]
)
_FEW_TEXTS = pa.dictionary(pa.int32(), pa.string())
# None: a struct of the types of the values
_TYPES = {
    "size": _NUMBER,
    "mtime": _NUMBER,
    "source": _SOURCE,
    "split": _FEW_TEXTS,
    "columns": None,
    "listed_in": _FEW_TEXTS,
    "settled": _FEW_TEXTS,
}


class ItemTable(Sequence[Item]):
    """A list of images or of texts that grows at its end, kept as the columns of an Arrow table.

    Args:
        kind: the class of the items.
        table: the items, a column for each field; None for none.
    """

    def __init__(self, kind: type[Item], table: pa.Table | None = None) -> None:
        self.kind: Any = kind
        schema = pa.schema([(name, _TYPES.get(name, _TEXT) or pa.null()) for name in kind._fields])
        self._table = schema.empty_table() if table is None else table
        self._new: list[Item] = []  # not in the table yet

    def append(self, item: Item) -> None:
        """Add an item at the end."""
        self._new.append(item)
        if len(self._new) == _BLOCK:
            self._convert()

    def _convert(self) -> None:
        """Move the new items to the table."""
        names = self.kind._fields
        columns = zip(*self._new, strict=True)  # the values of each field
        arrays = [
            pa.array(values, _TYPES.get(name, _TEXT))
            for name, values in zip(names, columns, strict=True)
        ]
        block = pa.table(arrays, names)
        # A kept column of whole numbers becomes double where a later block has others
        self._table = pa.concat_tables([self._table, block], promote_options="permissive")
        self._new = []

    @property
    def table(self) -> pa.Table:
        """All items, a column for each of their fields, in one piece: taking rows of several pieces
        copies them all.
        """
        if self._new:
            self._convert()
        self._table = self._table.combine_chunks()
        return self._table

    def sort(self) -> None:
        """Sort by the keys, as UTF-8."""
        self._table = self.table.sort_by("key")

    def take(self, positions: Any) -> list[Item]:
        """Return the items at these positions, an array of integers."""
        rows = self.table.take(pa.array(positions, pa.int64())).to_pylist()
        for row in rows:
            if row.get("source"):
                row["source"] = ImageSource(**row["source"])
        return [self.kind(**row) for row in rows]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._table) + len(self._new)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order."""
        for start in range(0, len(self), _BLOCK):
            yield from self[start : start + _BLOCK]

    def __getitem__(self, index: Any) -> Any:
        """Return one item, or a list of several."""
        positions = range(len(self))[index]
        if isinstance(positions, range):
            return self.take(positions)
        (item,) = self.take([positions])
        return item


class Corpus:
    """Images, videos, texts and skipped inputs, in a fixed order.

    Attributes:
        images: those in files sorted by key, then those of tars, tables and lists in the order of
            these.
        videos, audio: those in files, sorted by key; no key is that of an image.
        texts: in the order of their images and captions.
        skipped: inputs that cannot be used, and why; their stage is ``list``.
        images_without_caption: keys of images that no captions file names.
        captions_without_image: names in captions files for which no image was found.
        containers: the tars, tables and lists that were read; images in them have a path like
            ``container#…``.
        notes: what the user may want to know about how the inputs were read.
        sources: the paths and URLs that were given, patterns expanded.
        prefixes: what the keys of the images in each given folder begin with: its name if several
            are given, else nothing.
        captions: the captions file that was given; None where captions were detected.
        folder_splits: the splits of files that are in folders named after splits, by path.
        split_origins: where splits come from, with the splits that are named there.
        ambiguous_keys: keys of images of which rows have other values of the columns to keep than
            the first one.
        kept_columns: the columns to keep.
        unread_keys: of images that a list names and that cannot be read.
    """

    def __init__(self, kept_columns: KeptColumns | None = None) -> None:
        self.kept_columns = kept_columns or KeptColumns()
        self.images = ItemTable(ImageItem)
        self.videos = ItemTable(ImageItem)
        self.audio = ItemTable(ImageItem)
        self.texts = ItemTable(TextItem)
        self.skipped: list[Failure] = []
        self.images_without_caption: list[str] = []
        self.captions_without_image: list[str] = []
        self.containers: list[str] = []
        self.notes: list[str] = []
        self.sources: list[str] = []
        self.prefixes: dict[str, str] = {}
        self.captions: str | None = None
        self.folder_splits: dict[str, str] = {}
        self.split_origins = defaultdict[str, set[str]](set)
        self.ambiguous_keys: set[str] = set()
        self.unread_keys: set[str] = set()

    def by_modality(self) -> dict[str, ItemTable[Any]]:
        """Return the items by the names of their modalities."""
        return {"image": self.images, "video": self.videos, "audio": self.audio, "text": self.texts}

    def note_folders(self, paths: Mapping[str, str]) -> None:
        """Note the splits that folders are named after; ``paths`` are those of files by their
        relative names.
        """
        for name, split in splits_of_folders(paths).items():
            self.folder_splits[paths[name]] = split

    def split_of(self, field: str | None, file: str | None, folder: str | None) -> str | None:
        """Return the split of an input as `choose_split` does, and note where it comes from."""
        split = choose_split(field, file, folder)
        names = self.split_origins[split.origin]
        if split.name:
            names.add(split.name)
        return split.name

    def columns_of(self, key: str, rows: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
        """Return the values of the columns to keep of the first of the rows of an image that has
        some; note the key if another row has others.
        """
        values = [columns for columns in rows if columns is not None]
        if any(columns != values[0] for columns in values):
            self.ambiguous_keys.add(key)
        return values[0] if values else None

    def merge_rows(self, rows: Iterable[ImageRow]) -> list[ImageRow]:
        """Return the rows of a tar, table or list so that each key has one, with all captions; a
        row that names another file than the first one with its key is skipped. Cells that contain
        images are not compared.
        """
        merged: dict[str, ImageRow] = {}
        for row in rows:
            image = row.image
            first = merged.setdefault(image.key, row._replace(captions=[]))
            is_in_cell = image.source is not None and image.source.column is not None
            if image.path == first.image.path or is_in_cell:
                first.captions.extend(row.captions)
                self.columns_of(image.key, [first.image.columns, image.columns])
            else:
                self.skip_duplicate(row, first.image.path)
        return list(merged.values())

    def skip_duplicate(self, row: ImageRow, first_path: str) -> None:
        """Skip a row whose image has the key of that at ``first_path``."""
        file, _, number = row.place.rpartition("#")
        self.skip(
            f"{location(file).name}#{number}",
            row.place,
            "DuplicateKey",
            f"{first_path} has the same key {row.image.key}, and only the first image is embedded; "
            f"embed the files into two stores, or choose another key column with --key-column",
        )

    def media(self) -> list[ItemTable[ImageItem]]:
        """Return the images, the videos and the sounds."""
        return [self.images, self.videos, self.audio]

    def skip(self, key: str, path: str, error: str, message: str) -> None:
        """Add an input that cannot be used; halves of characters are written as ``\\udc80``."""
        self.skipped.append(
            Failure(
                key=as_storable(key),
                path=as_storable(path),
                stage="list",
                error=as_storable(error),
                message=as_storable(message),
            )
        )

    def add_image(self, image: ImageItem, captions: Iterable[str]) -> None:
        """Add an image, a video or a sound with its captions; what cannot be used is skipped, and
        reported.
        """
        if not is_utf8(f"{image.key}{image.path}{image.split}"):
            self.skip(image.key, image.path, "UnicodeError", "the key, path or split is not UTF-8")
            return
        items = self.images
        if not image.source and Path(image.path).suffix.lower() in VIDEO_SUFFIXES:
            items = self.videos
        if not image.source and is_sound(image.path):
            items = self.audio
        self.kept_columns.note(image.key, image.columns)
        items.append(image)
        has_caption = False
        captions = list(captions)
        if not any(captions):  # an empty cell of a table is no caption
            captions = []
        for number, caption in enumerate(captions):
            key = f"{image.key}#{number}"
            text = TextItem(key, caption, image.key, image.split, image.columns)
            if self.add_text(text, image.path):
                has_caption = True
        if not has_caption:
            self.images_without_caption.append(image.key)

    def add_text(self, text: TextItem, path: str) -> bool:
        """Add a text found at ``path`` without the white space around it; return whether it can be
        used.
        """
        caption = text.caption.strip()
        if not caption:
            self.skip(text.key, path, "EmptyCaption", "the caption is empty")
        elif not is_utf8(f"{text.key}{caption}{text.image_key}{text.split}"):
            self.skip(
                text.key, path, "UnicodeError", "the caption, its key or its split is not UTF-8"
            )
        else:
            if text.columns is not None:
                self.kept_columns.note(text.key, text.columns)
            self.texts.append(text if caption == text.caption else text._replace(caption=caption))
            return True
        return False


@dataclass(frozen=True)
class ReadOptions:
    """Settings of reading a corpus, which `c3tools.embed` describes.

    Attributes:
        audio: look for sounds, too.
        used: the names of the options that were needed to read a file, see `note_use`.
    """

    captions: Path | None = None
    text_column: str | None = None
    image_column: str | None = None
    key_column: str | None = None
    images_root: Path | None = None
    follow_symlinks: bool = False
    download: bool = False
    audio: bool = False
    kept_columns: KeptColumns = field(default_factory=KeptColumns)
    used: set[str] = field(default_factory=set)

    def note_use(self, *names: str) -> None:
        """Note that a file is read with these options, those of them that are given."""
        self.used.update(name for name in names if getattr(self, name) is not None)


def as_key(name: str) -> str:
    """Return a name as keys are written, in Unicode's composed form (NFC): a Mac decomposes the
    names of files, so that the same name in a table has other characters.
    """
    return name if name.isascii() else normalize("NFC", name)


def existing_file(folder: Path, name: str) -> Path:
    """Return the file in a folder that has a name, or has it in another Unicode form; the name as
    it is if there is none.
    """
    if not name.isascii():
        for spelling in (name, as_key(name), normalize("NFD", name)):
            if os.path.lexists(folder / spelling):
                return folder / spelling
    return folder / name


def key_of_name(name: str) -> str:
    """Return the key of an image by its file name: without the suffix of an image; of absolute
    paths the last part.
    """
    name = as_key(name)
    posix = PurePosixPath(name)
    short = posix.name if posix.is_absolute() or is_url(name) else posix.as_posix()
    stem, suffix = splitext(short)
    return stem if suffix.lower() in IMAGE_SUFFIXES else short


def is_utf8(text: str) -> bool:
    """Return whether a text can be stored: file names and JSON may hold halves of characters."""
    return text.isascii() or as_storable(text) == text


def as_storable(text: str) -> str:
    """Return a text as it can be stored: halves of characters, as in file names, are written as
    ``\\udc80``.
    """
    return text.encode("utf-8", errors="backslashreplace").decode()
