"""WebDataset tars: members with one stem are one sample (``000.jpg``, ``000.txt``, ``000.json``).

A tar is never unpacked. Its members are found by going from header to header, and that index is kept for the next run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorpusError
from ..io.limits import LARGEST_TEXT, LimitedFile
from ..io.locations import kind_of, name_or_file, open_binary, upload, version_of
from .captions import SPLIT_COLUMN, captions_of, pick_text_columns, read_captions
from .items import IMAGE_SUFFIXES, Entry, ImageItem, ImageSource, ReadOptions, Skipped, as_storable
from .splits import split_in_name

IMAGE_MEMBERS = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
TEXT_MEMBERS = ("txt", "caption", "text")
_VERSION = 1
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


@dataclass
class TarIndex:
    """The members of a tar in their order, and what is not used of it."""

    members: list[Member] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass
class _Sample:
    """The members of one stem."""

    image: Member | None = None
    lines: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def read_tar(path: Path, options: ReadOptions) -> Iterator[Entry]:
    """Yield the images of a tar in the order of the samples' first members, and what is not used of it.

    Captions are the lines of ``.txt``, else the text column of ``.json``, else the row of the Parquet table beside the
    tar that has the same key (as img2dataset writes it).

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
    beside: dict[str, list[str]] = {}
    table, column = path.with_suffix(".parquet"), options.text_column
    if any(sample.image and not sample.lines for sample in samples.values()) and kind_of(table) == "file":
        with suppress(CorpusError):  # some other table may happen to lie there
            for row in read_captions(table, options):
                if row.key is not None:
                    beside.setdefault(row.key, []).extend(row.captions)
    if column is not None and samples and not beside and all(column not in s.record for s in samples.values()):
        names = sorted({name for sample in samples.values() for name in sample.record})
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
            known = sample.record and (column is None or column in sample.record)
            texts = pick_text_columns(list(sample.record), column, path) if known else ()
            try:
                captions = captions_of(sample.record, texts, where[1]) or beside.get(key, [])
            except CorpusError as error:
                yield Skipped(f"{where[0]}.json", f"{where[1]}.json", "CaptionError", error.message)
                captions = []
        split = sample.record.get(SPLIT_COLUMN) or split_in_name(path.stem)
        source = ImageSource(str(path), offset, length)
        yield ImageItem(key, f"{path}#{name}", str(split) if split else None, length, source), captions


