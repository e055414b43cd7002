"""Read the images of a store from the paths in its rows: files, members of tars, cells of tables, URLs."""

from __future__ import annotations

import re
from itertools import accumulate
from pathlib import Path

from ..errors import CorpusError
from ..io.locations import is_url, location
from ..io.parquet import UNREADABLE, open_parquet, record_batches
from .images import UrlNotAskedForError
from .items import ImageItem, ImageSource
from .tables import pick_image_column
from .tars import index_of

_INSIDE = re.compile(r"(?P<file>.+?\.(?:tar|parquet|arrow))#(?P<inside>.+)", re.IGNORECASE | re.DOTALL)


class PhotoFinder:
    """Finds images by the path in their row (see `ImageItem.path`); each container is looked into once.

    Args:
        index_folder: where the indexes of tars are kept; None keeps none.
        download: images at URLs may be fetched.
    """

    def __init__(self, index_folder: Path | None = None, *, download: bool = False) -> None:
        self._index_folder, self._download = index_folder, download
        self._members: dict[str, dict[str, ImageSource]] = {}
        self._tables: dict[str, tuple[str, list[int]]] = {}

    def find(self, key: str, path: str | None) -> ImageItem:
        """Return the image, not read yet.

        Raises:
            OSError: if it is not there any more.
            ValueError: if the row has no path, or it is a URL and these are not to be fetched.
        """
        if not path:
            raise ValueError("the row has no path to its photo")
        return ImageItem(key, path, None, None, self._source(path))

    def _source(self, path: str) -> ImageSource | None:
        inside = None if not is_url(path) and Path(path).is_file() else _INSIDE.fullmatch(path)
        if inside is not None:
            file = inside["file"]
            try:
                return (self._member if file.lower().endswith(".tar") else self._cell)(file, inside["inside"])
            except (*UNREADABLE, CorpusError, KeyError, IndexError) as error:
                reason = getattr(error, "strerror", None) or getattr(error, "message", None) or "the image is not in it"
                raise FileNotFoundError(0, f"{file}: {reason}") from error
        if not is_url(path):
            if not Path(path).is_file():
                raise FileNotFoundError(0, "there is no such file")
            return None
        if not self._download:
            raise UrlNotAskedForError(path)
        return ImageSource(path, 0, 0, download=True)

    def _member(self, file: str, name: str) -> ImageSource:
        if file not in self._members:
            members = index_of(location(file), self._index_folder).members
            self._members[file] = {m.name: ImageSource(file, m.offset, m.length) for m in members if m.content is None}
        return self._members[file][name]

    def _cell(self, file: str, number: str) -> ImageSource:
        if file not in self._tables:
            self._tables[file] = _table(location(file))
        column, ends = self._tables[file]
        row = int(number)
        group = next(position for position, end in enumerate([*ends, row + 1]) if row < end)
        if group == len(ends):
            raise IndexError(row)
        first = ends[group - 1] if group else 0
        folder = str(location(file).parent)
        return ImageSource(file, group, row - first, column, folder, download=self._download)


def _table(path: Path) -> tuple[str, list[int]]:
    """Return the column with the images of a table, and the number of the row after each of its groups."""
    if path.suffix.lower() == ".arrow":
        batches = list(record_batches(path))
        schema, counts = batches[0].schema, [batch.num_rows for batch in batches]
    else:
        with open_parquet(path) as table:
            schema, counts = table.schema, table.row_counts
    column = pick_image_column(schema, None, path)
    if column is None:
        raise CorpusError("no column contains images")
    return column, list(accumulate(counts))
