"""WebDataset tars: members with one stem are one sample (``000.jpg``, ``000.txt``, ``000.json``).

A tar is never unpacked. Its members are found by going from header to header, and that index is kept for the next run.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorpusError
from ..io.files import MALFORMED, write_atomically
from ..io.limits import LARGEST_TEXT, LimitedFile
from ..io.locations import name_or_file, open_binary, version_of
from .captions import SPLIT_COLUMN, captions_of, pick_text_columns
from .items import IMAGE_SUFFIXES, Entry, ImageItem, ImageSource, ReadOptions, Skipped, as_storable
from .splits import split_in_name

_TEXT_MEMBERS = ("txt", "caption", "text", "json")
_BLOCK = 512
_REMEDY = "everything before that is used; copy the file again, then run the same command again to add the rest"


class Member(NamedTuple):
    """A member that is an image, or a text or JSON beside one.

    Attributes:
        name: in the tar.
        offset, length: of its content, in bytes.
        content: of a text or JSON; None for an image.
    """

    name: str
    offset: int
    length: int
    content: bytes | None


class TarIndex(NamedTuple):
    """The members of a tar in their order, and what is not used of it."""

    members: list[Member]
    skipped: list[Skipped]


@dataclass
class _Sample:
    """The members of one stem."""

    image: Member | None = None
    lines: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def read_tar(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of a tar in the order of the samples' first members, and what is not used of it.

    Captions are the lines of ``.txt``, else the text column of ``.json``.

    Raises:
        CorpusError: if ``text_column`` is in none of the samples' ``.json``.
        OSError: if the file cannot be read.
    """
    samples: dict[str, _Sample] = {}
    index = index_of(path, options.index_folder)
    yield from index.skipped
    for member in index.members:
        problem = _add_member(member, samples)
        if problem is not None:
            yield Skipped(f"{path.name}#{member.name}", f"{path}#{member.name}", *problem)
    column = options.text_column
    names = sorted({name for sample in samples.values() for name in sample.record})
    if column is not None and samples and column not in names:
        raise CorpusError(
            f"No .json member of {path} has {column!r}. Their fields: "
            f"{', '.join(names) or 'none, there is no .json member'}.",
            remedy="Choose one of them with --text-column, or leave it out to use the .txt members.",
        )
    for key, sample in samples.items():
        where = f"{path.name}#{key}", f"{path}#{key}"
        if sample.image is None:
            yield Skipped(*where, "NoImage", "the sample has no usable image")
            continue
        name, offset, length, _ = sample.image
        captions = sample.lines
        if column is not None or not captions:
            wanted = column if column in sample.record else None
            texts = pick_text_columns(list(sample.record), wanted, path) if wanted or column is None else ()
            try:
                captions = captions_of(sample.record, texts, where[1])
            except CorpusError as error:
                yield Skipped(f"{where[0]}.json", f"{where[1]}.json", "CaptionError", error.message)
                captions = []
        split = sample.record.get(SPLIT_COLUMN) or split_in_name(path.stem)
        source = ImageSource(str(path), offset, length)
        yield ImageItem(key, f"{path}#{name}", str(split) if split else None, length, source), captions


