"""The keys of a corpus in a store: a file that the store has keeps its key, and no new file takes
the key of another.

A file is known by its absolute path, and an image in a tar or table by this file and its key. If a
path is new and the store has its key from another path, there are three cases:

- The other file is gone, and its SHA-256 is that of this file: the file was moved.
- The key belongs to another file. All new keys of this folder begin with the name of the folder,
  and with those of the folders above it, as far as needed. A tar or table has no such name: the
  image is skipped.
- The store does not know the other file: imported rows, and images at URLs, are known by key.

Keys depend on the files and on the store alone, never on the order of work, so that a run that was
interrupted gives the same keys again.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ..corpus.images import ImageReader
from ..corpus.items import VIDEO_SUFFIXES, Corpus, ImageItem, ItemTable, TextItem, as_key
from ..errors import C3Error, CorpusError, UnreachableError
from ..io.files import sha256_of
from ..io.locations import is_url, kind_of, location
from ..reporter import SILENT, Reporter, counted
from .inputs import StoredInputs, absolute_paths
from .sources import Sources, absolute, possible_files


@dataclass(frozen=True)
class _StoredFile:
    """A row, or a failure, of the store."""

    key: str
    stored_path: str | None  # absolute; None for an imported row
    sha256: str | None
    size: int | None
    mtime: int | None
    is_failure: bool


@dataclass(frozen=True)
class _Folder:
    """A folder that was given, and what the keys of its images begin with in this corpus."""

    path: str  # absolute
    prefix: str

    def depths(self) -> list[int]:
        """Return the numbers of folders that keys may begin with; 0 stands for keys as they are."""
        return [0, *range(2 if self.prefix else 1, len(Path(self.path).parts))]

    def start(self, depth: int) -> str:
        """Return the names of this folder and of those above it, ``depth`` in all."""
        return as_key("/".join(Path(self.path).parts[-depth:]) + "/")

    def name(self, key: str, depth: int) -> str:
        """Return the key of an image if it begins with the names of so many folders."""
        return self.start(depth) + key.removeprefix(self.prefix) if depth else key


_State = Literal["free", "same", "taken"]


def with_stored_keys(corpus: Corpus, stored: StoredInputs, reporter: Reporter = SILENT) -> Corpus:
    """Return a corpus in which each file has the key that it has, or is to have, in the store.

    Args:
        corpus: the inputs, captions joined with their images. It is not changed.
        stored: the inputs of the store.
        reporter: gets a message for each folder whose name new keys begin with.

    Raises:
        CorpusError: if the keys of a folder are taken, with the names of all folders above it too.
        UnreachableError: if the server of a tar or table does not answer.
    """
    files = stored.files()
    if all(_keys_agree(items.table, files) for items in corpus.media()):
        return corpus
    with ImageReader() as reader:
        join = _Join(corpus, files, reader)
        for folder, images in join.images_by_folder().items():
            if folder is None:
                join.assign_or_refuse(images)
            else:
                message = join.assign(folder, images)
                if message:
                    reporter.message(message)
    return _renamed(corpus, join.keys, join.refused)


def _keys_agree(items: Any, files: Any) -> bool:
    """Return whether each image has its key in the store already, or neither its key nor its path
    is there.
    """
    paths: Any = absolute_paths(items["path"])
    path_of_key = files["stored_path"].take(pc.index_in(items["key"], files["key"]))
    key_is_stored: Any = pc.is_in(items["key"], files["key"])
    path_is_stored: Any = pc.is_in(paths, files["stored_path"])
    is_new = pc.invert(pc.or_(key_is_stored, path_is_stored))
    is_same = pc.fill_null(pc.equal(path_of_key, paths), False)
    return bool(pc.all(pc.or_(is_same, is_new), min_count=0).as_py())


class _Join:
    """The images, videos and sounds of a corpus, joined with the files of a store.

    Attributes:
        keys: the key in the store of each image that has one, by its key in the corpus.
        refused: images whose key belongs to another file, and that can have no other.
    """

    def __init__(self, corpus: Corpus, files: pa.Table, reader: ImageReader) -> None:
        self.keys: dict[str, str] = {}
        self.refused: list[ImageItem] = []
        self._corpus = corpus
        self._images = [image for items in corpus.media() for image in items]
        self._reader = reader
        self._sources = Sources(corpus)
        self._is_file = cache(_is_file)
        self._assigned: set[str] = set()  # the values of `keys`
        self._stored: dict[str, _StoredFile] = {}
        for row in files.select(list(_StoredFile.__dataclass_fields__)).to_pylist():
            self._stored.setdefault(row["key"], _StoredFile(**row))  # a row comes before a failure
        self._join_by_path()

    def _take(self, image: ImageItem, key: str) -> None:
        self.keys[image.key] = key
        self._assigned.add(key)

    def _join_by_path(self) -> None:
        """Give images whose files are in the store the keys that they have there."""
        for image in self._images:
            file = self._stored.get(image.key)
            if file is not None and _is_same(file, image):
                self._take(image, image.key)
        key_of_path = {file.stored_path: key for key, file in self._stored.items()}
        for image in self._images:
            # The path of an image in a table is the number of its row, which may be another's now
            if image.source is None and image.key not in self.keys:
                key = key_of_path.get(absolute(image.path))
                if key is not None and key not in self._assigned:
                    self._take(image, key)

    def images_by_folder(self) -> dict[_Folder | None, list[ImageItem]]:
        """Return the images of each given folder; None for those of tars, tables, lists, and at
        URLs.
        """
        given = {absolute(source) for source in self._corpus.sources}
        prefixes = {absolute(path): prefix for path, prefix in self._corpus.prefixes.items()}

        @cache
        def given_folder(parent: str) -> _Folder | None:
            if parent in given:
                return _Folder(parent, prefixes.get(parent, ""))
            above = str(Path(parent).parent)
            return None if above == parent else given_folder(above)

        images: dict[_Folder | None, list[ImageItem]] = defaultdict(list)
        for image in self._images:
            path = absolute(image.path)
            parent = path.rpartition("/")[0] or "/"
            if image.source is not None or is_url(path):
                folder = None
            elif path in given:
                folder = _Folder(parent, "")
            else:
                folder = given_folder(parent)
            images[folder].append(image)
        return images

    def assign(self, folder: _Folder, images: Sequence[ImageItem]) -> str | None:
        """Give the new images of a folder their keys; return a message if these begin with its
        name.

        Images that the store has are looked at too: a run that goes on sees what the first run saw.
        """
        # Images that moved, and were embedded when their folder was given alone
        for image in images if folder.prefix else ():
            key = image.key.removeprefix(folder.prefix)
            if image.key not in self.keys and self._state(key, image) == "same":
                self._take(image, key)

        taken_key = ""
        for depth in folder.depths():
            new = [image for image in images if image.key not in self.keys]
            if not new:
                return None
            taken_keys = []
            for image in images:
                key = folder.name(image.key, depth)
                state = self._state(key, image)
                if state == "taken":
                    taken_keys.append(key)
                elif state == "same" and image.key not in self.keys:
                    self._take(image, key)
            if not taken_keys:
                new = [image for image in images if image.key not in self.keys]
                for image in new:
                    self._take(image, folder.name(image.key, depth))
                if not depth or not new:
                    return None
                file = self._stored.get(taken_key)
                where = f" from {file.stored_path}" if file else ""
                return (
                    f"{folder.path}: {counted(len(new), 'new key begins', 'new keys begin')} with "
                    f"{folder.start(depth)}, because the store has {taken_key}{where}."
                )
            taken_key = taken_key or taken_keys[0]
        raise CorpusError(
            f"The store has keys of {folder.path} from other files, for example {taken_key!r}.",
            remedy="Rename the folder, or embed it into another store.",
        )

    def assign_or_refuse(self, images: Sequence[ImageItem]) -> None:
        """Give the new images of tars, tables and lists the keys that they have there, if these are
        free.
        """
        for image in images:
            if image.key in self.keys:
                continue
            if self._state(image.key, image) == "taken":
                self.refused.append(image)
            else:
                self._take(image, image.key)

    def _state(self, key: str, image: ImageItem) -> _State:
        """Return whether an image may have a key of the store: it is free, of the same file, or of
        another one.
        """
        if self.keys.get(image.key) == key:
            return "same"
        if key in self._assigned:
            return "taken"
        file = self._stored.get(key)
        if file is None:
            return "free"
        if file.stored_path is not None and self._exists(file.stored_path):
            return "taken"
        sizes_differ = None not in (image.size, file.size) and image.size != file.size
        if file.is_failure:
            return "free" if sizes_differ or image.mtime != file.mtime else "same"
        if image.key in self.keys or sizes_differ or file.sha256 is None:
            return "taken"
        return "same" if self._digest(image) == file.sha256 else "taken"

    def _exists(self, path: str) -> bool:
        """Return whether a stored file is still there, apart from tars and tables of this corpus:
        these have it no more.
        """
        files = possible_files(path)
        if is_url(path):
            files = files[1:]  # each image would cost a request
            if not files:
                return True
        return any(self._is_file(file) and not self._sources.was_read(file) for file in files)

    def _digest(self, image: ImageItem) -> str | None:
        """Return the SHA-256 of an image, a video or a sound; None if it cannot be read."""
        try:
            if Path(image.path).suffix.lower() in VIDEO_SUFFIXES:
                return sha256_of(location(image.path))
            return sha256(self._reader.read(image)).hexdigest()
        except UnreachableError:
            raise
        except Exception:  # as when images are decoded, which records the reason
            return None


def _is_same(file: _StoredFile, image: ImageItem) -> bool:
    """Return whether an image is the stored file of its key: by its path, or the tar or table that
    has it.

    Rows without a path, and images at URLs, are known by their keys.
    """
    if file.stored_path is None:
        return True
    if image.source is not None and not image.source.download:
        return file.stored_path.startswith(f"{absolute(image.source.file)}#")
    if is_url(image.path) and is_url(file.stored_path):
        return True
    return file.stored_path == absolute(image.path)


def _is_file(path: str) -> bool:
    try:
        return kind_of(location(path)) == "file"
    except (OSError, C3Error):  # it cannot be told to have gone
        return True


def _renamed(corpus: Corpus, keys: Mapping[str, str], refused: Sequence[ImageItem]) -> Corpus:
    """Return a corpus with other keys of images, which their captions follow, and without some."""
    settled = copy.copy(corpus)
    settled.skipped = list(corpus.skipped)
    for image in refused:
        file = image.source.file if image.source else image.path
        settled.skip(
            f"{location(file).name}#{image.path.rpartition('#')[2]}",
            image.path,
            "DuplicateKey",
            f"the store has the key {image.key} from another file; embed into another store, or "
            f"choose another column of keys with --key-column",
        )
    settled.images = _with_keys(corpus.images, keys)
    settled.videos = _with_keys(corpus.videos, keys)
    settled.audio = _with_keys(corpus.audio, keys)
    settled.texts = _texts_of(corpus.texts, keys, {image.key for image in refused})
    settled.images_without_caption = [
        keys[key] for key in corpus.images_without_caption if key in keys
    ]
    return settled


def _with_keys(items: ItemTable[ImageItem], keys: Mapping[str, str]) -> ItemTable[ImageItem]:
    """Return the images that have a key in the store, with this key."""
    table: Any = items.table
    table = table.filter(pa.array([key in keys for key in table["key"].to_pylist()], pa.bool_()))
    stored_keys = [keys[key] for key in table["key"].to_pylist()]
    return ItemTable(items.kind, _set(table, "key", stored_keys))


def _texts_of(
    texts: ItemTable[TextItem], keys: Mapping[str, str], refused: set[str]
) -> ItemTable[TextItem]:
    """Return texts with the new keys of their images, without those of refused images."""
    table: Any = texts.table
    is_refused = [key in refused for key in table["image_key"].to_pylist()]
    table = table.filter(pc.invert(pa.array(is_refused, pa.bool_())))
    text_keys = []
    image_keys = []
    for key, image_key in zip(
        table["key"].to_pylist(), table["image_key"].to_pylist(), strict=True
    ):
        stored_key = keys.get(image_key, image_key)
        is_caption = image_key is not None and key.startswith(f"{image_key}#")
        text_keys.append(stored_key + key[len(image_key) :] if is_caption else key)
        image_keys.append(stored_key)
    table = _set(_set(table, "key", text_keys), "image_key", image_keys)
    return ItemTable(texts.kind, table)


def _set(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, pa.large_string()))
