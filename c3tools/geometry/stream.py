"""One pass over the rows of two modalities: what every pair says, and the rows of the working set.

Rows are read and decoded in two background threads while pairs are measured in this one. Only a window of the first
modality is kept in memory; where the second modality refers to it in quite another order than it is stored, the
first is spilled to a temporary file instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..moments import Moments
from ..reporter import SilentTracker, Tracker
from ..store.reader import Store
from ..store.rows import Indices, Mask
from .pairing import Pairing
from .reading import Batches, Rows, Window

Array = npt.NDArray[np.float64]

GROUP_PAIRS = 100
UNIT_TOLERANCE = {"float16": 2e-3, "float32": 1e-5}
"""How far a norm may be from 1 for rounding to the store's dtype to explain it."""
EXACT_VALUES = 2**25
_NAMED_KEYS = 5
_BLOCK_ROWS = 256


@dataclass
class RowCheck:
    """What was found about the rows of one modality, of the chosen split.

    Attributes:
        valid: bool (n,), over all rows of the modality: neither of the following two.
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
    """What the pass over the pairs leaves, every difference being ``first - second``.

    Attributes:
        owner: int64 (p,), the item of each pair.
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
            paired, so that the moments have it.
        second_sum: float64 (d,), sum of the paired rows of the second; None likewise.
    """

    owner: Indices
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
    """The result of `stream_pairs`.

    Attributes:
        checks: per modality.
        sums: over the pairs, or None without any.
        first_rows: (m, d), the rows of the first modality that were asked for.
        second_rows: (k, d), likewise.
        moments: per modality, from the rows themselves; empty unless asked for.
        train_moments: likewise, of the train split.
    """

    checks: dict[str, RowCheck]
    sums: PairSums | None
    first_rows: Rows
    second_rows: Rows
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
    tracker: Tracker | None = None,
) -> StreamResult:
    """Read both modalities once.

    Up to 2^25 values everything is computed in float64; beyond, in float32 by batches whose sums are float64.

    Args:
        store: the store.
        pairing: its pairs.
        first_sample: ascending rows of the first modality to keep.
        second_sample: ascending rows of the second modality to keep.
        normalise: L2-normalise every row first.
        train: per modality, the rows of the train split: recompute the moments of the rows that ``pairing`` keeps,
            and of those of them in the train split, instead of leaving that to the shards' moments.
        tracker: told about rows read.

    Raises:
        StoreError: if a shard cannot be read.
    """
    dim = store.info.dim
    values = (len(pairing.keep_first) + len(pairing.keep_second)) * dim
    dtype = np.dtype(np.float64 if values <= EXACT_VALUES else np.float32)
    tolerance = UNIT_TOLERANCE[store.info.dtype]
    common = _Common(dim, dtype, normalise, tolerance, tracker or SilentTracker())
    train = train or {}
    first = _RowAccumulator(common, pairing.keep_first, pairing.used, first_sample, train.get(pairing.first))
    second = _RowAccumulator(common, pairing.keep_second, pairing.owner >= 0, second_sample, train.get(pairing.second))
    sums = _PairAccumulator(pairing, dim) if pairing.pairs else None
    with np.errstate(all="ignore"), ExitStack() as stack:  # NaN and infinity are counted, not warned about
        first_batches = stack.enter_context(Batches(store, pairing.first, dtype))
        second_batches = stack.enter_context(Batches(store, pairing.second, dtype))
        window = stack.enter_context(Window(_through(first_batches, first), pairing.owner, dim, dtype))
        position = 0
        for keys, read in second_batches:
            rows = second.take(keys, read)
            owners = pairing.owner[position : position + len(rows)]
            chosen = np.flatnonzero(owners >= 0)
            if sums is not None and len(chosen):
                mine = rows if len(chosen) == len(rows) else rows[chosen]
                sums.add(window.rows(owners[chosen]), mine, position + chosen)
            position += len(rows)
        window.finish()
        pair_sums = None if sums is None else sums.result(first.used_sum, second.used_sum)
    return StreamResult(
        checks={pairing.first: first.check, pairing.second: second.check},
        sums=pair_sums,
        first_rows=first.sample,
        second_rows=second.sample,
        moments={pairing.first: first.moments, pairing.second: second.moments} if train else {},
        train_moments={pairing.first: first.train_moments, pairing.second: second.train_moments} if train else {},
    )


def stream_rows(store: Store, modality: str, keep: Mask, *, normalise: bool = False) -> tuple[RowCheck, Moments]:
    """Read one modality alone: what was found about its rows, and the moments of the valid ones.

    Args:
        store: the store.
        modality: its name.
        keep: bool (n,), the rows of the chosen split.
        normalise: L2-normalise every row first.
    """
    common = _Common(store.info.dim, np.dtype(np.float32), normalise, UNIT_TOLERANCE[store.info.dtype], SilentTracker())
    nothing = np.zeros(len(keep), dtype=bool)
    intake = _RowAccumulator(common, keep, nothing, np.empty(0, dtype=np.int64), nothing)
    with np.errstate(all="ignore"), Batches(store, modality, common.dtype) as batches:
        for keys, rows in batches:
            intake.take(keys, rows)
    return intake.check, intake.moments


@dataclass(frozen=True)
class _Common:
    dim: int
    dtype: np.dtype[Any]
    normalise: bool
    tolerance: float
    tracker: Tracker


class _RowAccumulator:
    """Checks the rows of one modality as they pass, and keeps what is asked for."""

    def __init__(self, common: _Common, keep: Mask, used: Mask, sample: Indices, train: Mask | None) -> None:
        self.check = RowCheck(valid=keep.copy())
        self.used_sum: Array | None = None if np.array_equal(used, keep) else np.zeros(common.dim)
        self.sample: Rows = np.empty((len(sample), common.dim), dtype=common.dtype)
        self.moments = self.train_moments = Moments.empty(common.dim)
        self._common, self._keep, self._used, self._wanted, self._train = common, keep, used, sample, train
        self._position = 0

    def take(self, keys: pa.Array, rows: Rows) -> Rows:
        start, stop = self._position, self._position + len(rows)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows)).astype(np.float64)
        good = self._note(keys, norms, start)
        if self._common.normalise:
            rows = rows / np.where(norms > 0, norms, 1.0).astype(rows.dtype)[:, None]
        if self.used_sum is not None:
            self.used_sum += rows[self._used[start:stop]].sum(axis=0, dtype=np.float64)
        if self._train is not None:
            self.moments = self.moments.merge(Moments.from_rows(rows[good]))
            self.train_moments = self.train_moments.merge(Moments.from_rows(rows[good & self._train[start:stop]]))
        low, high = np.searchsorted(self._wanted, [start, stop])
        self.sample[low:high] = rows[self._wanted[low:high] - start]
        self._position = stop
        self._common.tracker.advance(len(rows))
        return rows

    def _note(self, keys: pa.Array, norms: Array, start: int) -> Mask:
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


def _through(batches: Batches, intake: _RowAccumulator) -> Iterator[Rows]:
    for keys, rows in batches:
        yield intake.take(keys, rows)


class _PairAccumulator:
    def __init__(self, pairing: Pairing, dim: int) -> None:
        count = pairing.pairs
        self._owner = pairing.owner[pairing.owner >= 0]
        self._subset = pairing.subset
        self._subset_items = _items_by_subset(pairing)
        self._cosine, self._distance = np.empty(count), np.empty(count)
        self._squares = np.zeros(dim)
        self._group_pairs = GROUP_PAIRS if count >= 5 * GROUP_PAIRS else max(1, count // 5)
        self._groups = np.zeros((-(-count // self._group_pairs), dim))
        self._subset_sums = np.zeros((len(pairing.subset_names), dim))
        self._subset_pairs = np.zeros(len(pairing.subset_names), dtype=np.int64)
        self._done = 0

    def add(self, first: Rows, second: Rows, second_numbers: Indices) -> None:
        # in blocks that stay in the cache, as every row is looked at several times
        for low in range(0, len(first), _BLOCK_ROWS):
            high = min(low + _BLOCK_ROWS, len(first))
            self._add_block(first[low:high], second[low:high], second_numbers[low:high])

    def _add_block(self, first: Rows, second: Rows, second_numbers: Indices) -> None:
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

    def _add_to_groups(self, difference: Rows, start: int) -> None:
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
            owner=self._owner,
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
    count = len(pairing.subset_names)
    if pairing.subset is None:
        return np.zeros(count, dtype=np.int64)
    chosen = (pairing.owner >= 0) & (pairing.subset >= 0)
    items = np.unique(pairing.owner[chosen] * count + pairing.subset[chosen])
    return np.bincount(items % count, minlength=count)
