"""`c3 merge` and `c3 split`: new stores built from others, shard by shard.

copied.json   in the new store: a digest of what it was made from, and what was counted. With it,
              the same command does nothing if the store is there, and an export or index of
              another store in its place is fitted anew.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..choices import checked
from ..corpus.ids import id_of
from ..corpus.splits import (
    HASH_FRACTIONS,
    SALT,
    named_split,
    split_order,
    splits_by_hash,
)
from ..corpus.tables import IMAGE_KEY, open_table, pick, pick_all, text_of
from ..errors import StoreError, UnusedOptionError
from ..identity import ModelIdentity
from ..io.artifact import digest_of
from ..io.files import write_json_atomically
from ..lists import as_list
from ..reporter import SILENT, Reporter, counted, counted_rows
from ..result_table import Table
from .dataset import copy_store, with_column
from .left_out import LEAVE_OUT_COLUMN, RowName
from .reader import Store
from .rows import ITEM_COLUMNS, keys_of, own_items, row_splits
from .shards import COPY_FILE, CORPUS_SPLIT, Failure


@dataclass
class CopyReport:
    """Summary of a merge or a split.

    Attributes:
        store: the new store.
        rows: by modality and split, without those that are left out.
        dropped: rows that a merge left out, because an earlier store had their key.
        unnamed: rows whose split the file does not name; they keep the one they had.
        new_splits: splits that the file names, and that neither the store has nor commands know.
        unknown: keys in the file that the store does not have.
        first_unknown: the first of them.
    """

    store: Path
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: int = 0
    unnamed: int = 0
    new_splits: list[str] = field(default_factory=list)
    unknown: int = 0
    first_unknown: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "store": str(self.store)}

    def table(self) -> Table:
        """Return the table that the terminal shows."""
        splits = sorted({name for counts in self.rows.values() for name in counts}, key=split_order)
        cells = [
            [modality, *(f"{counts.get(name, 0):,}" for name in splits)]
            for modality, counts in self.rows.items()
        ]
        return Table(["", *splits], cells, str(self.store))

    def notes(self) -> list[str]:
        """Return sentences on new splits, on rows that a split file does not name, and on keys that
        the store does not have.
        """
        notes = []
        if self.new_splits:
            names = ", ".join(self.new_splits)
            new = counted(len(self.new_splits), "split")
            notes.append(f"The table has {new} that the store did not have: {names}.")
        if self.unnamed:
            rows = counted(self.unnamed, "row")
            notes.append(f"The table does not list {rows}; these stay in their split.")
        if self.unknown:
            keys = counted(self.unknown, "key")
            notes.append(f"The store has no rows for {keys} in the table: {self.first_unknown}, …")
        return notes

    def line(self) -> str:
        """Return the rows of a merge, and how many were left out, in one line."""
        rows = {modality: sum(counts.values()) for modality, counts in self.rows.items()}
        dropped = f"; {self.dropped:,} duplicates were left out" if self.dropped else ""
        return f"{self.store}: {counted_rows(rows)}{dropped}."


@checked
def merge_stores(
    stores: Sequence[str | Path],
    *,
    output: str | Path,
    keep_first: bool = False,
    prefix: bool = False,
    model: str | None = None,
    reporter: Reporter = SILENT,
) -> CopyReport:
    """Join stores of the same model into a new store.

    Keys that several stores share are an error unless ``keep_first`` or ``prefix`` is given. If
    several stores have rows of the same item, the item keeps its split in the first of them.
    Moments that `c3 means load` loaded are not copied.

    Args:
        stores: Two or more stores of the same model: folders or URLs (s3://, gs://).
        output: The folder of the new store.
        keep_first: If several stores have the same key, keep the row of the first one.
        prefix: Prefix each key with the name of its store, for example dogs/ for the store dogs.
        model: Name of the model of the stores that record none, because they were imported without
            --model.
        reporter: Shows the progress.

    Raises:
        StoreError: if there are fewer than two stores, they are of different models, the model of
            one is unknown and not named, one is an export, keys repeat, a shard is damaged, or
            ``output`` is a URL or contains anything but the result of the same merge, which is
            returned.
        UnusedOptionError: if a model is named and all stores record theirs.
    """
    stores = as_list(stores)
    if keep_first and prefix:
        raise StoreError(
            "--keep-first cannot be combined with --prefix.",
            remedy="Use either --keep-first or --prefix.",
        )
    sources = [Store.open(store, reporter=reporter) for store in stores]
    if len({store.path.resolve() for store in sources}) < max(2, len(sources)):
        raise StoreError(
            "A merge needs at least two different stores.",
            remedy="For example: c3 merge STORE STORE -o OUT",
        )
    for store in sources:
        store.info.require_raw(
            store.path, "Merge the stores that were exported, then export the result."
        )
    _name_unknown_models(sources, model)
    first, *later = sources
    for store in later:
        first.info.require_same(
            store.info,
            "preprocessing",
            own=f"The store {first.path}",
            theirs=f"the store {store.path}",
            remedy="Embed or import the inputs of one of them again, with the model, the --dtype "
            "and the --keep-columns of the other.",
        )
    prefixes = {store: f"{store.path.resolve().name}/" if prefix else "" for store in sources}
    if prefix and len(set(prefixes.values())) < len(prefixes):
        raise StoreError(
            f"Several stores are in folders with the same name "
            f"({', '.join(str(store.path) for store in sources)}), so --prefix would give their "
            f"keys the same prefix.",
            remedy=f"Rename the folders as the keys should begin, for example: "
            f"mv {sources[-1].path} {sources[-1].path.parent / 'cam2'}",
        )
    report = CopyReport(Path(output))
    merge = _Merge(prefixes, keep_first, report)
    settings = {"command": "merge", "keep_first": keep_first, "prefixes": list(prefixes.values())}
    return _make_copy(
        output,
        report,
        sources,
        settings,
        merge.rows_of,
        merge.renamed,
        merge.left_out,
        reporter=reporter,
    )


def _name_unknown_models(stores: Sequence[Store], model: str | None) -> None:
    """Give the stores whose model is unknown the model that is named.

    Raises:
        StoreError: if there are such stores, and no model is named.
        UnusedOptionError: if there are none, and one is named.
    """
    known = [store.info.model.name for store in stores if store.info.model.is_known]
    unknown = [store for store in stores if not store.info.model.is_known]
    if model is None and unknown:
        raise StoreError(
            f"The model of {', '.join(str(store.path) for store in unknown)} is unknown, and only "
            f"embeddings of the same model can be merged.",
            remedy=f"If all stores are of the same model, name it: --model "
            f"{known[0] if known else 'NAME'}",
        )
    if model is not None and not unknown:
        raise UnusedOptionError("--model", "because all stores record their model")
    for store in unknown:
        store.info = replace(store.info, model=ModelIdentity(name=model))


class _Merge:
    """The rows of stores that are copied into one, store after store.

    Args:
        prefixes: what the keys of each store begin with in the new one.
        keep_first: leave out rows whose key an earlier store has, rather than refuse them.
        report: counts the rows that are left out.
    """

    def __init__(self, prefixes: Mapping[Store, str], keep_first: bool, report: CopyReport) -> None:
        self._prefixes = prefixes
        self._keep_first = keep_first
        self._report = report
        self._owner_of: dict[str, dict[str, Store]] = defaultdict(dict)  # by modality and key
        self._split_of: dict[str, str] = {}  # by item, as its first store says

    def rows_of(self, store: Store, modality: str, table: pa.Table) -> pa.Table:
        """Return the rows of a shard for the new store.

        Raises:
            StoreError: if a key is that of an earlier store, and these are not to be left out.
        """
        # Before keys get a prefix, by which a hash would choose other splits
        own_splits = row_splits(table)
        for name in {"key", *ITEM_COLUMNS}.intersection(table.column_names):
            keys: Any = table.column(name)
            prefixed = pc.binary_join_element_wise(self._prefixes[store], keys, "")
            # Empty keys, of no item, stay empty
            keys = pc.if_else(pc.equal(keys, pa.scalar("")), keys, prefixed)
            table = with_column(table, name, keys)

        splits = []
        items = own_items(table).to_pylist()
        for item, split in zip(items, own_splits, strict=True):
            splits.append(self._split_of.setdefault(item, split))
        table = with_column(table, "split", pa.array(splits, pa.string()))

        is_new = []
        for key in keys_of(table):
            owner = self._owner_of[modality].setdefault(key, store)
            is_new.append(owner is store)
        dropped = is_new.count(False)
        if dropped and not self._keep_first:
            key = keys_of(table)[is_new.index(False)]
            raise StoreError(
                f"{counted(dropped, 'key is', 'keys are')} in several stores, for example "
                f"{key!r} in {self._owner_of[modality][key].path} and {store.path}.",
                remedy="Use --keep-first to keep the row of the first store, or --prefix to put "
                "the name of its store before each key.",
            )
        self._report.dropped += dropped
        return table.filter(pa.array(is_new, pa.bool_()))

    def left_out(self, store: Store) -> dict[RowName, str]:
        """Return which rows of a store are left out of the new one, of those that were copied."""
        reasons: dict[RowName, str] = {}
        for row, reason in store.left_out.reasons.items():
            key = self._prefixes[store] + row.key
            if self._owner_of[row.modality].get(key) is store:
                reasons[RowName(row.modality, key)] = reason
        return reasons

    def renamed(self, store: Store, failure: Failure) -> Failure:
        """Return a failure for the new store."""
        return replace(failure, key=self._prefixes[store] + failure.key)


@checked
def split_store(
    store: str | Path = "c3-store",
    *,
    output: str | Path,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    key_column: str | None = None,
    split_column: str | None = None,
    reporter: Reporter = SILENT,
) -> CopyReport:
    """Copy a store with new splits; texts are in the split of their image.

    Without ``file``, rows are split by a stable hash of the key, which is the same on every
    machine.

    Args:
        store: See `embed`.
        output: The folder of the new store.
        fractions: Fractions of rows for train, val and test. By default 0.8,0.1,0.1.
        seed: Seed of the hash. With 0, the splits are those that commands use for a store without
            splits.
        file: A table of keys and splits, or Karpathy's JSON.
        key_column: Column with the keys in ``file``.
        split_column: Column with the splits in ``file``.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, it is an export, the file names none of the keys, or
            ``output`` is a URL or contains anything but the result of the same split, which is
            returned.
        UnusedOptionError: if an option has no effect with another.
    """
    report = CopyReport(Path(output))
    source = Store.open(store, reporter=reporter)
    source.info.require_raw(
        source.path, "Split the store that was exported, then export the result."
    )
    settings: dict[str, Any] = {
        "command": "split",
        "fractions": fractions,
        "seed": seed,
        "splits": None,
    }
    if file is None:
        shares = np.array(list(HASH_FRACTIONS.values()) if fractions is None else fractions, float)
        is_whole = math.isclose(shares.sum(), 1)
        if len(shares) != len(HASH_FRACTIONS) or shares.min() < 0 or not is_whole:
            raise StoreError(
                f"The fractions of {', '.join(HASH_FRACTIONS)} must be at least 0 and add up to "
                f"1, not {', '.join(f'{share:g}' for share in shares)}.",
                remedy="For example: --fractions 0.8,0.1,0.1",
            )
        salt = f"{SALT} {seed}" if seed else SALT

        def change(_: Store, modality: str, table: pa.Table) -> pa.Table:
            items = own_items(table).to_pylist()
            splits = splits_by_hash(items, shares / shares.sum(), salt)
            return with_column(table, "split", pa.array(list(splits), pa.string()))

        return _make_copy(output, report, [source], settings, change, reporter=reporter)
    item_splits = source.item_splits()
    named_splits = _read_splits(Path(file), source, item_splits, key_column, split_column)
    settings["splits"] = named_splits
    splits_before = {named_split(split) for split in item_splits.values()}
    splits_now = {named_split(split) for key, split in named_splits.items() if key in item_splits}
    report.new_splits = sorted(splits_now - splits_before - {*HASH_FRACTIONS})
    unknown = [key for key in named_splits if key not in item_splits]
    report.unknown = len(unknown)
    report.first_unknown = next(iter(unknown), "")

    def change_named(_: Store, modality: str, table: pa.Table) -> pa.Table:
        items = own_items(table).to_pylist()
        report.unnamed += sum(item not in named_splits for item in items)
        words = zip(items, table.column(CORPUS_SPLIT).to_pylist(), strict=True)
        names = [named_splits.get(item, word) for item, word in words]
        table = with_column(table, CORPUS_SPLIT, pa.array(names, pa.string()))
        splits = [named_splits.get(item, item_splits[item]) for item in items]
        return with_column(table, "split", pa.array(splits, pa.string()))

    return _make_copy(output, report, [source], settings, change_named, reporter=reporter)


def _read_splits(
    path: Path,
    store: Store,
    item_splits: Mapping[str, str],
    key_column: str | None,
    split_column: str | None,
) -> dict[str, str]:
    """Return the splits that a table names, by item; the first row of an item counts.

    Keys are in ``key_column``, else in the first usual column that has a key of the store. The key
    of a caption stands for its image.

    Raises:
        StoreError: if the table cannot be read, or has no column of splits or none with keys of
            the store.
    """
    table = open_table(path, StoreError)
    if LEAVE_OUT_COLUMN in table.columns:
        raise StoreError(
            f"{path} marks rows to leave out; it does not say how to split them.",
            remedy=f"Leave the marked rows out: c3 leave-out {path}",
        )
    columns = table.plain_columns
    present = ", ".join(map(repr, columns)) or "none"
    split_column = split_column or pick(columns, "split")
    key_columns = [key_column] if key_column else pick_all(columns, *IMAGE_KEY, "path", "url")
    if split_column not in columns or not key_columns or key_columns[0] not in columns:
        raise StoreError(
            f"{path} needs a column with keys ({', '.join(key_columns) or 'none found'}) and one "
            f"with splits ({split_column or 'none found'}); its columns are {present}.",
            remedy="Give the names of the columns with --key-column and --split-column.",
        )
    row_items = store.row_items()
    rows = [record.values for record in table.records([*key_columns, split_column])]
    for column in key_columns:
        named_splits: dict[str, str] = {}
        for row in rows:
            key = id_of(text_of(row.get(column)), column)
            split = text_of(row.get(split_column))
            if key and split:
                item = key if key in item_splits else row_items.get(key, key)
                named_splits.setdefault(item, split)
        if not named_splits.keys().isdisjoint(item_splits):
            return named_splits
    raise StoreError(
        f"{path} contains none of the keys of {store.path} in {', '.join(map(repr, key_columns))}; "
        f"its columns are {present}.",
        remedy="Keys are file names without their suffix. Choose the key column with --key-column.",
    )


def has_same_rows(first: Path, second: Path) -> bool:
    """Return whether two folders are stores of one model with the same rows and failures, shard by
    shard. Their files may differ in how these are compressed.
    """
    try:
        one = Store.open(first)
        other = Store.open(second)
        if one.info != other.info or list(one.shards) != list(other.shards):
            return False
        if one.recorded_failures() != other.recorded_failures():
            return False
        return all(one.read_shard(*shard) == other.read_shard(*shard) for shard in one.shards)
    except StoreError:
        return False


def _make_copy(
    destination: str | Path,
    report: CopyReport,
    sources: Sequence[Store],
    settings: Mapping[str, Any],
    change: Callable[[Store, str, pa.Table], pa.Table],
    rename: Callable[[Store, Failure], Failure] = lambda store, failure: failure,
    left_out: Callable[[Store], Mapping[RowName, str]] = lambda store: store.left_out.reasons,
    *,
    reporter: Reporter,
) -> CopyReport:
    """Make a store of others, or find that it was made before.

    Args:
        destination: the folder of the new store.
        report: what ``change`` counts in.
        sources: the stores.
        settings: which together with the content of the stores decide what the new one contains.
        change: see `copy_store`.
        rename: see `copy_store`.
        left_out: see `copy_store`.
        reporter: shows the progress.

    Returns:
        the report, or that of the run that made the store.
    """
    contents = []
    for source in sources:
        shards = [[*shard, source.shard_digest(*shard)] for shard in source.shards]
        failures = [asdict(failure) for failure in source.recorded_failures()]
        reasons = [[*row, reason] for row, reason in source.left_out.reasons.items()]
        contents.append(digest_of(asdict(source.info), shards, failures, reasons))
    made_from = digest_of(settings, contents)
    copied: Mapping[str, Any] = {}
    with suppress(StoreError):
        store = Store.open(report.store)
        copied = store.copied
    if copied.get("made_from") == made_from:
        reporter.message(f"{report.store} already contains this store; there is nothing to do.")
        rows = {name: dict(sorted(store.split_counts(name).items())) for name in store.modalities}
        return CopyReport(report.store, rows, **copied["report"])

    def record(folder: Path) -> None:
        counts = asdict(report)
        del counts["store"], counts["rows"]
        write_json_atomically(folder / COPY_FILE, {"made_from": made_from, "report": counts})

    info = sources[0].info
    report.rows = copy_store(
        destination,
        info,
        sources,
        change,
        rename,
        left_out=left_out,
        record=record,
        reporter=reporter,
    )
    return report
