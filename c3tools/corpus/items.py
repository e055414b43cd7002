"""The rows of a corpus, before anything is decoded or encoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class ImageItem(NamedTuple):
    """An image file that was found.

    Attributes:
        key: unique in the corpus; the path relative to the corpus without its suffix.
        path: where the file is.
        split: what the corpus says, or None.
        size: bytes on disk, to notice a file that changed.
    """

    key: str
    path: str
    split: str | None
    size: int


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
    """

    file_name: str | None
    captions: list[str]
    split: str | None
    line: int


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
        images: image items, sorted by key.
        texts: text items, in the order of their images and captions.
        captions_files: where captions came from; empty when they lay beside the images as .txt files.
        skipped: inputs that cannot be used, and why.
        pairing: images without captions and captions without images.
    """

    images: list[ImageItem] = field(default_factory=list)
    texts: list[TextItem] = field(default_factory=list)
    captions_files: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    pairing: Pairing = field(default_factory=Pairing)
