"""From a store to what the measures need: moments, pair sums, and a working set in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..corpus.splits import ALL
from ..errors import StoreError
from ..moments import Moments
from ..reporter import Tracker
from ..seeds import generator
from ..store.reader import Store
from ..store.rows import Indices, Mask
from .pairing import Pairing, kept_rows, pair_rows
from .reading import Rows
from .stream import PairSums, RowCheck, StreamResult, stream_pairs, stream_rows

MIN_ROWS = 3
MIN_FIT_ROWS = 100
EXACT_SCORES = 400_000_000
EXACT_ROWS = 100_000
SAMPLE_ITEMS = 2_500
SAMPLE_ROWS = 12_500


@dataclass
class WorkingSet:
    """Rows in memory, for the measures that need all pairs of rows.

    Attributes:
        first: (m, d), L2-normalised rows of the first modality, float64 where there are few, else float32.
        second: (k, d), of the second.
        owner: int64 (k,), the row of ``first`` each row of ``second`` belongs to; empty where nothing is paired.
        second_numbers: int64 (k,), the row numbers of ``second`` in the store.
        complete: whether it holds every paired row (every row, where nothing is paired).
    """

    first: Rows
    second: Rows
    owner: Indices
    second_numbers: Indices
    complete: bool

    @property
    def paired(self) -> bool:
        """Whether the rows are pairs."""
        return len(self.owner) > 0

    def differences(self) -> Rows:
        """``x - y`` of every pair (k, d)."""
        return self.first[self.owner] - self.second


@dataclass
class Collected:
    """Everything the measures of two modalities need.

    Attributes:
        store: where it comes from.
        first: name of the modality with one row per item.
        second: name of the other.
        moments: per modality, over the rows of the split, L2-normalised.
        fit_moments: per modality, what transforms are fitted on.
        fitted_on: which rows these are, in words.
        sums: over the pairs, or None where there are none.
        working: rows in memory.
        subset_names: values of the user's column.
        checks: per modality, what was found about its rows.
        normalised: whether the rows had to be normalised here.
        notes: what the reader should know.
    """

    store: Store
    first: str
    second: str
    moments: dict[str, Moments]
    fit_moments: dict[str, Moments]
    fitted_on: str
    sums: PairSums | None
    working: WorkingSet
    subset_names: list[str]
    checks: dict[str, RowCheck]
    normalised: bool
    notes: list[str] = field(default_factory=list)

    @cached_property
    def items(self) -> int:
        """Number of items that have pairs."""
        return 0 if self.sums is None else int(np.count_nonzero(np.bincount(self.sums.owner)))


def collect(
    store: Store,
    first: str,
    second: str,
    *,
    split: str | None = None,
    by: str | None = None,
    skip_invalid: bool = False,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> Collected:
    """Read what the measures of two modalities need, in one pass over the rows where nothing is wrong with them.

    Args:
        store: the store.
        first: a modality.
        second: another.
        split: measure the rows of this split only.
        by: a column that divides the pairs into subsets.
        skip_invalid: leave rows with NaN, infinity or norm 0 out, instead of refusing them.
        seed: of the working set, where it is a sample.
        tracker: told about rows read.

    Raises:
        StoreError: if a modality is missing or has fewer than 3 rows, or a row is invalid.
    """
    pairing = pair_rows(store, first, second, split=split, by=by)
    for name, kept in ((pairing.first, pairing.keep_first), (pairing.second, pairing.keep_second)):
        require_rows(store, name, int(np.count_nonzero(kept)), split)
    normalise = not store.info.normalised
    found, working = _read(store, pairing, seed, normalise, None, tracker)
    refuse_invalid(store, found.checks, skip_invalid)
    invalid = any(check.invalid for check in found.checks.values())
    loose = any(check.not_unit for check in found.checks.values())
    if invalid or normalise or loose:
        # the shards' moments cannot be used: they hold the invalid rows, or rows of other lengths
        pairing = _only_valid(pairing, found.checks)
        for name, kept in ((pairing.first, pairing.keep_first), (pairing.second, pairing.keep_second)):
            require_rows(store, name, int(np.count_nonzero(kept)), split)
        train = {name: kept_rows(store, name, "train") for name in (pairing.first, pairing.second)}
        again, working = _read(store, pairing, seed, normalise or loose, train, tracker)
        again.checks = found.checks
        found = again
    names = (pairing.first, pairing.second)
    moments = found.moments or {name: store.moments(name, split) for name in names}
    train_moments = found.train_moments or {name: store.moments(name, "train") for name in names}
    fit_moments, fitted_on = _fit_moments(moments, train_moments, split)
    return Collected(
        store=store,
        first=pairing.first,
        second=pairing.second,
        moments=moments,
        fit_moments=fit_moments,
        fitted_on=fitted_on,
        sums=found.sums,
        working=working,
        subset_names=pairing.subset_names,
        checks=found.checks,
        normalised=normalise or loose,
        notes=[*pairing.notes, *row_notes(found.checks, normalise or loose)],
    )


def collect_single(
    store: Store, modality: str, *, split: str | None = None, skip_invalid: bool = False
) -> tuple[Moments, list[str]]:
    """Moments of one modality's valid rows, L2-normalised, and notes about them.

    Raises:
        StoreError: if the modality is missing or has fewer than 3 rows, or a row is invalid.
    """
    keep = kept_rows(store, modality, split)
    require_rows(store, modality, int(np.count_nonzero(keep)), split)
    check, moments = stream_rows(store, modality, keep)
    refuse_invalid(store, {modality: check}, skip_invalid)
    loose = check.not_unit > 0
    if loose:
        _, moments = stream_rows(store, modality, keep, normalise=True)
    require_rows(store, modality, moments.n, split)
    return moments, row_notes({modality: check}, loose)


def require_rows(store: Store, modality: str, count: int, split: str | None) -> None:
    """Refuse fewer than 3 rows: there is no geometry in two points.

    Raises:
        StoreError: with the number there is.
    """
    if count < MIN_ROWS:
        where = "" if split in (None, ALL) else f" in the split {split!r}"
        raise StoreError(
            f"The modality {modality!r} of the store {store.path} has {count} rows{where}; a report needs at least "
            f"{MIN_ROWS}.",
            remedy="Embed more, or choose another --split.",
        )


def refuse_invalid(store: Store, checks: Mapping[str, RowCheck], skip: bool) -> None:
    """Refuse rows that have no direction, by name.

    Raises:
        StoreError: if there are any and ``skip`` is false.
    """
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
        remedy="Leave them out with --skip-invalid, or embed them again."
        + (" Infinities in a float16 store are usually values above 65,504: store float32." if overflow else ""),
    )


def row_notes(checks: Mapping[str, RowCheck], normalised: bool) -> list[str]:
    """What the reader should know about the rows."""
    notes = []
    for name, check in checks.items():
        if check.invalid:
            notes.append(
                f"{check.invalid} of {check.rows} {name} rows were left out: {check.not_finite} with NaN or infinity, "
                f"{check.zero} of norm 0 (for example {', '.join(check.examples)})."
            )
        if normalised and check.not_unit:
            notes.append(
                f"{check.not_unit} of {check.rows} {name} embeddings are not exactly of unit length (mean norm "
                f"{check.mean_norm:.4g}, at most {check.furthest:.2g} off); everything here is measured after L2 "
                "normalisation."
            )
    return notes


def sample_items(pairing: Pairing, seed: int) -> tuple[Indices, Indices, bool]:
    """Rows of the working set: every paired row where that is cheap, else a seeded sample of items with all theirs.

    Returns:
        Ascending rows of the first modality, of the second, and whether that is everything.
    """
    rng = generator(seed, "gap report", "working set")
    if not pairing.pairs:
        chosen = [_some(np.flatnonzero(kept), SAMPLE_ITEMS, rng) for kept in (pairing.keep_first, pairing.keep_second)]
        return (
            chosen[0],
            chosen[1],
            len(chosen[0]) + len(chosen[1]) == pairing.keep_first.sum() + pairing.keep_second.sum(),
        )
    items, rows = pairing.items, np.flatnonzero(pairing.owner >= 0)
    if len(items) * len(rows) <= EXACT_SCORES and len(items) + len(rows) <= EXACT_ROWS:
        return items, rows, True
    per_item = np.bincount(np.searchsorted(items, pairing.owner[rows]), minlength=len(items))
    order = rng.permutation(len(items))[:SAMPLE_ITEMS]
    fitting = max(1, int(np.searchsorted(np.cumsum(per_item[order]), SAMPLE_ROWS, side="right")))
    items = np.sort(items[order[:fitting]])
    return items, np.flatnonzero(np.isin(pairing.owner, items)), False


def _some(rows: Indices, count: int, rng: np.random.Generator) -> Indices:
    return rows if len(rows) <= count else np.sort(rng.choice(rows, count, replace=False))


def _read(
    store: Store,
    pairing: Pairing,
    seed: int,
    normalise: bool,
    train: Mapping[str, Mask] | None,
    tracker: Tracker | None,
) -> tuple[StreamResult, WorkingSet]:
    items, rows, complete = sample_items(pairing, seed)
    found = stream_pairs(store, pairing, items, rows, normalise=normalise, train=train, tracker=tracker)
    owner = np.searchsorted(items, pairing.owner[rows]) if pairing.pairs else np.empty(0, dtype=np.int64)
    return found, WorkingSet(found.first_rows, found.second_rows, owner, rows, complete)


def _only_valid(pairing: Pairing, checks: Mapping[str, RowCheck]) -> Pairing:
    first, second = checks[pairing.first].valid, checks[pairing.second].valid
    good = second & (pairing.owner >= 0) & first[np.maximum(pairing.owner, 0)]
    owner = np.where(good, pairing.owner, -1)
    subset = None if pairing.subset is None else np.where(good, pairing.subset, -1).astype(np.int32)
    return Pairing(pairing.first, pairing.second, owner, first, second, subset, pairing.subset_names, pairing.notes)


def _fit_moments(
    moments: dict[str, Moments], train: dict[str, Moments], split: str | None
) -> tuple[dict[str, Moments], str]:
    def sizes(parts: dict[str, Moments]) -> str:
        return ", ".join(f"{part.n:,} {name}" for name, part in parts.items()) + " rows"

    if all(part.n >= MIN_FIT_ROWS for part in train.values()):
        return train, f"the train split ({sizes(train)}; split by a hash of the keys where the corpus names no split)"
    rows = "all rows" if split in (None, ALL) else f"the {split} split"
    return moments, f"{rows} ({sizes(moments)}), as the train split has fewer than {MIN_FIT_ROWS} rows of a modality"


def collected_facts(collected: Collected) -> dict[str, Any]:
    """Where the numbers come from, for the report's provenance."""
    info = collected.store.info
    return {
        "store": str(collected.store.path),
        "model": str(info.model),
        "dim": info.dim,
        "dtype": info.dtype,
        "rows": {name: m.n for name, m in collected.moments.items()},
        "items": collected.items,
        "pairs": 0 if collected.sums is None else len(collected.sums.owner),
        "working_set": {
            "complete": collected.working.complete,
            collected.first: len(collected.working.first),
            collected.second: len(collected.working.second),
        },
        "fitted_on": collected.fitted_on,
    }
