"""The search for copies of rows within one modality."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Floats, Indices, Mask, Matrix, Pixels
from ..choices import MarkSplits
from ..corpus.splits import ALL, split_order
from ..index.coder import choose_factory
from ..index.codes import cell_count, load_faiss, on_gpus, set_nprobe
from ..moments import unit_rows
from ..photos.decoding import decode_photos
from ..photos.finder import PhotoFinder
from ..reporter import Reporter, counted
from ..store import Rows, Store
from .agreement import SAME_SCENE, THUMBNAILS, Photo, compare
from .groups import HELD_OUT, MARKED_TIERS, Copy, DuplicateGroup, Tier

_NEAREST = 10  # rows of the same modality whose content is compared with that of a row at a time
_EXACT_SEARCH = 50_000  # rows beyond which a CPU looks for the nearest in some of the cells alone
_PROBES = 8  # cells
_TRAINED_PER_CELL = 64  # rows; with fewer, cells differ more in size and the search takes longer
# Of k-means: more of them find no more copies, and took most of the time for 250,000 rows
_ITERATIONS = 4
_SEARCHED_AT_A_TIME = 1_024
_PHOTOS_IN_MEMORY = 1_000
_NO_WORD = re.compile(r"[^\w]+")


@dataclass(frozen=True)
class CopySearch:
    """The groups of one modality, as the search for copies found them.

    Attributes:
        groups: of rows that are alike.
        compared: pairs of photos whose content was compared.
        notes: what the user should know, such as photos that cannot be read.
    """

    groups: list[DuplicateGroup]
    compared: int
    notes: list[str]


@dataclass(frozen=True)
class _Link:
    """Two rows that are alike, by their numbers.

    Attributes:
        first: number of a row.
        second: number of the other row.
        tier: of the evidence.
        agreement: of photos.
        better: the row that shows what both show on the larger area or without a border; None if
            neither does.
    """

    first: int
    second: int
    tier: Tier
    agreement: float | None = None
    better: int | None = None

    def other(self, row: int) -> int:
        """Return the row that one of the two is linked to."""
        return self.second if row == self.first else self.first


@dataclass(frozen=True)
class _Group:
    """A row that is kept, and the rows that are like it.

    Attributes:
        kept: number of the row.
        tier: of the group.
        agreements: with the kept row, or with another row of test or val that a train row is like,
            by the numbers of the other rows.
    """

    kept: int
    tier: Tier
    agreements: dict[int, float | None]


@dataclass(frozen=True)
class _Precedence:
    """The order in which rows of a modality are kept.

    Attributes:
        splits: of the rows.
        classes: of each row; of two copies that of the lower class is kept: of the split that is
            tested first, then with more captions.
        rank: the place of each row by class, pixels and key: int64 (n,).
    """

    splits: Sequence[str]
    classes: Sequence[tuple[int, int]]
    rank: Indices

    @classmethod
    def of(cls, rows: Rows, captions: Mapping[str, Sequence[str]]) -> _Precedence:
        """Return the order of all rows of a modality, with the captions of each key."""
        pixels = _sides(rows).prod(axis=1)
        importance = {"test": 0, "val": 1, "train": 3}
        classes = [
            (importance.get(split, 2), -len(captions.get(key, ())))
            for key, split in zip(rows.keys, rows.splits, strict=True)
        ]
        order = sorted(
            range(len(rows)), key=lambda row: (classes[row], -pixels[row], rows.keys[row])
        )
        rank = np.empty(len(rows), dtype=np.int64)
        rank[order] = np.arange(len(rows))
        return cls(rows.splits, classes, rank)


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

    def __len__(self) -> int:
        return len(self.first)

    def take(self, chosen: Mask) -> _NearPairs:
        """Return some of the pairs."""
        return _NearPairs(self.first[chosen], self.second[chosen], self.cosines[chosen])


def search_copies(
    store: Store,
    rows: Rows,
    *,
    cosine: float | None,
    mark_splits: MarkSplits,
    image_timeout: float,
    workers: int,
    reporter: Reporter,
) -> CopySearch:
    """Group the rows of one modality that are alike: equal ones, photos that show the same, and
    those whose embeddings have at least a cosine.

    Args:
        store: that the rows are of.
        rows: all rows of a modality.
        cosine: See `find_duplicates`.
        mark_splits: See `find_duplicates`.
        image_timeout: See `embed`.
        workers: Number of processes that decode photos.
        reporter: Shows the progress.
    """
    captions = {} if rows.modality == "text" else _captions_of_media(store)
    precedence = _Precedence.of(rows, captions)

    # Group equal rows. Below, only the kept row of each such group is compared with others
    equal_to = _equal_rows(store, rows, precedence.rank)
    is_kept = equal_to == np.arange(len(rows))
    kept_rows = np.flatnonzero(is_kept)
    equal_rows = defaultdict[int, dict[int, float | None]](dict)
    for row in np.flatnonzero(~is_kept).tolist():
        equal_rows[int(equal_to[row])][row] = None  # their photos are not compared
    groups = [_Group(kept, "exact", agreements) for kept, agreements in equal_rows.items()]

    # Group photos that show the same: copies first, then, of rows in no group, those of one scene
    notes: list[str] = []
    compared = 0
    if rows.modality == "image":
        photos = _PhotoComparison(store, rows, kept_rows, image_timeout, workers, reporter)
        search = _NeighbourSearch(rows.embeddings, photos.numbers, reporter)
        links = _link_until_none_joins(search, precedence, "copy", photos.compare)
        groups = _merged(groups, _group_around_kept(links, precedence, "copy"))
        grouped = _rows_of(groups)
        free_links = [link for link in links if grouped.isdisjoint((link.first, link.second))]
        groups += _group_around_kept(free_links, precedence, "same scene")
        notes = photos.notes
        compared = photos.compared

    # Group rows with similar embeddings, if that is asked for
    if cosine is not None:

        def link_alike(pairs: _NearPairs) -> list[_Link]:
            alike = pairs.take(pairs.cosines >= cosine)
            columns = zip(alike.first.tolist(), alike.second.tolist(), strict=True)
            return [_Link(first, second, "alike") for first, second in columns]

        ungrouped = np.setdiff1d(kept_rows, list(_rows_of(groups)))
        search = _NeighbourSearch(rows.embeddings, ungrouped, reporter)
        links = _link_until_none_joins(search, precedence, "alike", link_alike)
        groups += _group_around_kept(links, precedence, "alike")

    # Name the rows by their keys, and mark those that are to be left out
    named_groups = []
    splits = rows.splits
    for group in groups:
        may_be_marked = group.tier in MARKED_TIERS and rows.modality != "text"
        kept_captions = {_words(caption) for caption in captions.get(rows.keys[group.kept], ())}
        numbers = [group.kept, *group.agreements]
        unit = _unit(rows.embeddings, numbers)
        cosines = unit @ unit[0]  # with the kept row
        copies = []
        for cosine_with_kept, (row, agreement) in zip(
            cosines[1:].tolist(), group.agreements.items(), strict=True
        ):
            leave_out = may_be_marked and (splits[row] == "train" or mark_splits == ALL)
            key = rows.keys[row]
            lost = []
            if leave_out:
                lost = [text for text in captions.get(key, ()) if _words(text) not in kept_captions]
            cosine_shown = round(cosine_with_kept, 4)
            copies.append(Copy(key, cosine_shown, agreement, splits[row], leave_out, lost))
        copies.sort(key=lambda copy: (-copy.cosine, copy.key))
        named_groups.append(
            DuplicateGroup(
                rows.modality,
                group.tier,
                kept=rows.keys[group.kept],
                kept_split=splits[group.kept],
                splits=sorted({splits[row] for row in numbers}, key=split_order),
                copies=copies,
            )
        )
    return CopySearch(named_groups, compared, notes)


def _unit(embeddings: Floats, numbers: Sequence[int] | Indices) -> Matrix:
    """Return the rows with these numbers, divided by their norms: float32 (n, d)."""
    unit = np.empty((len(numbers), embeddings.shape[1]), np.float32)
    for start in range(0, len(numbers), _SEARCHED_AT_A_TIME):
        block = slice(start, start + _SEARCHED_AT_A_TIME)
        unit[block] = unit_rows(embeddings[numbers[block]].astype(np.float32))
    return unit


def _sides(rows: Rows) -> Floats:
    """Return width and height of photos in pixels, 0 if they are not known: float64 (n, 2)."""
    if not {"width", "height"}.issubset(rows.table.column_names):
        return np.zeros((len(rows), 2))
    columns = [[side or 0 for side in rows.column(name)] for name in ("width", "height")]
    return np.array(columns, dtype=np.float64).T


def _captions_of_media(store: Store) -> dict[str, list[str]]:
    """Return the captions of each image, video or sound, by its key."""
    captions = defaultdict[str, list[str]](list)
    if "text" in store.modalities:
        for batch in store.batches("text", ["caption", "image_key"], split=ALL):
            values = (batch.column(name).to_pylist() for name in ("image_key", "caption"))
            for key, caption in zip(*values, strict=True):
                if key and caption:
                    captions[key].append(caption)
    return captions


def _words(caption: str) -> str:
    """Return a caption without case, punctuation and repeated spaces; one without words as it
    is.
    """
    return " ".join(_NO_WORD.sub(" ", caption.casefold()).split()) or caption


def _equal_rows(store: Store, rows: Rows, rank: Indices) -> Indices:
    """Return for each row the one that is kept of those with an equal file, an equal embedding or,
    for texts, equal words: int64 (n,).
    """
    # What makes rows equal, a value for each row: its words, or the digests of its file and its
    # embedding
    columns: list[list[str]] = []
    if rows.modality == "text":
        columns.append([_words(caption) for caption in rows.captions])
    else:
        digests = store.input_digests(rows.modality)
        columns.append([digests.get(key, "") for key in rows.keys])
        columns.append(
            [
                hashlib.blake2b(embedding.tobytes(), digest_size=16).hexdigest()
                for embedding in rows.embeddings
            ]
        )

    # Join the rows of each value (a union-find): a row points to one that is kept before it
    equal_to = list(range(len(rows)))

    def kept_row(row: int) -> int:
        while equal_to[row] != row:
            row = equal_to[row]
        return row

    for values in columns:
        first_row: dict[str, int] = {}
        for row in np.argsort(rank).tolist():
            value = values[row]
            if not value:  # no digest is known
                continue
            kept_for_row = kept_row(row)
            kept_for_value = kept_row(first_row.setdefault(value, row))
            kept = min(kept_for_row, kept_for_value, key=lambda number: rank[number])
            equal_to[kept_for_row] = equal_to[kept_for_value] = kept
    return np.array([kept_row(row) for row in range(len(rows))], dtype=np.int64)


def _link_until_none_joins(
    search: _NeighbourSearch,
    precedence: _Precedence,
    tier: Tier,
    link_pairs: Callable[[_NearPairs], list[_Link]],
) -> list[_Link]:
    """Return the links among the pairs of nearest rows.

    A row may have more copies than the search finds neighbours. So rows that joined a group are
    taken out, and the rows near them are compared with their next neighbours, until none joins.

    Args:
        search: among the rows to link; afterwards, among those that joined no group.
        precedence: of all rows of the modality.
        tier: of the links by which rows join.
        link_pairs: returns the links among pairs.
    """
    links: list[_Link] = []
    compared = np.empty(0, np.int64)  # the numbers of pairs
    count = len(precedence.rank)
    queries = search.numbers
    while len(queries):
        # Compare the pairs that are new. One number stands for both rows of a pair
        pairs = search.pairs(queries)
        pair_numbers = pairs.first * count + pairs.second
        is_new = ~np.isin(pair_numbers, compared)
        compared = np.concatenate([compared, pair_numbers[is_new]])
        links += link_pairs(pairs.take(is_new))

        # Look again for the nearest of the rows that are left and were near one that joined
        has_joined = np.zeros(count, dtype=bool)
        for group in _group_around_kept(links, precedence, tier):
            has_joined[list(group.agreements)] = True
        search.keep(~has_joined)
        if not is_new.any():
            break
        first, second = np.divmod(compared, count)
        near_joined = np.union1d(first[has_joined[second]], second[has_joined[first]])
        queries = near_joined[~has_joined[near_joined]]
    return links


def _group_around_kept(links: Iterable[_Link], precedence: _Precedence, tier: Tier) -> list[_Group]:
    """Group rows by their links of a tier, each around the one that is kept: a copy of a copy is no
    copy of the kept row. A train row joins a group for any row of test or val in it.
    """
    neighbours = defaultdict[int, list[_Link]](list)
    for link in links:
        if link.tier == tier:
            neighbours[link.first].append(link)
            neighbours[link.second].append(link)
    groups: list[_Group] = []
    group_of: dict[int, _Group] = {}
    splits = precedence.splits
    for row in sorted(neighbours, key=lambda number: precedence.rank[number]):
        # Look again if a group was made around a better copy, and this row is no neighbour of it
        while row not in group_of:
            # Rows of test and val come before those of train, so they are in groups by now
            leaks = [link for link in neighbours[row] if splits[link.other(row)] in HELD_OUT]
            if splits[row] == "train" and leaks:
                group = group_of[leaks[0].other(row)]
                group.agreements[row] = leaks[0].agreement
                group_of[row] = group
                break

            # Keep a better copy of the same class, if there is one, or a better copy of that
            kept = row
            passed = {row}
            while True:
                better = {link.better for link in neighbours[kept]}.difference(passed, group_of)
                better_of_class = [
                    number
                    for number in better
                    if number is not None and precedence.classes[number] == precedence.classes[row]
                ]
                if not better_of_class:
                    break
                kept = min(better_of_class, key=lambda number: precedence.rank[number])
                passed.add(kept)

            # Its neighbours that are in no group yet make a group with it
            agreements = {link.other(kept): link.agreement for link in neighbours[kept]}
            members = {other: value for other, value in agreements.items() if other not in group_of}
            if not members:
                break
            group = _Group(kept, tier, members)
            groups.append(group)
            group_of |= dict.fromkeys([kept, *members], group)
    return groups


def _merged(equal: Sequence[_Group], copies: Sequence[_Group]) -> list[_Group]:
    """Return groups of copies with the rows that are equal to these, and the other groups of equal
    rows.
    """
    equal_rows = {group.kept: group.agreements for group in equal}
    merged = []
    for group in copies:
        agreements = equal_rows.pop(group.kept, {}) | group.agreements
        for row, agreement in group.agreements.items():
            agreements |= dict.fromkeys(equal_rows.pop(row, {}), agreement)
        merged.append(_Group(group.kept, group.tier, agreements))
    return merged + [group for group in equal if group.kept in equal_rows]


def _rows_of(groups: Iterable[_Group]) -> set[int]:
    """Return the numbers of the rows that are in a group."""
    rows: set[int] = set()
    for group in groups:
        rows.update(group.agreements, [group.kept])
    return rows


class _PhotoComparison:
    """The comparison of photos in what they show.

    Attributes:
        numbers: of the rows whose photos can be read, ascending: int64 (n,).
        compared: pairs of photos so far.
        notes: on photos that cannot be read.
    """

    def __init__(
        self,
        store: Store,
        rows: Rows,
        numbers: Indices,
        image_timeout: float,
        workers: int,
        reporter: Reporter,
    ) -> None:
        self.compared = 0
        self.notes: list[str] = []
        self._reporter = reporter
        self._thumbnails: dict[int, Pixels] = {}  # by row
        self._longer_sides = _sides(rows).max(axis=1)
        paths = rows.column("path")
        row_numbers = numbers.tolist()
        problems: list[str] = []
        with (
            PhotoFinder(store.path) as finder,
            reporter.progress("Reading photos", len(row_numbers)) as progress,
        ):
            for position, photo in decode_photos(
                finder,
                [paths[row] for row in row_numbers],
                THUMBNAILS,
                workers=workers,
                time_limit=image_timeout or None,
            ):
                row = row_numbers[position]
                if isinstance(photo, str):
                    problems.append(f"{rows.keys[row]}: {photo}")
                else:
                    self._thumbnails[row] = photo
                progress.advance()
        self.numbers = np.array(sorted(self._thumbnails), dtype=np.int64)
        if problems:
            self.notes.append(
                f"{counted(len(problems), 'photo')} of {len(numbers):,} cannot be read, so their "
                f"content was not compared. The first: {problems[0]}. --cosine lists rows with "
                f"similar embeddings."
            )

    def compare(self, pairs: _NearPairs) -> list[_Link]:
        """Return the links between photos that are copies or show the same scene."""
        links = []
        photos: dict[int, Photo] = {}
        self.compared += len(pairs)
        with self._reporter.progress("Comparing pairs of photos", len(pairs)) as progress:
            for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
                if len(photos) > _PHOTOS_IN_MEMORY:
                    photos.clear()
                for row in (first, second):
                    if row not in photos:
                        photos[row] = Photo(self._thumbnails[row])
                comparison = compare(photos[first], photos[second])
                if comparison.agreement >= SAME_SCENE:
                    tier: Tier = "same scene"
                    better = None
                    if comparison.is_copy:
                        tier = "copy"
                        sides = (self._longer_sides[first], self._longer_sides[second])
                        place = comparison.better(sides) if all(sides) else None
                        better = None if place is None else (first, second)[place]
                    agreement = round(comparison.agreement, 3)
                    links.append(_Link(first, second, tier, agreement, better))
                progress.advance()
        return links


class _NeighbourSearch:
    """The search for the nearest neighbours of rows, among rows that become fewer.

    Args:
        embeddings: all rows of the modality, as the store has them: (n, d).
        numbers: of the rows to look at, ascending: int64.
        reporter: shows the progress.
    """

    def __init__(self, embeddings: Floats, numbers: Indices, reporter: Reporter) -> None:
        self.numbers = numbers
        self._embeddings = embeddings
        self._reporter = reporter
        self._is_indexed = np.zeros(len(embeddings), dtype=bool)
        faiss = load_faiss()
        count = len(numbers)
        dim = embeddings.shape[1]
        exact = faiss.IndexFlatIP(dim)
        # Without GPUs, `on_gpus` returns the index that it was given
        self._is_on_gpus = count > _EXACT_SEARCH and on_gpus(exact) is not exact
        if count <= _EXACT_SEARCH or self._is_on_gpus:
            self._index = faiss.IndexIDMap2(exact)
        else:
            factory = choose_factory(count, dim)
            self._index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
            set_nprobe(self._index, _PROBES)

            # Train the cells on a sample of the rows
            inverted_lists = faiss.extract_index_ivf(self._index)
            inverted_lists.cp.niter = _ITERATIONS
            step = max(1, count // (_TRAINED_PER_CELL * cell_count(self._index)))
            sample = _unit(embeddings, numbers[::step])
            if isinstance(self._index, faiss.IndexIVFScalarQuantizer):
                # The cells alone: nothing is learned for float16, and FAISS would copy the sample
                # twice for it. `train` only notes then that the index is trained
                pointer = faiss.swig_ptr(sample)
                inverted_lists.train_q1(len(sample), pointer, False, faiss.METRIC_INNER_PRODUCT)
                sample = sample[:1]
            self._index.train(sample)
            del sample  # before the rows are added
        self.keep(np.ones(len(embeddings), dtype=bool))

    def keep(self, is_left: Mask) -> None:
        """Look from now on only among some of the rows: bool (n,)."""
        is_wanted = np.zeros(len(is_left), dtype=bool)
        is_wanted[self.numbers] = is_left[self.numbers]
        if self._is_on_gpus:
            # Rows cannot be removed there, so the index is made again, which numbers rows anew
            self._index_rows = np.flatnonzero(is_wanted)
            exact = load_faiss().IndexFlatIP(self._embeddings.shape[1])
            for start in range(0, len(self._index_rows), _SEARCHED_AT_A_TIME):
                block = self._index_rows[start : start + _SEARCHED_AT_A_TIME]
                exact.add(_unit(self._embeddings, block))
            self._index = on_gpus(exact)
            self._is_indexed = is_wanted
            return

        # Elsewhere, change only what differs
        removed = np.flatnonzero(self._is_indexed & ~is_wanted)
        if len(removed):
            self._index.remove_ids(removed)
        added = np.flatnonzero(is_wanted & ~self._is_indexed)
        for start in range(0, len(added), _SEARCHED_AT_A_TIME):
            block = added[start : start + _SEARCHED_AT_A_TIME]
            self._index.add_with_ids(_unit(self._embeddings, block), block)
        self._is_indexed = is_wanted

    def pairs(self, queries: Indices) -> _NearPairs:
        """Return the pairs of some rows and their nearest rows."""
        # Note each pair as one number, which is the same from either of its rows
        count = len(self._embeddings)
        hits = min(_NEAREST + 1, int(self._is_indexed.sum()))  # of each query, itself among them
        pair_numbers = [np.empty(0, np.int64)]
        pair_cosines = [np.empty(0, np.float32)]
        with self._reporter.progress("Looking for the nearest rows", len(queries)) as progress:
            for start in range(0, len(queries), _SEARCHED_AT_A_TIME):
                block = queries[start : start + _SEARCHED_AT_A_TIME, None]
                unit = _unit(self._embeddings, block[:, 0])
                cosines, nearest = self._index.search(unit, hits)
                if self._is_on_gpus:
                    nearest = np.where(nearest < 0, -1, self._index_rows[nearest])
                is_pair = (nearest != block) & (nearest >= 0)  # -1: FAISS found fewer
                numbers = np.minimum(nearest, block) * count + np.maximum(nearest, block)
                pair_numbers.append(numbers[is_pair])
                pair_cosines.append(cosines[is_pair])
                progress.advance(len(block))
        pairs, places = np.unique(np.concatenate(pair_numbers), return_index=True)
        first, second = np.divmod(pairs, max(count, 1))
        return _NearPairs(first, second, np.concatenate(pair_cosines)[places])
