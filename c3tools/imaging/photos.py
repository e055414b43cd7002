"""The photos of a store as small squares of pixels, read from the paths in its rows."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..arrays import Pixels
from ..corpus import ImageReader
from ..corpus.photos import PhotoFinder
from ..encoders import open_image
from ..errors import GeneratorError
from ..executors import cores
from ..reporter import SILENT, Reporter
from ..store import Rows, Store

_INDEX_FOLDER = ".inputs"  # of the store: where `c3 embed` keeps the indexes of tars
_NAMED = 3
_CHUNK = 256
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Photos:
    """Rows of images and their pixels.

    Attributes:
        rows: of the photos that could be read.
        pixels: uint8 (n, pixels, pixels, 3).
        unread: a note that names the first photos that could not be read and counts the others; empty if all were.
    """

    rows: Rows
    pixels: Pixels
    unread: str = ""

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.rows)

    def select(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Photos:
        """Return the photos with these numbers, or those for which a mask is true."""
        return Photos(self.rows.select(rows), self.pixels[rows], self.unread)


def read_photos(
    store: Store,
    rows: Rows,
    pixels: int,
    *,
    download: bool = False,
    label: str = "Reading photos",
    reporter: Reporter = SILENT,
) -> Photos:
    """Read the photos of image rows, each resized to its shorter side and cut to a square about its middle.

    Args:
        store: that the rows are of.
        rows: of the modality ``image``.
        pixels: height and width of the result.
        download: fetch photos that are at URLs.
        label: what the progress is called.
        reporter: shows the progress.

    Raises:
        GeneratorError: if none of the photos can be read; the first are named.
    """
    paths = list(rows.column("path")) if "path" in rows.table.column_names else []
    if not any(paths):
        raise GeneratorError(
            f"The store {store.path} has no paths to photos, because its embeddings were imported.",
            remedy="Embed the photos: c3 embed PATH",
        )
    folder = store.path / _INDEX_FOLDER
    finder = PhotoFinder(folder if folder.is_dir() else None, download=download)
    squares = np.empty((len(rows), pixels, pixels, 3), np.uint8)
    kept: list[int] = []
    gone: list[str] = []

    def decode(content: bytes | Exception) -> Pixels | Exception:
        """Return pixels (pixels, pixels, 3), or why there are none."""
        if isinstance(content, Exception):
            return content
        try:
            return np.asarray(to_square(open_image(io.BytesIO(content), (pixels, pixels))[0], pixels))
        except _UNREADABLE as error:
            return error

    with (
        warnings.catch_warnings(),  # around all threads: each would restore what another has set
        ImageReader() as reader,
        ThreadPoolExecutor(cores()) as pool,
        reporter.progress(label, len(rows)) as progress,
    ):
        warnings.simplefilter("ignore")
        for start in range(0, len(rows), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(rows)))
            contents: list[bytes | Exception] = []
            for row in chunk:
                try:
                    contents.append(reader.read(finder.find(rows.keys[row], paths[row])))
                except (OSError, ValueError) as error:
                    contents.append(error)
            for row, decoded in zip(chunk, pool.map(decode, contents), strict=True):
                if isinstance(decoded, Exception):
                    reason = str(getattr(decoded, "strerror", None) or decoded) or type(decoded).__name__
                    gone.append(f"{paths[row] or rows.keys[row]} ({reason})")
                    continue
                squares[len(kept)] = decoded
                kept.append(row)
            progress.advance(len(chunk))
    listed = "; ".join(gone[:_NAMED]) + (f"; and {len(gone) - _NAMED:,} more" if len(gone) > _NAMED else "")
    if not kept:
        raise GeneratorError(
            f"None of the {len(rows):,} photos of the store {store.path} can be read: {listed}.",
            remedy="The store has the paths that c3 embed was given: run this command in the same folder, or embed the "
            "photos again.",
        )
    chosen = rows.select(np.array(kept)) if gone else rows
    return Photos(chosen, squares[: len(kept)], f"Could not read: {listed}" if gone else "")


def to_square(image: Image.Image, pixels: int) -> Image.Image:
    """Return an RGB image resized to its shorter side and cut to ``pixels`` x ``pixels`` about its middle."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((pixels, pixels), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
