"""`c3 merge`: several stores of one model become one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import StoreError
from ..io.files import sha256_of, write_atomically
from ..io.locations import download, kind_of
from ..reporter import SilentTracker, Tracker
from .building import new_folder, new_store
from .checks.keys import Hashes, contains, key_hashes, repeated
from .failures import Failure, write_failures
from .markers import write_marker
from .reader import Store, all_parts
from .rewriting import intact_shard, not_intact, with_column, write_batches
from .writer import create_store, part_path

_KEY_COLUMNS = ("key", "image_key", "pair_key")
_SAME = ("dim", "dtype", "normalised", "preprocessing")


class Duplicates(StrEnum):
    """What to do with a key that several stores have."""

    REFUSE = "refuse"
    FIRST = "first"
    PREFIX = "prefix"


@dataclass
class MergeReport:
    """What a merge did.

    Attributes:
        store: the new store.
        rows: by modality.
        dropped: rows left out since a store before had their key.
        notes: what the user should know, a sentence each.
    """

    store: Path
    rows: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"store": str(self.store), "rows": self.rows, "dropped": self.dropped, "notes": self.notes}


def merge(
    destination: str | Path,
    sources: Sequence[str | Path],
    *,
    duplicates: Duplicates = Duplicates.REFUSE,
    tracker: Tracker | None = None,
) -> MergeReport:
    """Join stores of one model into a new one; shards that need no change are copied as they are.

    Args:
        destination: the folder of the new store; it appears when it is whole.
        sources: two stores or more, folders or URLs.
        duplicates: refuse keys that several stores have, keep the row of the first, or put the name of its store
            before every key.
        tracker: told of each shard.

    Raises:
        StoreError: if there are fewer than two stores, they are of different models, keys repeat, a shard does not
            match its checksum, something is at ``destination``, or that is a URL.
    """
    tracker = tracker or SilentTracker()
    report = MergeReport(new_folder(destination))
    stores = [Store.open(source) for source in sources]
    _check(stores)
    names = _prefixes(stores) if duplicates is Duplicates.PREFIX else [""] * len(stores)
    doubles = {} if duplicates is Duplicates.PREFIX else _doubles(stores)
    if duplicates is Duplicates.REFUSE:
        _refuse_doubles(stores, doubles)
    embedded = _embedded_after_all(stores, names)
    filled = next((store for store in stores if store.modalities), stores[0])
    with new_store(report.store) as building:
        create_store(building, filled.info)
        new = Store(building, filled.info)
        numbers: dict[str, int] = {}
        seen: dict[str, set[str]] = {}
        tracker.expect(sum(len(store.parts(modality)) for store in stores for modality in store.modalities))
        for store, name in zip(stores, names, strict=True):
            for modality, part in all_parts(store):
                number = numbers.get(modality, 0)
                numbers[modality] = number + 1
                hit = doubles.get(modality, np.empty(0, np.int64))
                failures = _failures(store.shard_failures(modality, part), name, embedded)
                if not name and not _touched(store, modality, part, hit):
                    rows = _copy(store, new, modality, part, number, failures)
                else:
                    known = seen.setdefault(modality, set())
                    batches = _rewritten(store, modality, part, name, hit, known)
                    rows = write_batches(building, filled.info, modality, number, batches, failures)
                    report.dropped += store.marker(modality, part)["rows"] - rows
                report.rows[modality] = report.rows.get(modality, 0) + rows
                tracker.advance()
        everything = [
            failure
            for store, name in zip(stores, names, strict=True)
            for failure in _failures([*store.recorded_failures(), *store.failures()], name, embedded)
        ]
        unique = {(failure.stage, failure.key): failure for failure in reversed(everything)}
        write_failures(building, [unique[place] for place in sorted(unique)])
    report.notes += [
        f"Moments that {store.path} took from another corpus were not taken over; `c3 means --load` takes them again."
        for store in stores
        if kind_of(store.external_path) is not None
    ]
    return report


def _check(stores: Sequence[Store]) -> None:
    if len(stores) < 2:
        raise StoreError("A merge needs two stores or more.", remedy="c3 merge OUT STORE STORE...")
    paths = [store.path.resolve() for store in stores]
    if len(set(paths)) < len(paths):
        raise StoreError("A store is named twice.", remedy="Name each once.")
    first = stores[0]
    for store in stores[1:]:
        first.info.require_same_model(
            store.info.model, where=f"The store {first.path}", what=f"the model of {store.path}"
        )
        for name in _SAME:
            one, other = getattr(first.info, name), getattr(store.info, name)
            if one != other:
                raise StoreError(
                    f"The stores {first.path} and {store.path} differ in {name}: {one} and {other}.",
                    remedy="Embed them with the same options.",
                )


def _prefixes(stores: Sequence[Store]) -> list[str]:
    names = [f"{store.path.resolve().name}/" for store in stores]
    if len(set(names)) < len(names):
        raise StoreError(
            "Two of the stores have the same name, so it cannot tell their keys apart.", remedy="Rename a folder."
        )
    return names


def _doubles(stores: Sequence[Store]) -> dict[str, Hashes]:
    """Hashes of the keys that stand in a modality more than once, over all stores."""
    found = {}
    for modality in dict.fromkeys(name for store in stores for name in store.modalities):
        hashes = [
            key_hashes(batch.column("key").to_pylist())
            for store in stores
            if modality in store.modalities
            for batch in store.batches(modality, ["key"])
        ]
        again = repeated(np.concatenate(hashes)) if hashes else np.empty(0, np.int64)
        if len(again):
            found[modality] = again
    return found


def _refuse_doubles(stores: Sequence[Store], doubles: dict[str, Hashes]) -> None:
    for modality, again in doubles.items():
        where: dict[str, Store] = {}
        for store in stores:
            for batch in store.batches(modality, ["key"]) if modality in store.modalities else ():
                keys = batch.column("key").to_pylist()
                for row in np.flatnonzero(contains(again, key_hashes(keys))):
                    other = where.setdefault(keys[row], store)
                    if other is not store:
                        raise StoreError(
                            f"{len(again):,} keys of {modality} rows are in several stores, for example {keys[row]!r} "
                            f"in {other.path} and {store.path}.",
                            remedy="Use --keep first to take the row of the first, or --prefix to tell them apart.",
                        )


def _touched(store: Store, modality: str, part: int, hit: Hashes) -> bool:
    """Whether a shard has a key among ``hit``."""
    return len(hit) > 0 and any(
        contains(hit, key_hashes(batch.column("key").to_pylist())).any()
        for batch in store.batches(modality, ["key"], parts=[part])
    )


def _copy(store: Store, new: Store, modality: str, part: int, number: int, failures: Sequence[Failure]) -> int:
    """Copy a shard under another number, checking it against its marker on the way."""
    marker = store.marker(modality, part)
    digests = {}
    for suffix in (".parquet", ".moments.safetensors"):
        source = part_path(store.path, modality, part, suffix)
        target = part_path(new.path, modality, number, suffix)
        write_atomically(target, lambda path, source=source: _copy_file(source, path))  # type: ignore[misc]
        digests[target.name] = sha256_of(target)
        if digests[target.name] != marker["sha256"].get(source.name):
            raise not_intact(store, source)
    path = part_path(new.path, modality, number, ".json")
    write_marker(path, {**marker, "sha256": digests, "failures": list(failures)})
    return int(marker["rows"])


def _copy_file(source: Path, target: Path) -> None:
    try:
        download(source, target)
    except FileNotFoundError:
        target.touch()  # whose checksum is then not the one in the marker


def _rewritten(
    store: Store, modality: str, part: int, prefix: str, hit: Hashes, seen: set[str]
) -> Iterator[pa.RecordBatch]:
    """The rows of a shard, keys prefixed, without those whose key is in ``seen``; it grows by keys of ``hit``."""
    with intact_shard(store, modality, part) as nearby:
        for batch in nearby.batches(modality, parts=[part]):
            if prefix:
                for name in _KEY_COLUMNS:
                    if name in batch.schema.names:
                        values = batch.column(name).to_pylist()
                        batch = with_column(batch, name, [value and prefix + value for value in values])  # noqa: PLW2901
            if len(hit):
                keys = batch.column("key").to_pylist()
                keep = np.ones(len(keys), bool)
                for row in np.flatnonzero(contains(hit, key_hashes(keys))):
                    keep[row] = keys[row] not in seen
                    seen.add(keys[row])
                batch = batch.filter(pa.array(keep))  # noqa: PLW2901
            yield batch


def _embedded_after_all(stores: Sequence[Store], names: Sequence[str]) -> set[str]:
    """Keys that failed in one store and are embedded in another (or later in the same)."""
    both = list(zip(stores, names, strict=True))
    failed = {name + f.key for store, name in both for f in [*store.recorded_failures(), *store.failures()]}
    if not failed:
        return set()
    return failed & {
        name + key
        for store, name in both
        for modality in store.modalities
        for batch in store.batches(modality, ["key"])
        for key in batch.column("key").to_pylist()
        if name + key in failed
    }


def _failures(failures: Sequence[Failure], prefix: str, embedded: set[str]) -> list[Failure]:
    renamed = (replace(failure, key=prefix + failure.key) for failure in failures)
    return [failure for failure in renamed if failure.key not in embedded]
