"""Stores that are made of others, shard by shard: `c3 merge`, `c3 split`, and data sets on the Hugging Face hub.

The data set of a store is a copy of it with a card, one configuration per modality, for `datasets.load_dataset`. Images
are not in it. A path of an image that is absolute is cut to the name of the file, and failures have no messages, which
may name folders too.
"""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..corpus.splits import HASH_FRACTIONS, SALT, split_order
from ..errors import StoreError
from ..io.artifact import Card
from ..io.files import sha256_of
from ..io.parquet import read_parquet
from ..reporter import SILENT, Reporter, counted
from ..seeds import stable_fraction
from ..tables import Table
from .manifest import StoreWriter, new_store
from .metadata import Failure, StoreInfo
from .pairing import splits_of_file
from .reader import Store
from .rows import ITEM_COLUMNS, keys_of, own_items
from .shard_indexes import keep_indexes
from .shards import check_schema, part_name, shard_schema, write_rows


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
    if len({store.path.resolve() for store in sources}) < max(2, len(sources)):
        raise StoreError("A merge needs at least two stores, each given once.", remedy="c3 merge OUT STORE STORE")
    for store in sources[1:]:
        names = {"own": f"The store {sources[0].path}", "theirs": f"the store {store.path}"}
        sources[0].info.require_same(store.info, "preprocessing", **names)
    prefixes = {store: f"{store.path.resolve().name}/" if prefix else "" for store in sources}
    if prefix and len({*prefixes.values()}) < len(prefixes):
        raise StoreError(
            "Two of the stores have the same name, so --prefix would give their keys the same prefix.",
            remedy="Rename one of the folders.",
        )
    owners: dict[str, dict[str, Store]] = defaultdict(dict)  # by modality and key
    splits: dict[str, str | None] = {}  # by item
    report = CopyReport(Path(destination))

    def change(store: Store, modality: str, table: pa.Table) -> pa.Table:
        for name in {"key", *ITEM_COLUMNS}.intersection(table.column_names):
            own: Any = table.column(name)
            named = pc.binary_join_element_wise(prefixes[store], own, "")
            table = _with_column(table, name, pc.if_else(pc.equal(own, pa.scalar("")), own, named))
        own = zip(own_items(table).to_pylist(), table.column("split").to_pylist(), strict=True)
        table = _with_column(table, "split", pa.array([splits.setdefault(*row) for row in own], pa.string()))
        known = [(key, owners[modality].setdefault(key, store)) for key in keys_of(table)]
        again = [(key, owner) for key, owner in known if owner is not store]
        if again and keep is None:
            raise StoreError(
                f"{counted(len(again), 'key is', 'keys are')} in several stores, for example {again[0][0]!r} in "
                f"{again[0][1].path} and {store.path}.",
                remedy="Use --keep first to keep the row of the first store, or --prefix to begin keys with the name "
                "of their store.",
            )
        report.dropped += len(again)
        return table.filter(pa.array([owner is store for _, owner in known]))

    def renamed(store: Store, failure: Failure) -> Failure:
        return replace(failure, key=prefixes[store] + failure.key)

    info = next((store for store in sources if store.modalities), sources[0]).info
    report.rows = _copy(destination, info, sources, change, renamed, "Merging shards", reporter)
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
    if file is None:
        split_of, kept = _by_hash(fractions, seed), {}
    elif fractions is not None:
        raise StoreError("--fractions is for splits by hash; it cannot be used with --file.")
    else:
        chosen, items = splits_of_file(Path(file), key_column, split_column), source.item_splits()
        split_of, kept = chosen.get, dict(zip(items["item"].to_pylist(), items["split"].to_pylist(), strict=True))
        if chosen.keys().isdisjoint(kept):
            raise StoreError(
                f"{file} contains none of the keys of {source.path}.",
                remedy="Keys are file names without their suffix. Choose the column of keys with --key-column.",
            )

    def change(_: Store, modality: str, table: pa.Table) -> pa.Table:
        items: list[Any] = own_items(table).to_pylist()
        splits = [split_of(item) for item in items]
        report.unnamed += splits.count(None)
        splits = [split or kept[item] for split, item in zip(splits, items, strict=True)]
        return _with_column(table, "split", pa.array(splits, pa.string()))

    report.rows = _copy(destination, source.info, [source], change, None, "Splitting shards", reporter)
    return report


def _by_hash(fractions: Sequence[float] | None, seed: int) -> Callable[[str], str | None]:
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


