"""Find the images of a store again by the paths in its rows: files, members of tars, cells of tables, URLs."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from ..errors import CorpusError
from ..io.locations import is_url, location
from ..io.parquet import UNREADABLE, open_parquet, record_batches
from .images import not_asked_for
from .items import ImageItem, ImageSource
from .tables import image_column
from .tars import index_of

_INSIDE = re.compile(r"(?P<file>.+?\.(?:tar|parquet|arrow))#(?P<inside>.+)", re.IGNORECASE | re.DOTALL)


class PhotoFinder:
    """Finds images by the path in their row (see `ImageItem.path`); each container is looked into once.

    Args:
        index_folder: where the indexes of tars are kept; None keeps none.
        beside: a store: relative paths that lead nowhere from the current folder start from the folder it is in.
        download: images at URLs may be fetched.
    """

    def __init__(self, index_folder: Path | None = None, *, beside: Path | None = None, download: bool = False) -> None:
        self._index_folder, self._beside, self._download = index_folder, beside, download
        self._containers: dict[str, Callable[[str], ImageSource]] = {}

    def find(self, key: str, path: str | None) -> ImageItem:
        """Return the image, not read yet.

        Raises:
            OSError: if it is not there any more, or is at a URL and these are not to be fetched.
            ValueError: if the row has no path.
        """
        if not path:
            raise ValueError("the row has no path to its photo")
        source = None
        inside = None if not is_url(path) and Path(path).is_file() else _INSIDE.fullmatch(path)
        if isinstance(self._beside, Path) and not is_url(path):
            file = inside["file"] if inside else path
            if not Path(file).exists() and (self._beside.parent / file).exists():
                return self.find(key, str(self._beside.parent.absolute() / path))
        if inside is not None:
            file = inside["file"]
            try:
                if file not in self._containers:
                    is_tar = file.lower().endswith(".tar")
                    self._containers[file] = self._members(file) if is_tar else self._cells(file)
                source = self._containers[file](inside["inside"])
            except (*UNREADABLE, CorpusError, LookupError, ValueError) as error:
                reason = getattr(error, "strerror", None) or getattr(error, "message", None) or "the image is not in it"
                raise FileNotFoundError(0, f"{file}: {reason}") from error
        elif is_url(path):
            if not self._download:
                raise not_asked_for(path)
            source = ImageSource(path, 0, 0, download=True)
        elif not Path(path).is_file():
            raise FileNotFoundError(0, "there is no such file")
        return ImageItem(key, path, None, None, source)

    def _members(self, file: str) -> Callable[[str], ImageSource]:
        members = index_of(location(file), self._index_folder).members
        return {m.name: ImageSource(file, m.offset, m.length) for m in members if m.content is None}.__getitem__

    def _cells(self, file: str) -> Callable[[str], ImageSource]:
        path = location(file)
        if path.suffix.lower() == ".arrow":
            batches = list(record_batches(path))
            schema, counts = batches[0].schema, [len(batch) for batch in batches]
        else:
            with open_parquet(path) as table:
                schema, counts = table.schema, table.row_counts
        column, ends = image_column(schema, None, path), [0, *accumulate(counts)]
        if column is None:
            raise CorpusError("no column contains images")

        def cell(number: str) -> ImageSource:
            row = int(number)
            group = bisect_right(ends, row) - 1
            if not 0 <= row < ends[-1]:
                raise IndexError(row)
            return ImageSource(file, group, row - ends[group], column, str(path.parent), download=self._download)

        return cell
