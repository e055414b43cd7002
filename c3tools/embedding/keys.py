"""The keys of a corpus in a store: a file that the store has keeps its key, and no new file takes
the key of another.

A file is known by its absolute path, and an image in a tar or table by this file and its key. If
the store does not know the path, these are tried in turn:

- The file was moved: the store has its SHA-256 from a file that is gone, under the key of the
  corpus, or that without or with the name of the folder.
- The key is free, for this and for all other files of the given folder.
- The name of the folder that keys are relative to, before the key. If this key is taken too, the
  corpus is refused: with the folder above as the path, keys have one name more. A tar or table has
  no such name: the image is skipped.

Rows without a path (imported ones), and images at URLs, are known by key. Keys depend on the files
and on the store alone, never on the order of work, so that a run that was interrupted gives the
same keys again.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ..corpus.image_reader import ImageReader
from ..corpus.items import VIDEO_SUFFIXES, Corpus, ImageItem, ItemTable, TextItem, as_key
from ..errors import C3Error, CorpusError, UnreachableError
from ..io.files import sha256_of
from ..io.locations import is_url, kind_of, location
from ..reporter import SILENT, Reporter, counted
from .inputs import StoredInputs, absolute_paths
from .sources import Sources, absolute, possible_files


class _StoredFile(NamedTuple):
    """A row, or a failure, of the store."""

    key: str
    stored_path: str | None  # absolute; None for an imported row
    sha256: str | None
    size: int | None
    is_failure: bool


def with_stored_keys(corpus: Corpus, stored: StoredInputs, reporter: Reporter = SILENT) -> Corpus:
    """Return a corpus in which each file has the key that it has, or is to have, in the store.

    Args:
        corpus: the inputs, captions joined with their images. It is not changed.
        stored: the inputs of the store.
        reporter: gets a message for each folder whose name new keys begin with.

    Raises:
        CorpusError: if the keys of a folder are taken, with its name too.
        UnreachableError: if the server of a tar or table does not answer.
    """
    # Nothing to do if each image has its key in the store already, or neither key nor path is there
    files: Any = stored.files()
    media: Any = pa.concat_tables([items.table.select(["key", "path"]) for items in corpus.media()])
    paths = absolute_paths(media["path"])
    path_of_key = files["stored_path"].take(pc.index_in(media["key"], files["key"]))
    is_same = pc.fill_null(pc.equal(path_of_key, paths), False)
    is_stored = pc.or_(pc.is_in(media["key"], files["key"]), pc.is_in(paths, files["stored_path"]))
    if any(corpus.prefixes.values()):
        keys_in_folder = pc.replace_substring_regex(media["key"], "^[^/]*/", "")
        is_stored = pc.or_(is_stored, pc.is_in(keys_in_folder, files["key"]))
    if pc.all(pc.or_(is_same, pc.invert(is_stored)), min_count=0).as_py():
        return corpus

    with ImageReader() as reader:
        join = _Join(corpus, files, reader)
        join.assign(reporter)

    # Give the keys to images and to their captions
    keys = join.keys
    settled = copy.copy(corpus)
    settled.skipped = list(corpus.skipped)
    settled.images = _with_keys(corpus.images, keys)
    settled.videos = _with_keys(corpus.videos, keys)
    settled.audio = _with_keys(corpus.audio, keys)
    settled.images_without_caption = [
        keys[key] for key in corpus.images_without_caption if key in keys
    ]
    refused_keys = {image.key for image in join.refused}
    texts: Any = corpus.texts.table
    is_refused = [key in refused_keys for key in texts["image_key"].to_pylist()]
    texts = texts.filter(pc.invert(pa.array(is_refused, pa.bool_())))
    text_keys = []
    image_keys = []
    for key, image_key in zip(
        texts["key"].to_pylist(), texts["image_key"].to_pylist(), strict=True
    ):
        stored_key = keys.get(image_key, image_key)
        is_caption = image_key is not None and key.startswith(f"{image_key}#")
        text_keys.append(stored_key + key[len(image_key) :] if is_caption else key)
        image_keys.append(stored_key)
    texts = _set(_set(texts, "key", text_keys), "image_key", image_keys)
    settled.texts = ItemTable(TextItem, texts)
    for image in join.refused:
        file = image.source.file if image.source else image.path
        settled.skip(
            f"{location(file).name}#{image.path.rpartition('#')[2]}",
            image.path,
            "DuplicateKey",
            f"the store has the key {image.key} from another file; embed into another store, or "
            f"choose another key column with --key-column",
        )
    return settled


class _Join:
    """The images, videos and sounds of a corpus, joined with the files of a store.

    Attributes:
        keys: the key in the store of each image that has one, by its key in the corpus.
        refused: images of tars, tables and lists whose key belongs to another file.
    """

    def __init__(self, corpus: Corpus, files: pa.Table, reader: ImageReader) -> None:
        self.keys: dict[str, str] = {}
        self.refused: list[ImageItem] = []
        self._taken: set[str] = set()  # the values of `keys`
        self._images = [image for items in corpus.media() for image in items]
        self._prefixes = {absolute(path): prefix for path, prefix in corpus.prefixes.items()}
        self._reader = reader
        self._sources = Sources(corpus)
        self._is_file = cache(_is_file)
        self._stored: dict[str, _StoredFile] = {}
        for row in files.select(_StoredFile._fields).to_pylist():
            self._stored.setdefault(row["key"], _StoredFile(**row))  # a row comes before a failure

    def assign(self, reporter: Reporter) -> None:
        """Give each image its key, or refuse it."""
        # Files whose path is in the store
        for image in self._images:
            file = self._stored.get(image.key)
            if file is not None and _is_same(file, image):
                self._take(image, image.key)
        key_of_path = {file.stored_path: key for key, file in self._stored.items()}
        for image in self._images:
            # The path of an image in a table is the number of its row, which may be another's now
            key = None if image.source else key_of_path.get(absolute(image.path))
            if key is not None and image.key not in self.keys and key not in self._taken:
                self._take(image, key)

        # Images in tars and tables, of lists and at URLs keep their keys, or are refused
        images_of_folder: dict[str, list[ImageItem]] = defaultdict(list)
        for image in self._images:
            path = absolute(image.path)
            folder = None
            if image.source is None and not is_url(path):
                parents = [str(parent) for parent in Path(path).parents]
                folder = next((parent for parent in parents if parent in self._prefixes), None)
                if path in self._prefixes:
                    folder = parents[0]
            if folder is not None:
                images_of_folder[folder].append(image)
            elif image.key in self.keys:
                continue
            elif self._state(image, image.key) == "taken":
                self.refused.append(image)
            else:
                self._take(image, image.key)

        for folder, images in images_of_folder.items():
            # Keys are relative to `start`, whose name may stand before them
            prefix = self._prefixes.get(folder, "")
            start = Path(folder).parent if prefix else Path(folder)
            name = as_key(f"{start.name}/")
            for image in images:
                for key in (image.key, image.key.removeprefix(prefix), name + image.key):
                    if image.key not in self.keys and self._state(image, key) == "moved":
                        self._take(image, key)
            # All images are looked at, so that a run that is continued sees what the first run saw
            taken_keys = [image.key for image in images if self._state(image, image.key) == "taken"]
            new_images = [image for image in images if image.key not in self.keys]
            if not taken_keys:
                name = ""
            for image in new_images:
                if self._state(image, name + image.key) == "taken":
                    raise CorpusError(
                        f"The store has the keys {image.key} and {name}{image.key} from files "
                        f"other than {image.path}.",
                        remedy=f"Pass the parent folder, so that its name is added to the keys: c3 "
                        f"embed {start.parent}",
                    )
                self._take(image, name + image.key)
            if name and new_images:
                file = self._stored.get(taken_keys[0])
                where = f" from {file.stored_path}" if file else ""
                reporter.message(
                    f"{folder}: {counted(len(new_images), 'new key begins', 'new keys begin')} "
                    f"with {name}, because the store has {taken_keys[0]}{where}."
                )

    def _take(self, image: ImageItem, key: str) -> None:
        self.keys[image.key] = key
        self._taken.add(key)

    def _state(self, image: ImageItem, key: str) -> Literal["free", "moved", "taken"]:
        """Return whether an image may have a key: it is free, of the same file, which was moved, or
        of another file.
        """
        if self.keys.get(image.key) == key:
            return "moved"
        if key in self._taken:
            return "taken"
        file = self._stored.get(key)
        if file is None:
            return "free"
        # Is the stored file still there? Tars and tables of this corpus have it no more
        if file.stored_path is not None:
            possible = possible_files(file.stored_path)
            if is_url(file.stored_path):
                possible = possible[1:]  # each image would cost a request
                if not possible:
                    return "taken"
            for path in possible:
                if self._is_file(path) and not self._sources.was_read(path):
                    return "taken"
        if file.is_failure:
            return "free"
        sizes_differ = None not in (image.size, file.size) and image.size != file.size
        if image.key in self.keys or sizes_differ or file.sha256 is None:
            return "taken"
        return "moved" if self._digest(image) == file.sha256 else "taken"

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


def _with_keys(items: ItemTable[ImageItem], keys: Mapping[str, str]) -> ItemTable[ImageItem]:
    """Return the images that have a key in the store, with this key."""
    table: Any = items.table
    table = _set(table, "key", [keys.get(key) for key in table["key"].to_pylist()])
    return ItemTable(items.kind, table.filter(pc.is_valid(table["key"])))


def _set(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, pa.large_string()))
