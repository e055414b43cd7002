"""Images inside other files: the choice of a reader, and lists of paths or URLs.

Nothing is unpacked or copied: an item says where in its file the image is. A reader yields rows of
images with their captions, and skips what cannot be used. `Corpus.merge_rows` makes rows with one
key one image with several captions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from posixpath import splitext

from ..errors import reason_of
from ..io.locations import is_url
from ..reporter import counted
from .caption_tables import CaptionRow, key_of_text, read_captions
from .image_reader import error_without_download, resolve_inside
from .image_tables import has_images, read_image_table, split_of_data_set
from .items import (
    Corpus,
    ImageItem,
    ImageRow,
    ImageSource,
    ReadOptions,
    TextItem,
    as_key,
    key_of_name,
)
from .splits import split_in_name
from .tables import TABLE_SUFFIXES
from .tars import read_tar

_LOOKED_AT = 100  # rows of a list, which may have URLs
_INSIDE = re.compile(r"(?P<file>.+?\.(?:tar|parquet|arrow))#.+", re.IGNORECASE | re.DOTALL)

Reader = Callable[[Path, ReadOptions, Corpus], Iterator[ImageRow]]


def reader_of(path: Path, options: ReadOptions, *, in_image_folder: bool = False) -> Reader | None:
    """Return the function that reads the images of a file; None for a file of texts, or of an
    unknown format.

    A Parquet or Arrow table ``in_image_folder`` is one of images; others are looked into. With
    ``download``, a table with the URLs of images is a list of these.

    Raises:
        CorpusError: if a table that may have URLs cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return read_tar
    is_typed = suffix in (".parquet", ".arrow")
    if is_typed and (in_image_folder or has_images(path, options)):
        return read_image_table
    if suffix in TABLE_SUFFIXES:
        is_list = options.image_column is not None
        if options.download and not is_list:
            rows = read_captions(path, options, images=True)
            is_list = any(row.url for row in islice(rows, _LOOKED_AT))
        if is_list:
            return _read_list
    return None


def split_of_container(path: Path) -> str | None:
    """Return the split that a tar, table or list is named after."""
    return split_of_data_set(path) or split_in_name(path.stem)


def _read_list(path: Path, options: ReadOptions, corpus: Corpus) -> Iterator[ImageRow]:
    """Yield the rows of a list: with the images of ``image_column``, or else those with a URL;
    paths are relative to ``images_root``, or to the list's folder.

    Raises:
        CorpusError: if the list cannot be read or a column is missing.
    """
    paths: dict[str, str] = {}
    rows_of_texts = 0
    for row in read_captions(path, options, images=True):
        name = f"{path.name}#{row.line}"
        place = f"{path}#{row.line}"
        image_name = row.url if options.image_column is None else row.file_name
        if image_name is None:
            # As the rows of text alone among those of LLaVA
            if row.captions and options.captions is None:
                split = corpus.split_of(row.split, split_in_name(path.stem), None)
                for number, caption in enumerate(row.captions):
                    key = key_of_text(row, number, as_key(path.stem))
                    listed_in = str(path) if row.key else None
                    text = TextItem(key, caption, None, split, row.columns, listed_in)
                    corpus.add_text(text, str(path))
                rows_of_texts += 1
            else:
                corpus.skip(name, place, "NullImage", "the row does not name an image")
            continue
        try:
            image = _listed_image(path, row, image_name, options)
            image = image._replace(columns=row.columns, listed_in=str(path))
        except (OSError, ValueError) as error:
            corpus.unread_keys.add(_listed_key(row, image_name, options))
            reason = f"{image_name[:200]}: {reason_of(error)}"
            if isinstance(error, FileNotFoundError) and not Path(image_name).is_absolute():
                root = options.images_root or path.parent
                reason += f" in the folder {root}; --images-root FOLDER chooses another one"
            corpus.skip(name, place, type(error).__name__, reason)
            continue
        paths[image_name] = image.path
        yield ImageRow(image, row.captions, place)
    corpus.note_folders(paths)
    if rows_of_texts:
        corpus.notes.append(
            f"{counted(rows_of_texts, 'row')} of {path} without an image; only their texts are "
            f"embedded."
        )


def _listed_image(path: Path, row: CaptionRow, name: str, options: ReadOptions) -> ImageItem:
    """Return the image that a row of a list names by a path or URL."""
    key = _listed_key(row, name, options)
    if is_url(name):
        if not options.download:
            raise error_without_download(name)
        options.note_use("download")
        return ImageItem(key, name, row.split, size=None, source=ImageSource(name, download=True))
    options.note_use("images_root")
    root = options.images_root or path.parent
    file = resolve_inside(root, name, anywhere=options.follow_symlinks)
    if not isinstance(file, Path):  # size and date of a file behind a URL would cost a request
        return ImageItem(key, str(file), row.split, size=None)
    status = file.stat()
    return ImageItem(key, str(file), row.split, status.st_size, mtime=status.st_mtime_ns)


def container_of(path: str) -> str | None:
    """Return the tar or table that the path of an image (`ImageItem.path`) leads into; None if the
    image is a file of its own.
    """
    is_file = not is_url(path) and Path(path).is_file()
    inside = None if is_file else _INSIDE.fullmatch(path)
    return inside["file"] if inside else None


def _listed_key(row: CaptionRow, name: str, options: ReadOptions) -> str:
    """Return the key of an image that a row of a list names by a path or URL."""
    if row.key:
        return row.key
    if is_url(name):
        # Without scheme, fragment and suffix. The query stays: it may name the image
        without_fragment = name.partition("://")[2].partition("#")[0]
        address, _, query = without_fragment.partition("?")
        stem = splitext(address)[0]
        return f"{stem}?{query}" if query else stem
    root = options.images_root
    if root is not None and Path(name).is_absolute() and Path(name).is_relative_to(root):
        name = Path(name).relative_to(root).as_posix()
    return key_of_name(name)
