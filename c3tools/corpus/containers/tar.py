"""WebDataset tars: members with one stem are one sample (``000.jpg``, ``000.txt``, ``000.json``).

A tar is indexed without being unpacked. Nothing in it is ever written to the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import CorpusError
from ...io.locations import kind_of
from ..formats import read_captions
from ..formats.columns import SPLIT_COLUMN, Wanted, captions_of, pick_text_columns
from ..items import Sample, Skipped
from ..options import ReadOptions
from ..places import ByteRange
from ..splits import split_in_name
from .tar_index import Member, index_of, split_member


@dataclass
class _Draft:
    """A sample while its members come in."""

    image: Member | None = None
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
    index = index_of(path, options.index_folder)
    yield from index.skipped
    for member in index.members:
        skipped = _take(path, member, drafts)
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
        name, offset, length, _ = draft.image
        try:
            captions = _captions(draft, options, beside.get(key, []), where=f"{path}#{key}.json")
        except CorpusError as error:
            yield Skipped(f"{path.name}#{key}.json", f"{path}#{key}.json", "CaptionError", error.message)
            captions = []
        split = draft.record.get(SPLIT_COLUMN) or split_in_name(path.stem)
        place = ByteRange(str(path), offset, length)
        yield Sample(key, f"{path}#{name}", length, place, captions, str(split) if split else None)


def _take(path: Path, member: Member, drafts: dict[str, _Draft]) -> Skipped | None:
    """Put a member to its sample; why it cannot be used, where it cannot."""
    where = f"{path.name}#{member.name}", f"{path}#{member.name}"
    key, suffix = split_member(member.name)
    draft = drafts.setdefault(key, _Draft())
    if member.content is None:
        if draft.image is not None and not _plainer(suffix, split_member(draft.image.name)[1]):
            return Skipped(*where, "SecondImage", f"the sample has an image already: {draft.image.name}")
        draft.image = member
        return None
    if suffix != "json":
        text = member.content.decode("utf-8-sig", errors="surrogateescape")
        draft.lines = (draft.lines or []) + [line.strip() for line in text.splitlines() if line.strip()]
        return None
    try:
        record = json.loads(member.content)
    except (ValueError, RecursionError) as error:
        return Skipped(*where, "JSONDecodeError", f"not JSON ({error})")
    if not isinstance(record, dict):
        return Skipped(*where, "JSONDecodeError", "not a JSON object")
    draft.record = record
    return None


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