def _add_member(member: Member, samples: dict[str, _Sample]) -> tuple[str, str] | None:
    """Add a member to its sample; if it cannot be used, return the reason (error, message)."""
    key, suffix = split_member(member.name)
    sample = samples.setdefault(key, _Sample())
    if member.content is None:
        # a.jpg is the image even where a.seg.jpg comes before it
        if sample.image is not None and ("." in suffix or "." not in split_member(sample.image.name)[1]):
            return "SecondImage", f"the sample already has an image: {sample.image.name}"
        sample.image = member
    elif suffix != "json":
        text = member.content.decode("utf-8-sig", errors="surrogateescape")
        sample.lines += [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            record = json.loads(member.content)
        except (ValueError, RecursionError) as error:
            return "JSONDecodeError", f"not JSON ({error})"
        if not isinstance(record, dict):
            return "JSONDecodeError", "not a JSON object"
        sample.record = record
    return None


def index_of(path: Path, folder: Path | None) -> TarIndex:
    """Return the index of a tar: the one kept in ``folder`` if the file is the same still, else a new one.

    Raises:
        OSError: if the tar cannot be read.
    """
    if folder is None:
        return scan(path)
    known = version_of(path)
    stored = folder / f"{hashlib.sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"
    index = _load(stored, known)
    if index is None:
        index = scan(path)
        if known is not None:
            _save(index, stored, known)
    return index


def scan(path: Path) -> TarIndex:
    """Read the headers of a tar, and the contents of its texts; the contents of images are jumped over.

    Raises:
        OSError: if it cannot be read.
    """
    index = TarIndex()
    with open_binary(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        position, last, problem = 0, "its beginning", None
        try:
            archive = tarfile.TarFile(fileobj=LimitedFile(file), mode="r", errorlevel=0)  # type: ignore[arg-type]
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
                if archive.offset <= position or member.size < 0:  # a header that leads back
                    problem = f"damaged after {last}"
                    break
                if member.offset_data + member.size > size:
                    problem = f"cut short in the middle of {as_storable(member.name)}"
                    break
                position, last = archive.offset, as_storable(member.name)
                unsafe = _unsafe(path, member)
                if unsafe is not None:
                    index.skipped.append(unsafe)
                elif member.isreg():
                    _add_to_index(index, path, file, member)
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


def _add_to_index(index: TarIndex, path: Path, file: BinaryIO, member: tarfile.TarInfo) -> None:
    name = member.name.removeprefix("./")
    suffix = split_member(name)[1]
    is_image = suffix.rpartition(".")[2] in IMAGE_MEMBERS
    if not (is_image or suffix in (*TEXT_MEMBERS, "json")) or name.rpartition("/")[2].startswith("."):
        return
    if not is_image and member.size > LARGEST_TEXT:
        message = f"{member.size:,} bytes are too many for a caption"
        index.skipped.append(Skipped(f"{path.name}#{name}", f"{path}#{name}", "TooLarge", message))
        return
    content = None
    if not is_image:
        file.seek(member.offset_data)
        content = file.read(member.size)
    index.members.append(Member(name, member.offset_data, member.size, content))


def split_member(name: str) -> tuple[str, str]:
    """Return key and suffix of a member, as in WebDataset: ``a/b.seg.png`` → ``a/b``, ``seg.png`` (in lower case)."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _unsafe(path: Path, member: tarfile.TarInfo) -> Skipped | None:
    """Return why a member is refused, or None."""
    name = as_storable(member.name)
    parts = member.name.replace("\\", "/").split("/")
    if member.name.startswith(("/", "\\")) or ".." in parts or parts[0].endswith(":"):
        problem = "UnsafePath", "the member's path is absolute or leads to a parent folder; such members are not read"
    elif member.issym() or member.islnk():
        problem = "LinkInTar", "a link in a tar; links are not followed"
    elif member.isdev():
        problem = "NotAFile", "a device or pipe in a tar"
    elif member.issparse():
        problem = "SparseMember", "a sparse member, whose content is not stored in one piece"
    elif not member.isdir() and name != member.name:
        problem = "UnicodeError", "the member's name is not UTF-8"
    else:
        return None
    return Skipped(f"{path.name}#{name}", f"{path}#{name}", *problem)


def _load(stored: Path, known: str | None) -> TarIndex | None:
    """Return the stored index if it is complete and belongs to this version of the file."""
    try:
        with name_or_file(stored) as source:
            table = pq.read_table(source)
        header = json.loads(table.schema.metadata[b"c3"])
        if known is None or header["version"] != _VERSION or header["file"] != known:
            return None
        columns: list[list[Any]] = [table.column(name).to_pylist() for name in Member._fields]
        return TarIndex([Member(*row) for row in zip(*columns, strict=True)], [Skipped(*s) for s in header["skipped"]])
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None  # missing or damaged: it is made again


def _save(index: TarIndex, stored: Path, known: str) -> None:
    header = {"version": _VERSION, "file": known, "skipped": index.skipped}
    kinds = (pa.string(), pa.int64(), pa.int64(), pa.binary())
    columns = {
        name: pa.array([member[position] for member in index.members], type=kind)
        for position, (name, kind) in enumerate(zip(Member._fields, kinds, strict=True))
    }
    table = pa.table(columns).replace_schema_metadata({"c3": json.dumps(header)})
    # an index saves time; nothing depends on it
    with suppress(OSError), tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / stored.name
        pq.write_table(table, temporary, compression="zstd")
        if isinstance(stored, Path):
            stored.parent.mkdir(parents=True, exist_ok=True)
            beside = stored.with_suffix(".tmp")
            shutil.copyfile(temporary, beside)
            beside.replace(stored)
        else:
            upload(temporary, stored)
