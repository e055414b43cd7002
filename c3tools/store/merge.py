"""`c3 merge`: join several stores of one model into a new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import StoreError
from ..io.files import sha256_of, write_atomically
from ..io.locations import download, kind_of
from ..reporter import SILENT, Reporter, counted
from .manifest import finish_store, new_folder, new_store
from .reader import Store
from .rows import ITEM_COLUMNS, joined_splits
from .shard_indexes import has_indexes, keep_indexes
from .shards import part_name, write_rows

_MUST_AGREE = ("dim", "dtype", "normalised", "preprocessing")


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
        StoreError: if there are fewer than two stores, they are of different models, keys repeat, a shard is damaged,
            or ``destination`` exists or is a URL.
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
    prefixes = [f"{store.path.resolve().name}/" if prefix else "" for store in sources]
    if prefix and len(set(prefixes)) < len(prefixes):
        raise StoreError(
            "Two of the stores have the same name, so --prefix would give their keys the same prefix.",
            remedy="Rename one of the folders.",
        )
    info = next((store for store in sources if store.modalities), sources[0]).info
    rows = _rows_of(sources, prefixes)
    kept = {modality: _first_of_each_key(table, sources, keep) for modality, table in rows.items()}
    splits = _splits_of_shared_items(sources) if not prefix else None
    numbers = dict.fromkeys(rows, 0)  # of the next shard, by modality
    starts = dict.fromkeys(rows, 0)
    total = sum(len(store.shards) for store in sources)
    with new_store(report.store, info) as building, reporter.progress("Merging shards", total) as progress:
        for store, before in zip(sources, prefixes, strict=True):
            for modality, part in store.shards:
                number, start, count = numbers[modality], starts[modality], store.shard_rows(modality, part)
                numbers[modality], starts[modality] = number + 1, start + count
                known, chosen = rows[modality].slice(start, count), kept[modality].slice(start, count)
                split = known.column("split").combine_chunks() if splits is None else joined_splits(known, splits)
                if before or not pc.all(chosen).as_py() or not split.equals(known.column("split").combine_chunks()):
                    table = pa.Table.from_batches(list(store.batches(modality, parts=[part])))
                    table = replace_column(_prefixed(table, before), "split", split).filter(chosen)
                    failures = [_renamed(failure, before) for failure in store.shard_failures(modality, part)]
                    write_rows(building, info, modality, number, table, failures)
                    report.dropped += count - len(table)
                    count = len(table)
                else:
                    _copy_shard(store, modality, part, building / part_name(modality, number))
                report.rows[modality] = report.rows.get(modality, 0) + count
                progress.advance()
        refused = [
            _renamed(failure, before)
            for store, before in reversed(list(zip(sources, prefixes, strict=True)))
            for failure in store.recorded_failures()
            if failure.stage == "list"
        ]
        finish_store(building, refused)
        if any(map(has_indexes, sources)):
            keep_indexes(building, reporter=reporter)
    report.notes += [
        f"The moments of another corpus that were loaded into {store.path} were not copied; `c3 means --load` loads "
        "them again."
        for store in sources
        if kind_of(store.external_path) is not None
    ]
    return report


def replace_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Return the table with other values in one text column; the table itself if it has no such column."""
    if name not in table.column_names:
        return table
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, pa.string()))


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


def _rows_of(stores: Sequence[Store], prefixes: Sequence[str]) -> dict[str, pa.Table]:
    """Return by modality the keys and splits of all rows, and the number of their store, in order."""
    found: dict[str, list[pa.Table]] = {}
    for number, (store, prefix) in enumerate(zip(stores, prefixes, strict=True)):
        for modality in store.modalities:
            for batch in store.batches(modality, ["key", *ITEM_COLUMNS, "split"]):
                table = _prefixed(pa.Table.from_batches([batch]), prefix)
                number_column = pa.array([number] * len(table), pa.int32())
                found.setdefault(modality, []).append(table.append_column("store", number_column))
    return {modality: pa.concat_tables(tables).combine_chunks() for modality, tables in found.items()}


def _prefixed(table: pa.Table, prefix: str) -> pa.Table:
    for name in ("key", *ITEM_COLUMNS) if prefix else ():
        if name in table.column_names:
            values = table.column(name)
            own = pc.if_else(pc.equal(values, ""), values, pc.binary_join_element_wise(prefix, values, ""))
            table = replace_column(table, name, own.combine_chunks())
    return table


def _first_of_each_key(rows: pa.Table, stores: Sequence[Store], keep: str | None) -> pa.Array[Any]:
    """Return which rows are the first with their key: all, or it is an error without ``keep``."""
    keys = rows.column("key")
    places = pc.index_in(keys, value_set=keys.combine_chunks()).combine_chunks()
    numbers = pa.array(range(len(rows)), places.type)
    first = pc.equal(places, numbers)
    repeated = pc.indices_nonzero(pc.invert(first))
    if len(repeated) and keep is None:
        row = repeated[0].as_py()
        store = rows.column("store")
        one, other = (stores[store[number].as_py()].path for number in (places[row].as_py(), row))
        raise StoreError(
            f"{counted(len(repeated), 'key is', 'keys are')} in several stores, for example {keys[row].as_py()!r} in "
            f"{one} and {other}.",
            remedy="Use --keep first to keep the row of the first store, or --prefix to begin keys with the name of "
            "their store.",
        )
    return first


def _splits_of_shared_items(stores: Sequence[Store]) -> pa.Table:
    """Return item and split of the items that several stores have rows of, as the first of them has it."""
    rows = pa.concat_tables([store.item_splits() for store in stores]).combine_chunks()
    items = rows.column("item").combine_chunks()
    counts = items.value_counts()
    shared = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return rows.take(pc.index_in(shared, value_set=items)).combine_chunks()


def _copy_shard(store: Store, modality: str, part: int, target: Path) -> None:
    """Copy a shard under another number, and check the copy."""
    source = store.file(modality, part)
    write_atomically(target, lambda path: download(source, path))
    if sha256_of(target) != store.shard_digest(modality, part):
        raise StoreError(
            f"{source} is not the file that the manifest of its store lists.",
            remedy=f"Check and repair the store first: c3 verify {store.path}",
        )


def _renamed(failure: Any, prefix: str) -> Any:
    return replace(failure, key=prefix + failure.key) if prefix else failure
