"""One pass over the rows of two modalities: sums over every pair, and the rows of the working set.

Rows are read and decoded in two background threads while pairs are measured in this one. Only a window of the first
modality is kept in memory; if the second modality refers to it in quite another order than it is stored, the
first is written to a temporary file instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..arrays import Array, Floats, Indices, Mask
from ..moments import Moments
from ..reporter import Progress
from ..store.reader import Store
from .reading import Batches, Pairing, Window

GROUP_PAIRS = 100
UNIT_TOLERANCE = {"float16": 2e-3, "float32": 1e-5}
"""Largest distance of a norm from 1 that rounding to the store's dtype explains."""
EXACT_VALUES = 2**25
_NAMED_KEYS = 5
_BLOCK_ROWS = 256


@dataclass
class RowCheck:
    """Findings about the rows of one modality that are in the chosen split.

    Attributes:
        valid: bool (n,), the rows of the split that have a direction: finite, and not 0.
        rows: rows seen.
        not_finite: rows with NaN or infinity.
        zero: rows of norm 0.
        examples: keys of the first few of either.
        not_unit: valid rows whose norm is further from 1 than rounding explains.
        furthest: largest distance of a valid row's norm from 1.
        norm_sum: sum of the norms of the valid rows.
    """

    valid: Mask
    rows: int = 0
    not_finite: int = 0
    zero: int = 0
    examples: list[str] = field(default_factory=list)
    not_unit: int = 0
    furthest: float = 0.0
    norm_sum: float = 0.0

    @property
    def invalid(self) -> int:
        """Rows that cannot be measured."""
        return self.not_finite + self.zero

    @property
    def mean_norm(self) -> float:
        """Mean norm of the valid rows."""
        return self.norm_sum / max(self.rows - self.invalid, 1)


@dataclass
class PairSums:
    """Sums over the pairs; every difference is ``first - second``.

    Attributes:
        item_index: int64 (p,), the row of the first modality in each pair: its item.
        cosine: float64 (p,), ``x . y``.
        distance: float64 (p,), ``|x - y|``.
        mean: float64 (d,), mean difference over the pairs.
        variance: float64 (d,), variance of the difference per dimension.
        groups: float64 (g, d), differences averaged over groups of ``group_pairs`` consecutive pairs.
        group_pairs: pairs per group.
        subset_means: float64 (s, d), mean difference per subset of the user's column.
        subset_pairs: int64 (s,), pairs per subset.
        subset_items: int64 (s,), items these belong to.
        first_sum: float64 (d,), sum of the paired rows of the first modality, each once; None where every row is
            paired and the moments contain the sum.
        second_sum: float64 (d,), sum of the paired rows of the second; None likewise.
    """

    item_index: Indices
    cosine: Array
    distance: Array
    mean: Array
    variance: Array
    groups: Array
    group_pairs: int
    subset_means: Array
    subset_pairs: Indices
    subset_items: Indices
    first_sum: Array | None
    second_sum: Array | None


@dataclass
class StreamResult:
    """Result of `stream_pairs`.

    Attributes:
        checks: per modality.
        sums: over the pairs, or None without any.
        first_rows: (m, d), the requested rows of the first modality.
        second_rows: (k, d), likewise.
        moments: per modality, from the rows themselves; empty unless requested.
        train_moments: likewise, of the train split.
    """

    checks: dict[str, RowCheck]
    sums: PairSums | None
    first_rows: Floats
    second_rows: Floats
    moments: dict[str, Moments]
    train_moments: dict[str, Moments]


