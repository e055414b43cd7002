"""Images in other files: members of WebDataset tars, cells of Parquet and Arrow tables, lists of
paths or URLs.

Nothing is unpacked or copied: an item says where in its file the image is. A reader yields images
with their captions, and tells the corpus what it leaves out. Rows with one key are one image with
several captions.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from posixpath import splitext
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorpusError, UnreachableError, reason_of
from ..io.files import MALFORMED
from ..io.limits import LARGEST_TEXT, TooLargeError
from ..io.locations import is_url, location, name_or_file, open_binary
from ..io.parquet import UNREADABLE
from ..reporter import counted
from .captions import (
    SPLIT_COLUMN,
    CaptionRow,
    captions_of,
    pick_text_columns,
    read_captions,
    require_column,
)
from .images import ImageReader, cells_of_group, not_asked_for, open_table, resolve_inside
from .items import (
    IMAGE_SUFFIXES,
    Corpus,
    ImageItem,
    ImageSource,
    ReadOptions,
    as_storable,
    is_utf8,
    key_of_name,
)
from .splits import split_in_name
from .tables import IMAGE_KEY, ROLES, pick

_DICTIONARY_FILE = "dataset_dict.json"  # beside the folders of the splits
_DIGITS = 12  # of the checksum of an image, in a key
_LISTS = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})
_TEXT_MEMBERS = ("txt", "caption", "text", "json")
_BLOCK = 512  # bytes of a header in a tar
_REMEDY = (
    "everything before that is used; copy the file again, then run the same command again "
    "to add the rest"
)
_INSIDE = re.compile(r"(?P<file>.+?\.(?:tar|parquet|arrow))#.+", re.IGNORECASE | re.DOTALL)

_Captioned = tuple[ImageItem, list[str]]  # an image and its captions
Reader = Callable[[Path, ReadOptions, Corpus], Iterator[_Captioned]]


def reader_of(path: Path, options: ReadOptions, *, has_images: bool = False) -> Reader | None:
    """Return the function that reads the images of a file; None for a file of texts, or of an
    unknown format.

    A Parquet file that ``has_images`` by its place is not looked into.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet" and not has_images:
        try:
            with name_or_file(path) as source:
                has_images = (
                    _image_column(pq.read_schema(source), options.image_column, path) is not None
                )
        except (*UNREADABLE, CorpusError):  # its reader says why
            has_images = True
    if suffix == ".arrow" or (suffix == ".parquet" and has_images):
        return _read_table
    is_list = suffix in _LISTS and options.image_column is not None
    return _read_tar if suffix == ".tar" else _read_list if is_list else None


def split_of_container(path: Path) -> str | None:
    """Return the split that a tar, table or list is named after."""
    return _dictionary_split(path) or split_in_name(path.stem)


def _dictionary_split(path: Path) -> str | None:
    """Return the split that a table of a Hugging Face DatasetDict is in the folder of."""
    return path.parent.name if (path.parent.parent / _DICTIONARY_FILE).is_file() else None


