"""`c3 merge` and `c3 split`: new stores that are made of others, shard by shard."""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..corpus.splits import HASH_FRACTIONS, SALT, hashed_split, split_order
from ..errors import StoreError
from ..reporter import SILENT, Reporter, counted
from ..seeds import stable_fraction
from ..tables import Table
from .dataset import copy_shards, with_column
from .manifest import new_store
from .metadata import Failure, StoreInfo
from .pairing import splits_of_file
from .reader import Store
from .rows import ITEM_COLUMNS, keys_of, one_array, own_items
from .shard_indexes import has_indexes, keep_indexes

_MUST_AGREE = ("dim", "dtype", "normalised", "preprocessing")


@dataclass
class CopyReport:
    """Summary of a merge or a split.

    Attributes:
        store: the new store.
        rows: by modality and split.
        dropped: rows that a merge left out, because an earlier store had their key.
        unnamed: rows whose split the file does not name; they keep the one they had.
    """

    store: Path
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: int = 0
    unnamed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "store": str(self.store)}

    def table(self) -> Table:
        """Return the table that the terminal shows."""
        splits = sorted({name for counts in self.rows.values() for name in counts}, key=split_order)
        cells = [[modality, *(f"{counts.get(name, 0):,}" for name in splits)] for modality, counts in self.rows.items()]
        return Table(["", *splits], cells, str(self.store))


