"""A corpus: its images, videos and texts, what was left out, and the options it is read with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .images import ImageItem
from .item_lists import ItemList, pack_image, unpack_image
from .videos import VIDEO_SUFFIXES

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".heic", ".heif"]
)


class TextItem(NamedTuple):
    """A caption, or a text without an image.

    Attributes:
        key: unique in the corpus; ``<image key>#<number>`` for a caption.
        caption: the text.
        image_key: the key of its image or video, or None for a text without one.
        split: as the corpus names it, or None.
    """

    key: str
    caption: str
    image_key: str | None
    split: str | None


class CaptionRow(NamedTuple):
    """One row of a captions file.

    Attributes:
        file_name: the image as the file names it, or None if the row is text alone.
        captions: its texts, in order.
        split: as the file names it, or None.
        line: the line of the row, for messages (1 = first).
        key: the key of the row, if a key column was requested or has a known name.
    """

    file_name: str | None
    captions: list[str]
    split: str | None
    line: int
    key: str | None = None


class Skipped(NamedTuple):
    """An input that cannot be used, found before encoding began."""

    key: str
    path: str
    error: str
    message: str


# an image of a tar, a table or a list with its captions, an entry that cannot be used, or a note about the others
Entry = tuple[ImageItem, list[str]] | Skipped | str


class Corpus:
    """Images, videos, texts and skipped inputs, in a fixed order.

    Args:
        images, texts: to begin with.

    Attributes:
        images: those in files sorted by key, then those of tars, tables and lists in the order of these.
        videos: those in files, sorted by key; no key is that of an image.
        texts: in the order of their images and captions.
        skipped: inputs that cannot be used, and why.
        images_without_caption: keys of images that no captions file names.
        captions_without_image: names in captions files for which no image was found.
        containers: the tars, tables and lists that were read; images in them have a path like ``container#…``.
        notes: what the user may want to know about how the inputs were read.
        sources: the paths and URLs that were given, patterns expanded.
        captions: the captions file that was given; None where captions were detected.
    """

    def __init__(self, images: Iterable[ImageItem] = (), texts: Iterable[TextItem] = ()) -> None:
        self.images = ItemList(ImageItem, images)
        self.videos = ItemList(ImageItem)
        self.texts = ItemList(TextItem, texts)
        self.skipped = ItemList(Skipped, printable=True)
        self.images_without_caption = ItemList(str)
        self.captions_without_image = ItemList(str, printable=True)
        self.containers: list[str] = []
        self.notes: list[str] = []
        self.sources: list[str] = []
        self.captions: str | None = None

    def add_image(self, image: ImageItem, captions: Iterable[str]) -> None:
        """Add an image, or a video, with its captions; what cannot be used is skipped, and reported."""
        if not is_utf8(f"{image.key}{image.path}{image.split}"):
            problem = "UnicodeError", "the key, path or split is not UTF-8"
            self.skipped.append(Skipped(repr(image.key), repr(image.path), *problem))
            return
        is_video = image.source is None and Path(image.path).suffix.lower() in VIDEO_SUFFIXES
        (self.videos if is_video else self.images).append(image)
        before = len(self.texts)
        for number, caption in enumerate(captions):
            self.add_text(TextItem(f"{image.key}#{number}", caption, image.key, image.split), image.path)
        if len(self.texts) == before:
            self.images_without_caption.append(image.key)

    def has(self, key: str) -> bool:
        """Return whether an image or a video has this key."""
        return self.images.has(key) or self.videos.has(key)

    def add_text(self, text: TextItem, path: str) -> None:
        """Add a text found at ``path`` without the white space around it; one that cannot be used is skipped."""
        caption = text.caption.strip()
        if not caption:
            self.skipped.append(Skipped(text.key, path, "EmptyCaption", "the caption is empty"))
        elif not is_utf8(caption):
            self.skipped.append(Skipped(text.key, path, "UnicodeError", "the caption is not UTF-8"))
        else:
            self.texts.append(text._replace(caption=caption))


class _CaptionedKey(NamedTuple):
    """A key and, as JSON, its captions, the name to remember, and the fields of its image."""

    key: str
    content: str


class CaptionedKeys:
    """Captions by key, in the order in which keys first came: of files that need not fit in memory."""

    def __init__(self) -> None:
        self._entries = ItemList(_CaptionedKey)

    def add(self, key: str, captions: Sequence[str], name: str | None = None, image: ImageItem | None = None) -> None:
        """Add captions of a key that is new, with a name and an image to remember."""
        self._entries.append(_CaptionedKey(key, json.dumps([captions, name, image and pack_image(image)])))

    def add_captions(self, key: str, captions: Sequence[str], name: str | None = None) -> None:
        """Add captions to an existing key; a new name replaces the former one."""
        found = next(self._entries.find([key]))
        assert found is not None
        position, entry = found
        before, old_name, image = json.loads(entry.content)
        content = json.dumps([[*before, *captions], name or old_name, image])
        self._entries.replace(position, entry._replace(content=content))

    def get(self, key: str) -> tuple[list[str], str | None] | None:
        """Return captions and name of a key, None if it did not come."""
        found = next(self._entries.find([key]))
        if found is None:
            return None
        captions, name, _ = json.loads(found[1].content)
        return captions, name

    def image(self, key: str) -> ImageItem | None:
        """Return the image of a key, None if it did not come."""
        found = next(self._entries.find([key]))
        return None if found is None else unpack_image(json.loads(found[1].content)[2])

    def __iter__(self) -> Iterator[str]:
        """Yield the keys, in order."""
        return (entry.key for entry in self._entries)

    def images(self) -> Iterator[tuple[ImageItem, list[str]]]:
        """Yield the images with their captions, in order."""
        for entry in self._entries:
            captions, _, image = json.loads(entry.content)
            yield unpack_image(image), captions


@dataclass(frozen=True)
class ReadOptions:
    """The options of `c3tools.corpus.read_corpus`, described there; paths are resolved."""

    captions: Path | None = None
    text_column: str | None = None
    image_column: str | None = None
    key_column: str | None = None
    images_root: Path | None = None
    prefix_keys: bool = False
    follow_symlinks: bool = False
    download: bool = False
    index_folder: Path | None = None


def possible_files(path: str) -> Iterator[str]:
    """Yield the path of an input, and each file that may be meant if it is ``file#…``, of a tar, table or list."""
    yield path
    yield from (path[:i] for i, letter in enumerate(path) if letter == "#")


def is_within(path: str, files: set[str]) -> bool:
    """Return whether the path of an input is one of these files, or is in a tar, table or list among them."""
    return any(file in files for file in possible_files(path))


def without_suffix(name: str) -> str:
    """Return a file name without its last suffix."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix else name


def is_utf8(text: str) -> bool:
    """Return whether a text can be stored: file names and JSON may hold halves of characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
