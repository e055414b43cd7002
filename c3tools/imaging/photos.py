"""The photos of a store as small squares of pixels, read from the paths in its rows."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
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
from ..io.spill import collect_rows, take_rows
from ..reporter import SILENT, Reporter
from ..store import Rows, Store
from ..store.strings import Strings

INDEX_FOLDER = ".inputs"  # of the store: where `c3 embed` keeps the indexes of tars
NAMED = 3
_CHUNK = 256
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Photos:
    """Rows of images and their pixels.

    Attributes:
        rows: of the photos that could be read.
        pixels: uint8 (n, pixels, pixels, 3); of `read_photos` with ``spill`` perhaps a `c3tools.io.spill.FileRows`,
            of which photos are read when they are indexed.
        gone: path and reason of every photo that could not be read.
        notes: what the user should know about them.
    """

    rows: Rows
    pixels: Pixels
    gone: list[tuple[str, str]]
    notes: list[str]

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.rows)

    def select(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Photos:
        """Return the photos with these numbers, or those for which a mask is true."""
        return Photos(self.rows.select(rows), take_rows(self.pixels, rows), self.gone, self.notes)

    @property
    def unread(self) -> list[str]:
        """A note that names the first photos that could not be read and counts the others; none if all were."""
        return _unread(self.gone)


def read_photos(
    store: Store,
    rows: Rows,
    pixels: int,
    *,
    download: bool = False,
    spill: bool = False,
    label: str = "Reading photos",
    reporter: Reporter = SILENT,
) -> Photos:
    """Read the photos of image rows, each resized to its shorter side and cut to a square about its middle.

    Args:
        store: that the rows are of.
        rows: of the modality ``image``.
        pixels: height and width of the result.
        download: fetch photos that are at URLs.
        spill: keep pixels of more than 256 MiB in a temporary file, see `Photos.pixels`.
        label: what the progress is called.
        reporter: shows the progress.

    Raises:
        GeneratorError: if none of the photos can be read; the first are named.
        OutputError: if there is no room for the temporary file.
    """
    paths = rows.strings("path") if "path" in rows.table.column_names else Strings([])
    if not any(paths):
        raise GeneratorError(
            f"The store {store.path} has no paths to photos, because its embeddings were imported.",
            remedy="Embed the photos: c3 embed PATH",
        )
    folder = store.path / INDEX_FOLDER
    finder = PhotoFinder(folder if folder.is_dir() else None, download=download)
    kept: list[int] = []
    gone: list[tuple[str, str]] = []
    small = converted = 0
    keys = rows.keys

    def squares() -> Iterator[Pixels]:
        nonlocal small, converted
        for start in range(0, len(rows), _CHUNK):
            chunk = list(zip(keys[start : start + _CHUNK], paths[start : start + _CHUNK], strict=True))
            contents: list[bytes | Exception] = []
            for key, path in chunk:
                try:
                    contents.append(reader.read(finder.find(key, path)))
                except (OSError, ValueError) as error:
                    contents.append(error)
            done = []
            for row, decoded in enumerate(pool.map(lambda content: _decode(content, pixels), contents)):
                if isinstance(decoded, Exception):
                    key, path = chunk[row]
                    gone.append((path or key, _reason(decoded)))
                    continue
                square, (width, height), is_rgb = decoded
                done.append(square)
                kept.append(start + row)
                small += min(width, height) < pixels
                converted += not is_rgb
            progress.advance(len(contents))
            if done:
                yield np.stack(done)

    with (
        warnings.catch_warnings(),  # around all threads: each would restore what another has set
        ImageReader() as reader,
        ThreadPoolExecutor(cores()) as pool,
        reporter.progress(label, len(rows)) as progress,
    ):
        warnings.simplefilter("ignore")
        found = collect_rows(squares(), (pixels, pixels, 3), np.uint8, spill=spill)
    if not kept:
        listed = "; ".join(f"{path}: {reason}" for path, reason in gone[:NAMED])
        raise GeneratorError(
            f"None of the {len(rows):,} photos of the store {store.path} can be read ({listed}).",
            remedy="The store has the paths that c3 embed was given: run this command in the same folder, or embed the "
            "photos again.",
        )
    notes = _unread(gone)
    if converted:
        notes.append(f"{converted:,} of {len(kept):,} photos are not RGB and are converted.")
    if small:
        notes.append(f"{small:,} of {len(kept):,} photos are smaller than {pixels} x {pixels} and are enlarged.")
    chosen = rows if len(kept) == len(rows) else rows.select(np.array(kept, dtype=np.int64))
    return Photos(chosen, found, gone, notes)


def to_square(image: Image.Image, pixels: int) -> Image.Image:
    """Return an RGB image resized to its shorter side and cut to ``pixels`` x ``pixels`` about its middle."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((pixels, pixels), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def _decode(content: bytes | Exception, pixels: int) -> tuple[Pixels, tuple[int, int], bool] | Exception:
    """Return pixels (pixels, pixels, 3), size of the original, and whether it was RGB; or why there are none."""
    if isinstance(content, Exception):
        return content
    try:
        image, width, height = open_image(io.BytesIO(content), (pixels, pixels))
        with Image.open(io.BytesIO(content)) as file:
            is_rgb = file.mode == "RGB"
        return np.asarray(to_square(image, pixels)), (width, height), is_rgb
    except _UNREADABLE as error:
        return error


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _unread(gone: Sequence[tuple[str, str]]) -> list[str]:
    if not gone:
        return []
    listed = "; ".join(f"{path} ({reason})" for path, reason in gone[:NAMED])
    more = f"; and {len(gone) - NAMED:,} more" if len(gone) > NAMED else ""
    return [f"Could not read: {listed}{more}"]
