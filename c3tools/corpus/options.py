"""How a corpus is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .formats.columns import Wanted


@dataclass(frozen=True)
class ReadOptions:
    """How a corpus is read; every field has the value that suits most.

    Attributes:
        captions: a captions file for the images (path or URL), instead of those found by themselves.
        text_column: the column with the text, where the usual names do not fit.
        image_column: the column with the images, or with their paths or URLs.
        key_column: the column with the keys.
        images_root: the folder that paths in lists and tables start from; that of the list where it is None.
        prefix_keys: put the name of the tar or table before each key, for those whose keys repeat.
        follow_symlinks: follow links and paths out of the corpus.
        download: fetch images that are given by URL.
        index_folder: where the indexes of tars are kept from one run to the next; nowhere where it is None.
    """

    captions: str | Path | None = None
    text_column: str | None = None
    image_column: str | None = None
    key_column: str | None = None
    images_root: Path | None = None
    prefix_keys: bool = False
    follow_symlinks: bool = False
    download: bool = False
    index_folder: Path | None = None

    @property
    def caption_columns(self) -> Wanted:
        """The columns of captions files and of texts that stand alone."""
        return Wanted(text=self.text_column, key=self.key_column)

    @property
    def list_columns(self) -> Wanted:
        """The columns of lists and tables of images."""
        return Wanted(text=self.text_column, image=self.image_column, key=self.key_column)
