"""Captions and text files: one module per format behind one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import CorpusError
from ...io.locations import kind_of
from ..items import CaptionRow
from . import coco, jsonl, parquet, plain, separated
from .columns import Wanted

Reader = Callable[[Path, Wanted], Iterator[CaptionRow]]

READERS: dict[str, Reader] = {
    ".json": coco.read,
    ".jsonl": jsonl.read,
    ".csv": separated.read,
    ".tsv": separated.read,
    ".parquet": parquet.read,
    ".txt": plain.read,
}


def read_captions(path: Path, wanted: Wanted | None = None) -> Iterator[CaptionRow]:
    """Rows of a captions or text file, by its suffix.

    Args:
        wanted: the columns to use, where the format has columns and the usual names do not fit.

    Raises:
        CorpusError: if the file is missing, of an unknown format, unreadable, or has no such column.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise CorpusError(
            f"{path} has no known text format.",
            remedy=f"Known are: {', '.join(READERS)}, .tar, .arrow, and folders of these or of images.",
        )
    if kind_of(path) != "file":
        raise CorpusError(f"There is no file {path}.")
    try:
        yield from reader(path, wanted or Wanted())
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror or error}).") from error
