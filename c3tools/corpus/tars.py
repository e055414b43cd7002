"""Images in WebDataset tars: members with one stem are a sample, an image with its captions."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

from ..errors import CorpusError
from ..io.files import MALFORMED
from ..io.limits import LARGEST_TEXT, TooLargeError
from ..io.locations import open_binary
from ..reporter import counted
from .caption_tables import SPLIT_COLUMN, captions_of, pick_text_columns
from .items import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Corpus,
    ImageItem,
    ImageRow,
    ImageSource,
    ReadOptions,
    Refusal,
    as_key,
    as_storable,
    is_hidden,
    is_utf8,
)

_PASSED_OVER = VIDEO_SUFFIXES | AUDIO_SUFFIXES
_MEDIA_SUFFIXES = IMAGE_SUFFIXES | _PASSED_OVER
_TEXT_MEMBERS = ("txt", "caption", "text", "json")
_BLOCK = 512  # bytes of a header in a tar
# the header of a regular file as tar and WebDataset write it: mode, owner and group, size, time,
# checksum, type, then after link, format and names the numbers of a device, and no prefix of a name
_PLAIN_HEADER = re.compile(
    rb"(?s).{100}(?:[0-7]{6}[0-7 ]\0){3}([0-7]{11})[\0 ][0-7]{11}[\0 ]([0-7]{6})\0 [0\0]"
    rb".{172}(?:\0{8}|[0-7]{7}\0){2}\0.{166}"
)
_SPACES_OF_CHECKSUM = 8 * ord(" ")  # the checksum counts its own eight bytes as spaces
_REMEDY = (
    "everything before that point is used; copy the file again, then run the same command again to "
    "add the rest"
)


class _Member(NamedTuple):
    """An image, a video, a sound, a text or JSON in a tar.

    Attributes:
        name: its path in the tar.
        start: where its content begins, in bytes.
        size: of the content, in bytes.
        content: of a text or JSON; None for others.
    """

    name: str
    start: int
    size: int
    content: bytes | None


@dataclass
class _Sample:
    """The members with one stem.

    Attributes:
        image: the member of the image; None if there is none.
        lines: of the texts.
        record: the values of the JSON.
    """

    image: _Member | None = None
    lines: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def read_tar(path: Path, options: ReadOptions, corpus: Corpus) -> Iterator[ImageRow]:
    """Yield the images of a tar in the order of the samples' first members.

    Captions are the lines of ``.txt``, else the text column of ``.json``.

    Raises:
        CorpusError: if ``text_column`` is in none of the samples' ``.json``.
        OSError: if the file cannot be read.
    """
    options.note_use("text_column")
    samples = _samples(path, corpus)
    fields = {name for sample in samples.values() for name in sample.record}
    if options.text_column is not None and samples and options.text_column not in fields:
        present = ", ".join(sorted(fields)) or "none, as there is no .json member"
        raise CorpusError(
            f"No .json member of {path} has {options.text_column!r}. Their fields: {present}.",
            remedy="Choose one of them with --text-column, or leave the option out to use the .txt "
            "members.",
        )
    for key, sample in samples.items():
        if sample.image is None:
            _skip_member(corpus, path, key, Refusal("NoImage", "the sample has no usable image"))
            continue
        captions = sample.lines
        if options.text_column is not None:
            captions = _captions_in(sample.record, [options.text_column], path, key, corpus)
        elif not captions:
            text_columns = pick_text_columns(list(sample.record), None, path)
            captions = _captions_in(sample.record, text_columns, path, key, corpus)
        split = sample.record.get(SPLIT_COLUMN)
        image = ImageItem(
            key=key,
            path=f"{path}#{sample.image.name}",
            split=str(split) if split else None,
            size=sample.image.size,
            source=ImageSource(str(path), sample.image.start, sample.image.size),
            columns=options.kept_columns.values_of(sample.record),
        )
        yield ImageRow(image, captions, image.path)


def _samples(path: Path, corpus: Corpus) -> dict[str, _Sample]:
    """Return the samples of a tar by their stems."""
    samples: dict[str, _Sample] = {}
    passed_over: Counter[str] = Counter()
    for member in _members(path, corpus):
        key, suffix = _split_member(as_key(member.name))
        ending = _ending(suffix)
        if ending in _PASSED_OVER:
            passed_over[ending] += 1
            continue
        sample = samples.setdefault(key, _Sample())
        if member.content is None:
            first = sample.image
            if first is None:
                sample.image = member
                continue
            # a.jpg is the image of its sample, even where a.seg.jpg comes first
            used = first
            second = member
            _, first_suffix = _split_member(first.name)
            if "." not in suffix and "." in first_suffix:
                used = member
                second = first
            sample.image = used
            message = f"the sample already has an image: {used.name}"
            _skip_member(corpus, path, second.name, Refusal("SecondImage", message))
        elif suffix == "json":
            try:
                sample.record = dict(json.loads(member.content).items())
            except MALFORMED as error:
                refusal = Refusal("JSONDecodeError", f"not a JSON object ({error})")
                _skip_member(corpus, path, member.name, refusal)
        else:
            text = member.content.decode("utf-8-sig", errors="surrogateescape")
            lines = [line.strip() for line in text.splitlines()]
            sample.lines += [line for line in lines if line]
    if passed_over:
        members = counted(passed_over.total(), "member")
        corpus.notes.append(
            f"{path}: {members} skipped ({', '.join(sorted(passed_over))}). Videos and audio files "
            f"in tars are not supported: unpack them."
        )
    return samples


def _captions_in(
    record: Mapping[str, Any], columns: Iterable[str], path: Path, key: str, corpus: Corpus
) -> list[str]:
    """Return the captions in the JSON of a sample; what is no text is skipped."""
    name = f"{key}.json"
    try:
        return captions_of(record, columns, f"{path}#{name}")
    except CorpusError as error:
        _skip_member(corpus, path, name, Refusal("CaptionError", error.message))
        return []


def _skip_member(corpus: Corpus, path: Path, name: str, refusal: Refusal) -> None:
    corpus.skip(f"{path.name}#{name}", f"{path}#{name}", refusal.error, refusal.message)


def _split_member(name: str) -> tuple[str, str]:
    """Return key and suffix of a member, as in WebDataset: ``a/b.seg.png`` → ``a/b``, ``seg.png``
    (in lower case).
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _ending(suffix: str) -> str:
    """Return the last part of the suffix of a member: ``seg.png`` → ``.png``."""
    return f".{suffix.rpartition('.')[2]}"


