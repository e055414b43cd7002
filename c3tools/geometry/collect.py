"""Read what the measures of two modalities need: exact moments, and one seeded sample of items in
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
MAX_ITEMS = 100_000
"""Most items of a sample."""
MAX_ROWS = 200_000
"""Most rows of the second modality in a sample."""
EXACT_SCORES = 400_000_000
"""With at most so many cosines, and `EXACT_ROWS` rows, all rows are compared with all others, else
those of a part of the items."""
EXACT_ROWS = 100_000
PART_ITEMS = 2_500
"""Most items of that part; without pairs, most rows of a modality."""
PART_ROWS = 12_500
"""Most rows of the second modality in that part."""
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
        first_items = np.arange(len(self.first))
        if self.paired:
            return first_items, self.item_index
        return first_items, len(first_items) + np.arange(len(self.second))

    @cached_property
    def rows_per_item(self) -> Array:
        """Rows of the second modality that each item has: float64 (m,)."""
        return np.bincount(self.item_index, minlength=len(self.first)).astype(np.float64)

    @cached_property
    def item_means(self) -> Array:
        """Mean of each item's rows of the second modality: float64 (m, d)."""
        by_item = np.argsort(self.item_index, kind="stable")
        starts = np.unique(self.item_index[by_item], return_index=True)[1]
        totals = np.add.reduceat(self.second[by_item], starts, axis=0, dtype=np.float64)
        return np.asarray(totals / self.rows_per_item[:, None])

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
        """Return distinct items over items of each modality; without pairs, rows are items.

        Args:
            first: name of the first modality.
            second: name of the second.
        """
        first_numbers = number_equal_rows(self.first)
        second_numbers = self.distinct_items if self.paired else number_equal_rows(self.second)
        return {
            first: (int(first_numbers.max()) + 1) / len(first_numbers),
            second: (int(second_numbers.max()) + 1) / len(second_numbers),
        }

    @cached_property
    def sums(self) -> PairSums:
        """Sums over the pairs, computed block by block."""
        count, dim = self.second.shape
        size = self.group_size
        block_rows = _BLOCK_ROWS // size * size  # so that no group is divided between blocks
        cosines = np.empty(count)
        distances = np.empty(count)
        group_means = [np.empty((0, dim))]
        total = np.zeros(dim)
        total_of_squares = np.zeros(dim)
        for start in range(0, count, block_rows):
            block = slice(start, min(start + block_rows, count))
            first = self.first[self.item_index[block]]
            second = self.second[block]
            cosines[block] = np.einsum("ij,ij->i", first, second)
            differences = np.subtract(first, second, out=first)
            whole_groups = differences[: len(differences) // size * size]
            group_means.append(whole_groups.reshape(-1, size, dim).mean(axis=1, dtype=np.float64))
            total += differences.sum(axis=0, dtype=np.float64)
            squares = np.square(differences, out=differences)
            distances[block] = np.sqrt(squares.sum(axis=1))
            total_of_squares += squares.sum(axis=0, dtype=np.float64)
        mean = total / count
        return PairSums(
            cosines=cosines,
            distances=distances,
            mean=mean,
            variance=np.maximum(total_of_squares / count - mean**2, 0.0),
            group_means=np.concatenate(group_means),
        )

    def part(self, items: Indices) -> tuple[Sample, Indices]:
        """Return the part of the sample that has these items, and its rows of ``second``.

        Args:
            items: int64, ascending rows of ``first``.

        Returns:
            The part, and the numbers of the rows of ``second`` that are in it, int64.
        """
        if len(items) == len(self.first):
            return self, np.arange(len(self.second))
        second_rows = np.flatnonzero(np.isin(self.item_index, items))
        item_index = np.searchsorted(items, self.item_index[second_rows])
        part = Sample(self.first[items], self.second[second_rows], item_index, complete=False)
        return part, second_rows


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
        # Rows without a partner: their share of the modality, times the covariance of its mean
        unpaired_share = (x.n - self.items) / x.n
        unpaired = unpaired_share * x.covariance / max(self.independent[self.first] - 1, 1)
        unpaired_share = (y.n - self.pairs) / y.n
        unpaired += unpaired_share * y.covariance / max(self.independent[self.second] - 1, 1)
        working = self.working
        if not working.paired:
            return unpaired
        distinct_count = int(working.distinct_items.max()) + 1
        if distinct_count < 2:
            return unpaired

        # How far each item moves the gap, times the number of items: by its own row, and by the
        # mean of its rows in the other modality
        weight_of_row = self.items / x.n
        weight_of_mean = working.rows_per_item[:, None] * self.items / y.n
        moved = (working.first - x.mean) * weight_of_row
        moved -= (working.item_means - y.mean) * weight_of_mean
        moved -= moved.mean(axis=0)

        # The covariance of the mean of these, where equal items are drawn together
        sums = np.zeros((distinct_count, x.dim))
        np.add.at(sums, working.distinct_items, moved)
        paired = sums.T @ sums / (self.items * len(moved))
        return unpaired + paired * (distinct_count / (distinct_count - 1))

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
    notes: list[str] = []
    keys = {name: _read_keys(store, name, split) for name in (first, second)}
    independent = {name: rows.item_count for name, rows in keys.items()}

    # The first modality is to have one row per item
    first_repeats = independent[first] < len(keys[first])
    second_repeats = independent[second] < len(keys[second])
    if first_repeats and second_repeats:
        notes.append(
            f"Several {first} rows belong to the same item. The first of them is paired with "
            f"each {second} row of the item."
        )
    elif first_repeats:
        first, second = second, first
    if not store.info.normalised:
        notes.append(
            "The store keeps the norms of its rows. Everything is measured after L2 normalisation."
        )

    # Choose the rows that are read into memory
    item_index = Pairs.match(keys[first], keys[second]).item_index
    rng = generator(seed, "gap report", "working set")
    items = np.unique(item_index[item_index >= 0])
    drawn = _draw_rows(len(keys[first]), item_index, rng)

    # Read both modalities at once
    row_count = sum(len(rows) for rows in keys.values())
    dtype = np.float64 if row_count * store.info.dim <= EXACT_VALUES else np.float32
    with reporter.progress("Reading rows", row_count) as progress, ThreadPoolExecutor() as pool:
        reads = [
            pool.submit(_read_rows, store, keys[name], split, wanted, dtype, progress)
            for name, wanted in ((first, drawn.first_rows), (second, drawn.second_rows))
        ]
        first_embeddings, second_embeddings = [read.result() for read in reads]

    # Number the items by the places of their rows among those that were read
    sample_index = item_index[:0]
    if len(items):
        sample_index = np.searchsorted(drawn.first_rows, item_index[drawn.second_rows])
    sample = Sample(first_embeddings, second_embeddings, sample_index, drawn.complete)
    working, working_second = sample.part(np.searchsorted(drawn.first_rows, drawn.compared_rows))

    # Items with equal rows are not independent; their share is that of the working rows
    for name, share in working.distinct_shares(first, second).items():
        independent[name] = max(1, round(independent[name] * share))

    # Moments are of all rows, not of the sample
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
        pairs=int(np.count_nonzero(item_index >= 0)),
        sample=sample,
        working=working,
        places={first: drawn.compared_rows, second: drawn.second_rows[working_second]},
        notes=notes,
    )


