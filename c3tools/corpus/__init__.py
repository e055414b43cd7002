"""From the user's files to image and text items, paired by key."""

from __future__ import annotations

from .images import ImageItem, ImageReader, ImageSource
from .items import CaptionRow, Corpus, Skipped, TextItem
from .reading import read_corpus
from .splits import hashed_split, split_of

__all__ = [
    "CaptionRow",
    "Corpus",
    "ImageItem",
    "ImageReader",
    "ImageSource",
    "Skipped",
    "TextItem",
    "hashed_split",
    "read_corpus",
    "split_of",
]
