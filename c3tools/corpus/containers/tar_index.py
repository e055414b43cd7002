"""Where the members of a tar are: made once by going from header to header, and kept for the next run."""

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

from ...io.locations import name_or_file, open_binary, upload, version_of
from ..images import IMAGE_SUFFIXES
from ..items import Skipped

IMAGE_MEMBERS = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
TEXT_MEMBERS = ("txt", "caption", "text")
LARGEST_TEXT = 2**24
_VERSION = 1
_BLOCK = 512
_REMEDY = "what is before it is used; get the file again, then run the same command: it adds the rest"


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


def index_of(path: Path, folder: Path | None) -> TarIndex:
    """The index of a tar: that in ``folder`` if it is of this version of the file, else made now and put there.

    Raises:
        OSError: if the tar cannot be read.
    """
    if folder is None:
        return scan(path)
    known = version_of(path)
    kept = folder / f"{hashlib.sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"
    index = _load(kept, known)
    if index is None:
        index = scan(path)
        if known is not None:
            _save(index, kept, known)
    return index


def scan(path: Path) -> TarIndex:
    """Read the headers of a tar, and the contents of its texts; the contents of images are jumped over.

    Raises:
        OSError: if it cannot be read.
    """
    index = TarIndex()
    with open_binary(path) as file:
        for found in _members(path, file):
            if isinstance(found, Skipped):
                index.skipped.append(found)
                continue
            name = found.name.removeprefix("./")
            suffix = split_member(name)[1]
            image = suffix.rpartition(".")[2] in IMAGE_MEMBERS
            if not (image or suffix in (*TEXT_MEMBERS, "json")) or name.rpartition("/")[2].startswith("."):
                continue
            if not image and found.size > LARGEST_TEXT:
                message = f"{found.size:,} bytes are more than a caption can have"
                index.skipped.append(Skipped(f"{path.name}#{name}", f"{path}#{name}", "TooLarge", message))
                continue
            content = None
            if not image:
                file.seek(found.offset_data)
                content = file.read(found.size)
            index.members.append(Member(name, found.offset_data, found.size, content))
    return index


def split_member(name: str) -> tuple[str, str]:
    """Key and suffix of a member as WebDataset has them: ``a/b.seg.png`` → ``a/b``, ``seg.png`` (in lower case)."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


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
                problem = f"cut in the middle of {_printable(member.name)}"
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
    parts = member.name.replace("\\", "/").split("/")
    if member.name.startswith(("/", "\\")) or ".." in parts or parts[0].endswith(":"):
        problem = "UnsafePath", "the member's path is absolute or leads upwards; such members are refused"
    elif member.issym() or member.islnk():
        problem = "LinkInTar", "a link in a tar; links are not followed"
    elif member.isdev():
        problem = "NotAFile", "a device or pipe in a tar"
    elif member.issparse():
        problem = "SparseMember", "a sparse member, whose content does not lie in one piece"
    elif not member.isdir() and name != member.name:
        problem = "UnicodeError", "the member's name is not UTF-8"
    else:
        return None
    return Skipped(f"{path.name}#{name}", f"{path}#{name}", *problem)


def _printable(name: str) -> str:
    return name.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _load(kept: Path, known: str | None) -> TarIndex | None:
    """The index that was kept, if it is whole and of this version of the file."""
    try:
        with name_or_file(kept) as source:
            table = pq.read_table(source)
        header = json.loads(table.schema.metadata[b"c3"])
        if known is None or header["version"] != _VERSION or header["file"] != known:
            return None
        columns: list[list[Any]] = [table.column(name).to_pylist() for name in Member._fields]
        return TarIndex([Member(*row) for row in zip(*columns, strict=True)], [Skipped(*s) for s in header["skipped"]])
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None  # not there, or damaged: it is made anew


def _save(index: TarIndex, kept: Path, known: str) -> None:
    header = {"version": _VERSION, "file": known, "skipped": index.skipped}
    kinds = (pa.string(), pa.int64(), pa.int64(), pa.binary())
    columns = {
        name: pa.array([member[position] for member in index.members], type=kind)
        for position, (name, kind) in enumerate(zip(Member._fields, kinds, strict=True))
    }
    table = pa.table(columns).replace_schema_metadata({"c3": json.dumps(header)})
    # an index saves time; nothing depends on it
    with suppress(OSError), tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / kept.name
        pq.write_table(table, temporary, compression="zstd")
        if isinstance(kept, Path):
            kept.parent.mkdir(parents=True, exist_ok=True)
            beside = kept.with_suffix(".tmp")
            shutil.copyfile(temporary, beside)
            beside.replace(kept)
        else:
            upload(temporary, kept)