def _read_tar(path: Path, options: ReadOptions, corpus: Corpus) -> Iterator[_Captioned]:
    """Yield the images of a tar in the order of the samples' first members: members with one stem
    are a sample.

    Captions are the lines of ``.txt``, else the text column of ``.json``.

    Raises:
        CorpusError: if ``text_column`` is in none of the samples' ``.json``.
        OSError: if the file cannot be read.
    """
    lines: dict[str, list[str]] = {}  # by sample, as the others
    images: dict[str, tuple[str, int, int]] = {}
    records: dict[str, dict[str, Any]] = {}
    for name, start, length, content in _members(path, corpus):
        key, suffix = _split_member(name)
        where = f"{path.name}#{name}", f"{path}#{name}"
        lines.setdefault(key, [])
        if content is None:
            # a.jpg is the image even where a.seg.jpg comes before it
            if key in images and ("." in suffix or "." not in _split_member(images[key][0])[1]):
                corpus.skip(
                    *where, "SecondImage", f"the sample already has an image: {images[key][0]}"
                )
            else:
                images[key] = name, start, length
        elif suffix == "json":
            try:
                records[key] = dict(json.loads(content).items())
            except MALFORMED as error:
                corpus.skip(*where, "JSONDecodeError", f"not a JSON object ({error})")
        else:
            text = content.decode("utf-8-sig", errors="surrogateescape")
            lines[key] += filter(None, map(str.strip, text.splitlines()))
    column, names = (
        options.text_column,
        sorted({name for record in records.values() for name in record}),
    )
    if column is not None and lines and column not in names:
        raise CorpusError(
            f"No .json member of {path} has {column!r}. Their fields: "
            f"{', '.join(names) or 'none, there is no .json member'}.",
            remedy="Choose one of them with --text-column, or leave it out to use the .txt "
            "members.",
        )
    for key, of_text in lines.items():
        if key not in images:
            corpus.skip(
                f"{path.name}#{key}", f"{path}#{key}", "NoImage", "the sample has no usable image"
            )
            continue
        name, start, length = images[key]
        record, captions = records.get(key, {}), of_text
        if column is not None or not captions:
            texts = [column] if column is not None else pick_text_columns(list(record), None, path)
            captions = _captions(
                record, texts, (f"{path.name}#{key}.json", f"{path}#{key}.json"), corpus
            )
        split = record.get(SPLIT_COLUMN)
        source = ImageSource(str(path), start, length)
        yield (
            ImageItem(key, f"{path}#{name}", str(split) if split else None, length, source),
            captions,
        )


def _captions(
    record: dict[str, Any], texts: Iterable[str], where: tuple[str, str], corpus: Corpus
) -> list[str]:
    try:
        return captions_of(record, texts, where[1])
    except CorpusError as error:
        corpus.skip(*where, "CaptionError", error.message)
        return []


