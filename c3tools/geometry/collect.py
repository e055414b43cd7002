"""Read from a store what the measures of two modalities need: moments, pair sums, and a working set in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import Array, Floats, Indices, Mask
from ..corpus.splits import ALL
from ..errors import StoreError
from ..moments import Moments
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator
from ..store.reader import Store
from .reading import Pairing, distinct_items, kept_rows, pair_rows
from .stream import PairSums, RowCheck, StreamResult, stream_pairs, stream_rows

MIN_ROWS = 3
MIN_FIT_ROWS = 100
EXACT_SCORES = 400_000_000
EXACT_ROWS = 100_000
SAMPLE_ITEMS = 2_500
SAMPLE_ROWS = 12_500


@dataclass
class WorkingSet:
    """Rows in memory, for the measures that compare all rows with all others.

    Attributes:
        first: (m, d), L2-normalised rows of the first modality, float64 if there are few, else float32.
        second: (k, d), of the second.
        item_index: int64 (k,), the row of ``first`` that each row of ``second`` belongs to; empty without pairs.
        second_rows: int64 (k,), the row numbers of ``second`` in the store.
        complete: whether it contains every paired row, or every row where nothing is paired.
    """

    first: Floats
    second: Floats
    item_index: Indices
    second_rows: Indices
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

    def differences(self) -> Floats:
        """Return ``x - y`` of every pair (k, d)."""
        return self.first[self.item_index] - self.second

    @cached_property
    def rows_per_item(self) -> Array:
        """Rows of the second modality that each item has: float64 (m,)."""
        return np.bincount(self.item_index, minlength=len(self.first)).astype(np.float64)

    @cached_property
    def item_means(self) -> Array:
        """Mean of each item's rows of the second modality: float64 (m, d), 0 for an item without any."""
        means = np.zeros(self.first.shape)
        order = np.argsort(self.item_index, kind="stable")
        items, starts = np.unique(self.item_index[order], return_index=True)
        if len(items):
            sums = np.add.reduceat(self.second[order], starts, axis=0, dtype=np.float64)
            means[items] = sums / self.rows_per_item[items, None]
        return means


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
        sums: over the pairs, or None if there are none.
        working: rows in memory.
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
    sums: PairSums | None
    working: WorkingSet
    subset_names: list[str]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def items(self) -> int:
        """Number of items that have pairs."""
        return 0 if self.sums is None else int(np.count_nonzero(np.bincount(self.sums.item_index)))

    @cached_property
    def gap_covariance(self) -> Array:
        """Covariance of the gap ``mu_x - mu_y`` over draws of the data, float64 (d, d); items are what is drawn.

        Its trace is what ``|mu_x - mu_y|^2`` is too large by on average. An item moves the gap by its own row and by
        the mean of its rows in the other modality, weighted by their number; rows without a partner add the variance
        of their modality.
        """
        x, y = self.moments[self.first], self.moments[self.second]
        working, items = self.working, self.items
        pairs = 0 if self.sums is None else len(self.sums.item_index)
        alone = (x.n - items) / x.n * x.covariance / (x.n - 1) + (y.n - pairs) / y.n * y.covariance / (y.n - 1)
        if len(working.first) < 2 or not pairs:
            return alone
        weight = working.rows_per_item[:, None] * items / y.n
        moved = (working.first - x.mean) * (items / x.n) - (working.item_means - y.mean) * weight
        moved -= moved.mean(axis=0)
        return alone + moved.T @ moved / (items * (len(moved) - 1))

    @cached_property
    def gap_bias(self) -> float:
        """Expected excess of ``|mu_x - mu_y|^2`` over the squared distance of the true means."""
        return float(np.trace(self.gap_covariance))

    def provenance(self) -> dict[str, Any]:
        """Return where the numbers come from, as the report's JSON has it."""
        working = self.working
        sizes = {self.first: len(working.first), self.second: len(working.second)}
        return {
            **store_facts(self.store),
            "rows": {name: moments.n for name, moments in self.moments.items()},
            "items": self.items,
            "pairs": 0 if self.sums is None else len(self.sums.item_index),
            "working_set": {"complete": working.complete, **sizes},
            "fitted_on": self.fitted_on,
        }


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
        second: another.
        split: read the rows of this split only.
        by: a column that divides the pairs into subsets.
        skip_invalid: leave out rows with NaN, infinity or norm 0 instead of refusing them.
        seed: of the working set, if it is a sample.
        reporter: shows the progress of reading.

    Raises:
        StoreError: if a modality is missing or has fewer than 3 rows, or a row is invalid.
    """
    pairing = pair_rows(store, first, second, split=split, by=by)
    names = (pairing.first, pairing.second)
    _require_rows(store, pairing, split)
    normalise = not store.info.normalised
    found, working = _read(store, pairing, seed, normalise, None, reporter)
    checks = found.checks
    _refuse_invalid(store, checks, skip_invalid)
    loose = any(check.not_unit for check in checks.values())
    if normalise or loose or any(check.invalid for check in checks.values()):
        # the shards' moments include the invalid rows, and rows of other lengths: compute them here
        pairing = pairing.only(checks[pairing.first].valid, checks[pairing.second].valid)
        _require_rows(store, pairing, split)
        train = {name: kept_rows(store, name, "train") for name in names}
        found, working = _read(store, pairing, seed, normalise or loose, train, reporter)
    moments = found.moments or {name: store.moments(name, split) for name in names}
    none = Moments.empty(store.info.dim)
    train_moments = found.train_moments or {name: store.moments_by_split(name).get("train", none) for name in names}
    fit_moments, fitted_on, fit_share = _fit_moments(moments, train_moments, split, pairing.first)
    return Collected(
        store=store,
        first=pairing.first,
        second=pairing.second,
        moments=moments,
        independent={
            name: distinct_items(store, name, keep)
            for name, keep in zip(names, (pairing.keep_first, pairing.keep_second), strict=True)
        },
        fit_moments=fit_moments,
        fitted_on=fitted_on,
        fit_share=fit_share,
        sums=found.sums,
        working=working,
        subset_names=pairing.subset_names,
        notes=[
            *([store.split_note] if store.split_note else []),
            *pairing.notes,
            *_row_notes(checks, normalise or loose),
        ],
    )


def collect_single(
    store: Store, modality: str, *, split: str | None = None, skip_invalid: bool = False
) -> tuple[Moments, int, list[str]]:
    """Return the moments of one modality's valid rows, L2-normalised, the number of their items, and notes on them.

    Raises:
        StoreError: if the modality is missing or has fewer than 3 rows, or a row is invalid.
    """
    keep = kept_rows(store, modality, split)
    _require_count(store, modality, int(np.count_nonzero(keep)), split)
    check, moments = stream_rows(store, modality, keep)
    _refuse_invalid(store, {modality: check}, skip_invalid)
    loose = check.not_unit > 0
    if loose:
        _, moments = stream_rows(store, modality, keep, normalise=True)
    _require_count(store, modality, moments.n, split)
    return moments, distinct_items(store, modality, check.valid), _row_notes({modality: check}, loose)


def store_facts(store: Store) -> dict[str, Any]:
    """Return what identifies a store: path, model, dimension and dtype."""
    info = store.info
    return {"store": str(store.path), "model": str(info.model), "dim": info.dim, "dtype": info.dtype}


def extreme_pairs(collected: Collected, count: int) -> dict[str, list[dict[str, Any]]]:
    """Return the pairs of the working set with the highest and lowest cosines, ``closest`` and ``furthest``.

    Args:
        collected: two modalities.
        count: pairs of each kind.

    Returns:
        ``{"cosine", "key", "text", "item"}`` for each pair, key and text being those of its second row.
    """
    working = collected.working
    if not working.paired:
        return {}
    cosine = np.einsum("ij,ij->i", working.first[working.item_index], working.second)
    order = np.argsort(cosine, kind="stable")
    count = min(count, len(order) // 2)
    chosen = {"closest": order[::-1][:count], "furthest": order[:count]}
    texts = _texts(collected, np.sort(working.second_rows[np.concatenate(list(chosen.values()))]))
    return {
        side: [{"cosine": float(cosine[row]), **texts[int(working.second_rows[row])]} for row in rows]
        for side, rows in chosen.items()
    }


def _texts(collected: Collected, wanted: Indices) -> dict[int, dict[str, str]]:
    """Read key, text and item of rows of the second modality; ``wanted`` is ascending."""
    found, start = {}, 0
    columns = ["key", "caption", "image_key", "pair_key"]
    for batch in collected.store.batches(collected.second, columns=columns, batch_rows=65536):
        low, high = np.searchsorted(wanted, [start, start + batch.num_rows])
        for number in wanted[low:high]:
            row = {name: batch.column(name)[int(number) - start].as_py() for name in batch.schema.names}
            found[int(number)] = {
                "key": row["key"],
                "text": row.get("caption") or "",
                "item": row.get("image_key") or row.get("pair_key") or row["key"],
            }
        start += batch.num_rows
    return found


def _require_rows(store: Store, pairing: Pairing, split: str | None) -> None:
    for name, kept in ((pairing.first, pairing.keep_first), (pairing.second, pairing.keep_second)):
        _require_count(store, name, int(np.count_nonzero(kept)), split)


def _require_count(store: Store, modality: str, count: int, split: str | None) -> None:
    if count < MIN_ROWS:
        every = split in (None, ALL)
        raise StoreError(
            f"The modality {modality!r} of the store {store.path} has {counted(count, 'row')}"
            f"{'' if every else f' in the split {split!r}'}; a report needs at least {MIN_ROWS}.",
            remedy="Embed more." if every else f"Choose another --split. The splits are {store.list_splits(modality)}.",
        )


def _refuse_invalid(store: Store, checks: Mapping[str, RowCheck], skip: bool) -> None:
    """Raise a StoreError that names rows without a direction, unless they are skipped."""
    if skip or not any(check.invalid for check in checks.values()):
        return
    parts = []
    for name, check in checks.items():
        if check.invalid:
            keys = ", ".join(check.examples) + (", …" if check.invalid > len(check.examples) else "")
            parts.append(f"{name}: {check.not_finite} with NaN or infinity, {check.zero} of norm 0 ({keys})")
    overflow = store.info.dtype == "float16" and any(check.not_finite for check in checks.values())
    raise StoreError(
        f"The store {store.path} has rows that cannot be measured. " + "; ".join(parts) + ".",
        remedy="Leave these rows out with --skip-invalid, or embed them again."
        + (" Infinity in a float16 store usually comes from values above 65,504: use float32." if overflow else ""),
    )


def _row_notes(checks: Mapping[str, RowCheck], normalised: bool) -> list[str]:
    notes = []
    for name, check in checks.items():
        if check.invalid:
            notes.append(
                f"{check.invalid} of {check.rows} {name} rows were left out: {check.not_finite} with NaN or infinity, "
                f"{check.zero} of norm 0 (for example {', '.join(check.examples)})."
            )
        if normalised and check.not_unit:
            notes.append(
                f"{check.not_unit} of {check.rows} {name} embeddings do not have norm 1 exactly (mean norm "
                f"{check.mean_norm:.4g}, at most {check.furthest:.2g} off). Everything is measured after L2 "
                "normalisation."
            )
    return notes


def _sample_items(pairing: Pairing, seed: int) -> tuple[Indices, Indices, bool]:
    """Choose the rows of the working set: every paired row if that is cheap, else a seeded sample of items.

    Returns:
        Ascending rows of the first modality, of the second, and whether these are all rows.
    """
    rng = generator(seed, "gap report", "working set")
    if not pairing.pairs:
        kept = [np.flatnonzero(mask) for mask in (pairing.keep_first, pairing.keep_second)]
        first, second = (
            rows if len(rows) <= SAMPLE_ITEMS else np.sort(rng.choice(rows, SAMPLE_ITEMS, replace=False))
            for rows in kept
        )
        return first, second, max(map(len, kept)) <= SAMPLE_ITEMS
    items, rows = pairing.items, np.flatnonzero(pairing.item_index >= 0)
    if len(items) * len(rows) <= EXACT_SCORES and len(items) + len(rows) <= EXACT_ROWS:
        return items, rows, True
    per_item = np.bincount(np.searchsorted(items, pairing.item_index[rows]), minlength=len(items))
    order = rng.permutation(len(items))[:SAMPLE_ITEMS]
    fitting = max(1, int(np.searchsorted(np.cumsum(per_item[order]), SAMPLE_ROWS, side="right")))
    items = np.sort(items[order[:fitting]])
    return items, np.flatnonzero(np.isin(pairing.item_index, items)), False


def _read(
    store: Store, pairing: Pairing, seed: int, normalise: bool, train: Mapping[str, Mask] | None, reporter: Reporter
) -> tuple[StreamResult, WorkingSet]:
    items, rows, complete = _sample_items(pairing, seed)
    with reporter.progress("Reading rows", len(pairing.keep_first) + len(pairing.keep_second)) as progress:
        found = stream_pairs(store, pairing, items, rows, normalise=normalise, train=train, progress=progress)
    item_index = np.searchsorted(items, pairing.item_index[rows]) if pairing.pairs else np.empty(0, dtype=np.int64)
    return found, WorkingSet(found.first_rows, found.second_rows, item_index, rows, complete)


def _fit_moments(
    moments: dict[str, Moments], train: dict[str, Moments], split: str | None, first: str
) -> tuple[dict[str, Moments], str, float]:
    """Choose the moments that transforms are fitted on: train, or all if that is small.

    Returns:
        The moments, which rows they are of in words, and the share of the measured rows that are among them.
    """

    def sizes(parts: dict[str, Moments]) -> str:
        return ", ".join(f"{part.n:,} {name}" for name, part in parts.items()) + " rows"

    if all(part.n >= MIN_FIT_ROWS for part in train.values()):
        words = f"the train split ({sizes(train)}; split by a hash of the keys if the corpus has no splits)"
        share = train[first].n / moments[first].n if split in (None, ALL) else float(split == "train")
        return train, words, share
    rows = "all rows" if split in (None, ALL) else f"the {split} split"
    words = f"{rows} ({sizes(moments)}), because the train split has fewer than {MIN_FIT_ROWS} rows of a modality"
    return moments, words, 1.0