@dataclass(frozen=True)
class _DrawnRows:
    """The rows that are read into memory, as ascending numbers (int64).

    Attributes:
        first_rows: of the first modality.
        second_rows: of the second.
        compared_rows: those of ``first_rows`` whose items are compared with all others.
        complete: whether all paired rows are read, or all rows where nothing is paired.
    """

    first_rows: Indices
    second_rows: Indices
    compared_rows: Indices
    complete: bool


def _draw_rows(first_count: int, item_index: Indices, rng: np.random.Generator) -> _DrawnRows:
    """Draw items that have pairs, and take all their rows; without pairs, draw rows of each
    modality.

    Args:
        first_count: rows of the first modality.
        item_index: int64 (k,), the row of the first modality that each row of the second belongs
            to; -1 for none.
        rng: draws the items.
    """
    paired_rows = np.flatnonzero(item_index >= 0)
    if not len(paired_rows):
        drawn = []
        for count in (first_count, len(item_index)):
            rows = np.arange(count)
            if count > PART_ITEMS:
                rows = np.sort(rng.choice(rows, PART_ITEMS, replace=False))
            drawn.append(rows)
        complete = max(first_count, len(item_index)) <= PART_ITEMS
        return _DrawnRows(drawn[0], drawn[1], compared_rows=drawn[0], complete=complete)

    items, sizes = np.unique(item_index[paired_rows], return_counts=True)
    order = rng.permutation(len(items))
    sampled_items = _first_items(items, sizes, order, MAX_ITEMS, MAX_ROWS)
    complete = len(sampled_items) == len(items)
    second_rows = paired_rows
    if not complete:
        second_rows = np.flatnonzero(np.isin(item_index, sampled_items))

    few_scores = len(items) * len(paired_rows) <= EXACT_SCORES
    few_rows = len(items) + len(paired_rows) <= EXACT_ROWS
    compared_items = items
    if not (few_scores and few_rows):
        compared_items = _first_items(items, sizes, order, PART_ITEMS, PART_ROWS)
    return _DrawnRows(sampled_items, second_rows, compared_items, complete)


