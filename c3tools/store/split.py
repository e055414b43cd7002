"""`c3 split`: divide a store into train, val and test by a stable hash of the key, by a column, or by a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..corpus.splits import HASH_FRACTIONS, SALT, hashed_split, split_of, split_order
from ..errors import StoreError
from ..reporter import SILENT, Reporter
from ..seeds import stable_fraction
from ..tables import Table
from .importers import ColumnNames, key_and_split, read_table
from .merge import replace_column, write_copy
from .reader import Store
from .rows import ITEM_COLUMNS, keys_of, own_items
from .shards import shard_schema

ChooseSplits = Callable[[Sequence[str]], list[str | None]]  # keys of items -> their new splits, None for no change


@dataclass
class SplitReport:
    """Summary of a split.

    Attributes:
        store: the new store.
        rows: modality → split → rows.
        unnamed: rows that the file or column says nothing about; they keep what they had.
    """

    store: Path
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    unnamed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "store": str(self.store)}

    def table(self) -> Table:
        """Return the table that terminal and notebook show."""
        splits = sorted({name for counts in self.rows.values() for name in counts}, key=split_order)
        cells = [[modality, *(f"{counts.get(name, 0):,}" for name in splits)] for modality, counts in self.rows.items()]
        return Table(["", *splits], cells, str(self.store))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def split_store(
    destination: str | Path,
    store: str | Path = "c3-store",
    *,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    column: str | None = None,
    file: str | Path | None = None,
    key_column: str | None = None,
    split_column: str | None = None,
    reporter: Reporter = SILENT,
) -> SplitReport:
    """Copy a store with new splits; texts are in the split of their image.

    Without ``column`` or ``file``, rows are split by a stable hash of the key, which is the same on every machine.

    Args:
        destination: The folder of the new store.
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        fractions: Fractions of the three splits, if rows are split by hash. By default 0.8,0.1,0.1.
        seed: Seed of the hash. 0 gives the splits that a store without splits is read with.
        column: Column of the images that contains the split.
        file: A table of keys and splits: jsonl, csv, tsv or parquet.
        key_column: Column of the keys in ``file``.
        split_column: Column of the splits in ``file``.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, options contradict each other, the column does not exist, the file names none
            of the keys, or ``destination`` exists or is a URL.
    """
    report = SplitReport(Path(destination))
    source = Store.open(store, reporter=reporter)
    if column is not None and file is not None:
        raise StoreError("Splits come either from --column or from --file, not from both.")
    if (column or file) and fractions is not None:
        raise StoreError("--fractions is for splits by hash; it cannot be used with --column or --file.")
    choose: ChooseSplits
    images: dict[str, str] = {}  # their new splits, which their texts share; by hash, the key of the image is enough
    if file is None and column is None:
        choose = _by_hash(fractions, seed)
    else:
        named = _named_in_file(source, Path(file), ColumnNames(key=key_column, split=split_column)) if file else {}
        named = _named_in_column(source, column) if column else named
        choose = lambda keys: [named.get(key) for key in keys]  # noqa: E731
        for modality in ("image", "video"):
            for batch in source.batches(modality, ["key", "split"]) if source.parts(modality) else ():
                for key, old in zip(keys_of(batch), batch.column("split").to_pylist(), strict=True):
                    images.setdefault(key, named.get(key) or old or hashed_split(key))

    def change(_: Store, modality: str, table: pa.Table) -> pa.Table:
        items: list[Any] = own_items(table).to_pylist()
        chosen = choose(items)
        if any(name in table.column_names for name in ITEM_COLUMNS):
            # the split of the image decides, also where neither file nor column names it
            chosen = [images.get(item) or own for item, own in zip(items, chosen, strict=True)]
        report.unnamed += sum(split is None for split in chosen)
        splits = [new or old for new, old in zip(chosen, table.column("split").to_pylist(), strict=True)]
        counts = Counter(report.rows.get(modality, {}))
        counts.update(split_of(split, item) for split, item in zip(splits, items, strict=True))
        report.rows[modality] = dict(sorted(counts.items()))
        return replace_column(table, "split", pa.array(splits, pa.string()))

    write_copy(destination, source.info, [source], change, lambda _, failures: failures, "Splitting shards", reporter)
    return report


def _by_hash(fractions: Sequence[float] | None, seed: int) -> ChooseSplits:
    given = list(HASH_FRACTIONS.values() if fractions is None else fractions)
    valid = len(given) == len(HASH_FRACTIONS) and all(share >= 0 for share in given)
    if not valid or not math.isclose(sum(given), 1, rel_tol=0, abs_tol=1e-9):
        raise StoreError(
            f"The fractions of {', '.join(HASH_FRACTIONS)} must be at least 0 and add up to 1, not "
            f"{', '.join(f'{share:g}' for share in given)}.",
            remedy="For example: --fractions 0.8,0.1,0.1",
        )
    shares = dict(zip(HASH_FRACTIONS, given, strict=True))
    edges = np.cumsum(list(shares.values()))
    names = [name for name, share in shares.items() if share > 0]
    edges = edges[[share > 0 for share in shares.values()]]
    salt = f"{SALT} {seed}" if seed else SALT

    def choose(keys: Sequence[str]) -> list[str | None]:
        positions = np.searchsorted(edges, [stable_fraction(key, salt=salt) for key in keys], side="right")
        return [names[min(position, len(names) - 1)] for position in positions]

    return choose


def _named_in_file(store: Store, file: Path, names: ColumnNames) -> dict[str, str]:
    keys, splits = key_and_split(read_table(file), names, file)
    named = _first_named(zip(keys, splits, strict=True))
    for modality in store.modalities:
        columns = ["key", "image_key"] if modality == "text" else ["key"]
        for batch in store.batches(modality, columns):
            if any(key in named for name in columns for key in batch.column(name).to_pylist()):
                return named
    raise StoreError(
        f"{file} contains none of the keys of {store.path}.",
        remedy="Keys are file names without their suffix. Choose the column of keys with --key-column.",
    )


def _named_in_column(store: Store, column: str) -> dict[str, str]:
    deciding = [name for name in store.modalities if name != "text" or not store.parts("image")]
    found = (
        (key, None if value is None else str(value) or None)
        for modality in deciding
        for batch in store.batches(modality, list(dict.fromkeys(["key", column])))
        if column in batch.schema.names
        for key, value in zip(keys_of(batch), batch.column(column).to_pylist(), strict=True)
    )
    named = _first_named(found)
    if not named:
        names = sorted({name for modality in deciding for name in shard_schema(modality, store.info).names})
        raise StoreError(
            f"None of the {' or '.join(deciding)} rows of {store.path} has a value in a column {column!r}.",
            remedy=f"Its columns are {', '.join(name for name in names if name != 'embedding')}. Choose one of these, "
            "or use --file.",
        )
    return named


def _first_named(pairs: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    named: dict[str, str] = {}
    for key, split in pairs:
        if split is not None:
            named.setdefault(key, split)
    return named
