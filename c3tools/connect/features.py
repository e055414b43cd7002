"""The two sides that are connected: rows with keys, splits and features, from files or from stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..corpus.splits import split_of
from ..errors import ConnectError, StoreError
from ..store import Store
from ..store.importers import ColumnNames, Modality, pair, read_table, read_vectors
from ..store.rows import held_out
from .pairs import FeatureInputs, Pairs, ids_of, ids_of_rows

Indices = npt.NDArray[np.int64]
_NOT_COLUMNS = ("width", "height", "size")
_BLOCK_ROWS = 8192


@dataclass
class PairedFeatures:
    """Two modalities and which of their rows belong together.

    Attributes:
        first: with one row per item (images).
        second: with any number of rows per item (captions).
        owner: int64 (rows of second,), the row of ``first`` it belongs to, or -1.
        roles: the split of each row of ``second``.
        notes: how rows were paired, and what else the user should know.
        features: the vectors of both.
    """

    first: Modality
    second: Modality
    owner: Indices
    roles: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, str]:
        """Names of the two modalities."""
        return self.first.name, self.second.name

    def pairs(self, rows: Indices) -> Pairs:
        """The pairs of these rows of the second side, as training draws from them."""
        return Pairs(
            FeatureInputs(self.features[0]),
            FeatureInputs(self.features[1]),
            self.owner[rows],
            rows,
            self._first_ids,
            self._second_ids,
        )

    def rows_of(self, role: str) -> Indices:
        """Rows of the second side that have a partner and are in a split."""
        inside = np.array([own == role for own in self.roles], dtype=bool)
        return np.flatnonzero(inside & (self.owner >= 0))

    def training_rows(self, split: str) -> tuple[Indices, Indices]:
        """Rows to learn from and rows to validate on; without a val split, a tenth of the items is held out.

        Raises:
            ConnectError: if there is no pair in the split.
        """
        train, val = self.rows_of(split), self.rows_of("val")
        if not len(train):
            counts = {role: len(self.rows_of(role)) for role in sorted(set(self.roles))}
            there = ", ".join(f"{role}: {count:,}" for role, count in counts.items())
            raise ConnectError(
                f"There are no pairs of {self.names[0]} and {self.names[1]} in the split {split!r}; pairs by split: "
                f"{there or 'none'}.",
                remedy="Check that the keys of the two sides match, or name the split with --train-split.",
            )
        if not len(val) or split == "val":
            keys = self.first.columns["key"]
            held = held_out([keys[owner] for owner in self.owner[train]])
            train, val = train[~held], train[held]
            self.notes.append(f"There is no val split: {len(val):,} pairs of the split {split!r} are held out.")
        return train, val

    def __post_init__(self) -> None:
        # slices of memory maps are not read yet
        self.features = self.first.vectors[:], self.second.vectors[:]
        bad = [~finite_rows(values) for values in self.features]
        for name, rows in zip(self.names, bad, strict=True):
            if rows.any():
                count, n = int(rows.sum()), len(rows)
                self.notes.append(f"{count:,} of {n:,} {name} rows hold NaN or infinity; they are not trained on.")
        self.owner = np.where(bad[1] | ((self.owner >= 0) & bad[0][self.owner]), -1, self.owner)
        self._first_ids = ids_of_rows(self.features[0])
        captions = self.second.columns.get("caption") or []
        known = len(captions) > 0 and all(captions)
        # a sentence is the same item even where its features differ by rounding
        self._second_ids = (
            ids_of([str(caption).strip().lower() for caption in captions]) if known else ids_of_rows(self.features[1])
        )


def finite_rows(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows (n, e) hold finite numbers alone."""
    parts = [
        np.isfinite(values[start : start + _BLOCK_ROWS]).all(axis=1) for start in range(0, len(values), _BLOCK_ROWS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


def sides_of_files(
    *,
    image: Path | None = None,
    text: Path | None = None,
    others: Mapping[str, Path] | None = None,
    image_array: str | None = None,
    text_array: str | None = None,
    meta: Path | None = None,
    text_meta: Path | None = None,
    names: ColumnNames | None = None,
) -> PairedFeatures:
    """Two files of vectors, of any dimensions each, with the tables that `c3 import` takes.

    Raises:
        ConnectError: if there are not exactly two modalities.
        StoreError: if a file cannot be read, or rows cannot be paired.
    """
    modalities, notes = pair(
        read_vectors(image, image_array) if image else None,
        read_vectors(text, text_array) if text else None,
        {name: read_vectors(file) for name, file in (others or {}).items()},
        meta=read_table(meta) if meta else None,
        text_meta=read_table(text_meta) if text_meta else None,
        names=names,
    )
    if len(modalities) != 2:
        listing = ", ".join(modality.name for modality in modalities) or "none"
        raise ConnectError(
            f"Two modalities are connected, not {len(modalities)} ({listing}).",
            remedy="For example --image FILE --text FILE, or --text FILE --other audio=FILE.",
        )
    return _sides(modalities[0], modalities[1], notes)


def sides_of_stores(
    store: Store, second_store: Store | None = None, modalities: tuple[str, str] | None = None
) -> PairedFeatures:
    """Two modalities of one store, or the first of one and the second of another.

    Raises:
        StoreError: if a modality is not there.
    """
    chosen = modalities or _usual(store, second_store)
    first = _loaded(store, chosen[0], chosen[0])
    name = chosen[1] if chosen[1] != chosen[0] else f"{chosen[1]}_2"
    return _sides(first, _loaded(second_store or store, chosen[1], name), [])


def _usual(store: Store, second_store: Store | None) -> tuple[str, str]:
    there = store.modalities
    if second_store is not None and there and second_store.modalities:
        return there[0], second_store.modalities[-1]
    if len(there) < 2:
        raise StoreError(
            f"The store {store.path} has {' and '.join(there) or 'no modality'}; two are connected.",
            remedy="Name another store with --second-store, or files with --image and --text.",
        )
    return there[0], there[1]


def _loaded(store: Store, modality: str, name: str) -> Modality:
    rows = store.load(modality)
    columns: dict[str, list[Any]] = {
        column: rows.column(column) for column in rows.table.column_names if column not in _NOT_COLUMNS
    }
    return Modality(name, rows.embeddings, columns)


def _sides(first: Modality, second: Modality, notes: list[str]) -> PairedFeatures:
    items = {id(side): _items(side) for side in (first, second)}
    if _repeats(items[id(first)]) and not _repeats(items[id(second)]):
        first, second = second, first
    position: dict[str, int] = {}
    for row, item in enumerate(items[id(first)]):
        position.setdefault(item, row)
    wanted = items[id(second)]
    owner = np.array([position.get(item, -1) for item in wanted], dtype=np.int64)
    splits = second.columns.get("split") or [None] * len(second)
    roles = [split_of(split, item) for split, item in zip(splits, wanted, strict=True)]
    alone = int(np.count_nonzero(owner < 0))
    if alone:
        notes.append(f"{alone:,} of {len(second):,} {second.name} rows have no {first.name} row; they are left out.")
    return PairedFeatures(first, second, owner, roles, notes)


def _items(side: Modality) -> list[str]:
    keys = side.columns["key"]
    owners = side.columns.get("image_key") or side.columns.get("pair_key") or [None] * len(keys)
    return [str(owner or key) for owner, key in zip(owners, keys, strict=True)]


def _repeats(items: list[str]) -> bool:
    return len(set(items)) < len(items)