def _first_items(
    items: Indices, sizes: Indices, order: Indices, most_items: int, most_rows: int
) -> Indices:
    """Return the first items of a random order, ascending, but at least one.

    Args:
        items: int64 (m,).
        sizes: int64 (m,), the number of rows that each item has in the second modality.
        order: a permutation of 0 to m - 1.
        most_items: the number of items to take.
        most_rows: take fewer if they have more rows than this together.
    """
    drawn = order[:most_items]
    row_counts = np.cumsum(sizes[drawn])
    fitting = int(np.searchsorted(row_counts, most_rows, side="right"))
    return np.sort(items[drawn[: max(1, fitting)]])


def number_equal_rows(rows: Floats) -> Indices:
    """Return the number of each row of (n, d) among the distinct rows: int64 (n,), from 0."""
    numbers: dict[bytes, int] = {}
    for row in rows:
        numbers.setdefault(row.tobytes(), len(numbers))
    return np.array([numbers[row.tobytes()] for row in rows], np.int64)


def _moments_to_fit(
    store: Store, moments: dict[str, Moments], split: str | None, notes: list[str]
) -> tuple[dict[str, Moments], str]:
    """Return the moments that transforms are fitted on, and where they come from, in words.

    Args:
        store: of the rows.
        moments: by modality, of the rows that are measured; used where the store has too few rows
            to fit on.
        split: the rows that are measured.
        notes: gets what the reader should know about these moments.
    """
    of_store = fitting_moments(store)
    if of_store.note:
        notes.append(of_store.note)
    if of_store.too_few.keys() & moments.keys():
        # What Collapse would do with the means of these very rows
        fit_moments = moments
        fitted_on = "all rows" if split in (None, ALL) else f"the {split} split"
        notes.append(
            f"In this report, Collapse subtracts the means of the rows that it measures "
            f"({fitted_on}), so the results look better than they would on other rows."
        )
    else:
        fit_moments = {name: of_store.moments[name] for name in moments}
        sources = dict.fromkeys(of_store.sources[name] for name in moments)
        fitted_on = " and ".join(_SOURCES.get(source, f"the {source} split") for source in sources)
    counts = ", ".join(f"{fitted.n:,} {name}" for name, fitted in fit_moments.items())
    return fit_moments, f"{fitted_on} ({counts} rows)"


