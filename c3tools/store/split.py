"""`c3 split`: train, val and test by a stable hash of the key, by a column, or by a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..corpus.splits import HASH_FRACTIONS, SALT, hashed_split, split_of
from ..errors import StoreError
from ..reporter import SilentTracker, Tracker
from ..seeds import stable_fraction
from .building import new_folder, new_store
from .checks.keys import key_hashes
from .failures import write_failures
from .importers import ColumnNames, key_and_split
from .importers.tables import read_table
from .reader import Store, all_parts
from .rewriting import intact_shard, with_column, write_batches
from .schema import shard_schema
from .writer import create_store

Chosen = list[str | None]
Choose = Callable[[Sequence[str]], Chosen]
_OWNERS = ("image_key", "pair_key")


@dataclass
class SplitReport:
    """What a split did.

    Attributes:
        store: the new store.
        rows: modality → split → rows.
        unnamed: rows that the file or column says nothing about; they keep what they had.
    """

    store: Path
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    unnamed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"store": str(self.store), "rows": self.rows, "unnamed": self.unnamed}


class SplitTable:
    """Key → split in 10 bytes a key: hashes in order, and the number of the split."""

    def __init__(self, keys: npt.NDArray[np.int64], codes: npt.NDArray[np.uint16], names: Sequence[str]) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._codes, self._names = keys[order], codes[order], list(names)

    @classmethod
    def collect(cls, entries: Iterable[tuple[Sequence[str], Sequence[str | None]]]) -> SplitTable:
        """From blocks of keys and their splits; keys without a split are left out."""
        names: dict[str, int] = {}
        hashes, codes = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
        for keys, splits in entries:
            named = [(key, split) for key, split in zip(keys, splits, strict=True) if split]
            hashes.append(key_hashes([key for key, _ in named]))
            codes.append(np.array([names.setdefault(split, len(names)) for _, split in named], np.uint16))
        return cls(np.concatenate(hashes), np.concatenate(codes), list(names))

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._keys)

    def look_up(self, keys: Sequence[str]) -> Chosen:
        """The split of each key, None where the table says nothing."""
        if not len(self._keys):
            return [None] * len(keys)
        hashes = key_hashes(keys)
        places = np.minimum(np.searchsorted(self._keys, hashes), len(self._keys) - 1)
        found = self._keys[places] == hashes
        return [self._names[code] if there else None for code, there in zip(self._codes[places], found, strict=True)]


def split(
    destination: str | Path,
    source: str | Path,
    *,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    column: str | None = None,
    file: Path | None = None,
    names: ColumnNames | None = None,
    tracker: Tracker | None = None,
) -> SplitReport:
    """Write the store anew with other splits; rows that name an image go where it goes.

    Without ``column`` or ``file`` a stable hash of the key decides, the same on every machine.

    Args:
        destination: the folder of the new store; it appears when it is whole.
        source: the store, a folder or a URL; it is left as it is.
        fractions: of the rows, by split; by default those that stores without splits are read with.
        seed: another hash.
        column: a column of the store's images (or of what has no image) that says the split.
        file: a table (.jsonl, .csv, .tsv, .parquet) with a key and a split in each row.
        names: its columns, where the usual names do not fit.
        tracker: told of each shard.

    Raises:
        StoreError: if there is no store, options contradict each other, the column is not there, the file names none
            of the keys, something is at ``destination``, or that is a URL.
    """
    tracker = tracker or SilentTracker()
    report = SplitReport(new_folder(destination))
    store = Store.open(source)
    if column is not None and file is not None:
        raise StoreError("Either a column or a file says the splits, not both.")
    if (column or file) and fractions is not None:
        raise StoreError("Fractions are for splits by hash; a column or a file says them itself.")
    if file is not None:
        choose = _by_table(_from_file(store, file, names))
    elif column is not None:
        choose = _by_table(_from_column(store, column))
    else:
        choose = _by_hash(fractions or HASH_FRACTIONS, seed)
    # by hash, the key of the image says all
    images = SplitTable.collect(_image_splits(store, choose) if file or column else ())
    with new_store(report.store) as building:
        create_store(building, store.info)
        tracker.expect(sum(len(store.parts(modality)) for modality in store.modalities))
        for modality, part in all_parts(store):
            counts = Counter(report.rows.get(modality, {}))
            failures = store.shard_failures(modality, part)
            with intact_shard(store, modality, part) as nearby:
                rows = nearby.batches(modality, parts=[part])
                batches = (_resplit(batch, choose, images, counts, report) for batch in rows)
                write_batches(building, store.info, modality, part, batches, failures)
            report.rows[modality] = dict(sorted(counts.items()))
            tracker.advance()
        write_failures(building, store.recorded_failures())
    return report


def _resplit(
    batch: pa.RecordBatch, choose: Choose, images: SplitTable, counts: Counter[str], report: SplitReport
) -> pa.RecordBatch:
    names = batch.schema.names
    keys = batch.column("key").to_pylist()
    owner_column = next((name for name in _OWNERS if name in names), None)
    owners = batch.column(owner_column).to_pylist() if owner_column else [None] * len(keys)
    deciding = [owner or key for owner, key in zip(owners, keys, strict=True)]
    before = batch.column("split").to_pylist()
    own = choose(deciding)
    if owner_column:
        # where the image stands decides, also where neither file nor column speaks of it
        own = [image or mine for image, mine in zip(images.look_up(deciding), own, strict=True)]
    report.unnamed += sum(value is None for value in own)
    after = [value or old for value, old in zip(own, before, strict=True)]
    counts.update(split_of(value, key) for value, key in zip(after, deciding, strict=True))
    return with_column(batch, "split", after)


def _image_splits(store: Store, choose: Choose) -> Iterator[tuple[list[str], list[str]]]:
    """Blocks of image keys and their new splits, for the rows that name them."""
    for batch in store.batches("image", ["key", "split"]) if store.parts("image") else ():
        keys, before = batch.column("key").to_pylist(), batch.column("split").to_pylist()
        yield keys, [new or old or hashed_split(key) for key, new, old in zip(keys, choose(keys), before, strict=True)]


def _by_hash(fractions: Mapping[str, float], seed: int) -> Choose:
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
        shares = ", ".join(f"{name} {share:g}" for name, share in fractions.items())
        raise StoreError(f"The fractions have to add up to 1; given are {shares}.", remedy="--fractions 0.8,0.1,0.1")
    edges = np.cumsum(list(fractions.values()))
    names = [name for name, share in fractions.items() if share > 0]
    edges = edges[[share > 0 for share in fractions.values()]]
    salt = f"{SALT} {seed}" if seed else SALT

    def choose(keys: Sequence[str]) -> Chosen:
        places = np.searchsorted(edges, [stable_fraction(key, salt=salt) for key in keys], side="right")
        return [names[min(place, len(names) - 1)] for place in places]

    return choose


def _by_table(table: SplitTable) -> Choose:
    return table.look_up


def _from_file(store: Store, file: Path, names: ColumnNames | None) -> SplitTable:
    table = SplitTable.collect([key_and_split(read_table(file), names or ColumnNames(), file)])
    keys = (batch.column("key").to_pylist() for name in store.modalities for batch in store.batches(name, ["key"]))
    owners = (
        [key for key in batch.column("image_key").to_pylist() if key]
        for batch in (store.batches("text", ["key", "image_key"]) if store.parts("text") else ())
    )
    for block in (*keys, *owners):
        if any(table.look_up(block)):
            return table
    raise StoreError(
        f"{file} names none of the keys of {store.path}.",
        remedy="Keys are file names without their suffix; name the column with --key-column.",
    )


def _from_column(store: Store, column: str) -> SplitTable:
    decisive = [name for name in store.modalities if name != "text" or not store.parts("image")]
    table = SplitTable.collect(
        (batch.column("key").to_pylist(), [v if v is None else str(v) for v in batch.column(column).to_pylist()])
        for modality in decisive
        for batch in store.batches(modality, list(dict.fromkeys(["key", column])))
        if column in batch.schema.names
    )
    if not len(table):
        names = sorted({name for modality in decisive for name in shard_schema(modality, store.info).names})
        raise StoreError(
            f"No {' or '.join(decisive)} rows of {store.path} have a value in a column {column!r}.",
            remedy=f"Columns: {', '.join(name for name in names if name != 'embedding')}; or give a --file.",
        )
    return table
