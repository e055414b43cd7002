"""Images of a store, found again by the path in their row."""

from __future__ import annotations

from pathlib import Path

from ..corpus.containers import container_of
from ..corpus.image_reader import ImageReader, error_without_download
from ..corpus.image_tables import image_rows
from ..corpus.items import Corpus, ImageItem, ImageSource, ReadOptions
from ..corpus.tars import read_tar
from ..errors import CorpusError, reason_of
from ..io.locations import is_url, location
from ..io.parquet import UNREADABLE


class PhotoFinder(ImageReader):
    """Reads the images of a store again by the path in their row (see `ImageItem.path`).

    Args:
        beside: a store: relative paths that lead nowhere from the current folder start from the
            folder it is in.
        download: images at URLs may be fetched.
    """

    def __init__(self, beside: Path | None = None, *, download: bool = False) -> None:
        super().__init__()
        self._beside = beside
        self._options = ReadOptions(download=download)
        # the images of each tar and table, by their path
        self._containers: dict[str, dict[str, ImageSource | None]] = {}

    def read_again(self, path: str | None) -> bytes:
        """Return the bytes of an image.

        Raises:
            OSError: if it is not there any more, or is at a URL and these are not to be fetched.
            ValueError: if the row has no path.
        """
        return self.read(self.find(path))

    def find(self, path: str | None) -> ImageItem:
        """Return an image by its path, ready to be read; see `read_again`."""
        if not path:
            raise ValueError("the row has no path to its photo")
        container_file = container_of(path)
        file = container_file or path

        # A relative path may start from the folder that the store is in
        if isinstance(self._beside, Path) and not is_url(path):
            folder = self._beside.parent
            if not Path(file).exists() and (folder / file).exists():
                return self.find(str(folder.absolute() / path))

        if container_file:
            try:
                # The images of a tar or table are listed once
                if file not in self._containers:
                    container = location(file)
                    unused = Corpus()  # is told what cannot be used
                    if container.suffix.lower() == ".tar":
                        rows = read_tar(container, self._options, unused)
                        sources = {image.path: image.source for image, _, _ in rows}
                    else:
                        cells = image_rows(container, self._options, unused)
                        sources = {f"{file}#{row.number}": row.cell for row in cells}
                    self._containers[file] = sources
                return ImageItem(path, path, None, None, self._containers[file][path])
            except KeyError as error:
                raise FileNotFoundError(0, f"{file}: the image is missing from it") from error
            except (*UNREADABLE, CorpusError) as error:
                raise FileNotFoundError(0, f"{file}: {reason_of(error)}") from error
        if is_url(path):
            if not self._options.download:
                raise error_without_download(path)
            return ImageItem(path, path, None, None, ImageSource(path, download=True))
        if not Path(path).is_file():
            raise FileNotFoundError(0, "there is no such file")
        return ImageItem(path, path, None, None)
