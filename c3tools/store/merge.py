"""`c3 merge`: join several stores of one model into a new one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..errors import StoreError
from ..io.files import sha256_of, write_atomically
from ..io.locations import download, kind_of
from ..reporter import SILENT, Reporter, counted
from .item_splits import item_splits, joined_splits
from .keys import Hashes, SortedHashes, SplitTable, contains, key_hashes
from .manifest import finish_store
from .metadata import Failure, write_failures, write_marker
from .reader import Store, all_parts
from .rewriting import intact_shard, new_folder, new_store, not_intact, replace_column, timings_of
from .rows import ITEM_COLUMNS, keys_of, row_items
from .shard_indexes import has_indexes, keep_indexes
from .shards import MARKER, MOMENTS, ROWS, create_store, part_path, write_batches

_KEY_COLUMNS = ("key", *ITEM_COLUMNS)
_MUST_AGREE = ("dim", "dtype", "normalised", "preprocessing")
_NO_HASHES: Hashes = np.empty(0, np.int64)


@dataclass
class MergeReport:
    """Summary of a merge.

    Attributes:
        store: the new store.
        rows: by modality.
        dropped: rows left out because an earlier store had their key.
        notes: what the user should know, a sentence each.
    """

    store: Path
    rows: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "store": str(self.store)}


def merge_stores(
    destination: str | Path,
    stores: Sequence[str | Path],
    *,
    keep: Literal["first"] | None = None,
    prefix: bool = False,
    reporter: Reporter = SILENT,
) -> MergeReport:
    """Join stores of the same model into a new store; shards that need no change are copied.

    Keys that several stores share are an error unless ``keep`` or ``prefix`` is given. An item that several stores have
    rows of is in its split of the first of them. The new store has FAISS indexes if one of the stores has.

    Args:
        destination: The folder of the new store.
        stores: Two or more stores of the same model: folders or URLs (s3://, gs://).
        keep: If stores share a key, keep the row of the first one.
        prefix: Begin every key with the name of its store, for example dogs/ for the store dogs.
        reporter: Shows the progress.

    Raises:
        StoreError: if there are fewer than two stores, they are of different models, keys repeat, a shard does not
            match its checksum, or ``destination`` exists or is a URL.
    """
    if keep not in (None, "first"):
        raise StoreError(f"There is no --keep {keep}.", remedy="Use --keep first.")
    if keep and prefix:
        raise StoreError(
            "--keep and --prefix exclude each other: with --prefix, no two stores share a key.",
            remedy="Use one of the two.",
        )
    report = MergeReport(new_folder(destination))
    sources = [Store.open(store, reporter=reporter) for store in stores]
    _require_mergeable(sources)
    prefixes = _prefixes(sources) if prefix else [""] * len(sources)
    duplicates = {} if prefix else _duplicates(sources)
    if keep is None:
        _refuse_duplicates(sources, duplicates)
    splits = SplitTable() if prefix else item_splits(sources, _shared_items(sources))
    embedded = _failed_but_embedded(sources, prefixes)
    info = next((store for store in sources if store.modalities), sources[0]).info
    numbers: dict[str, int] = {}  # of the next shard, by modality
    seen: dict[str, set[str]] = {}
    total = sum(len(store.parts(modality)) for store in sources for modality in store.modalities)
    with new_store(report.store) as building, reporter.progress("Merging shards", total) as progress:
        create_store(building, info)
        for store, before in zip(sources, prefixes, strict=True):
            for modality, part in all_parts(store):
                number = numbers.get(modality, 0)
                numbers[modality] = number + 1
                hashes = duplicates.get(modality, _NO_HASHES)
                failures = _renamed(store.shard_failures(modality, part), before, embedded.get(modality, set()))
                if before or _has_key(store, modality, part, hashes) or _changes_split(store, modality, part, splits):
                    known = seen.setdefault(modality, set())
                    batches = _rewritten(store, modality, part, before, hashes, known, splits)
                    marker = store.marker(modality, part)
                    rows = write_batches(building, info, modality, number, batches, failures, timings_of(marker))
                    report.dropped += marker["rows"] - rows
                else:
                    rows = _copy_shard(store, modality, part, building, number, failures)
                report.rows[modality] = report.rows.get(modality, 0) + rows
                progress.advance()
        everything, anywhere = [], set[str]().union(*embedded.values())
        for store, before in zip(sources, prefixes, strict=True):
            refused = [failure for failure in store.recorded_failures() if failure.stage == "list"]
            everything += _renamed(refused, before, anywhere)
            for modality in store.modalities:
                everything += _renamed(store.failures(modality), before, embedded.get(modality, set()))
        write_failures(building, reversed(everything))
        finish_store(building)
        if any(map(has_indexes, sources)):
            keep_indexes(building, reporter=reporter)
    report.notes += [
        f"The moments of another corpus that were loaded into {store.path} were not copied; `c3 means --load` loads "
        "them again."
        for store in sources
        if kind_of(store.external_path) is not None
    ]
    return report


def _require_mergeable(stores: Sequence[Store]) -> None:
    if len(stores) < 2:
        raise StoreError("A merge needs at least two stores.", remedy="For example: c3 merge OUT STORE STORE")
    if len({store.path.resolve() for store in stores}) < len(stores):
        raise StoreError("A store was given twice.", remedy="Give each store once.")
    first = stores[0]
    for store in stores[1:]:
        first.info.require_same_model(store.info.model, own=f"The store {first.path}", theirs=f"the store {store.path}")
        for name in _MUST_AGREE:
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
            "Two of the stores have the same name, so --prefix would give their keys the same prefix.",
            remedy="Rename one of the folders.",
        )
    return names


def _duplicates(stores: Sequence[Store]) -> dict[str, Hashes]:
    """Return, by modality, the hashes of the keys that occur more than once over all stores."""
    found = {}
    for modality in dict.fromkeys(name for store in stores for name in store.modalities):
        hashes = SortedHashes()
        for store in stores:
            for keys in _key_blocks(store, modality):
                hashes.add(keys)
        again = hashes.repeated()
        if len(again):
            found[modality] = again
    return found


def _refuse_duplicates(stores: Sequence[Store], duplicates: dict[str, Hashes]) -> None:
    for modality, hashes in duplicates.items():
        found: dict[str, Store] = {}
        for store in stores:
            for keys in _key_blocks(store, modality):
                for row in np.flatnonzero(contains(hashes, key_hashes(keys))):
                    other = found.setdefault(keys[row], store)
                    if other is not store:
                        shared = counted(len(hashes), f"key of {modality} rows is", f"keys of {modality} rows are")
                        raise StoreError(
                            f"{shared} in several stores, for example {keys[row]!r} in {other.path} and {store.path}.",
                            remedy="Use --keep first to keep the row of the first store, or --prefix to begin keys "
                            "with the name of their store.",
                        )


def _key_blocks(store: Store, modality: str, parts: Sequence[int] | None = None) -> Iterator[list[str]]:
    """Yield the keys of the rows of a modality (of some of its shards), none if the store has no such modality."""
    if parts is not None or modality in store.modalities:
        for batch in store.batches(modality, ["key"], parts=parts):
            yield keys_of(batch)


def _has_key(store: Store, modality: str, part: int, hashes: Hashes) -> bool:
    """Return whether a shard has a key whose hash is among ``hashes``."""
    return len(hashes) > 0 and any(
        contains(hashes, key_hashes(keys)).any() for keys in _key_blocks(store, modality, [part])
    )


def _shared_items(stores: Sequence[Store]) -> Hashes:
    """Return the hashes of the items that several stores have rows of, ascending, each once."""
    found = []
    for store in stores:
        items = SortedHashes()
        for modality in store.modalities:
            for batch in store.batches(modality, ["key", *ITEM_COLUMNS]):
                items.add(list(row_items(batch)))
        found.append(items)
    shared = [items.shared_with(*found[place + 1 :]) for place, items in enumerate(found)]
    return np.unique(np.concatenate(shared))


def _changes_split(store: Store, modality: str, part: int, splits: SplitTable) -> bool:
    """Return whether a row of a shard is in another split than ``splits`` has its item in."""
    return len(splits) > 0 and any(
        batch.column("split").to_pylist() != joined_splits(batch, splits)
        for batch in store.batches(modality, ["key", *ITEM_COLUMNS, "split"], parts=[part])
    )


def _copy_shard(
    store: Store, modality: str, part: int, building: Path, number: int, failures: Sequence[Failure]
) -> int:
    """Copy a shard under another number, check it against its marker, and return its number of rows."""
    marker = store.marker(modality, part)
    digests = {}
    for suffix in (ROWS, MOMENTS):
        source = store.file(modality, part, suffix)
        target = part_path(building, modality, number, suffix)
        write_atomically(target, lambda path, source=source: _copy_file(source, path))  # type: ignore[misc]
        digests[target.name] = sha256_of(target)
        if digests[target.name] != marker["sha256"].get(source.name):
            raise not_intact(store, source)
    path = part_path(building, modality, number, MARKER)
    write_marker(path, {**marker, "sha256": digests, "failures": list(failures)})
    return int(marker["rows"])


def _copy_file(source: Path, target: Path) -> None:
    try:
        download(source, target)
    except FileNotFoundError:
        target.touch()  # whose checksum is then not the one in the marker


def _rewritten(
    store: Store, modality: str, part: int, prefix: str, duplicates: Hashes, seen: set[str], splits: SplitTable
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard with prefixed keys and in the splits of their items, without those in ``seen``.

    Keys whose hash is among ``duplicates`` are added to ``seen``.
    """
    with intact_shard(store, modality, part) as local:
        for batch in local.batches(modality, parts=[part]):
            if prefix:
                for name in _KEY_COLUMNS:
                    if name in batch.schema.names:
                        values = batch.column(name).to_pylist()
                        batch = replace_column(batch, name, [value and prefix + value for value in values])  # noqa: PLW2901
            if len(duplicates):
                keys = keys_of(batch)
                keep = np.ones(len(keys), bool)
                for row in np.flatnonzero(contains(duplicates, key_hashes(keys))):
                    keep[row] = keys[row] not in seen
                    seen.add(keys[row])
                batch = batch.filter(pa.array(keep))  # noqa: PLW2901
            yield replace_column(batch, "split", joined_splits(batch, splits)) if len(splits) else batch


def _failed_but_embedded(stores: Sequence[Store], prefixes: Sequence[str]) -> dict[str, set[str]]:
    """Return, by modality, the keys that failed in one store and are embedded in another (or later in the same)."""
    both = list(zip(stores, prefixes, strict=True))
    failed = {before + f.key for store, before in both for f in [*store.recorded_failures(), *store.failures()]}
    found: dict[str, set[str]] = {}
    for store, before in both:
        for modality in store.modalities if failed else ():
            for keys in _key_blocks(store, modality):
                found.setdefault(modality, set()).update(failed.intersection(before + key for key in keys))
    return found


def _renamed(failures: Sequence[Failure], prefix: str, embedded: set[str]) -> list[Failure]:
    """Return the failures with prefixed keys, without those in ``embedded``."""
    renamed = (replace(failure, key=prefix + failure.key) for failure in failures)
    return [failure for failure in renamed if failure.key not in embedded]