def stream_pairs(
    store: Store,
    pairing: Pairing,
    first_sample: Indices,
    second_sample: Indices,
    *,
    normalise: bool = False,
    train: Mapping[str, Mask] | None = None,
    progress: Progress | None = None,
) -> StreamResult:
    """Read both modalities once.

    Up to 2^25 values everything is computed in float64; beyond that, in float32 by batches whose sums are float64.

    Args:
        store: the store.
        pairing: its pairs.
        first_sample: ascending rows of the first modality to keep.
        second_sample: ascending rows of the second modality to keep.
        normalise: L2-normalise every row first.
        train: per modality, the rows of the train split. If given, the moments of the rows that ``pairing`` keeps,
            and of those in the train split, are computed here; otherwise the shards' moments serve.
        progress: counts rows read.

    Raises:
        StoreError: if a shard cannot be read.
    """
    dim = store.info.dim
    values = (len(pairing.keep_first) + len(pairing.keep_second)) * dim
    dtype = np.dtype(np.float64 if values <= EXACT_VALUES else np.float32)
    common = _Common(dim, dtype, normalise, UNIT_TOLERANCE[store.info.dtype], progress or Progress())
    train = train or {}
    index, paired = pairing.item_index, pairing.item_index >= 0
    first = _RowAccumulator(common, pairing.keep_first, pairing.paired_first, first_sample, train.get(pairing.first))
    second = _RowAccumulator(common, pairing.keep_second, paired, second_sample, train.get(pairing.second))
    sums = _PairAccumulator(pairing, dim) if pairing.pairs else None
    with np.errstate(all="ignore"), ExitStack() as stack:  # NaN and infinity are counted instead
        first_batches = stack.enter_context(Batches(store, pairing.first, dtype))
        second_batches = stack.enter_context(Batches(store, pairing.second, dtype))
        window = Window(first.take_all(first_batches), index, dim, dtype)
        position = 0
        for keys, read in second_batches:
            rows = second.take(keys, read)
            items = index[position : position + len(rows)]
            chosen = np.flatnonzero(items >= 0)
            if sums is not None and len(chosen):
                matched = rows if len(chosen) == len(rows) else rows[chosen]
                sums.add(window.rows(items[chosen]), matched, position + chosen)
            position += len(rows)
        window.finish()
        pair_sums = None if sums is None else sums.result(first.paired_sum, second.paired_sum)
    return StreamResult(
        checks={pairing.first: first.check, pairing.second: second.check},
        sums=pair_sums,
        first_rows=first.sample,
        second_rows=second.sample,
        moments={pairing.first: first.moments, pairing.second: second.moments} if train else {},
        train_moments={pairing.first: first.train_moments, pairing.second: second.train_moments} if train else {},
    )


def stream_rows(store: Store, modality: str, keep: Mask, *, normalise: bool = False) -> tuple[RowCheck, Moments]:
    """Read one modality alone; return the check of its rows and the moments of the valid ones.

    Args:
        store: the store.
        modality: its name.
        keep: bool (n,), the rows of the chosen split.
        normalise: L2-normalise every row first.
    """
    common = _Common(store.info.dim, np.dtype(np.float32), normalise, UNIT_TOLERANCE[store.info.dtype], Progress())
    nothing = np.zeros(len(keep), dtype=bool)
    accumulator = _RowAccumulator(common, keep, nothing, np.empty(0, dtype=np.int64), nothing)
    with np.errstate(all="ignore"), Batches(store, modality, common.dtype) as batches:
        for keys, rows in batches:
            accumulator.take(keys, rows)
    return accumulator.check, accumulator.moments


@dataclass(frozen=True)
class _Common:
    """Settings that both modalities of a pass share."""

    dim: int
    dtype: np.dtype[Any]
    normalise: bool
    tolerance: float
    progress: Progress


class _RowAccumulator:
    """Checks, sums and a sample of the rows of one modality, collected as the rows pass."""

    def __init__(self, common: _Common, keep: Mask, paired: Mask, sample: Indices, train: Mask | None) -> None:
        self.check = RowCheck(valid=keep.copy())
        self.paired_sum: Array | None = None if np.array_equal(paired, keep) else np.zeros(common.dim)
        self.sample: Floats = np.empty((len(sample), common.dim), dtype=common.dtype)
        self.moments = self.train_moments = Moments.empty(common.dim)
        self._common, self._keep, self._paired, self._wanted, self._train = common, keep, paired, sample, train
        self._position = 0

    def take_all(self, batches: Batches) -> Iterator[Floats]:
        """Take one batch after another, and yield its rows."""
        for keys, rows in batches:
            yield self.take(keys, rows)

    def take(self, keys: pa.Array[Any], rows: Floats) -> Floats:
        """Take the next rows (n, d) and return them, normalised on request."""
        start, stop = self._position, self._position + len(rows)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows)).astype(np.float64)
        good = self._check_rows(keys, norms, start)
        if self._common.normalise:
            rows = rows / np.where(norms > 0, norms, 1.0).astype(rows.dtype)[:, None]
        if self.paired_sum is not None:
            self.paired_sum += rows[self._paired[start:stop]].sum(axis=0, dtype=np.float64)
        if self._train is not None:
            train = np.isfinite(norms) & (norms > 0) & self._train[start:stop]  # in the measured split or not
            self.moments = self.moments.merge(Moments.from_rows(rows[good]))
            self.train_moments = self.train_moments.merge(Moments.from_rows(rows[train]))
        low, high = np.searchsorted(self._wanted, [start, stop])
        self.sample[low:high] = rows[self._wanted[low:high] - start]
        self._position = stop
        self._common.progress.advance(len(rows))
        return rows

    def _check_rows(self, keys: pa.Array[Any], norms: Array, start: int) -> Mask:
        keep = self._keep[start : start + len(norms)]
        finite = np.isfinite(norms)
        zero = norms == 0
        good: Mask = keep & finite & ~zero
        check = self.check
        check.rows += int(np.count_nonzero(keep))
        check.norm_sum += float(norms[good].sum())
        off = np.abs(norms[good] - 1)
        check.not_unit += int(np.count_nonzero(off > self._common.tolerance))
        check.furthest = max(check.furthest, float(off.max(initial=0.0)))
        bad = np.flatnonzero(keep & ~good)
        if len(bad):
            check.valid[start + bad] = False
            check.not_finite += int(np.count_nonzero(keep & ~finite))
            check.zero += int(np.count_nonzero(keep & zero))
            check.examples += [str(keys[int(row)]) for row in bad[: _NAMED_KEYS - len(check.examples)]]
        return good