def _add_member(member: Member, samples: dict[str, _Sample]) -> tuple[str, str] | None:
    """Add a member to its sample; if it cannot be used, return the reason (error, message)."""
    key, suffix = _split_member(member.name)
    sample = samples.setdefault(key, _Sample())
    if member.content is None:
        # a.jpg is the image even where a.seg.jpg comes before it
        if sample.image is not None and ("." in suffix or "." not in _split_member(sample.image.name)[1]):
            return "SecondImage", f"the sample already has an image: {sample.image.name}"
        sample.image = member
    elif suffix != "json":
        text = member.content.decode("utf-8-sig", errors="surrogateescape")
        sample.lines += [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            sample.record = dict(json.loads(member.content).items())
        except MALFORMED as error:
            return "JSONDecodeError", f"not a JSON object ({error})"
    return None


def _split_member(name: str) -> tuple[str, str]:
    """Return key and suffix of a member, as in WebDataset: ``a/b.seg.png`` → ``a/b``, ``seg.png`` (in lower case)."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def index_of(path: Path, folder: Path | None) -> TarIndex:
    """Return the index of a tar: the one kept in ``folder`` if the file is the same still, else a new one.

    Raises:
        OSError: if the tar cannot be read.
    """
    known = None if folder is None else version_of(path)
    if folder is None or known is None:
        return scan(path)
    stored = folder / f"{hashlib.sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"
    with suppress(OSError, pa.ArrowException, *MALFORMED), name_or_file(stored) as source:  # else it is made again
        found = pq.read_table(source)
        header = json.loads((found.schema.metadata or {})[b"c3"])
        if header["file"] == known:
            members = [Member(**row) for row in found.to_pylist()]
            return TarIndex(members, [Skipped(*each) for each in header["skipped"]])
    index = scan(path)
    columns = zip(*index.members, strict=True) if index.members else [()] * 4
    kinds = (pa.string(), pa.int64(), pa.int64(), pa.binary())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    metadata = {"c3": json.dumps({"file": known, "skipped": index.skipped})}
    table = pa.table(arrays, list(Member._fields), metadata=metadata)
    with suppress(OSError):  # an index saves time; nothing depends on it
        write_atomically(stored, partial(pq.write_table, table, compression="zstd"))
    return index


def scan(path: Path) -> TarIndex:
    """Read the headers of a tar, and the contents of its texts; the contents of images are jumped over.

    Raises:
        OSError: if it cannot be read.
    """
    index = TarIndex([], [])
    with open_binary(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        position, last, problem = 0, "its beginning", None
        try:
            archive = tarfile.TarFile(fileobj=LimitedFile(file), mode="r", errorlevel=0)  # type: ignore[arg-type]
            while problem is None and (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
                if archive.offset <= position or member.size < 0:  # a header that leads back
                    problem = f"damaged after {last}"
                elif member.offset_data + member.size > size:
                    problem = f"cut short in the middle of {as_storable(member.name)}"
                else:
                    position, last = archive.offset, as_storable(member.name)
                    name = last.removeprefix("./")
                    suffix = _split_member(name)[1]
                    is_image = f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES
                    refused = _refused(member, is_image)
                    if refused is not None:
                        index.skipped.append(Skipped(f"{path.name}#{name}", f"{path}#{name}", *refused))
                    elif (
                        member.isreg()
                        and (is_image or suffix in _TEXT_MEMBERS)
                        and not name.rpartition("/")[2].startswith(".")
                    ):
                        file.seek(member.offset_data)
                        content = None if is_image else file.read(member.size)
                        index.members.append(Member(name, member.offset_data, member.size, content))
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
        index.skipped.append(Skipped(path.name, str(path), "DamagedTar", f"the tar is {problem}; {_REMEDY}"))
    return index


def _refused(member: tarfile.TarInfo, is_image: bool) -> tuple[str, str] | None:
    """Return why a member is refused (error, message), or None."""
    parts = member.name.replace("\\", "/").split("/")
    if member.name.startswith(("/", "\\")) or ".." in parts or parts[0].endswith(":"):
        return "UnsafePath", "the member's path is absolute or leads to a parent folder; such members are not read"
    if member.issym() or member.islnk() or member.isdev():
        return "NotAFile", "a link, device or pipe in a tar, which is not read"
    if member.issparse():
        return "NotAFile", "a sparse member, whose content is not stored in one piece"
    if not member.isdir() and as_storable(member.name) != member.name:
        return "UnicodeError", "the member's name is not UTF-8"
    if not is_image and member.size > LARGEST_TEXT:
        return "TooLarge", f"{member.size:,} bytes are too many for a caption"
    return None
