"""`c3 merge`: join several stores of one model into a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import StoreError
from ..io.locations import kind_of
from ..reporter import SILENT, Reporter, counted
from .manifest import finish_store, new_store
from .metadata import Failure, StoreInfo
from .reader import Store
from .rows import ITEM_COLUMNS, joined_splits, one_array
from .shard_indexes import has_indexes, keep_indexes
from .shards import shard_schema, write_rows

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
    """Join stores of the same model into a new store.

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
    sources = [Store.open(store, reporter=reporter) for store in stores]
    _require_mergeable(sources)
    prefixes = {store: f"{store.path.resolve().name}/" if prefix else "" for store in sources}
    if prefix and len(set(prefixes.values())) < len(prefixes):
        raise StoreError(
            "Two of the stores have the same name, so --prefix would give their keys the same prefix.",
            remedy="Rename one of the folders.",
        )
    first = {} if prefix else _first_rows(sources, keep)
    splits = None if prefix else _splits_of_shared_items(sources)
    report = MergeReport(Path(destination))
    done = dict.fromkeys(first, 0)

    def change(store: Store, modality: str, table: pa.Table) -> pa.Table:
        count = len(table)
        if splits is None:
            for name in ("key", *ITEM_COLUMNS):
                if name in table.column_names:
                    own: Any = table.column(name)
                    named = pc.binary_join_element_wise(prefixes[store], own, "")
                    table = replace_column(table, name, pc.if_else(pc.equal(own, pa.scalar("", own.type)), own, named))
        else:
            table = replace_column(table, "split", joined_splits(table, splits))
            table = table.filter(first[modality].slice(done[modality], count))
            done[modality] += count
            report.dropped += count - len(table)
        report.rows[modality] = report.rows.get(modality, 0) + len(table)
        return table

    info = next((store for store in sources if store.modalities), sources[0]).info
    renamed = lambda store, failures: [replace(f, key=prefixes[store] + f.key) for f in failures]  # noqa: E731
    write_copy(destination, info, sources, change, renamed, "Merging shards", reporter)
    report.notes += [
        f"The moments of another corpus that were loaded into {store.path} were not copied; `c3 means --load` loads "
        "them again."
        for store in sources
        if kind_of(store.external_path) is not None
    ]
    return report


def write_copy(
    destination: str | Path,
    info: StoreInfo,
    sources: Sequence[Store],
    change: Callable[[Store, str, pa.Table], pa.Table],
    failures: Callable[[Store, Sequence[Failure]], Sequence[Failure]],
    label: str,
    reporter: Reporter,
) -> None:
    """Write a new store of the shards of others, changed one by one; it appears when it is complete.

    Args:
        destination: its folder.
        info: of the new store.
        sources: the stores; if one has FAISS indexes, so has the new one.
        change: from a store, a modality and the rows of a shard to the new rows.
        failures: from a store and its failures to the new ones.
        label: of the progress.
        reporter: shows it.

    Raises:
        StoreError: if there is something at ``destination``, or a shard cannot be read.
    """
    numbers: dict[str, int] = {}  # of the next shard, by modality
    total = sum(len(store.shards) for store in sources)
    with new_store(destination, info) as building, reporter.progress(label, total) as progress:
        for store in sources:
            for modality, part in store.shards:
                number = numbers[modality] = numbers.get(modality, -1) + 1
                batches = list(store.batches(modality, parts=[part]))
                table = pa.Table.from_batches(batches, None if batches else shard_schema(modality, info))
                failed = failures(store, store.shard_failures(modality, part))
                write_rows(building, info, modality, number, change(store, modality, table), failed)
                progress.advance()
        # of several failures of one input the last is listed: that of the first store
        listed = [f for store in reversed(sources) for f in failures(store, store.recorded_failures())]
        finish_store(building, [failure for failure in listed if failure.stage == "list"])
        if any(map(has_indexes, sources)):
            keep_indexes(building, reporter=reporter)


def replace_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Return the table with other values in one text column."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), values)


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


def _first_rows(stores: Sequence[Store], keep: str | None) -> dict[str, pa.Array[Any]]:
    """Return by modality which rows are the first with their key, over all stores; without ``keep`` all have to be."""
    found: dict[str, Any] = {}
    for modality in dict.fromkeys(name for store in stores for name in store.modalities):
        owners = [store for store in stores if store.parts(modality)]
        blocks = [[batch.column(0) for batch in store.batches(modality, ["key"])] for store in owners]
        keys = one_array(pa.chunked_array([block for own in blocks for block in own], pa.string()))
        places = pc.index_in(keys, value_set=keys)
        found[modality] = pc.equal(places, pa.array(range(len(keys)), places.type))
        again = pc.indices_nonzero(pc.invert(found[modality]))
        if len(again) and keep is None:
            ends = [sum(map(len, own)) for own in blocks]
            row = again[0].as_py()
            one, other = (
                next(store.path for number, store in enumerate(owners) if place < sum(ends[: number + 1]))
                for place in (places[row].as_py(), row)
            )
            raise StoreError(
                f"{counted(len(again), 'key is', 'keys are')} in several stores, for example {keys[row].as_py()!r} in "
                f"{one} and {other}.",
                remedy="Use --keep first to keep the row of the first store, or --prefix to begin keys with the name "
                "of their store.",
            )
    return found


def _splits_of_shared_items(stores: Sequence[Store]) -> pa.Table:
    """Return item and split of the items that several stores have rows of, as the first of them has it."""
    rows = pa.concat_tables([store.item_splits() for store in stores]).combine_chunks()
    items: Any = one_array(rows.column("item"))
    counts = items.value_counts()
    shared = counts.field("values").filter(pc.greater(counts.field("counts"), pa.scalar(1)))
    return rows.take(pc.index_in(shared, value_set=items)).combine_chunks()
