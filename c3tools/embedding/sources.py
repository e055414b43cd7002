"""The paths of a corpus, which separate rows whose source no longer exists from rows of other
paths.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..arrays import Mask
from ..corpus.items import Corpus
from ..io.locations import is_url

# the key of a text without an image: the stem of its file, its line
_LINE = r"(?s)^(?P<file>.*):\d+(?:#\d+)?$"


def absolute(path: str, folder: str | None = None) -> str:
    """Return a path from the root of the file system, links not followed; a URL as it is.

    Args:
        path: a path or URL.
        folder: relative paths start from it; None for the current folder.
    """
    return path if is_url(path) else os.path.abspath(os.path.join(folder or "", path))  # noqa: PTH100, PTH118 - links are not followed


def possible_files(path: str) -> list[str]:
    """Return an absolute path, and each file that may be meant if it is ``file#…``, of a tar, table
    or list.
    """
    return [path, *(path[:place] for place, letter in enumerate(path) if letter == "#")]


class Sources:
    """The given paths, and the captions of a corpus.

    An image was removed if it was below one of the paths, or a list among them named it. A caption
    was removed with its image, or if the image now has other captions, or none while captions were
    detected. A text without an image was removed if its file has others, or named it by a key of
    its own.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._roots = [absolute(source).rstrip("/") for source in corpus.sources]
        self._containers = set(map(absolute, corpus.containers))
        self._unusable = {absolute(skipped.path) for skipped in corpus.skipped}
        self._texts = corpus.texts.table
        self._captioned = self._texts["image_key"].drop_null()
        detected = corpus.captions is None and len(self._captioned)
        self._media_keys = [items.table["key"] for items in corpus.media()] if detected else []

    def has_below(self, path: str) -> bool:
        """Return whether an absolute path is one of the given paths, or below one."""
        return any(
            path == root or path.startswith((f"{root}/", f"{root}#")) for root in self._roots
        )

    def was_below(self, path: str | None) -> bool:
        """Return whether a file was one of the given paths, or below one, and can be told to have
        gone.
        """
        return (
            path is not None
            and self.has_below(path)
            and self._unusable.isdisjoint(possible_files(path))
        )

    def were_listed(self, rows: pa.Table) -> Mask:
        """Return which rows, whose keys are not in the corpus, a list among the given paths named
        that could be read: bool (n,).
        """
        lists = sorted({*self._roots} - self._unusable)
        return _is_in(rows["list"], pa.array(lists, pa.large_string()))

    def was_read(self, file: str) -> bool:
        """Return whether a file is a tar, table or list of the corpus that could be read."""
        return file in self._containers and file not in self._unusable

    def lost_texts(self, texts: pa.Table, gone_images: Sequence[str]) -> Mask:
        """Return which texts, whose keys are not in the corpus, have a source that no longer
        exists: bool (n,).
        """
        image_keys = texts["image_key"]
        is_lost = _is_in(image_keys, pa.array(gone_images, pa.large_string()))
        for keys in (self._captioned, *self._media_keys):
            is_lost |= _is_in(image_keys, keys)
        lines = self._texts["key"].filter(_stands_alone(self._texts))
        files = _files_of_lines(lines).drop_null()
        is_of_file = _is_in(_files_of_lines(texts["key"]), files)
        return is_lost | (is_of_file & _as_mask(_stands_alone(texts))) | self.were_listed(texts)


def _as_mask(values: Any) -> Mask:
    """Return Arrow's booleans as a mask, null as false."""
    return np.array(values.fill_null(False).to_numpy(zero_copy_only=False), bool)


def _is_in(column: Any, keys: Any) -> Mask:
    return _as_mask(pc.is_in(column, keys))


def _stands_alone(texts: Any) -> Any:
    """Return which texts belong to no image: they have no item, or are their own."""
    return pc.fill_null(pc.equal(texts["key"], texts["image_key"]), True)


def _files_of_lines(keys: Any) -> Any:
    """Return the stem of the file of each text by its key, null if it is not a key of a line."""
    return pc.struct_field(pc.extract_regex(keys, pattern=_LINE), "file")
