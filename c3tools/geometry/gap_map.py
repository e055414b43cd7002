"""The map of a gap report: the rows of two modalities in a plane, where a slider closes the gap before your eyes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from ..arrays import Array
from ..corpus.containers import PhotoFinder
from ..encoders import UNREADABLE, thumbnail
from ..errors import StoreError
from ..moments import unit_rows
from ..seeds import generator
from ..store import Store
from ..store.rows import embedding_matrix, item_keys, match_items, row_splits

MOST = 2_000
"""Dots of a modality."""
_PHOTO_SIDE = 112
_PHOTO_BYTES = 1_500_000  # of all thumbnails together, so that a page stays below 2 MB


def gap_map(store: Store, first: str, second: str, *, split: str | None = None, by: str | None = None) -> Markup:
    """Return the data of the map as JSON that is safe in a script element.

    A row r of modality m with mean mu_m is at ``((r - mu_m) @ g, (r - mu_m) @ v)``, with the unit vector ``g`` along
    the gap and ``v`` the first principal direction of the collapsed rows that is orthogonal to it. ``shift`` is where
    the mean of the modality is, from the middle of both means: the slider adds it to the rows.

    Args:
        first: the modality with one row per item, of which a seeded sample of `MOST` is drawn.
        second: the other; of its rows those that belong to the sample, and if there are none, a sample too.
        split: use only the rows of this split.
        by: a column of the store to colour the dots by, besides modality and split.
    """
    count = store.count(first, split)
    drawn = np.sort(generator(0, "map").permutation(count)[:MOST])
    left = _take(store, first, split, drawn)
    items = item_keys(left)
    right = _take(store, second, split, None, items)
    if not len(right):
        right = _take(store, second, split, np.sort(generator(1, "map").permutation(store.count(second, split))[:MOST]))
    tables = {first: left, second: right}
    rows = {name: unit_rows(embedding_matrix(table, np.float64)) for name, table in tables.items()}
    means = {name: matrix.mean(axis=0) for name, matrix in rows.items()}
    gap = means[first] - means[second]
    along = gap / max(float(np.linalg.norm(gap)), 1e-12)
    plane = np.stack([along, _main_direction([rows[name] - means[name] for name in rows], along)])
    modalities = []
    for name, table in tables.items():
        x, y = plane @ (rows[name] - means[name]).T
        groups: dict[str, list[Any]] = {"split": row_splits(table, store.kept_splits)}
        if by is not None and by in table.schema.names:
            groups[by] = [None if value is None else str(value) for value in table.column(by).to_pylist()]
        modalities.append(
            {
                "name": name,
                "shift": _rounded(plane @ (means[name] - (means[first] + means[second]) / 2)),
                "x": _rounded(x),
                "y": _rounded(y),
                "label": _labels(table),
                "groups": groups,
                "photo": _photos(store, table) if name == "image" else None,
            }
        )
    partners = match_items(items, item_keys(right))
    pairs = [[int(item), row] for row, item in enumerate(partners) if item >= 0]
    data = {"modalities": modalities, "pairs": pairs, "gap": float(np.linalg.norm(gap))}
    return Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def require_column(store: Store, modalities: Sequence[str], name: str) -> None:
    """Refuse a column that no modality has.

    Raises:
        StoreError: if there is no such column.
    """
    found = {column for modality in modalities for column in next(store.batches(modality)).schema.names}
    if name not in found - {"embedding"}:
        names = ", ".join(sorted(found - {"embedding"}))
        raise StoreError(f"{store.path} has no column {name!r}.", remedy=f"It has {names}.")


def _take(
    store: Store, modality: str, split: str | None, numbers: Any = None, items: pa.Array[Any] | None = None
) -> pa.Table:
    """Return the rows with these numbers, or the first `MOST` rows of these items."""
    batches, start, found = [], 0, 0
    for batch in store.batches(modality, split=split):
        if items is None:
            chosen = numbers[(numbers >= start) & (numbers < start + len(batch))] - start
        else:
            chosen = np.flatnonzero(match_items(items, item_keys(batch)) >= 0)[: MOST - found]
        batches.append(batch.take(pa.array(chosen)))
        start, found = start + len(batch), found + len(chosen)
    return pa.Table.from_batches(batches)


def _main_direction(rows: list[Array], along: Array) -> Array:
    """Return the first principal direction (d,) of centred rows that is orthogonal to a unit vector."""
    scatter = np.sum([matrix.T @ matrix for matrix in rows], axis=0)
    flat = np.eye(len(along)) - np.outer(along, along)
    main: Array = np.linalg.eigh(flat @ scatter @ flat)[1][:, -1]
    main *= np.sign(main[np.abs(main).argmax()])  # the sign is arbitrary: runs should agree
    return main


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 4) for value in values]


def _labels(table: pa.Table) -> list[Any]:
    """Return the caption of each row, or its key."""
    keys = table.column("key").to_pylist()
    captions = table.column("caption").to_pylist() if "caption" in table.schema.names else keys
    return [caption or key for caption, key in zip(captions, keys, strict=True)]


def _photos(store: Store, table: pa.Table) -> list[str | None]:
    """Return a thumbnail of each photo as a ``data:`` URL, None where it is not at hand, or the page is full."""
    if "path" not in table.schema.names:
        return [None] * len(table)
    found, size = list[str | None](), 0
    with PhotoFinder(beside=store.path) as photos:
        for path in table.column("path").to_pylist():
            found.append(None)
            with suppress(*UNREADABLE):
                if size < _PHOTO_BYTES:
                    found[-1] = thumbnail(photos.read_again(path), _PHOTO_SIDE)
            size += len(found[-1] or "")
    return found
