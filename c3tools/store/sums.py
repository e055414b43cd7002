"""Moments of the rows of shards, and how they change if other rows are left out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..io.artifact import digest_of
from .left_out import LeftOut
from .rows import ITEM_COLUMNS, keys_of
from .shards import ShardRecord, SplitMoments, StoreInfo, add_moments, read_batches

_KEYS = ("key", *ITEM_COLUMNS)
_OF_MOMENTS = ("key", "embedding", "split", *ITEM_COLUMNS)  # the columns that they depend on


class ShardSums(NamedTuple):
    """The rows of a shard that are used, and a digest of the keys of the others.

    Attributes:
        rows: their number, with those that are left out.
        moments: of the rows that are used, by modality and split.
        left_out: digest of the keys of the rows that are left out; empty if there are none.
    """

    rows: int
    moments: SplitMoments
    left_out: str


def sum_shard(path: Path, modality: str, info: StoreInfo, left_out: LeftOut) -> ShardSums:
    """Read a shard, and sum its rows."""
    rows = 0
    moments: SplitMoments = {}
    left_out_keys: list[str] = []
    for batch in read_batches(path, modality, info, _OF_MOMENTS):
        rows += len(batch)
        used, left_out_rows = left_out.divide(modality, batch)
        left_out_keys += keys_of(left_out_rows)
        add_moments(moments, modality, used)
    return ShardSums(rows, moments, _digest_of_keys(left_out_keys))


class LeftOutChange(NamedTuple):
    """The changes in a shard if other rows are left out.

    Attributes:
        gone: moments of rows that were used and are not, by modality and split; and of rows that
            are in ``back`` too.
        back: moments of rows that are used now.
        left_out: see `ShardSums`, afterwards.
    """

    gone: SplitMoments
    back: SplitMoments
    left_out: str


def change_of_left_out(
    path: Path,
    modality: str,
    info: StoreInfo,
    record: ShardRecord,
    before: LeftOut,
    after: LeftOut,
) -> LeftOutChange | None:
    """Return what changes in a shard if ``after`` is left out where ``before`` was; None if nothing
    does. The embeddings are read only if something does.

    Raises:
        StoreError: if it is not the shard on record, or cannot be read.
    """
    changed = LeftOut(dict.fromkeys(before.reasons.keys() ^ after.reasons.keys(), ""))
    if not changed.has_rows_of(modality):
        return None
    left_out_keys: list[str] = []
    has_changed = False
    for batch in read_batches(path, modality, info, _KEYS, record):
        left_out_keys += keys_of(after.divide(modality, batch)[1])
        has_changed = has_changed or bool(len(changed.divide(modality, batch)[1]))
    if not has_changed:
        return None
    change = LeftOutChange({}, {}, _digest_of_keys(left_out_keys))
    for batch in read_batches(path, modality, info, _OF_MOMENTS, record):
        named = changed.divide(modality, batch)[1]
        add_moments(change.gone, modality, before.divide(modality, named)[0])
        add_moments(change.back, modality, after.divide(modality, named)[0])
    return change


def _digest_of_keys(keys: list[str]) -> str:
    """Return a digest of keys in any order; empty if there are none."""
    return digest_of(sorted(keys)) if keys else ""
