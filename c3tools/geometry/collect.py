"""Read what the measures of two modalities need: exact moments, and one seeded sample of items in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..arrays import Array, Floats, Indices, Mask
from ..corpus.splits import ALL
from ..errors import StoreError
from ..moments import Moments
from ..reporter import SILENT, Progress, Reporter, counted
from ..seeds import generator
from ..store import Pairs, Rows, Store, embedding_matrix, split_mask

MIN_ROWS = 3
MIN_FIT_ROWS = 100
MAX_ITEMS, MAX_ROWS = 100_000, 200_000
"""Largest sample: items, and rows of the second modality."""
EXACT_SCORES, EXACT_ROWS = 400_000_000, 100_000
"""With at most so many cosines and rows, all rows are compared with all others, else those of a part of the items."""
PART_ITEMS, PART_ROWS = 2_500, 12_500
EXACT_VALUES = 2**25
"""Up to so many values are computed in float64, more in float32 with sums in float64."""
UNIT_TOLERANCE = {"float16": 2e-3, "float32": 1e-5}
"""Largest distance of a norm from 1 that rounding to the store's dtype explains."""
GROUP_PAIRS = 100
MAX_SUBSETS = 50
_NAMED_KEYS = 5
_BLOCK = 8_200  # rows; a multiple of GROUP_PAIRS


@dataclass(frozen=True)
class PairSums:
    """Means over the pairs of a sample; every difference is ``first - second``.

    Attributes:
        cosine: float64 (k,), ``x . y``.
        distance: float64 (k,), ``|x - y|``.
        mean: float64 (d,), mean difference.
        variance: float64 (d,), variance of the difference per dimension.
        groups: float64 (g, d), differences averaged over groups of ``group_pairs`` consecutive pairs.
        group_pairs: pairs per group.
    """

    cosine: Array
    distance: Array
    mean: Array
    variance: Array
    groups: Array
    group_pairs: int


