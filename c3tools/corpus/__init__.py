"""What the user has → image and text items, paired by key."""

from __future__ import annotations

from .items import CaptionRow, Corpus, ImageItem, Pairing, Skipped, TextItem
from .reading import read_corpus
from .splits import hashed_split, split_role

__all__ = [
    "CaptionRow",
    "Corpus",
    "ImageItem",
    "Pairing",
    "Skipped",
    "TextItem",
    "hashed_split",
    "read_corpus",
    "split_role",
]
