"""The search for rows of one modality that a store has twice."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Indices, Mask, Matrix, Pixels
from ..corpus.containers import PhotoFinder
from ..corpus.splits import LEFT_OUT, split_order
from ..embedding.decoding import decode_photos
from ..index.codes import cell_count, load_faiss, set_nprobe
from ..index.training import choose_factory
from ..moments import unit_rows
from ..reporter import Reporter, counted
from ..store import Rows, Store
from .agreement import COPY, SAME_SCENE, THUMBNAILS, Photo, agreement
from .groups import Copy, DuplicateGroup, Tier

_NEAREST = 10  # rows of the same modality whose content is compared with that of a row
_EXACT_SEARCH = 50_000  # rows beyond which the nearest are looked for in some of the cells alone
_PROBES = 8  # cells
_TRAINED_PER_CELL = 64  # rows
_SEARCHED_AT_A_TIME = 1_024
_PHOTOS_IN_MEMORY = 1_000
_NO_WORD = re.compile(r"[^\w]+")
_MATCHED = ("exact", "copy")  # tiers whose train rows are left out


@dataclass(frozen=True)
class _Link:
    """Two rows that are alike, by their numbers."""

    first: int
    second: int
    cosine: float
    agreement: float | None


@dataclass(frozen=True)
class _NearPairs:
    """Pairs of different rows of which one is among the nearest of the other.

    Attributes:
        first: numbers of rows: int64 (n,).
        second: numbers of the other rows, each larger than that in ``first``.
        cosines: of the pairs: float32 (n,).
    """

    first: Indices
    second: Indices
    cosines: Matrix

    def take(self, chosen: Indices | Mask) -> _NearPairs:
        """Return some of the pairs."""
        return _NearPairs(self.first[chosen], self.second[chosen], self.cosines[chosen])

    def __iter__(self) -> Iterator[_Link]:
        """Yield the pairs, in the order of their rows."""
        columns = (self.first.tolist(), self.second.tolist(), self.cosines.tolist())
        for first, second, cosine in zip(*columns, strict=True):
            yield _Link(first, second, cosine, None)


class CopySearch:
    """The search for copies among the rows of one modality.

    Args:
        store: that they are of.
        rows: all of them.
    """

    def __init__(self, store: Store, rows: Rows) -> None:
        self.notes: list[str] = []
        self._store = store
        self._rows = rows
        self._unit = unit_rows(rows.embeddings)
        self._splits = rows.splits
        self._order = self._order_of_keeping()
        self._links: dict[int, _Link] = {}  # of each copy to the row that is kept
        self._copies = defaultdict[int, list[int]](list)  # of each kept row
        self._tier: dict[int, Tier] = {}  # of the group of a kept row
        self._candidates: _NearPairs | None = None

    def _order_of_keeping(self) -> list[int]:
        """Return the numbers of the rows, those that would be kept first."""
        rows = self._rows
        pixels = np.zeros(len(rows))
        if {"width", "height"}.issubset(rows.table.column_names):
            sides = [
                np.array([side or 0 for side in rows.column(name)], dtype=np.float64)
                for name in ("width", "height")
            ]
            pixels = sides[0] * sides[1]
        importance = {"test": 0, "val": 1, "train": 3}
        return sorted(
            range(len(rows)),
            key=lambda row: (
                importance.get(self._splits[row], 2),
                -pixels[row],
                rows.keys[row],
            ),
        )

    def find_equal_rows(self) -> None:
        """Group rows of equal files, of equal embeddings, or of texts of equal words."""
        rows = self._rows
        if rows.modality == "text":
            self._group_equal([[_words_of(caption) for caption in rows.captions]])
            return
        digests = self._store.input_digests(rows.modality)
        contents = [
            hashlib.blake2b(embedding.tobytes(), digest_size=16).hexdigest()
            for embedding in rows.embeddings
        ]
        self._group_equal([[digests.get(key, "") for key in rows.keys], contents])

    def _group_equal(self, columns: Sequence[Sequence[str]]) -> None:
        """Group rows that have the same value in one of the columns; an empty one equals none."""
        for values in columns:
            first_row: dict[str, int] = {}
            for row in self._order:
                value = values[row]
                if not value:
                    continue
                kept = self._kept_row(first_row.setdefault(value, row))
                own = self._kept_row(row)
                if own != kept:
                    self._join(own, kept, "exact", None)

    def _kept_row(self, row: int) -> int:
        """Return the row that is kept of the group of a row."""
        return self._links[row].first if row in self._links else row

    def _join(self, row: int, kept: int, tier: Tier, agreed: float | None) -> None:
        """Add a row, with the copies that it has, to the group of another."""
        for member in [row, *self._copies.pop(row, [])]:
            cosine = float(self._unit[member] @ self._unit[kept])
            self._links[member] = _Link(kept, member, cosine, agreed)
            self._copies[kept].append(member)
        self._tier.pop(row, None)
        self._tier[kept] = tier

    def _nearest(self, reporter: Reporter) -> _NearPairs:
        """Return the pairs of different rows that are among the nearest of one of them."""
        if self._candidates is None:
            different = [row for row in range(len(self._rows)) if row not in self._links]
            numbers = np.array(different, dtype=np.int64)
            self._candidates = _nearest_pairs(self._unit, numbers, reporter)
        return self._candidates

    def compare_photos(self, image_timeout: float, workers: int, reporter: Reporter) -> int:
        """Group photos that show the same, and return how many pairs of photos were compared."""
        pairs = self._nearest(reporter)
        wanted = np.union1d(pairs.first, pairs.second)
        thumbnails = self._thumbnails(wanted.tolist(), image_timeout, workers, reporter)
        is_read = np.zeros(len(self._rows), dtype=bool)
        is_read[list(thumbnails)] = True
        pairs = pairs.take(is_read[pairs.first] & is_read[pairs.second])
        agreed = []
        photos: dict[int, Photo] = {}
        with reporter.progress("Comparing photos", len(pairs.first)) as progress:
            for link in pairs:
                if len(photos) > _PHOTOS_IN_MEMORY:
                    photos.clear()
                for row in (link.first, link.second):
                    if row not in photos:
                        photos[row] = Photo(thumbnails[row])
                value = agreement(photos[link.first], photos[link.second])
                if value >= SAME_SCENE:
                    agreed.append(replace(link, agreement=round(value, 3)))
                progress.advance()
        self._add_stars([link for link in agreed if (link.agreement or 0) >= COPY], "copy")
        self._add_stars(agreed, "same scene")
        return len(pairs.first)

    def find_alike(self, cosine: float, reporter: Reporter) -> None:
        """Group rows whose embeddings have at least this cosine."""
        pairs = self._nearest(reporter)
        self._add_stars(pairs.take(pairs.cosines >= cosine), "alike")

    def _add_stars(self, links: Iterable[_Link], tier: Tier) -> None:
        """Group rows around one that is kept: a copy of a copy is no copy of the kept row.

        Rows that are in a group already stay in it.
        """
        neighbours = defaultdict[int, dict[int, _Link]](dict)
        for link in links:
            neighbours[link.first][link.second] = link
            neighbours[link.second][link.first] = link
        free = {row for row in neighbours if row not in self._links and row not in self._tier}
        if tier == "copy":  # a group of equal rows may have copies by content too
            free = {row for row in neighbours if row not in self._links}
        taken: set[int] = set()
        for row in self._order:
            if row not in free or row in taken:
                continue
            members = [other for other in neighbours[row] if other in free and other not in taken]
            taken.update(members, [row] if members else [])
            for other in members:
                self._join(other, row, tier, neighbours[row][other].agreement)

    def _thumbnails(
        self, rows: Sequence[int], image_timeout: float, workers: int, reporter: Reporter
    ) -> dict[int, Pixels]:
        """Return small grey versions of the photos that are still there, by row."""
        paths = self._rows.column("path")
        thumbnails: dict[int, Pixels] = {}
        problems: list[str] = []
        with (
            PhotoFinder(self._store.path) as finder,
            reporter.progress("Reading photos", len(rows)) as progress,
        ):
            for position, photo in decode_photos(
                finder,
                [paths[row] for row in rows],
                THUMBNAILS,
                workers=workers,
                time_limit=image_timeout or None,
            ):
                row = rows[position]
                if isinstance(photo, str):
                    problems.append(f"{self._rows.keys[row]}: {photo}")
                else:
                    thumbnails[row] = photo
                progress.advance()
        if problems:
            self.notes.append(
                f"{counted(len(problems), 'photo')} of {len(rows):,} cannot be read, so their "
                f"content was not compared. The first: {problems[0]}. --cosine lists rows whose "
                "embeddings are alike."
            )
        return thumbnails

    def groups(self) -> list[DuplicateGroup]:
        """Return the groups that were found."""
        members = defaultdict[int, list[_Link]](list)
        for link in self._links.values():
            members[link.first].append(link)
        return [self._group(kept, links) for kept, links in members.items()]

    def _group(self, kept: int, links: Sequence[_Link]) -> DuplicateGroup:
        tier = self._tier[kept]
        keys = self._rows.keys
        is_marked = tier in _MATCHED and self._rows.modality != "text"
        copies = []
        for link in sorted(links, key=lambda link: (-link.cosine, keys[link.second])):
            split = self._splits[link.second]
            if is_marked and split == "train":
                split = LEFT_OUT
            copies.append(Copy(keys[link.second], round(link.cosine, 4), link.agreement, split))
        rows = [kept, *(link.second for link in links)]
        splits = sorted({self._splits[row] for row in rows}, key=split_order)
        return DuplicateGroup(
            self._rows.modality, tier, keys[kept], self._splits[kept], splits, copies
        )

    def column_by_key(self, name: str) -> dict[str, str]:
        """Return a column by the keys of the rows that are in a group, where the rows have it."""
        if name not in self._rows.table.column_names:
            return {}
        column = self._rows.table.column(name)
        in_groups = {row for link in self._links.values() for row in (link.first, link.second)}
        values = {self._rows.keys[row]: column[row].as_py() for row in in_groups}
        return {key: value for key, value in values.items() if value}


def _words_of(text: str) -> str:
    """Return the words of a text without case, punctuation and repeated spaces; a text without
    words as it is.
    """
    words = _NO_WORD.sub(" ", text.casefold()).split()
    return " ".join(words) or text


def _nearest_pairs(unit: Matrix, numbers: Indices, reporter: Reporter) -> _NearPairs:
    """Return the pairs of rows of which one is among the nearest of the other.

    Args:
        unit: rows of length 1, float32 (n, d).
        numbers: of the rows to look at, ascending.
        reporter: shows the progress.
    """
    faiss = load_faiss()
    count = len(numbers)
    dim = unit.shape[1]
    index = faiss.IndexFlatIP(dim)
    if count > _EXACT_SEARCH:
        factory = choose_factory(count, dim)
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        set_nprobe(index, _PROBES)
        step = max(1, count // (_TRAINED_PER_CELL * cell_count(index)))
        index.train(unit[numbers[::step]])
    blocks = [
        slice(start, start + _SEARCHED_AT_A_TIME) for start in range(0, count, _SEARCHED_AT_A_TIME)
    ]
    for block in blocks:
        index.add(unit[numbers[block]])

    # Look for the nearest of each row, and note each pair as a number, so that it can be found
    # again from its other row
    places = np.arange(count)[:, None]
    pair_numbers = [np.empty(0, np.int64)]
    pair_cosines = [np.empty(0, np.float32)]
    with reporter.progress("Looking for the nearest rows", count) as progress:
        for block in blocks:
            cosines, nearest = index.search(unit[numbers[block]], min(_NEAREST + 1, count))
            is_pair = (nearest != places[block]) & (nearest >= 0)
            low = np.minimum(nearest, places[block])
            high = np.maximum(nearest, places[block])
            pair_numbers.append((low * count + high)[is_pair])
            pair_cosines.append(cosines[is_pair])
            progress.advance(len(nearest))
    pairs, rows_of_pairs = np.unique(np.concatenate(pair_numbers), return_index=True)
    first, second = np.divmod(pairs, max(count, 1))
    cosines = np.concatenate(pair_cosines)[rows_of_pairs]
    return _NearPairs(numbers[first], numbers[second], cosines)
