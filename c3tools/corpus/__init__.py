"""From the user's files to image and text items, paired by key."""

from __future__ import annotations

from .images import ImageReader
from .items import Corpus, ImageItem
from .reading import read_corpus

__all__ = ["Corpus", "ImageItem", "ImageReader", "read_corpus"]
