"""What the user has → image and text items, paired by key."""

from __future__ import annotations

from .items import CaptionRow, Corpus, ImageItem, Pairing, Skipped, TextItem
from .places import PlaceReader
from .reading import read_corpus
from .splits import hashed_split, split_of

__all__ = [
    "CaptionRow",
    "Corpus",
    "ImageItem",
    "Pairing",
    "PlaceReader",
    "Skipped",
    "TextItem",
    "hashed_split",
    "read_corpus",
    "split_of",
]
