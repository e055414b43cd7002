"""The photos of a store as small squares of pixels, read from the paths in its rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from ...arrays import Pixels
from ...encoders import ImagePreprocessor
from ...errors import GeneratorError
from ...photos.decoding import IMAGE_SECONDS, decode_photos
from ...photos.finder import PhotoFinder
from ...reporter import SILENT, Reporter
from ...store import Rows, Store

_NAMED = 3


@dataclass(frozen=True)
class Photos:
    """Rows of images and their pixels.

    Attributes:
        rows: of the photos that could be read.
        pixels: uint8 (n, pixels, pixels, 3).
        unread: a note that names the first photos that could not be read and counts the others;
            empty if all were.
    """

    rows: Rows
    pixels: Pixels
    unread: str = ""

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.rows)


def read_photos(
    store: Store, rows: Rows, pixels: int, *, download: bool = False, reporter: Reporter = SILENT
) -> Photos:
    """Read the photos of image rows, each resized to its shorter side and cut to a square about its
    middle.

    Args:
        store: that the rows are of.
        rows: of the modality ``image``.
        pixels: height and width of the result.
        download: fetch photos that are at URLs.
        reporter: shows the progress.

    Raises:
        GeneratorError: if none of the photos can be read; the first are named.
        UnreachableError: if the server of a tar or table of photos does not answer.
    """
    paths = list(rows.column("path")) if "path" in rows.table.column_names else [None] * len(rows)
    squares = np.empty((len(rows), pixels, pixels, 3), np.uint8)
    gone: dict[int, str] = {}
    to_square = ImagePreprocessor((partial(_to_square, pixels=pixels),), {"size": pixels})
    with (
        PhotoFinder(store.path, download=download) as finder,
        reporter.progress("Reading photos", len(rows)) as progress,
    ):
        for row, square in decode_photos(finder, paths, to_square, time_limit=IMAGE_SECONDS):
            if isinstance(square, str):
                gone[row] = f"{paths[row] or rows.keys[row]} ({square})"
            else:
                squares[row] = square
            progress.advance()
    listed = "; ".join(gone[row] for row in sorted(gone)[:_NAMED])
    if len(gone) > _NAMED:
        listed += f"; and {len(gone) - _NAMED:,} more"
    if len(gone) == len(rows):
        raise GeneratorError(
            f"None of the {len(rows):,} photos of the store {store.path} can be read: {listed}.",
            remedy="Run this command in the folder that c3 embed was run in, or embed the photos "
            "again. Imported embeddings have no photos.",
        )
    if not gone:
        return Photos(rows, squares)
    readable = np.setdiff1d(np.arange(len(rows)), list(gone))
    return Photos(rows.select(readable), squares[readable], f"Could not read: {listed}")


def _to_square(image: Image.Image, pixels: int) -> Image.Image:
    """Return an RGB image resized to its shorter side and cut to ``pixels`` x ``pixels`` about its
    middle.
    """
    width, height = image.size
    side = min(width, height)
    left = (width - side) // 2
    top = (height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((pixels, pixels), Image.Resampling.LANCZOS, box)
