"""WebDataset tars: members with one stem are one sample (``000.jpg``, ``000.txt``, ``000.json``).

The headers are read from one to the next and the contents of images skipped, so a tar is indexed without being
unpacked. Nothing in it is ever written to the disk.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ...errors import CorpusError
from ...locations import kind_of, open_binary
from ..formats import read_captions
from ..formats.columns import SPLIT_COLUMN, Wanted, captions_of, pick_text_columns
from ..images import IMAGE_SUFFIXES
from ..items import Sample, Skipped
from ..options import ReadOptions
from ..places import ByteRange
from ..splits import split_in_name

IMAGE_MEMBERS = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
TEXT_MEMBERS = ("txt", "caption", "text")
LARGEST_TEXT = 2**24
_BLOCK = 512
_REMEDY = "what is before it is used; get the file again, then run the same command: it adds the rest"


@dataclass
class _Draft:
    """A sample while its members come in."""

    image: tuple[str, int, int] | None = None  # name, offset, length
    lines: list[str] | None = None
    record: dict[str, object] = field(default_factory=dict)


def read(path: Path, options: ReadOptions) -> Iterator[Sample | Skipped]:
    """The samples of a tar in the order of their first members, and what is not used of it.

    Captions are the lines of ``.txt``, else the text column of ``.json``, else the row of the Parquet table beside the
    tar that has the same key (as img2dataset writes it).

    Raises:
        CorpusError: if ``text_column`` is in none of the samples' ``.json``.
        OSError: if the file cannot be read.
    """
    drafts: dict[str, _Draft] = {}
    with open_binary(path) as file:
        for found in _members(path, file):
            if isinstance(found, Skipped):
                yield found
                continue
            skipped = _take(path, file, found, drafts)
            if skipped is not None:
                yield skipped
    beside = _captions_beside(path, options) if any(_bare(draft) for draft in drafts.values()) else {}
    if options.text_column is not None and drafts:
        _require_text_column(path, drafts, options.text_column, beside)
    for key, draft in drafts.items():
        if draft.image is None:
            name = f"{path.name}#{key}"
            yield Skipped(name, f"{path}#{key}", "NoImage", "the sample has no image that can be used")
            continue
        name, offset, length = draft.image
        try:
            captions = _captions(draft, options, beside.get(key, []), where=f"{path}#{key}.json")
        except CorpusError as error:
            yield Skipped(f"{path.name}#{key}.json", f"{path}#{key}.json", "CaptionError", error.message)
            captions = []
        split = draft.record.get(SPLIT_COLUMN) or split_in_name(path.stem)
        place = ByteRange(str(path), offset, length)
        yield Sample(key, f"{path}#{name}", length, place, captions, str(split) if split else None)


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo | Skipped]:
    """Regular members, header by header; what is unsafe, and where the tar is cut."""
    size = file.seek(0, 2)
    file.seek(0)
    position, last = 0, "its beginning"
    problem: str | None = None
    try:
        archive = tarfile.TarFile(fileobj=file, mode="r", errorlevel=0)
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
            if archive.offset <= position or member.size < 0:  # a header that leads back
                problem = f"damaged after {last}"
                break
            if member.offset_data + member.size > size:
                position, problem = size, f"cut in the middle of {_printable(member.name)}"
                break
            position, last = archive.offset, _printable(member.name)
            unsafe = _unsafe(path, member)
            if unsafe is not None:
                yield unsafe
            elif member.isreg():
                yield member
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        problem = f"damaged or cut after {last} ({error})"
    if problem is None:
        file.seek(position)
        end = file.read(_BLOCK)
        if not end:
            problem = f"without its end mark, so it may be cut after {last}"
        elif end.strip(b"\0"):
            problem = f"damaged or cut after {last}, at byte {position:,} of {size:,}"
    if problem is not None:
        yield Skipped(path.name, str(path), "DamagedTar", f"the tar is {problem}; {_REMEDY}")


def _unsafe(path: Path, member: tarfile.TarInfo) -> Skipped | None:
    """A member that is not looked at, and why."""
    name = _printable(member.name)
    where = f"{path.name}#{name}", f"{path}#{name}"
    parts = PurePosixPath(member.name.replace("\\", "/")).parts
    if parts and (parts[0].startswith("/") or ".." in parts or parts[0].endswith(":")):
        return Skipped(*where, "UnsafePath", "the member's path is absolute or leads upwards; such members are refused")
    if member.issym() or member.islnk():
        return Skipped(*where, "LinkInTar", "a link in a tar; links are not followed")
    if member.isdev():
        return Skipped(*where, "NotAFile", "a device or pipe in a tar")
    if member.issparse():
        return Skipped(*where, "SparseMember", "a sparse member, whose content does not lie in one piece")
    if not member.isdir() and name != member.name:
        return Skipped(*where, "UnicodeError", "the member's name is not UTF-8")
    return None


def _take(path: Path, file: BinaryIO, member: tarfile.TarInfo, drafts: dict[str, _Draft]) -> Skipped | None:
    """Put a member to its sample; why it cannot be used, where it cannot."""
    name = member.name.removeprefix("./")
    key, suffix = split_member(name)
    kind = suffix.rpartition(".")[2]
    known = kind in IMAGE_MEMBERS or suffix in (*TEXT_MEMBERS, "json")
    if not known or PurePosixPath(name).name.startswith("."):
        return None
    where = f"{path.name}#{name}", f"{path}#{name}"
    draft = drafts.setdefault(key, _Draft())
    if kind in IMAGE_MEMBERS:
        if draft.image is not None and not _plainer(suffix, split_member(draft.image[0])[1]):
            return Skipped(*where, "SecondImage", f"the sample has an image already: {draft.image[0]}")
        draft.image = name, member.offset_data, member.size
        return None
    if member.size > LARGEST_TEXT:
        return Skipped(*where, "TooLarge", f"{member.size:,} bytes are more than a caption can have")
    file.seek(member.offset_data)
    content = file.read(member.size)
    if suffix != "json":
        text = content.decode("utf-8-sig", errors="surrogateescape")
        draft.lines = (draft.lines or []) + [line.strip() for line in text.splitlines() if line.strip()]
        return None
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        return Skipped(*where, "JSONDecodeError", f"not JSON ({error})")
    if not isinstance(record, dict):
        return Skipped(*where, "JSONDecodeError", "not a JSON object")
    draft.record = record
    return None


def split_member(name: str) -> tuple[str, str]:
    """Key and suffix of a member as WebDataset has them: ``a/b.seg.png`` → ``a/b``, ``seg.png`` (in lower case)."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _plainer(suffix: str, present: str) -> bool:
    return "." not in suffix and "." in present


