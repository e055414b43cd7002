"""`c3 split`: divide a store into train, val and test by a stable hash of the key, by a column, or by a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
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
from .keys import SplitTable
from .manifest import finish_store
from .metadata import write_failures
from .reader import Store, all_parts
from .rewriting import intact_shard, new_folder, new_store, replace_column, timings_of
from .rows import ITEM_COLUMNS, keys_of, row_items
from .shard_indexes import has_indexes, keep_indexes
from .shards import create_store, shard_schema, write_batches

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
    report = SplitReport(new_folder(destination))
    source = Store.open(store, reporter=reporter)
    if column is not None and file is not None:
        raise StoreError("Splits come either from --column or from --file, not from both.")
    if (column or file) and fractions is not None:
        raise StoreError("--fractions is for splits by hash; it cannot be used with --column or --file.")
    choose: ChooseSplits
    if file is not None:
        choose = _table_of_file(source, Path(file), ColumnNames(key=key_column, split=split_column)).look_up
    elif column is not None:
        choose = _table_of_column(source, column).look_up
    else:
        choose = _by_hash(fractions, seed)
    # by hash, the key of the image is enough
    images = SplitTable(_image_splits(source, choose) if file or column else ())
    total = sum(len(source.parts(modality)) for modality in source.modalities)
    with new_store(report.store) as building, reporter.progress("Splitting shards", total) as progress:
        create_store(building, source.info)
        for modality, part in all_parts(source):
            counts = Counter(report.rows.get(modality, {}))
            failures = source.shard_failures(modality, part)
            with intact_shard(source, modality, part) as local:
                rows = local.batches(modality, parts=[part])
                batches = (_with_new_splits(batch, choose, images, counts, report) for batch in rows)
                timings = timings_of(source.marker(modality, part))
                write_batches(building, source.info, modality, part, batches, failures, timings)
            report.rows[modality] = dict(sorted(counts.items()))
            progress.advance()
        write_failures(building, source.recorded_failures())
        finish_store(building)
        if has_indexes(source):
            keep_indexes(building, reporter=reporter)
    return report


def _with_new_splits(
    batch: pa.RecordBatch, choose: ChooseSplits, images: SplitTable, counts: Counter[str], report: SplitReport
) -> pa.RecordBatch:
    items = row_items(batch)
    chosen = choose(items)
    if any(name in batch.schema.names for name in ITEM_COLUMNS):
        # the split of the image decides, also where neither file nor column names it
        chosen = [of_image or own for of_image, own in zip(images.look_up(items), chosen, strict=True)]
    report.unnamed += sum(split is None for split in chosen)
    splits = [new or old for new, old in zip(chosen, batch.column("split").to_pylist(), strict=True)]
    counts.update(split_of(split, item) for split, item in zip(splits, items, strict=True))
    return replace_column(batch, "split", splits)


def _image_splits(store: Store, choose: ChooseSplits) -> Iterator[tuple[list[str], list[str]]]:
    """Yield blocks of keys of images and videos and their new splits, for the rows that belong to these."""
    visual = [modality for modality in ("image", "video") if store.parts(modality)]
    for batch in chain.from_iterable(store.batches(modality, ["key", "split"]) for modality in visual):
        keys, before = keys_of(batch), batch.column("split").to_pylist()
        yield keys, [new or old or hashed_split(key) for key, new, old in zip(keys, choose(keys), before, strict=True)]


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


def _table_of_file(store: Store, file: Path, names: ColumnNames) -> SplitTable:
    table = SplitTable([key_and_split(read_table(file), names, file)])
    for modality in store.modalities:
        columns = ["key", "image_key"] if modality == "text" else ["key"]
        for batch in store.batches(modality, columns):
            if any(table.look_up([key for name in columns for key in batch.column(name).to_pylist() if key])):
                return table
    raise StoreError(
        f"{file} contains none of the keys of {store.path}.",
        remedy="Keys are file names without their suffix. Choose the column of keys with --key-column.",
    )


def _table_of_column(store: Store, column: str) -> SplitTable:
    deciding = [name for name in store.modalities if name != "text" or not store.parts("image")]
    table = SplitTable(
        (keys_of(batch), [None if v is None else str(v) or None for v in batch.column(column).to_pylist()])
        for modality in deciding
        for batch in store.batches(modality, list(dict.fromkeys(["key", column])))
        if column in batch.schema.names
    )
    if not len(table):
        names = sorted({name for modality in deciding for name in shard_schema(modality, store.info).names})
        raise StoreError(
            f"None of the {' or '.join(deciding)} rows of {store.path} has a value in a column {column!r}.",
            remedy=f"Its columns are {', '.join(name for name in names if name != 'embedding')}. Choose one of these, "
            "or use --file.",
        )
    return table