def read_numbered_rows(
    store: Store, modality: str, columns: Sequence[str], numbers: Indices, split: str | None
) -> pa.Table:
    """Return the columns of the rows that have these numbers in a split, int64 (n,), ascending."""
    batches = []
    start = 0
    for batch in store.batches(modality, columns, split=split or ALL):
        stop = start + len(batch)
        low, high = np.searchsorted(numbers, [start, stop])
        batches.append(batch.take(pa.array(numbers[low:high] - start, pa.int64())))
        start = stop
    return pa.Table.from_batches(batches)


def column_values(table: pa.Table, name: str) -> list[Any]:
    """Return the values of a column; a None for each row if there is no such column."""
    if name not in table.schema.names:
        return [None] * len(table)
    values: list[Any] = table.column(name).to_pylist()
    return values


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
    batches = list(store.batches(modality, columns, split=split or ALL))
    count = sum(batch.num_rows for batch in batches)
    if count < MIN_ROWS:
        all_rows = split in (None, ALL)
        place = "" if all_rows else f" in the split {split!r}"
        splits = store.list_splits(modality)
        raise StoreError(
            f"The modality {modality!r} of the store {store.path} has "
            f"{counted(count, 'row')}{place}; a report needs at least {MIN_ROWS}.",
            remedy="Embed more."
            if all_rows
            else f"Choose another --split. The splits are {splits}.",
        )
    table = pa.Table.from_batches(batches).combine_chunks()
    return Rows(modality, np.empty((count, 0), np.float32), table)


def _read_rows(
    store: Store,
    rows: Rows,
    split: str | None,
    wanted: Indices,
    dtype: type[np.floating],
    progress: Progress,
) -> Floats:
    """Read one modality, check the norms of all rows, and return the wanted ones, L2-normalised.

    Args:
        store: to read.
        rows: the keys of the modality's rows.
        split: the split of these rows.
        wanted: int64 (w,), ascending row numbers.
        dtype: of the result (w, d).
        progress: advances by the rows that are read.

    Raises:
        StoreError: if a row has no direction, or another norm than the store says; with the first
            keys.
    """
    norms = np.empty(len(rows))
    sample = np.empty((len(wanted), store.info.dim), dtype)
    start = 0
    for batch in store.batches(rows.modality, ["embedding"], split=split or ALL):
        stop = start + batch.num_rows
        block = embedding_matrix(batch).astype(dtype, copy=False)
        with np.errstate(all="ignore"):  # NaN and infinity are refused below
            norms[start:stop] = np.sqrt(np.einsum("ij,ij->i", block, block))
        low, high = np.searchsorted(wanted, [start, stop])
        sample[low:high] = block[wanted[low:high] - start]
        start = stop
        progress.advance(batch.num_rows)

    # Refuse rows that have no direction, or another norm than the store says
    if store.info.normalised:
        is_wrong = np.abs(norms - 1) > NORM_TOLERANCE
        or_not_unit = " or a norm other than 1, although store.json says that all are normalised"
    else:
        is_wrong = norms == 0
        or_not_unit = ""
    bad_rows = np.flatnonzero(is_wrong | ~np.isfinite(norms))
    if len(bad_rows):
        named_keys = rows.table.column("key").take(bad_rows[:_NAMED_KEYS]).to_pylist()
        names = ", ".join(str(key) for key in named_keys)
        if len(bad_rows) > _NAMED_KEYS:
            names += ", …"
        raise StoreError(
            f"{len(bad_rows)} of {counted(len(rows), f'{rows.modality} row')} of the store "
            f"{store.path} ({names}) contain NaN or infinity, or have norm 0{or_not_unit}.",
            remedy=f"`c3 verify --store {store.path}` lists all of them. "
            "Embed or import them again.",
        )
    return sample if store.info.normalised else unit_rows(sample)