def _members(path: Path, corpus: Corpus) -> Iterator[_Member]:
    """Yield the images, videos, sounds, texts and JSON of a tar.

    It goes from header to header; the contents of images are jumped over.
    """
    with open_binary(path) as file:

        def read_header(size: int) -> bytes:
            if size > LARGEST_TEXT:  # a header may declare any size
                raise TooLargeError(f"a header of {size:,} bytes")
            return file.read(size)

        size = file.seek(0, 2)
        file.seek(0)
        position = 0
        last = "its beginning"
        problem: str | None = None
        try:
            reader: Any = SimpleNamespace(read=read_header, seek=file.seek, tell=file.tell)
            archive = tarfile.TarFile(fileobj=reader)
            while problem is None:
                header = _next_header(file, archive, position)
                if header is None:
                    break
                archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
                if archive.offset <= position or header.size < 0:  # a header that leads back
                    problem = f"damaged after {last}"
                elif header.offset_data + header.size > size:
                    problem = f"truncated in the middle of {as_storable(header.name)}"
                else:
                    position = archive.offset
                    last = as_storable(header.name)
                    yield from _usable_member(path, file, header, corpus)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
            problem = f"damaged or truncated after {last} ({error})"
        if problem is None:
            file.seek(position)
            end = file.read(_BLOCK)
            if not end:
                problem = f"without its end mark, so it may be truncated after {last}"
            elif end.strip(b"\0"):
                problem = f"damaged or truncated after {last}, at byte {position:,} of {size:,}"
    if problem is not None:
        corpus.skip(path.name, str(path), "DamagedTar", f"the tar is {problem}; {_REMEDY}")


def _next_header(file: BinaryIO, archive: tarfile.TarFile, position: int) -> tarfile.TarInfo | None:
    """Return the header at a position, None at the end; the archive then leads to the next one.

    Those that are no plain header of a file are left to `tarfile`, which is slow: long names, pax
    and sparse files, links, folders, whatever is damaged.

    Raises:
        tarfile.TarError: if the tar is damaged.
    """
    # A global header of pax applies to all that follow
    if not archive.pax_headers:
        file.seek(position)
        header = _plain_header(file.read(_BLOCK))
        if header is not None:
            header.offset_data = position + _BLOCK
            blocks = -(-header.size // _BLOCK)
            archive.offset = header.offset_data + blocks * _BLOCK
            return header
    if position > 0:
        # It has read the first header already. Away from the offset, it looks whether the content
        # before it is whole
        archive.firstmember = None  # type: ignore[attr-defined]
        archive.offset = position
        file.seek(position - 1)
    return archive.next()


def _plain_header(block: bytes) -> tarfile.TarInfo | None:
    """Return name and size of a regular file with a plain header; None for any other block."""
    fields = _PLAIN_HEADER.fullmatch(block)
    if fields is None:
        return None
    checksum = sum(block.translate(None, b"\0"))  # zeros add nothing, and most bytes are zeros
    checksum += _SPACES_OF_CHECKSUM - sum(block[148:156])
    if checksum != int(fields[2], 8):
        return None
    name = block[:100].partition(b"\0")[0].decode(tarfile.ENCODING, "surrogateescape")
    if name.endswith("/"):  # a folder, in old tars
        return None
    header = tarfile.TarInfo(name)
    header.size = int(fields[1], 8)
    return header


def _usable_member(
    path: Path, file: BinaryIO, header: tarfile.TarInfo, corpus: Corpus
) -> Iterator[_Member]:
    """Yield a member if it is an image, a video, a sound, a text or JSON that may be read."""
    name = as_storable(header.name).removeprefix("./")
    if any(map(is_hidden, name.split("/"))):
        return
    _, suffix = _split_member(name)
    is_text = suffix in _TEXT_MEMBERS
    parts = header.name.replace("\\", "/").split("/")
    refusal: Refusal | None = None
    if not parts[0] or ".." in parts or parts[0].endswith(":"):
        refusal = Refusal(
            "UnsafePath",
            "the member's path is absolute or leads to a parent folder, and is therefore not read",
        )
    elif header.issym() or header.islnk() or header.isdev():
        refusal = Refusal("NotAFile", "a link, device or pipe in a tar, which is not read")
    elif header.issparse():
        refusal = Refusal("NotAFile", "a sparse member, whose content is not stored in one piece")
    elif not header.isdir() and not is_utf8(header.name):
        refusal = Refusal("UnicodeError", "the member's name is not UTF-8")
    elif is_text and header.size > LARGEST_TEXT:
        refusal = Refusal("TooLarge", f"{header.size:,} bytes are too many for a caption")
    if refusal is not None:
        _skip_member(corpus, path, name, refusal)
        return
    if not header.isreg():
        return
    start = header.offset_data
    if _ending(suffix) in _MEDIA_SUFFIXES:
        yield _Member(name, start, header.size, None)
    elif is_text:
        yield _Member(name, start, header.size, file.read(header.size))