def card_of(store: Store) -> Card:
    """Return the facts of the card of a store."""
    info, names = store.info, [name for name in store.modalities if store.count(name)]
    counts = {name: sorted(store.split_counts(name).items(), key=lambda item: split_order(item[0])) for name in names}
    facts = {
        "encoder": info.model,
        "dimensions": info.dim,
        "dtype": info.dtype,
        "normalised": "yes: every embedding has length 1" if info.normalised else "no",
        "preprocessing": json.dumps(info.preprocessing) if info.preprocessing else "unknown",
        **{f"{name} rows": ", ".join(f"{split} {n:,}" for split, n in own) for name, own in counts.items()},
    }
    configs = [{"config_name": name, "data_files": f"{name}/part-*.parquet"} for name in names]
    return Card(
        f"Embeddings of `{info.model.name}` without the images themselves.",
        f'import c3tools, datasets\n\nrows = datasets.load_dataset("{{name}}", "{names[0]}", split="train")  # all\n'
        'store = c3tools.Store.from_pretrained("{name}", output="c3-store")',
        facts,
        tags=("embeddings", "CLIP", "modality-gap"),
        metadata={"configs": configs},
    )


def save_data_set(store: Store, folder: Path) -> None:
    """Write the data set of a store to a new folder, whole or not at all.

    Raises:
        StoreError: if the folder is there, the store has no rows, or cannot be read.
    """
    if not any(map(store.count, store.modalities)):
        raise StoreError(f"The store {store.path} has no rows to share.", remedy="Run `c3 embed` first.")

    def change(_: Store, modality: str, table: pa.Table) -> pa.Table:
        if "path" not in table.column_names:
            return table
        paths = [path and _without_folder(path) for path in table.column("path").to_pylist()]
        return _with_column(table, "path", pa.array(paths, pa.string()))

    def shared(_: Store, failure: Failure) -> Failure:
        return replace(failure, path=_without_folder(failure.path), message="")

    _copy(folder, store.info, [store], change, shared, "Copying shards", SILENT, split_bytes=False)


def load_data_set(source: Store, output: str | Path = "c3-store") -> Path:
    """Make a store of a data set that `save_data_set` wrote, opened as one, and return its path.

    Raises:
        StoreError: if there is something at ``output``, or the data set is not of c3tools, or damaged.
    """
    for modality, part in source.shards:
        path = source.file(modality, part)
        try:
            check_schema(read_parquet(path).schema, modality, source.info)  # declared sizes may be of a stranger
            if sha256_of(path) != source.shard_digest(modality, part):
                raise ValueError("its sha256 is another one")
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise StoreError(f"{path} cannot be read ({error}).", remedy="Fetch the data set again.") from error
    _copy(output, source.info, [source], None, None, "Copying shards", SILENT)
    return Path(output)


def _copy(
    destination: str | Path,
    info: StoreInfo,
    sources: Sequence[Store],
    change: Callable[[Store, str, pa.Table], pa.Table] | None,
    rename: Callable[[Store, Failure], Failure] | None,
    label: str,
    reporter: Reporter,
    *,
    split_bytes: bool = True,
) -> dict[str, dict[str, int]]:
    """Write a new store of the shards of others, with FAISS indexes if a source has them.

    Args:
        destination: its folder.
        info: of the new store.
        sources: the stores.
        change: from a store, a modality and the rows of a shard to the new rows; None to keep them.
        rename: from a store and a failure to the new one; None to keep them.
        label: of the progress.
        reporter: shows it.
        split_bytes: see `write_rows`.

    Returns:
        the numbers of rows by modality and split.

    Raises:
        StoreError: if there is something at ``destination``, or a shard cannot be read.
    """
    numbers = Counter[str]()  # of the next shard, by modality
    with new_store(destination, info) as building:
        with reporter.progress(label, sum(len(store.shards) for store in sources)) as progress:
            for store in sources:
                for modality, part in store.shards:
                    batches = list(store.batches(modality, parts=[part]))
                    table = pa.Table.from_batches(batches, None if batches else shard_schema(modality, info))
                    failed = store.shard_failures(modality, part)
                    write_rows(
                        building / part_name(modality, numbers[modality]),
                        info,
                        change(store, modality, table) if change else table,
                        [rename(store, failure) for failure in failed] if rename else failed,
                        split_bytes=split_bytes,
                    )
                    numbers[modality] += 1
                    progress.advance()
        # of several failures of one input the last is listed: that of the first store
        listed = [(store, f) for store in reversed(sources) for f in store.recorded_failures() if f.stage == "list"]
        StoreWriter(building).finish([rename(*one) if rename else one[1] for one in listed])
        if any(store.indexed for store in sources):
            keep_indexes(building, reporter=reporter)
        opened = Store.open(building)
        return {modality: dict(opened.split_counts(modality)) for modality in opened.modalities}


def _with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Return a table with other values in one column."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), values)


def _without_folder(path: str) -> str:
    """Return a path, cut to the file name if it is absolute, because it reveals folders of the user."""
    plain = PurePath(path.strip("'\""))  # a path that is not UTF-8 is recorded in quotes
    return plain.name if plain.is_absolute() else path