def merge_stores(
    destination: str | Path,
    stores: Sequence[str | Path],
    *,
    keep: Literal["first"] | None = None,
    prefix: bool = False,
    reporter: Reporter = SILENT,
) -> CopyReport:
    """Join stores of the same model into a new store.

    Keys that several stores share are an error unless ``keep`` or ``prefix`` is given. An item that several stores have
    rows of is in its split of the first of them. The new store has FAISS indexes if one of the stores has. Moments that
    `c3 means --load` loaded are not copied.

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
    if keep and (prefix or keep != "first"):
        raise StoreError(f"--keep {keep} cannot be used here.", remedy="Use either --keep first or --prefix.")
    sources = [Store.open(store, reporter=reporter) for store in stores]
    _require_mergeable(sources)
    prefixes = {store: f"{store.path.resolve().name}/" if prefix else "" for store in sources}
    if prefix and len({*prefixes.values()}) < len(prefixes):
        raise StoreError(
            "Two of the stores have the same name, so --prefix would give their keys the same prefix.",
            remedy="Rename one of the folders.",
        )
    first = {} if prefix else _first_rows(sources, keep)
    shared = None if prefix else _splits_of_shared_items(sources)
    report, done = CopyReport(Path(destination)), Counter[str]()

    def change(store: Store, modality: str, table: pa.Table) -> pa.Table:
        count = len(table)
        if shared is None:
            for name in {"key", *ITEM_COLUMNS}.intersection(table.column_names):
                own: Any = table.column(name)
                named = pc.binary_join_element_wise(prefixes[store], own, "")
                table = with_column(table, name, pc.if_else(pc.equal(own, pa.scalar("")), own, named))
        else:
            places = pc.index_in(own_items(table), value_set=one_array(shared.column("item")))
            splits = one_array(shared.column("split")).take(places)
            table = with_column(table, "split", pc.if_else(pc.is_valid(places), splits, table.column("split")))
            table = table.filter(first[modality].slice(done[modality], count))
            done[modality] += count
            report.dropped += count - len(table)
        return table

    def renamed(store: Store, failure: Failure) -> Failure:
        return replace(failure, key=prefixes[store] + failure.key)

    info = next((store for store in sources if store.modalities), sources[0]).info
    report.rows = _write_copy(destination, info, sources, change, renamed, "Merging shards", reporter)
    return report


def split_store(
    destination: str | Path,
    store: str | Path = "c3-store",
    *,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    key_column: str | None = None,
    split_column: str | None = None,
    reporter: Reporter = SILENT,
) -> CopyReport:
    """Copy a store with new splits; texts are in the split of their image.

    Without ``file``, rows are split by a stable hash of the key, which is the same on every machine.

    Args:
        destination: The folder of the new store.
        store: See `embed`.
        fractions: Fractions of the three splits, if rows are split by hash. By default 0.8,0.1,0.1.
        seed: Seed of the hash. 0 gives the splits that a store without splits is read with.
        file: A table of keys and splits: jsonl, csv, tsv or parquet.
        key_column: Column of the keys in ``file``.
        split_column: Column of the splits in ``file``.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, options contradict each other, the file names none of the keys, or
            ``destination`` exists or is a URL.
    """
    report, source = CopyReport(Path(destination)), Store.open(store, reporter=reporter)
    if file is not None and fractions is not None:
        raise StoreError("--fractions is for splits by hash; it cannot be used with --file.")
    named = {} if file is None else _named_in_file(source, Path(file), key_column, split_column)
    by_hash = None if file is not None else _by_hash(fractions, seed)
    images: dict[str, str] = {}  # by file: their splits, which their texts share
    for modality in ("image", "video") if by_hash is None else ():
        for batch in source.batches(modality, ["key", "split"]) if source.parts(modality) else ():
            for key, old in zip(keys_of(batch), batch.column("split").to_pylist(), strict=True):
                images.setdefault(key, named.get(key) or old or hashed_split(key))

    def change(_: Store, modality: str, table: pa.Table) -> pa.Table:
        items: list[Any] = own_items(table).to_pylist()
        belongs = any(name in table.column_names for name in ITEM_COLUMNS)
        chosen: list[str | None] = [
            by_hash(item) if by_hash else (images.get(item) if belongs else None) or named.get(item) for item in items
        ]
        report.unnamed += chosen.count(None)
        splits = [new or old for new, old in zip(chosen, table.column("split").to_pylist(), strict=True)]
        return with_column(table, "split", pa.array(splits, pa.string()))

    same = lambda _, failure: failure  # noqa: E731
    report.rows = _write_copy(destination, source.info, [source], change, same, "Splitting shards", reporter)
    return report


def _write_copy(
    destination: str | Path,
    info: StoreInfo,
    sources: Sequence[Store],
    change: Callable[[Store, str, pa.Table], pa.Table],
    rename: Callable[[Store, Failure], Failure],
    label: str,
    reporter: Reporter,
) -> dict[str, dict[str, int]]:
    """Write a new store by `copy_shards`, with FAISS indexes if a source has them; return rows by modality and split.

    Raises:
        StoreError: if there is something at ``destination``, or a shard cannot be read.
    """
    with new_store(destination, info) as building:
        copy_shards(building, info, sources, change, rename, label, reporter)
        if any(map(has_indexes, sources)):
            keep_indexes(building, reporter=reporter)
        opened = Store.open(building)
        return {modality: dict(opened.split_counts(modality)) for modality in opened.modalities}


def _require_mergeable(stores: Sequence[Store]) -> None:
    if len({store.path.resolve() for store in stores}) < max(2, len(stores)):
        raise StoreError("A merge needs at least two stores, each given once.", remedy="c3 merge OUT STORE STORE")
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
        blocks = [(store.path, batch.column(0)) for store in owners for batch in store.batches(modality, ["key"])]
        keys = one_array(pa.chunked_array([block for _, block in blocks], pa.string()))
        places = pc.index_in(keys, value_set=keys)
        found[modality] = pc.equal(places, pa.array(np.arange(len(keys)), places.type))
        again = pc.indices_nonzero(pc.invert(found[modality])).to_pylist()
        if again and keep is None:
            paths = np.repeat([str(path) for path, _ in blocks], [len(block) for _, block in blocks])
            one, other = paths[places[again[0]].as_py()], paths[again[0]]
            raise StoreError(
                f"{counted(len(again), 'key is', 'keys are')} in several stores, for example "
                f"{keys[again[0]].as_py()!r} in {one} and {other}.",
                remedy="Use --keep first to keep the row of the first store, or --prefix to begin keys with the name "
                "of their store.",
            )
    return found


def _splits_of_shared_items(stores: Sequence[Store]) -> pa.Table:
    """Return item and split of the items that several stores have rows of, as the first of them has it."""
    rows = pa.concat_tables([store.item_splits() for store in stores])
    items: Any = one_array(rows.column("item"))
    counts = items.value_counts()
    shared = counts.field("values").filter(pc.greater(counts.field("counts"), pa.scalar(1)))
    return rows.take(pc.index_in(shared, value_set=items)).combine_chunks()


def _by_hash(fractions: Sequence[float] | None, seed: int) -> Callable[[str], str]:
    given = np.array(list(HASH_FRACTIONS.values()) if fractions is None else fractions, float)
    if len(given) != len(HASH_FRACTIONS) or given.min() < 0 or not math.isclose(given.sum(), 1, abs_tol=1e-9):
        raise StoreError(
            f"The fractions of {', '.join(HASH_FRACTIONS)} must be at least 0 and add up to 1, not "
            f"{', '.join(f'{share:g}' for share in given)}.",
            remedy="For example: --fractions 0.8,0.1,0.1",
        )
    names = [name for name, share in zip(HASH_FRACTIONS, given, strict=True) if share > 0]
    edges, salt = np.cumsum(given)[given > 0].tolist(), f"{SALT} {seed}" if seed else SALT
    return lambda key: names[min(bisect(edges, stable_fraction(key, salt=salt)), len(names) - 1)]


def _named_in_file(store: Store, file: Path, key_column: str | None, split_column: str | None) -> dict[str, str]:
    named = splits_of_file(file, key_column, split_column)
    for modality in store.modalities:
        for batch in store.batches(modality, ["key", *ITEM_COLUMNS]):
            if not {*keys_of(batch), *own_items(batch).to_pylist()}.isdisjoint(named):
                return named
    raise StoreError(
        f"{file} contains none of the keys of {store.path}.",
        remedy="Keys are file names without their suffix. Choose the column of keys with --key-column.",
    )
