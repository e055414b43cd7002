"""Keys across all shards: none missing, none twice, every text's image there.

Keys are compared by 64-bit hashes, 8 bytes a row in memory; what looks double is then read again and compared as
text, so a duplicate is never reported by accident.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...errors import StoreError
from ..reader import Store
from ..writer import part_name
from .findings import Finding, Repair

Hashes = npt.NDArray[np.int64]
Parts = dict[str, list[int]]
_OWNERS = ("image_key", "pair_key")


def key_hashes(keys: Sequence[str]) -> Hashes:
    """64-bit hashes (n,) of keys, the same within a process only."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def repeated(hashes: Hashes) -> Hashes:
    """The hashes that stand in ``hashes`` more than once, ascending; sorts ``hashes`` in place."""
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def contains(ordered: Hashes, hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Which of ``hashes`` are among the ascending ``ordered``."""
    if not len(ordered):
        return np.zeros(len(hashes), bool)
    return ordered[np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)] == hashes  # type: ignore[no-any-return]


def check_keys(store: Store, parts: Parts, failed: Set[str]) -> Iterator[Finding]:
    """What is wrong with the keys of these shards.

    Args:
        store: the store.
        parts: modality → numbers of the shards that can be read.
        failed: keys that are listed as failed.
    """
    known: dict[str, Hashes] = {}
    for modality, numbers in parts.items():
        hashes, problems = _hashes(store, modality, numbers)
        yield from problems
        again = repeated(hashes)
        if len(again):
            yield from _duplicates(store, modality, numbers, again)
        known[modality] = hashes
    for modality, numbers in parts.items():
        yield from _pairing(store, modality, numbers, known, failed)


def _hashes(store: Store, modality: str, parts: Sequence[int]) -> tuple[Hashes, list[Finding]]:
    collected, problems = [], []
    for part in parts:
        try:
            for batch in store.batches(modality, ["key"], parts=[part]):
                column = batch.column("key")
                keys = column.to_pylist()
                if column.null_count or "" in keys:
                    problems.append(_finding(store, modality, part, "keys", "it has rows without a key"))
                    break
                collected.append(key_hashes(keys))
        except (StoreError, UnicodeDecodeError) as error:
            problems.append(_finding(store, modality, part, "keys", f"its keys cannot be read ({error})"))
    return np.concatenate(collected) if collected else np.empty(0, np.int64), problems


def _duplicates(store: Store, modality: str, parts: Sequence[int], again: Hashes) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for part in parts:
        doubles = []
        for batch in _readable(store, modality, ["key"], part):
            keys = batch.column("key").to_pylist()
            for row in np.flatnonzero(contains(again, key_hashes(keys))):
                key = keys[row]
                if key in first:
                    doubles.append(key)
                else:
                    first[key] = part
        if doubles:
            more = f" and {len(doubles) - 1:,} more" if len(doubles) > 1 else ""
            what = f"it repeats the key {doubles[0]!r} of shard {first[doubles[0]]}{more}"
            yield _finding(store, modality, part, "keys", what)


def _pairing(
    store: Store, modality: str, parts: Sequence[int], known: dict[str, Hashes], failed: Set[str]
) -> Iterator[Finding]:
    for part in parts:
        missing, example = 0, ""
        for batch in _readable(store, modality, ["key", *_OWNERS], part):
            owner = next((name for name in _OWNERS if name in batch.schema.names), None)
            candidates = [known["image"]] if owner == "image_key" and "image" in known else []
            if owner == "pair_key":
                candidates = [hashes for name, hashes in known.items() if name != modality]
            if owner is None or not candidates:
                return
            owners = [key for key in batch.column(owner).to_pylist() if key]
            hashes = key_hashes(owners)
            absent = np.all([~contains(ordered, hashes) for ordered in candidates], axis=0)
            names = [owners[row] for row in np.flatnonzero(absent) if owners[row] not in failed]
            example = example or next(iter(names), "")
            missing += len(names)
        if missing:
            foreign = "imported" in store.info.extra
            yield Finding(
                "pairing",
                part_name(modality, part, ".parquet"),
                f"{missing:,} rows belong to what is neither there nor listed as failed, for example {example!r}",
                "The import's tables name them; give the images too, if they are wanted."
                if foreign
                else "Run the `c3 embed` that made the store again: it embeds what is missing.",
                modality=modality,
                part=part,
                warning=foreign,
            )


def _readable(store: Store, modality: str, columns: Sequence[str], part: int) -> Iterator[pa.RecordBatch]:
    """The batches of a shard, without the embeddings; none where it cannot be read, which was said before."""
    try:
        yield from store.batches(modality, columns, parts=[part])
    except (StoreError, UnicodeDecodeError):
        return


def _finding(store: Store, modality: str, part: int, check: str, what: str) -> Finding:
    again = "c3 import" if "imported" in store.info.extra else "c3 embed"
    remedy = f"Drop this shard with `c3 verify --repair`, then run the `{again}` that made it again."
    return Finding(check, part_name(modality, part, ".parquet"), what, remedy, Repair.REDO, modality, part)