def _bare(draft: _Draft) -> bool:
    return draft.image is not None and draft.lines is None and not draft.record


def _captions(draft: _Draft, options: ReadOptions, beside: list[str], where: str) -> list[str]:
    if options.text_column is None and draft.lines is not None:
        return draft.lines
    wanted = options.text_column if options.text_column in draft.record else None
    texts = pick_text_columns(list(draft.record), wanted, Path(where)) if draft.record else ()
    if options.text_column is not None and wanted is None:
        texts = ()
    return captions_of(draft.record, texts, where) if texts else beside


def _require_text_column(path: Path, drafts: dict[str, _Draft], column: str, beside: dict[str, list[str]]) -> None:
    if not beside and not any(column in draft.record for draft in drafts.values()):
        names = sorted({name for draft in drafts.values() for name in draft.record})
        raise CorpusError(
            f"No .json in {path} has {column!r}; they have: {', '.join(names) or 'nothing, there is none'}.",
            remedy="Name one of them with --text-column, or leave it out to use the .txt members.",
        )


def _captions_beside(path: Path, options: ReadOptions) -> dict[str, list[str]]:
    """Captions by key from the table that img2dataset writes beside a tar."""
    table = path.with_suffix(".parquet")
    if kind_of(table) != "file":
        return {}
    captions: dict[str, list[str]] = {}
    try:
        for row in read_captions(table, Wanted(text=options.text_column, key=options.key_column)):
            if row.key is not None:
                captions.setdefault(row.key, []).extend(row.captions)
    except CorpusError:  # some other table that happens to lie there
        return {}
    return captions


def _printable(name: str) -> str:
    return name.encode("utf-8", errors="backslashreplace").decode("utf-8")