def _split_member(name: str) -> tuple[str, str]:
    """Return key and suffix of a member, as in WebDataset: ``a/b.seg.png`` → ``a/b``, ``seg.png``
    (in lower case).
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _members(path: Path, corpus: Corpus) -> Iterator[tuple[str, int, int, bytes | None]]:
    """Yield name, start and length of the images of a tar, and of texts and JSON, with the content
    of these.

    It goes from header to header; the contents of images are jumped over.
    """
    with open_binary(path) as file:

        def read(size: int) -> bytes:
            """Read part of a header, which may declare any size."""
            if size > LARGEST_TEXT:
                raise TooLargeError(f"a header of {size:,} bytes")
            return file.read(size)

        limited: Any = SimpleNamespace(read=read, seek=file.seek, tell=file.tell)
        size = file.seek(0, 2)
        file.seek(0)
        position, last, problem = 0, "its beginning", None
        try:
            archive = tarfile.TarFile(fileobj=limited)
            while problem is None and (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
                start = member.offset_data
                if archive.offset <= position or member.size < 0:  # a header that leads back
                    problem = f"damaged after {last}"
                elif start + member.size > size:
                    problem = f"cut short in the middle of {as_storable(member.name)}"
                else:
                    position, last = archive.offset, as_storable(member.name)
                    name = last.removeprefix("./")
                    suffix = _split_member(name)[1]
                    is_image = f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES
                    refused = _refused(member, is_image)
                    if refused is not None:
                        corpus.skip(f"{path.name}#{name}", f"{path}#{name}", *refused)
                    elif member.isreg() and not name.rpartition("/")[2].startswith("."):
                        if is_image:
                            yield name, start, member.size, None
                        elif suffix in _TEXT_MEMBERS:
                            yield name, start, member.size, file.read(member.size)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
            problem = f"damaged or cut short after {last} ({error})"
        if problem is None:
            file.seek(position)
            end = file.read(_BLOCK)
            if not end:
                problem = f"without its end mark, so it may be cut short after {last}"
            elif end.strip(b"\0"):
                problem = f"damaged or cut short after {last}, at byte {position:,} of {size:,}"
    if problem is not None:
        corpus.skip(path.name, str(path), "DamagedTar", f"the tar is {problem}; {_REMEDY}")


def _refused(member: tarfile.TarInfo, is_image: bool) -> tuple[str, str] | None:
    """Return why a member is refused (error, message), or None."""
    parts = member.name.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or parts[0].endswith(":"):
        return (
            "UnsafePath",
            "the member's path is absolute or leads to a parent folder; such members are not read",
        )
    if member.issym() or member.islnk() or member.isdev():
        return "NotAFile", "a link, device or pipe in a tar, which is not read"
    if member.issparse():
        return "NotAFile", "a sparse member, whose content is not stored in one piece"
    if not member.isdir() and not is_utf8(member.name):
        return "UnicodeError", "the member's name is not UTF-8"
    if not is_image and member.size > LARGEST_TEXT:
        return "TooLarge", f"{member.size:,} bytes are too many for a caption"
    return None


def _read_table(path: Path, options: ReadOptions, corpus: Corpus) -> Iterator[_Captioned]:
    """Yield the images of a Parquet or Arrow table.

    A key from the path in an image's cell may be that of several images, since most writers leave
    the folders out. These are compared; no other image is read.

    Raises:
        CorpusError: if it is no such table, or a column is missing.
    """
    folder = _dictionary_split(path)
    stem = f"{folder}/{path.stem}" if folder else path.stem
    images: dict[str, _Captioned] = {}
    renamed: list[str] = []
    digests = lru_cache(2)(_digests)

    def digest(cell: Any) -> str:
        """Return the digest of the image in a cell; that of one that cannot be read is like no
        other.
        """
        known = digests(cell._replace(place=0))
        return (
            known[cell.place]
            if cell.place < len(known)
            else sha256(repr(cell).encode()).hexdigest()
        )

    for number, cell, named, image_path, own_split, captions in _rows(path, options, corpus):
        key = named or (key_of_name(image_path) if image_path else f"{stem}:{number}")
        if not named and key in images and digest(images[key][0].source) != digest(cell):
            key = f"{key}-{digest(cell)[:_DIGITS]}"
            renamed += [key] if key not in images else []
        split = str(own_split) if own_split else None
        item = ImageItem(key, f"{path}#{number}", split, None, cell)
        images.setdefault(key, (item, []))[1].extend(captions)
    yield from images.values()
    if renamed:
        corpus.notes.append(
            f"{path}: {counted(len(renamed), 'image has', 'images have')} the file name of "
            f"another image. Digits of a "
            f"checksum are added to their keys, for example {renamed[0]}. To use other keys, "
            f"choose a column with "
            "--key-column."
        )


def _rows(
    path: Path, options: ReadOptions, corpus: Corpus
) -> Iterator[tuple[int, ImageSource, str, str | None, Any, list[str]]]:
    """Yield the rows of a table: number, cell of the image, key ("": none), path in the cell,
    split, captions.
    """
    opened, first = False, 0
    try:
        with open_table(path) as (schema, read):
            image, has_path, key_column, texts = _columns(path, schema, options)
            names = [name for name in schema.names if name in {key_column, SPLIT_COLUMN, *texts}]
            files = (
                str(options.images_root or path.parent),
                options.follow_symlinks,
                options.download,
            )
            opened = True
            for group, (count, batches) in enumerate(
                read([*names, *([f"{image}.path"] if has_path else [])])
            ):
                place = 0
                try:
                    for batch in batches:
                        cells: Any = batch.column(image) if has_path else None
                        paths = cells.field("path").to_pylist() if has_path else [None] * len(batch)
                        for record, image_path in zip(
                            batch.select(names).to_pylist(), paths, strict=True
                        ):
                            where = f"{path.name}#{first + place}", f"{path}#{first + place}"
                            cell = ImageSource(str(path), group, place, image, *files)
                            key = "" if record.get(key_column) is None else str(record[key_column])
                            named = (
                                key_of_name(key)
                                if key and key_column.lower() in ROLES["image"]
                                else key
                            )
                            captions = _captions(record, texts, where, corpus)
                            yield (
                                first + place,
                                cell,
                                named,
                                image_path,
                                record.get(SPLIT_COLUMN),
                                captions,
                            )
                            place += 1
                except UNREADABLE as error:
                    damaged = f"row group {group} ({counted(count, 'row')}), from row {place} on"
                    message = f"{damaged} cannot be read ({error}); copy the file again"
                    corpus.skip(f"{path.name}#group {group}", str(path), "DamagedTable", message)
                first += count
    except UNREADABLE as error:
        if not opened:
            raise CorpusError(
                f"{path} is not a readable {path.suffix[1:].capitalize()} file "
                f"({reason_of(error)}).",
                remedy="It may be cut short. Copy it again.",
            ) from error
        corpus.skip(path.name, str(path), "DamagedTable", reason_of(error))


def _columns(
    path: Path, schema: pa.Schema, options: ReadOptions
) -> tuple[str, bool, str, tuple[str, ...]]:
    """Return the column of images, whether its cells have paths, the column of keys ("": none),
    those of texts.

    Raises:
        CorpusError: if there is no image column, or a requested column is missing; lists the
            columns of the table.
    """
    image = _image_column(schema, options.image_column, path)
    if image is None:
        raise CorpusError(
            f"{path} has no column with images; its columns are: "
            f"{', '.join(schema.names) or 'none'}.",
            remedy="Choose the column of images, or of their paths or URLs, with --image-column.",
        )
    kinds = {
        field.name: field.type
        for field in schema
        if field.name != image and not _holds_bytes(field.type)
    }
    texts = pick_text_columns(list(kinds), options.text_column, path)
    key = require_column(list(kinds), options.key_column, "--key-column", path)
    if key is None:
        usable = [
            name for name, kind in kinds.items() if _is_text(kind) or pa.types.is_integer(kind)
        ]
        key = pick(usable, *IMAGE_KEY) or ""
    kind = schema.field(image).type
    return (
        image,
        pa.types.is_struct(kind) and any(f.name == "path" and _is_text(f.type) for f in kind),
        key,
        texts,
    )


def _digests(group: ImageSource) -> list[str]:
    """Return the digests of the images of a row group, up to one that cannot be read."""
    digests = []
    try:
        for value in cells_of_group(group):
            digests.append(
                sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()
            )
    except UnreachableError:
        raise
    except Exception:  # a damaged or hostile cell may raise anything, as when images are decoded
        pass
    return digests


def _image_column(schema: pa.Schema, wanted: str | None, path: Path) -> str | None:
    """Return the column that contains images in the file itself: the one wanted, known by name, or
    of bytes and path.

    None if there is none, or if the one wanted contains paths or URLs.

    Raises:
        CorpusError: if the one wanted is missing; names the columns that are.
    """
    if require_column(schema.names, wanted, "--image-column", path) is not None:
        return wanted if _holds_bytes(schema.field(str(wanted)).type) else None
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    structs = [name for name in candidates if pa.types.is_struct(schema.field(name).type)]
    return pick(candidates, "image_bytes") or next(iter(structs), None)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return str(kind) in ("binary", "large_binary", "binary_view")


def _is_text(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _read_list(path: Path, options: ReadOptions, corpus: Corpus) -> Iterator[_Captioned]:
    """Yield the images of a list in its order; paths are relative to ``images_root``, or to the
    list's folder.

    Raises:
        CorpusError: if the list cannot be read or a column is missing.
    """
    images: dict[str, _Captioned] = {}
    paths: dict[str, str] = {}
    for row in read_captions(path, options, images=True):
        where = f"{path.name}#{row.line}", f"{path}#{row.line}"
        if row.file_name is None:
            corpus.skip(*where, "NullImage", "the row does not name an image")
            continue
        try:
            image = _listed_image(path, row, row.file_name, options)
        except (OSError, ValueError) as error:
            corpus.skip(*where, type(error).__name__, f"{row.file_name[:200]}: {reason_of(error)}")
            continue
        paths[row.file_name] = image.path
        known, captions = images.setdefault(image.key, (image, []))
        if known.path == image.path:
            captions.extend(row.captions)
        else:
            message = (
                f"{known.path} has the same key {image.key}; choose another column of keys "
                f"with --key-column"
            )
            corpus.skip(*where, "DuplicateKey", message)
    corpus.note_folders(paths)
    yield from images.values()


def _listed_image(path: Path, row: CaptionRow, name: str, options: ReadOptions) -> ImageItem:
    if is_url(name):
        if not options.download:
            raise not_asked_for(name)
        address, _, query = name.partition("://")[2].partition("#")[0].partition("?")
        key = row.key or splitext(address)[0] + (f"?{query}" if query else "")
        return ImageItem(key, name, row.split, None, ImageSource(name, download=True))
    root = options.images_root
    short = name
    if root is not None and Path(name).is_absolute() and Path(name).is_relative_to(root):
        short = Path(name).relative_to(root).as_posix()
    key = row.key or key_of_name(short)
    file = resolve_inside(root or path.parent, name, anywhere=options.follow_symlinks)
    if not isinstance(file, Path):  # behind a URL each would cost a request
        return ImageItem(key, str(file), row.split, None)
    status = file.stat()
    return ImageItem(key, str(file), row.split, status.st_size, mtime=status.st_mtime_ns)


class PhotoFinder(ImageReader):
    """Reads the images of a store again by the path in their row (see `ImageItem.path`).

    Args:
        beside: a store: relative paths that lead nowhere from the current folder start from the
            folder it is in.
        download: images at URLs may be fetched.
    """

    def __init__(self, beside: Path | None = None, *, download: bool = False) -> None:
        super().__init__()
        self._beside, self._options = beside, ReadOptions(download=download)
        self._containers: dict[str, dict[str, ImageSource]] = {}  # what is in each, by path

    def read_again(self, path: str | None) -> bytes:
        """Return the bytes of an image.

        Raises:
            OSError: if it is not there any more, or is at a URL and these are not to be fetched.
            ValueError: if the row has no path.
        """
        return self.read(self._find(path))

    def _find(self, path: str | None) -> ImageItem:
        if not path:
            raise ValueError("the row has no path to its photo")
        source = None
        inside = None if not is_url(path) and Path(path).is_file() else _INSIDE.fullmatch(path)
        file = inside["file"] if inside else path
        near = self._beside.parent if isinstance(self._beside, Path) and not is_url(path) else None
        if near and not Path(file).exists() and (near / file).exists():
            return self._find(str(near.absolute() / path))
        if inside is not None:
            try:
                if file not in self._containers:
                    place, told = location(file), Corpus()
                    if file.lower().endswith(".tar"):
                        found: Any = {
                            image.path: image.source
                            for image, _ in _read_tar(place, self._options, told)
                        }
                    else:
                        found = {
                            f"{place}#{row}": cell
                            for row, cell, *_ in _rows(place, self._options, told)
                        }
                    self._containers[file] = found
                source = self._containers[file][path]
            except (*UNREADABLE, CorpusError, KeyError) as error:
                reason = (
                    "the image is not in it" if isinstance(error, KeyError) else reason_of(error)
                )
                raise FileNotFoundError(0, f"{file}: {reason}") from error
        elif is_url(path):
            if not self._options.download:
                raise not_asked_for(path)
            source = ImageSource(path, download=True)
        elif not Path(path).is_file():
            raise FileNotFoundError(0, "there is no such file")
        return ImageItem(path, path, None, None, source)
