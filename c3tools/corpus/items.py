"""The rows of a corpus, before anything is decoded or encoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .places import Place


class ImageItem(NamedTuple):
    """An image that was found.

    Attributes:
        key: unique in the corpus; for a file, the path relative to the corpus without its suffix.
        path: where it is, for people: a file, ``x.tar#member``, ``x.parquet#row``, or a URL.
        split: what the corpus says, or None.
        size: bytes, to notice an image that changed; None where they are not known before it is read.
        place: where its bytes are, for `PlaceReader`; None for the whole of the file at ``path``.
    """

    key: str
    path: str
    split: str | None
    size: int | None
    place: Place | None = None


class TextItem(NamedTuple):
    """A caption, or a text that stands alone.

    Attributes:
        key: unique in the corpus; ``<image key>#<number>`` for a caption.
        caption: the text.
        image_key: the key of its image, or None for a text that stands alone.
        split: what the corpus says, or None.
    """

    key: str
    caption: str
    image_key: str | None
    split: str | None


class CaptionRow(NamedTuple):
    """One row of a captions file.

    Attributes:
        file_name: the image as the file names it, or None where the row is text alone.
        captions: its texts, in order.
        split: what the file says, or None.
        line: where in the file the row stands, for messages (1 = first).
        key: the row's own key, where a key column was asked for or is known by name.
    """

    file_name: str | None
    captions: list[str]
    split: str | None
    line: int
    key: str | None = None


class Sample(NamedTuple):
    """An image of a tar, a table or a list, with its captions.

    Attributes:
        key: unique in its container.
        path, size, place, split: as of `ImageItem`.
        captions: its texts, in order.
    """

    key: str
    path: str
    size: int | None
    place: Place | None
    captions: list[str]
    split: str | None


class Skipped(NamedTuple):
    """An input that cannot be used, found before encoding began."""

    key: str
    path: str
    error: str
    message: str


@dataclass
class Pairing:
    """How images and captions found each other.

    Attributes:
        images_without_caption: keys of images that no captions file names.
        captions_without_image: names in captions files for which no image was found.
    """

    images_without_caption: list[str] = field(default_factory=list)
    captions_without_image: list[str] = field(default_factory=list)


@dataclass
class Corpus:
    """Everything that was found, in a fixed order.

    Attributes:
        images: image items; those in files sorted by key, then those in containers in the containers' order.
        texts: text items, in the order of their images and captions.
        captions_files: where captions came from; empty when they lay beside the images as .txt files.
        skipped: inputs that cannot be used, and why.
        pairing: images without captions and captions without images.
        containers: the tars, tables and lists that were read; what is in them has a path like ``container#…``.
        notes: what the user may want to know about how the inputs were read.
    """

    images: list[ImageItem] = field(default_factory=list)
    texts: list[TextItem] = field(default_factory=list)
    captions_files: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    pairing: Pairing = field(default_factory=Pairing)
    containers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