@dataclass(frozen=True)
class Sample:
    """L2-normalised rows in memory: items, and all rows of the other modality that belong to them.

    Attributes:
        first: (m, d), one row per item; float64 if the store has few rows, else float32.
        second: (k, d).
        item_index: int64 (k,), the row of ``first`` that each row of ``second`` belongs to; empty without pairs.
        numbers: int64 (k,), the numbers of the rows of ``second`` in the store.
        complete: whether it has every paired row of the store, or every row where nothing is paired.
    """

    first: Floats
    second: Floats
    item_index: Indices
    numbers: Indices
    complete: bool

    @property
    def paired(self) -> bool:
        """True if the rows are pairs."""
        return len(self.item_index) > 0

    @property
    def items(self) -> tuple[Indices, Indices]:
        """The item of each row, int64 (m,) and (k,); without pairs, each row is an item of its own."""
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
        return np.add.reduceat(self.second[order], starts, axis=0, dtype=np.float64) / self.rows_per_item[:, None]

    @cached_property
    def sums(self) -> PairSums:
        """Cosines, distances and differences of the pairs, computed in blocks."""
        count, dim = self.second.shape
        size = GROUP_PAIRS if count >= 5 * GROUP_PAIRS else max(1, count // 5)
        cosine, distance = np.empty(count), np.empty(count)
        total, squares, groups = np.zeros(dim), np.zeros(dim), []
        block = _BLOCK // size * size
        for start in range(0, count, block):
            rows = slice(start, start + block)
            x, y = self.first[self.item_index[rows]], self.second[rows]
            cosine[rows] = np.einsum("ij,ij->i", x, y)
            difference = x - y
            whole = difference[: len(difference) // size * size].reshape(-1, size, dim)
            groups.append(whole.mean(axis=1, dtype=np.float64))
            total += difference.sum(axis=0, dtype=np.float64)
            difference *= difference
            distance[rows] = np.sqrt(difference.sum(axis=1))
            squares += difference.sum(axis=0, dtype=np.float64)
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0.0)
        return PairSums(cosine, distance, mean, variance, np.concatenate(groups), size)

    def part(self, items: Indices) -> Sample:
        """Return the rows of these items, ascending rows of ``first``; all of them need not be copied."""
        if len(items) == len(self.first):
            return self
        rows = np.flatnonzero(np.isin(self.item_index, items))
        index = np.searchsorted(items, self.item_index[rows])
        return Sample(self.first[items], self.second[rows], index, self.numbers[rows], complete=False)


@dataclass
class Collected:
    """Data of two modalities, ready to be measured.

    Attributes:
        store: where it comes from.
        first: name of the modality with one row per item.
        second: name of the other.
        moments: per modality, over the rows of the split, L2-normalised.
        independent: per modality, the number of items these rows belong to, paired or not.
        fit_moments: per modality, the moments that transforms are fitted on.
        fitted_on: which rows these are, in words.
        fit_share: share of the measured rows that are among them.
        items: number of items that have pairs, in the store.
        pairs: number of pairs in the store.
        sample: rows in memory, for means over pairs.
        working: its part for the measures that compare all rows with all others.
        subset: the number of the subset of each row of ``sample.second``, -1 for none; empty without a column.
        subset_names: values of the user's column.
        notes: what the reader should know.
    """

    store: Store
    first: str
    second: str
    moments: dict[str, Moments]
    independent: dict[str, int]
    fit_moments: dict[str, Moments]
    fitted_on: str
    fit_share: float
    items: int
    pairs: int
    sample: Sample
    working: Sample
    subset: Indices
    subset_names: list[str]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def gap(self) -> Array:
        """The modality gap ``mu_x - mu_y`` (d,) (Liang et al., NeurIPS 2022)."""
        return self.moments[self.first].mean - self.moments[self.second].mean

    @cached_property
    def gap_covariance(self) -> Array:
        """Covariance of the gap over draws of the data, float64 (d, d); items are what is drawn.

        Its trace is what ``|mu_x - mu_y|^2`` is too large by on average. An item moves the gap by its own row and by
        the mean of its rows in the other modality, weighted by their number; rows without a partner add the variance
        of their modality.
        """
        x, y = self.moments[self.first], self.moments[self.second]
        working, items = self.working, self.items
        alone = (x.n - items) / x.n * x.covariance / (x.n - 1) + (y.n - self.pairs) / y.n * y.covariance / (y.n - 1)
        if not working.paired or len(working.first) < 2:
            return alone
        weight = working.rows_per_item[:, None] * items / y.n
        moved = (working.first - x.mean) * (items / x.n) - (working.item_means - y.mean) * weight
        moved -= moved.mean(axis=0)
        return alone + moved.T @ moved / (items * (len(moved) - 1))

    @cached_property
    def gap_bias(self) -> float:
        """Expected excess of ``|mu_x - mu_y|^2`` over the squared distance of the true means."""
        return float(np.trace(self.gap_covariance))


@dataclass(frozen=True)
class _Plan:
    """Plan of reading: which rows are paired, and which of them are kept in memory.

    Attributes:
        rows: per modality, ascending numbers of the rows of the sample.
        item_index: int64 (rows of the second modality,), the row of the first that each belongs to; -1 for none.
        part: those of the rows of the first modality that are compared with all others.
        complete: whether the sample has every row.
    """

    rows: dict[str, Indices]
    item_index: Indices
    part: Indices
    complete: bool


@dataclass
class _Read:
    """Rows of one modality as they were read.

    Attributes:
        norms: float64 (n,), of all rows; NaN or infinity where a row has either.
        sample: the wanted rows.
        moments: of the valid kept rows.
        train_moments: of the valid rows of the train split, whichever split is measured.
    """

    norms: Array
    sample: Floats
    moments: Moments
    train_moments: Moments


def collect(
    store: Store,
    first: str,
    second: str,
    *,
    split: str | None = None,
    by: str | None = None,
    skip_invalid: bool = False,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Collected:
    """Read two modalities: in one pass over the rows, or in two if some are invalid or not of unit length.

    Args:
        store: the store.
        first: a modality.
        second: another; the two change places where only ``second`` has one row per item.
        split: read the rows of this split only.
        by: a column of either modality that divides the pairs into subsets.
        skip_invalid: leave out rows with NaN, infinity or norm 0 instead of refusing them.
        seed: of the sample.
        reporter: shows the progress of reading.

    Raises:
        StoreError: if a modality or column is missing, a modality has fewer than 3 rows, or a row is invalid.
    """
    keys = {name: _read_keys(store, name, by) for name in (first, second)}
    notes = [store.split_note] if store.split_note else []
    numbers = {name: rows.item_index for name, rows in keys.items()}
    repeated = [name for name, items in numbers.items() if _distinct(items) < len(items)]
    if first in repeated:
        if second not in repeated:
            first, second = second, first
        else:
            notes.append(
                f"Several {first} rows belong to the same item. The first of them is paired with each {second} row of "
                "the item."
            )
    keys = {name: keys[name] for name in (first, second)}
    plan, keep, read, more = _read_valid(
        store, keys, split, lambda kept: _plan(keys, kept, seed), skip_invalid, reporter
    )
    moments = {name: found.moments for name, found in read.items()}
    train = {name: found.train_moments for name, found in read.items()}
    rows, paired = plan.rows[second], plan.item_index >= 0
    index = np.searchsorted(plan.rows[first], plan.item_index[rows]) if paired.any() else rows[:0]
    sample = Sample(read[first].sample, read[second].sample, index, rows, plan.complete)
    every, fit_moments, share = split in (None, ALL), train, 1.0
    if all(part.n >= MIN_FIT_ROWS for part in train.values()):
        share = train[first].n / moments[first].n if every else float(split == "train")
        fitted_on = f"the train split ({_sizes(train)}; split by a hash of the keys if the corpus has no splits)"
    else:
        fit_moments, which = moments, "all rows" if every else f"the {split} split"
        why = f"because the train split has fewer than {MIN_FIT_ROWS} rows of a modality"
        fitted_on = f"{which} ({_sizes(moments)}), {why}"
    subset, names = (np.empty(0, np.int64), []) if by is None else _subsets(keys, plan.item_index, by)
    return Collected(
        store=store,
        first=first,
        second=second,
        moments=moments,
        independent={name: _distinct(numbers[name][keep[name]]) for name in keys},
        fit_moments=fit_moments,
        fitted_on=fitted_on,
        fit_share=share,
        items=_distinct(plan.item_index[paired]),
        pairs=int(np.count_nonzero(paired)),
        sample=sample,
        working=sample.part(np.searchsorted(plan.rows[first], plan.part)),
        subset=subset[rows] if names else subset,
        subset_names=names,
        notes=[*notes, *more],
    )


def collect_single(
    store: Store, modality: str, *, split: str | None = None, skip_invalid: bool = False
) -> tuple[Moments, int, list[str]]:
    """Return the moments of one modality's valid rows, L2-normalised, the number of their items, and notes on them.

    Raises:
        StoreError: if the modality is missing or has fewer than 3 rows, or a row is invalid.
    """
    keys = {modality: _read_keys(store, modality, None)}
    nothing = np.empty(0, np.int64)
    plan = _Plan({modality: nothing}, nothing, nothing, complete=False)
    _, keep, read, notes = _read_valid(store, keys, split, lambda kept: plan, skip_invalid, SILENT)
    return read[modality].moments, _distinct(keys[modality].item_index[keep[modality]]), notes


def extreme_pairs(collected: Collected, count: int) -> dict[str, list[tuple[str, str, float]]]:
    """Return item, text (or key) and cosine of the pairs with the highest and lowest cosines.

    Args:
        collected: two modalities.
        count: pairs of each kind, ``closest`` and ``furthest``.
    """
    working, found = collected.working, {}
    if working.paired:
        order = np.argsort(working.sums.cosine, kind="stable")
        count = min(count, len(order) // 2)
        keys = _read_keys(collected.store, collected.second, "caption")
        for side, rows in (("closest", order[::-1][:count]), ("furthest", order[:count])):
            chosen = keys.select(working.numbers[rows])
            texts = [row.get("caption") or row["key"] for row in chosen.table.to_pylist()]
            found[side] = list(zip(chosen.items, texts, working.sums.cosine[rows].tolist(), strict=True))
    return found


def _read_keys(store: Store, modality: str, by: str | None) -> Rows:
    """Read the columns that pairing needs; the embeddings of these rows are empty."""
    store.require(modality)
    columns = {"key", "image_key", "pair_key", "split", *([by] if by else [])} - {"embedding"}
    batches = list(store.batches(modality, columns=sorted(columns), batch_rows=65536))
    if not batches:
        raise StoreError(f"The modality {modality!r} of the store {store.path} has no rows.")
    table = pa.Table.from_batches(batches).combine_chunks()
    return Rows(modality, np.empty((table.num_rows, 0), np.float32), table, store.kept_splits)


def _distinct(numbers: Indices) -> int:
    """Return how many of the numbers 0, 1, … occur; `numpy.unique` takes seconds for millions."""
    return int(np.count_nonzero(np.bincount(numbers)))


def _plan(keys: Mapping[str, Rows], keep: Mapping[str, Mask], seed: int) -> _Plan:
    """Pair the kept rows of two modalities, and choose those of the sample: all, or those of items drawn by the seed.

    Where nothing is paired, rows of each are drawn.
    """
    first, second = keys
    kept = {name: np.flatnonzero(mask) for name, mask in keep.items()}
    found = Pairs.match(keys[first].select(kept[first]), keys[second].select(kept[second])).item_index
    item_index = np.full(len(keys[second]), -1)
    item_index[kept[second]] = np.where(found >= 0, kept[first][np.maximum(found, 0)], -1)
    rng = generator(seed, "gap report", "working set")
    rows = np.flatnonzero(item_index >= 0)
    if not len(rows):
        drawn = {
            name: own if len(own) <= PART_ITEMS else np.sort(rng.choice(own, PART_ITEMS, replace=False))
            for name, own in kept.items()
        }
        return _Plan(drawn, item_index, drawn[first], max(map(len, kept.values())) <= PART_ITEMS)
    sizes = np.bincount(item_index[rows])
    items, sizes = np.flatnonzero(sizes), sizes[sizes > 0]
    order = rng.permutation(len(items))

    def drawn_items(most: int, most_rows: int) -> Indices:
        chosen = order[:most]
        fitting = int(np.searchsorted(np.cumsum(sizes[chosen]), most_rows, side="right"))
        return np.sort(items[chosen[: max(1, fitting)]])

    sample = drawn_items(MAX_ITEMS, MAX_ROWS)
    compared = len(items) * len(rows) <= EXACT_SCORES and len(items) + len(rows) <= EXACT_ROWS
    part = items if compared else drawn_items(PART_ITEMS, PART_ROWS)
    chosen_rows = rows if len(sample) == len(items) else np.flatnonzero(np.isin(item_index, sample))
    return _Plan({first: sample, second: chosen_rows}, item_index, part, len(sample) == len(items))


def _read_valid(
    store: Store,
    keys: Mapping[str, Rows],
    split: str | None,
    plan_for: Callable[[Mapping[str, Mask]], _Plan],
    skip_invalid: bool,
    reporter: Reporter,
) -> tuple[_Plan, dict[str, Mask], dict[str, _Read], list[str]]:
    """Read modalities, a second time if rows have to be left out or normalised.

    Returns:
        The plan that was followed; per modality, the kept rows and what was read; and notes on the rows.
    """
    keep = {name: split_mask(rows.table, split, store.kept_splits) for name, rows in keys.items()}
    normalise, notes = not store.info.normalised, list[str]()
    dtype = np.dtype(np.float64 if sum(map(len, keys.values())) * store.info.dim <= EXACT_VALUES else np.float32)
    while True:
        for name, mask in keep.items():
            if (count := int(np.count_nonzero(mask))) < MIN_ROWS:
                every = split in (None, ALL)
                which = "" if every else f" in the split {split!r}"
                raise StoreError(
                    f"The modality {name!r} of the store {store.path} has {counted(count, 'row')}{which}; a report "
                    f"needs at least {MIN_ROWS}.",
                    remedy="Embed more."
                    if every
                    else f"Choose another --split. The splits are {store.list_splits(name)}.",
                )
        plan = plan_for(keep)
        with reporter.progress("Reading rows", sum(map(len, keep.values()))) as progress, ThreadPoolExecutor() as pool:
            jobs = [
                pool.submit(_read_rows, store, rows, keep[name], plan.rows[name], dtype, normalise, progress)
                for name, rows in keys.items()
            ]
            read = {name: job.result() for name, job in zip(keys, jobs, strict=True)}
        again, invalid, loose = dict[str, Mask](), list[str](), list[str]()
        for name, found in read.items():
            again[name] = keep[name] & np.isfinite(found.norms) & (found.norms > 0)
            bad, total = np.flatnonzero(keep[name] & ~again[name]), np.count_nonzero(keep[name])
            if len(bad):
                named = ", ".join(map(str, keys[name].table.column("key").take(bad[:_NAMED_KEYS]).to_pylist()))
                invalid.append(f"{len(bad)} of {total} {name} rows ({named}{', …' * (len(bad) > _NAMED_KEYS)})")
            off = np.count_nonzero(np.abs(found.norms[again[name]] - 1) > UNIT_TOLERANCE[store.info.dtype])
            loose += [f"{off} of {total} {name} rows"] if off else []
        if invalid and not skip_invalid:
            raise StoreError(
                f"The store {store.path} has rows with NaN, infinity or norm 0, which cannot be measured: "
                f"{', '.join(invalid)}.",
                remedy="Leave these rows out with --skip-invalid, or embed them again. Infinity in a float16 store "
                "usually comes from values above 65,504: use float32.",
            )
        if invalid:
            notes.append(f"Left out, with NaN, infinity or norm 0: {', '.join(invalid)}.")
        if loose and not any("norm 1" in note for note in notes):
            notes.append(f"Not of norm 1: {', '.join(loose)}. Everything is measured after L2 normalisation.")
        if not invalid and (normalise or not loose):
            break
        # the moments of the store include invalid rows, and rows of other lengths
        keep, normalise = again, True
    if not normalise:
        for name, found in read.items():
            found.moments = store.moments(name, split)
            found.train_moments = store.moments_by_split(name).get("train", found.train_moments)
    return plan, keep, read, notes


def _read_rows(
    store: Store,
    keys: Rows,
    keep: Mask,
    wanted: Indices,
    dtype: np.dtype[Any],
    normalise: bool,
    progress: Progress,
) -> _Read:
    """Read one modality: all norms, the wanted rows, and, if they are normalised, the moments of the kept ones."""
    none, start = Moments.empty(store.info.dim), 0
    found = _Read(np.empty(len(keys)), np.empty((len(wanted), store.info.dim), dtype), none, none)
    train = split_mask(keys.table, "train", store.kept_splits) if normalise else keep
    for batch in store.batches(keys.modality, columns=["embedding"]):
        own = slice(start, start + batch.num_rows)
        rows = embedding_matrix(batch).astype(dtype, copy=False)
        with np.errstate(all="ignore"):  # NaN and infinity are counted instead
            norms = found.norms[own] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            if normalise:
                valid = np.isfinite(norms) & (norms > 0)
                rows = rows / np.where(norms > 0, norms, 1.0).astype(dtype)[:, None]
                found.moments = found.moments.merge(Moments.from_rows(rows[valid & keep[own]]))
                found.train_moments = found.train_moments.merge(Moments.from_rows(rows[valid & train[own]]))
        low, high = np.searchsorted(wanted, [own.start, own.stop])
        found.sample[low:high] = rows[wanted[low:high] - start]
        progress.advance(batch.num_rows)
        start = own.stop
    return found


def _subsets(keys: Mapping[str, Rows], item_index: Indices, by: str) -> tuple[Indices, list[str]]:
    """Return the codes (rows of second,) and values of a column: a pair has the value of its own row, or its item's."""
    first, second = keys.values()
    columns = [pc.cast(rows.table.column(by), pa.string()) for rows in (second,) if by in rows.table.column_names]
    if by in first.table.column_names:
        index = pa.array(np.maximum(item_index, 0), pa.int64(), mask=item_index < 0)
        columns.append(pc.cast(first.table.column(by), pa.string()).take(index))
    if not columns:
        there = sorted({*first.table.column_names, *second.table.column_names})
        raise StoreError(
            f"The store has no column {by!r}.",
            remedy=f"The columns of {first.modality} and {second.modality} are {', '.join(there)}.",
        )
    values = pc.coalesce(*columns)
    if values.null_count == len(values):
        raise StoreError(
            f"The column {by!r} is empty for every pair of {first.modality} and {second.modality}.",
            remedy="Choose a column with values, or leave out --by.",
        )
    encoded: Any = values.combine_chunks().dictionary_encode()
    if len(encoded.dictionary) > MAX_SUBSETS:
        raise StoreError(
            f"The column {by!r} has {len(encoded.dictionary)} values, but the gap can be compared for at most "
            f"{MAX_SUBSETS}.",
            remedy="Choose a column with a few groups, such as split.",
        )
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), [str(value) for value in encoded.dictionary.to_pylist()]


def _sizes(moments: Mapping[str, Moments]) -> str:
    return ", ".join(f"{part.n:,} {name}" for name, part in moments.items()) + " rows"