class _PairAccumulator:
    """Sums over the pairs as they pass, in the order of the second modality."""

    def __init__(self, pairing: Pairing, dim: int) -> None:
        count = pairing.pairs
        self._item_index = pairing.item_index[pairing.item_index >= 0]
        self._subset = pairing.subset
        self._subset_items = _items_by_subset(pairing)
        self._cosine, self._distance = np.empty(count), np.empty(count)
        self._squares = np.zeros(dim)
        self._group_pairs = GROUP_PAIRS if count >= 5 * GROUP_PAIRS else max(1, count // 5)
        self._groups = np.zeros((-(-count // self._group_pairs), dim))
        self._subset_sums = np.zeros((len(pairing.subset_names), dim))
        self._subset_pairs = np.zeros(len(pairing.subset_names), dtype=np.int64)
        self._done = 0

    def add(self, first: Floats, second: Floats, second_numbers: Indices) -> None:
        # in blocks that stay in the cache, as every row is looked at several times
        for low in range(0, len(first), _BLOCK_ROWS):
            high = min(low + _BLOCK_ROWS, len(first))
            self._add_block(first[low:high], second[low:high], second_numbers[low:high])

    def _add_block(self, first: Floats, second: Floats, second_numbers: Indices) -> None:
        start, stop = self._done, self._done + len(first)
        self._cosine[start:stop] = np.einsum("ij,ij->i", first, second)
        difference = first - second
        self._distance[start:stop] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        self._add_to_groups(difference, start)
        if self._subset is not None:
            codes = self._subset[second_numbers]
            for code in np.unique(codes[codes >= 0]):
                self._subset_sums[code] += difference[codes == code].sum(axis=0, dtype=np.float64)
                self._subset_pairs[code] += int(np.count_nonzero(codes == code))
        np.square(difference, out=difference)
        self._squares += difference.sum(axis=0)
        self._done = stop

    def _add_to_groups(self, difference: Floats, start: int) -> None:
        """Add rows, the first of which is pair number ``start``, to the sums of their groups."""
        size, end = self._group_pairs, start + len(difference)
        first, last = -(-start // size), end // size  # groups that begin, and that are complete, within these rows
        if first > last:
            self._groups[last] += difference.sum(axis=0)
            return
        head, tail = first * size - start, last * size - start
        if head:
            self._groups[first - 1] += difference[:head].sum(axis=0)
        if last > first:
            whole = difference[head:tail].reshape(last - first, size, -1)
            self._groups[first:last] += whole.sum(axis=1)
        if end > last * size:
            self._groups[last] += difference[tail:].sum(axis=0)

    def result(self, first_sum: Array | None, second_sum: Array | None) -> PairSums:
        count = self._done
        mean = self._groups.sum(axis=0) / count
        full = count // self._group_pairs
        return PairSums(
            item_index=self._item_index,
            cosine=self._cosine,
            distance=self._distance,
            mean=mean,
            variance=np.maximum(self._squares / count - mean**2, 0.0),
            groups=self._groups[:full] / self._group_pairs,
            group_pairs=self._group_pairs,
            subset_means=self._subset_sums / np.maximum(self._subset_pairs, 1)[:, None],
            subset_pairs=self._subset_pairs,
            subset_items=self._subset_items,
            first_sum=first_sum,
            second_sum=second_sum,
        )


def _items_by_subset(pairing: Pairing) -> Indices:
    """Return the number of items with pairs in each subset."""
    count = len(pairing.subset_names)
    if pairing.subset is None:
        return np.zeros(count, dtype=np.int64)
    chosen = (pairing.item_index >= 0) & (pairing.subset >= 0)
    items = np.unique(pairing.item_index[chosen] * count + pairing.subset[chosen])
    return np.bincount(items % count, minlength=count)
