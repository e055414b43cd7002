"""From the user's files to image and text items, paired by key."""

from __future__ import annotations

from .images import ImageItem, ImageReader
from .item_lists import ItemList
from .items import Corpus, TextItem
from .reading import read_corpus

__all__ = ["Corpus", "ImageItem", "ImageReader", "ItemList", "TextItem", "read_corpus"]
