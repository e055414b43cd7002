"""Checks of keys over all shards of a store: repeated ones, rows whose item is missing, inputs that failed.

Keys are compared by sorted hashes in a temporary file, so memory does not grow with the rows; keys themselves are read
again only where hashes say that something is wrong. Nothing here changes a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from ..errors import StoreError, UnreachableError
from ..io.files import check_seal
from ..io.locations import kind_of
from ..reporter import counted
from .keys import Hashes, SortedHashes, contains, key_hashes
from .manifest import Manifest
from .metadata import FAILURES_FILE, failure_batches
from .reader import Store, all_parts
from .rows import ITEM_COLUMNS, keys_of
from .shards import ROWS, part_name
from .store_checks import Finding, Repair, redo_remedy, unfinished

_MOST_COMPARED = 2**18  # repeated hashes whose keys are in memory at once


class FailedInputs:
    """The inputs that failed: by key, and those that done markers list by stage and key."""

    def __init__(self) -> None:
        self.keys = SortedHashes()
        self.listed = SortedHashes()

    def add_listed(self, failures: Iterable[Mapping[str, str]]) -> None:
        """Add the failures in a done marker."""
        failures = list(failures)
        self.listed.add([_failure_name(**failure) for failure in failures])
        self.keys.add([failure["key"] for failure in failures])

    def add_recorded(self, store: Store) -> None:
        """Add the keys in failures.parquet, as far as it can be read."""
        try:
            for failures in failure_batches(store.path):
                self.keys.add([failure.key for failure in failures])
        except StoreError:  # reported by `check_failures`
            return


def check_keys(
    store: Store, parts: Mapping[str, Sequence[int]], failed: SortedHashes, *, finished: bool = True
) -> Iterator[Finding]:
    """Check that no key is missing, none occurs twice in a modality, and the image of every text is there.

    Args:
        store: the store.
        parts: modality → numbers of the shards that can be read.
        failed: keys that are listed as failed.
        finished: whether the store has a manifest, which tells texts alone from texts whose images were all lost.
    """
    keys: dict[str, SortedHashes] = {}
    items: dict[str, SortedHashes] = {}
    columns: dict[str, str | None] = {}
    for modality, numbers in parts.items():
        keys[modality], items[modality] = SortedHashes(), SortedHashes()
        columns[modality] = None
        for part in numbers:
            try:
                for batch in store.batches(modality, ["key", *ITEM_COLUMNS], parts=[part]):
                    column = columns[modality] = _item_column(batch)
                    names = keys_of(batch)
                    if batch.column("key").null_count or "" in names:
                        yield _bad_keys(store, modality, part, "it has rows without a key")
                        break
                    keys[modality].add(names)
                    if column is not None:
                        items[modality].add([item for item in batch.column(column).to_pylist() if item])
            except (StoreError, UnicodeDecodeError) as error:
                yield _bad_keys(store, modality, part, f"its keys cannot be read ({error})")
        yield from _report_repeated(store, modality, numbers, keys[modality].repeated())
    for modality, numbers in parts.items():
        candidates = [keys[name] for name in ("image", "video") if columns[modality] == "image_key" and name in keys]
        if columns[modality] == "pair_key":
            candidates = [hashes for name, hashes in keys.items() if name != modality]
        if candidates:
            missing = items[modality].missing_from(*candidates, failed)
            yield from _report_unpaired(store, modality, numbers, missing)
    if not finished and "text" in parts and not {"image", "video"} & parts.keys() and len(items["text"]):
        what = (
            "its texts name images, but it has no image rows: either only texts were embedded, or the images are lost"
        )
        yield Finding(
            "pairing",
            "text",
            what,
            "If only texts were embedded, nothing needs to be done.",
            modality="text",
            warning=True,
        )


def check_failures(store: Store, listed: SortedHashes, manifest: Manifest | None) -> Iterator[Finding]:
    """Check that failures.parquet is intact and contains the failures ``listed`` in the shards."""
    path = store.path / FAILURES_FILE
    remedy = "Rewrite it from the done markers: c3 verify --repair"
    if kind_of(path) is None:
        if len(listed) and manifest is None:  # else the manifest says that it was there
            yield unfinished(FAILURES_FILE, "it does not exist yet", "Run the same `c3 embed` command again.")
        return
    recorded = SortedHashes()
    try:
        for failures in failure_batches(store.path):
            recorded.add([_failure_name(failure.stage, failure.key) for failure in failures])
        intact = check_seal(path) is not False
    except UnreachableError:
        raise
    except (StoreError, OSError) as error:
        yield Finding("failures", FAILURES_FILE, f"it cannot be read ({error})", remedy, Repair.FAILURES)
        return
    if not intact:
        yield Finding("failures", FAILURES_FILE, "it was changed after it was written", remedy, Repair.FAILURES)
        return
    missing = listed.missing_from(recorded)
    if len(missing):
        example = min(_missing_failures(store, missing), default=("", ""))[1]
        what = f"it does not list {len(missing):,} failures of the shards, for example that of {example!r}"
        yield unfinished(FAILURES_FILE, what, "Run the same `c3 embed` command again: it updates the list.")


def _failure_name(stage: str, key: str, **_: str) -> str:
    return f"{stage}\n{key}"


def _missing_failures(store: Store, missing: Hashes) -> Iterator[tuple[str, str]]:
    """Yield stage and key of the failures in done markers whose hash is among ``missing``."""
    for modality, part in all_parts(store):
        try:
            failures = store.shard_failures(modality, part)
        except StoreError:
            continue
        names = key_hashes([_failure_name(failure.stage, failure.key) for failure in failures])
        yield from ((failures[row].stage, failures[row].key) for row in np.flatnonzero(contains(missing, names)))


def _report_repeated(store: Store, modality: str, parts: Sequence[int], repeated: Hashes) -> Iterator[Finding]:
    """Report the shards with keys that came before, given the hashes that are ``repeated``."""
    found: dict[int, tuple[int, tuple[int, str, int]]] = {}  # rows; number, key and earlier shard of the first one
    for start in range(0, len(repeated), _MOST_COMPARED):
        block = repeated[start : start + _MOST_COMPARED]
        first: dict[str, int] = {}
        for part in parts:
            before = 0
            for batch in _readable(store, modality, ["key"], part):
                names = keys_of(batch)
                for row in np.flatnonzero(contains(block, key_hashes(names))).tolist():
                    key = names[row]
                    if key in first:
                        here = (before + row, key, first[key])
                        count, earliest = found.get(part, (0, here))
                        found[part] = (count + 1, min(here, earliest))
                    first.setdefault(key, part)
                before += len(names)
    for part in parts:
        if part in found:
            count, (_, key, earlier) = found[part]
            more = f" and {count - 1:,} more" if count > 1 else ""
            yield _bad_keys(store, modality, part, f"it repeats the key {key!r} of shard {earlier}{more}")


def _report_unpaired(store: Store, modality: str, parts: Sequence[int], missing: Hashes) -> Iterator[Finding]:
    """Report the shards with rows of items whose hashes are among ``missing``."""
    for part in parts if len(missing) else ():
        count, example = 0, ""
        for batch in _readable(store, modality, ["key", *ITEM_COLUMNS], part):
            column = _item_column(batch)
            items = [key for key in batch.column(column).to_pylist() if key] if column else []
            rows = np.flatnonzero(contains(missing, key_hashes(items)))
            count += len(rows)
            example = example or next((items[row] for row in rows), "")
        if count:
            imported = "imported" in store.info.extra
            yield Finding(
                "pairing",
                part_name(modality, part, ROWS),
                f"{counted(count, 'row belongs', 'rows belong')} to items that are neither in the store nor listed as "
                f"failed, for example {example!r}",
                "The imported tables name these items. Import the images too if you need them."
                if imported
                else "Run the `c3 embed` command that made the store again: it embeds the missing inputs.",
                modality=modality,
                part=part,
                warning=imported,
            )


def _item_column(batch: pa.RecordBatch) -> str | None:
    return next((name for name in ITEM_COLUMNS if name in batch.schema.names), None)


def _readable(store: Store, modality: str, columns: Sequence[str], part: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a shard without the embeddings; none if it cannot be read, which is reported elsewhere."""
    try:
        yield from store.batches(modality, columns, parts=[part])
    except (StoreError, UnicodeDecodeError):
        return


def _bad_keys(store: Store, modality: str, part: int, what: str) -> Finding:
    where = part_name(modality, part, ROWS)
    return Finding("keys", where, what, redo_remedy(store.info), Repair.REDO, modality, part)
