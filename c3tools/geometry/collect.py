"""Read what the measures of two modalities need: exact moments, and one seeded sample of items in
memory.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from ..arrays import Array, Floats, Indices
from ..corpus.splits import ALL
from ..errors import StoreError
from ..moments import Moments, unit_rows
from ..reporter import SILENT, Progress, Reporter, counted
from ..seeds import generator
from ..store import Pairs, Rows, Store, embedding_matrix
from ..transforms.fitting import BUNDLED, LOADED, fitting_moments

MIN_ROWS = 3
MAX_ITEMS, MAX_ROWS = 100_000, 200_000
"""Largest sample: items, and rows of the second modality."""
EXACT_SCORES, EXACT_ROWS = 400_000_000, 100_000
"""With at most so many cosines and rows, all rows are compared with all others, else those of a
part of the items."""
PART_ITEMS, PART_ROWS = 2_500, 12_500
EXACT_VALUES = 2**25
"""Up to so many values are computed in float64, more in float32 with sums in float64."""
GROUP_PAIRS = 100
_BLOCK_ROWS = 2_000
NORM_TOLERANCE = 1e-3
"""Largest distance of a norm from 1 in a store of normalised rows: rounding to float16 explains
half of it."""
_NAMED_KEYS = 5
_SOURCES = {LOADED: "loaded moments", BUNDLED: "the moments bundled with c3-mini"}
_EQUAL_DIGITS = 6  # of means of equal rows, which rounding may set apart


@dataclass(frozen=True)
class PairSums:
    """The results of one pass over the pairs.

    Attributes:
        cosines: float64 (k,), of every pair.
        distances: float64 (k,), of every pair.
        mean: float64 (d,), mean of ``first - second``.
        variance: float64 (d,), its variance.
        group_means: float64 (g, d), its means over groups of consecutive pairs.
    """

    cosines: Array
    distances: Array
    mean: Array
    variance: Array
    group_means: Array


@dataclass
class Sample:
    """L2-normalised rows in memory: items, and all rows of the other modality that belong to them.

    Attributes:
        first: (m, d), one row per item; float64 if the store has few rows, else float32.
        second: (k, d).
        item_index: int64 (k,), the row of ``first`` that each row of ``second`` belongs to; empty
            without pairs.
        complete: whether it has every paired row, or every row where nothing is paired.
    """

    first: Floats
    second: Floats
    item_index: Indices
    complete: bool

    @property
    def paired(self) -> bool:
        """True if the rows are pairs."""
        return len(self.item_index) > 0

    @property
    def items(self) -> tuple[Indices, Indices]:
        """The item of each row, int64 (m,) and (k,); without pairs, each row is an item of its
        own.
        """
        first = np.arange(len(self.first))
        return first, self.item_index if self.paired else len(first) + np.arange(len(self.second))

    @cached_property
    def rows_per_item(self) -> Array:
        """Rows of the second modality that each item has: float64 (m,)."""
        return np.bincount(self.item_index, minlength=len(self.first)).astype(np.float64)

    @cached_property
    def item_means(self) -> Array:
        """Mean of each item's rows of the second modality: float64 (m, d)."""
        order = np.argsort(self.item_index, kind="stable")
        starts = np.unique(self.item_index[order], return_index=True)[1]
        return (
            np.add.reduceat(self.second[order], starts, axis=0, dtype=np.float64)
            / self.rows_per_item[:, None]
        )

    @property
    def group_size(self) -> int:
        """Consecutive pairs whose mean difference is one row of the groups."""
        return min(GROUP_PAIRS, max(1, len(self.second) // 5))

    @cached_property
    def distinct_items(self) -> Indices:
        """Number of the distinct item of each row of ``first``, int64 (m,), from 0.

        Items with equal rows of the first modality are one, and so are those whose rows of the
        second have the same mean.
        """
        by_first = number_equal_rows(self.first)
        totals = np.zeros((by_first.max() + 1, self.first.shape[1]))
        np.add.at(totals, by_first, self.item_means * self.rows_per_item[:, None])
        means = totals / np.bincount(by_first, self.rows_per_item)[:, None]
        return number_equal_rows(means.round(_EQUAL_DIGITS))[by_first]

    def distinct_shares(self, first: str, second: str) -> dict[str, float]:
        """Return distinct items over items of each modality; without pairs, rows are items."""
        numbers = {first: number_equal_rows(self.first)}
        numbers[second] = self.distinct_items if self.paired else number_equal_rows(self.second)
        return {name: (int(each.max()) + 1) / len(each) for name, each in numbers.items()}

    @cached_property
    def sums(self) -> PairSums:
        """Sums over the pairs."""
        count, dim = self.second.shape
        size = self.group_size
        block = _BLOCK_ROWS // size * size
        cosines = np.empty(count)
        distances = np.empty(count)
        groups = [np.empty((0, dim))]
        total = np.zeros(dim)
        squares = np.zeros(dim)
        for start in range(0, count, block):
            part = slice(start, min(start + block, count))
            x, y = self.first[self.item_index[part]], self.second[part]
            cosines[part] = np.einsum("ij,ij->i", x, y)
            x -= y
            whole = x[: len(x) // size * size].reshape(-1, size, dim)
            groups.append(whole.mean(axis=1, dtype=np.float64))
            total += x.sum(axis=0, dtype=np.float64)
            x *= x
            distances[part] = np.sqrt(x.sum(axis=1))
            squares += x.sum(axis=0, dtype=np.float64)
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0.0)
        return PairSums(cosines, distances, mean, variance, np.concatenate(groups))

    def part(self, items: Indices) -> tuple[Sample, Indices]:
        """Return the rows of these items, ascending rows of ``first``, and the rows of ``second``
        that they are.
        """
        if len(items) == len(self.first):
            return self, np.arange(len(self.second))
        rows = np.flatnonzero(np.isin(self.item_index, items))
        index = np.searchsorted(items, self.item_index[rows])
        return Sample(self.first[items], self.second[rows], index, complete=False), rows


@dataclass
class Collected:
    """Data of two modalities, ready to be measured.

    Attributes:
        first: name of the modality with one row per item.
        second: name of the other.
        moments: per modality, over the rows of the split, L2-normalised.
        independent: per modality, the number of items these rows belong to, paired or not; items
            with equal rows count once.
        fit_moments: per modality, the moments that transforms are fitted on.
        fitted_on: which rows these are, in words.
        items: number of items that have pairs, in the store.
        pairs: number of pairs in the store.
        sample: rows in memory, for means over pairs.
        working: its part for the measures that compare all rows with all others.
        places: per modality, int64, the place of each row of ``working`` among all rows that were
            read.
        notes: what the reader should know.
    """

    first: str
    second: str
    moments: dict[str, Moments]
    independent: dict[str, int]
    fit_moments: dict[str, Moments]
    fitted_on: str
    items: int
    pairs: int
    sample: Sample
    working: Sample
    places: dict[str, Indices]
    notes: list[str]

    @cached_property
    def gap(self) -> Array:
        """The modality gap ``mu_x - mu_y`` (d,) (Liang et al., NeurIPS 2022)."""
        return self.moments[self.first].mean - self.moments[self.second].mean

    @cached_property
    def gap_covariance(self) -> Array:
        """Covariance of the gap over draws of the data, float64 (d, d); items are what is drawn.

        Its trace is what ``|mu_x - mu_y|^2`` is too large by on average. An item moves the gap by
        its own row and by the mean of its rows in the other modality, weighted by their number;
        rows without a partner add the variance of their modality. Equal items count as one.
        """
        x = self.moments[self.first]
        y = self.moments[self.second]
        working = self.working
        alone = (x.n - self.items) / x.n * x.covariance / max(self.independent[self.first] - 1, 1)
        alone += (y.n - self.pairs) / y.n * y.covariance / max(self.independent[self.second] - 1, 1)
        if not working.paired or (distinct := int(working.distinct_items.max()) + 1) < 2:
            return alone
        weight = working.rows_per_item[:, None] * self.items / y.n
        moved = (working.first - x.mean) * (self.items / x.n)
        moved -= (working.item_means - y.mean) * weight
        moved -= moved.mean(axis=0)
        # equal items are drawn together
        sums = np.zeros((distinct, x.dim))
        np.add.at(sums, working.distinct_items, moved)
        return alone + sums.T @ sums / (self.items * len(moved)) * (distinct / (distinct - 1))

    @property
    def distinct_items(self) -> int:
        """Items that count as independent draws of the gap: those with pairs, equal ones once;
        without pairs, those of the modality that has fewer.
        """
        if not self.working.paired:
            return min(self.independent.values())
        distinct = int(self.working.distinct_items.max()) + 1
        return round(self.items * distinct / len(self.working.first))

    @cached_property
    def gap_bias(self) -> float:
        """Expected excess of ``|mu_x - mu_y|^2`` over the squared distance of the true means."""
        return float(np.trace(self.gap_covariance))


def collect(
    store: Store,
    first: str,
    second: str,
    *,
    split: str | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Collected:
    """Read two modalities: their keys, then their embeddings once (again if the store keeps norms).

    Args:
        store: the store.
        first: a modality.
        second: another; the two change places where only ``second`` has one row per item.
        split: read the rows of this split only.
        seed: of the sample.
        reporter: shows the progress of reading.

    Raises:
        StoreError: if a modality is missing or has fewer than 3 rows, or a row has no direction or
            a wrong norm.
    """
    notes = [store.split_note] if store.split_note else []
    rows = {name: _read_keys(store, name, split) for name in (first, second)}
    independent = {name: found.item_count for name, found in rows.items()}
    if independent[first] < len(rows[first]):
        if independent[second] < len(rows[second]):
            notes.append(
                f"Several {first} rows belong to the same item. The first of them is paired with "
                f"each {second} row of "
                "the item."
            )
        else:
            first, second = second, first
    if not store.info.normalised:
        notes.append(
            "The store keeps the norms of its rows. Everything is measured after L2 normalisation."
        )
    item_index = Pairs.match(rows[first], rows[second]).item_index
    paired = np.flatnonzero(item_index >= 0)
    items, sizes = np.unique(item_index[paired], return_counts=True)
    rng = generator(seed, "gap report", "working set")
    if len(items):
        order = rng.permutation(len(items))

        def drawn_items(most: int, most_rows: int) -> Indices:
            chosen = order[:most]
            fitting = int(np.searchsorted(np.cumsum(sizes[chosen]), most_rows, side="right"))
            return np.sort(items[chosen[: max(1, fitting)]])

        kept = drawn_items(MAX_ITEMS, MAX_ROWS)
        compared = (
            len(items) * len(paired) <= EXACT_SCORES and len(items) + len(paired) <= EXACT_ROWS
        )
        part, complete = (
            items if compared else drawn_items(PART_ITEMS, PART_ROWS),
            len(kept) == len(items),
        )
        wanted = {
            first: kept,
            second: paired if complete else np.flatnonzero(np.isin(item_index, kept)),
        }
    else:
        wanted = {name: np.arange(len(rows[name])) for name in (first, second)}
        complete = max(map(len, wanted.values())) <= PART_ITEMS
        for name, own in wanted.items():
            if len(own) > PART_ITEMS:
                wanted[name] = np.sort(rng.choice(own, PART_ITEMS, replace=False))
        part = wanted[first]
    count = sum(map(len, rows.values()))
    dtype = np.float64 if count * store.info.dim <= EXACT_VALUES else np.float32
    with reporter.progress("Reading rows", count) as progress, ThreadPoolExecutor() as pool:

        def read(name: str) -> Floats:
            return _read_rows(store, rows[name], split, wanted[name], dtype, progress)

        x, y = pool.map(read, (first, second))
    index = (
        np.searchsorted(wanted[first], item_index[wanted[second]]) if len(items) else item_index[:0]
    )
    sample = Sample(x, y, index, complete)
    working, chosen = sample.part(np.searchsorted(wanted[first], part))
    for name, share in working.distinct_shares(first, second).items():
        independent[name] = max(1, round(independent[name] * share))
    moments = {name: store.unit_moments(name, split) for name in (first, second)}
    fit_moments, fitted_on = _moments_to_fit(store, moments, split, notes)
    return Collected(
        first=first,
        second=second,
        moments=moments,
        independent=independent,
        fit_moments=fit_moments,
        fitted_on=fitted_on,
        items=len(items),
        pairs=len(paired),
        sample=sample,
        working=working,
        places={first: part, second: wanted[second][chosen]},
        notes=notes,
    )


def number_equal_rows(rows: Floats) -> Indices:
    """Return the number of each row of (n, d) among the distinct rows: int64 (n,), from 0."""
    numbers: dict[bytes, int] = {}
    for row in rows:
        numbers.setdefault(row.tobytes(), len(numbers))
    return np.array([numbers[row.tobytes()] for row in rows], np.int64)


def _moments_to_fit(
    store: Store, moments: dict[str, Moments], split: str | None, notes: list[str]
) -> tuple[dict[str, Moments], str]:
    """Return the moments that transforms are fitted on, and where they come from, in words."""
    known = fitting_moments(store)
    if known.note:
        notes.append(known.note)
    if known.too_few.keys() & moments.keys():
        # What Collapse would do with the means of these very rows
        fit_moments = moments
        fitted_on = "all rows" if split in (None, ALL) else f"the {split} split"
        notes.append(
            f"In this report, Collapse subtracts the means of the rows that it measures "
            f"({fitted_on}), which flatters it."
        )
    else:
        fit_moments = {name: known.moments[name] for name in moments}
        sources = dict.fromkeys(known.sources[name] for name in moments)
        fitted_on = " and ".join(_SOURCES.get(source, f"the {source} split") for source in sources)
    listed = ", ".join(f"{own.n:,} {name}" for name, own in fit_moments.items()) + " rows"
    fitted_on = f"{fitted_on} ({listed})"
    return fit_moments, fitted_on


def collect_single(store: Store, modality: str, *, split: str | None = None) -> tuple[Moments, int]:
    """Return the moments of one modality's rows, L2-normalised, and the number of their items.

    Raises:
        StoreError: if the modality is missing or has fewer than 3 rows, or a row has no direction
            or a wrong norm.
    """
    rows = _read_keys(store, modality, split)
    _read_rows(store, rows, split, np.empty(0, np.int64), np.float32, Progress())
    return store.unit_moments(modality, split), rows.item_count


def _read_keys(store: Store, modality: str, split: str | None) -> Rows:
    """Read the columns that pairing needs; the embeddings of these rows are empty."""
    columns = ["key", "image_key", "pair_key", "split"]
    batches = list(store.batches(modality, columns, split=split))
    if (count := sum(batch.num_rows for batch in batches)) < MIN_ROWS:
        every = split in (None, ALL)
        which = "" if every else f" in the split {split!r}"
        there = f"Choose another --split. The splits are {store.list_splits(modality)}."
        raise StoreError(
            f"The modality {modality!r} of the store {store.path} has "
            f"{counted(count, 'row')}{which}; a report needs "
            f"at least {MIN_ROWS}.",
            remedy="Embed more." if every else there,
        )
    return Rows(
        modality, np.empty((count, 0), np.float32), pa.Table.from_batches(batches).combine_chunks()
    )


def _read_rows(
    store: Store,
    rows: Rows,
    split: str | None,
    wanted: Indices,
    dtype: type[np.floating],
    progress: Progress,
) -> Floats:
    """Read one modality, check the norms of all rows, and return the wanted ones, L2-normalised."""
    norms, sample, start = np.empty(len(rows)), np.empty((len(wanted), store.info.dim), dtype), 0
    for batch in store.batches(rows.modality, ["embedding"], split=split):
        block, stop = embedding_matrix(batch).astype(dtype, copy=False), start + batch.num_rows
        with np.errstate(all="ignore"):  # NaN and infinity are refused below
            norms[start:stop] = np.sqrt(np.einsum("ij,ij->i", block, block))
        low, high = np.searchsorted(wanted, [start, stop])
        sample[low:high] = block[wanted[low:high] - start]
        start = stop
        progress.advance(batch.num_rows)
    off = np.abs(norms - 1) > NORM_TOLERANCE if store.info.normalised else norms == 0
    bad = np.flatnonzero(off | ~np.isfinite(norms))
    if len(bad):
        named = ", ".join(map(str, rows.table.column("key").take(bad[:_NAMED_KEYS]).to_pylist()))
        wrong = (
            " or another norm than 1, though store.json says that all are normalised"
            * store.info.normalised
        )
        raise StoreError(
            f"{len(bad)} of {counted(len(rows), f'{rows.modality} row')} of the store {store.path} "
            f"({named}{', …' * (len(bad) > _NAMED_KEYS)}) contain NaN or infinity, or have norm "
            f"0{wrong}.",
            remedy=f"`c3 verify {store.path}` lists all of them. Embed or import them again.",
        )
    return sample if store.info.normalised else unit_rows(sample)
