"""The map of a gap report: the rows of two modalities in a plane, where a slider closes the gap
before your eyes.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from ..arrays import Array, Indices
from ..corpus.containers import PhotoFinder
from ..encoders import UNREADABLE, thumbnail
from ..moments import unit_rows
from ..seeds import generator
from ..store import Store
from ..store.rows import ITEM_COLUMNS, row_splits
from .collect import Collected

MOST = 2_000
"""Dots of a modality."""
PHOTO_SIDE = 112
PHOTO_BYTES = 1_500_000  # of all thumbnails together, so that a page stays below 2 MB


def gap_map(
    store: Store, collected: Collected, *, split: str | None = None, by: str | None = None
) -> Markup:
    """Return the data of the map as JSON that is safe in a script element.

    A row r of modality m with mean mu_m is at ``((r - mu_m) @ g, (r - mu_m) @ v)``, with the unit
    vector ``g`` along the gap and ``v`` the first principal direction of the collapsed rows that is
    orthogonal to it. Means are those of all rows that were read. ``shift`` is where the mean of the
    modality is, from the middle of both means: the slider adds it to the rows. Together the shifts
    are as long as the debiased gap, because means of a sample are apart even without a gap.

    Args:
        store: what was read.
        collected: what the report measures: a seeded sample of `MOST` items of its working set is
            drawn with the rows of the other modality that belong to them; if there are no pairs, a
            sample of both.
        split: the rows that were read.
        by: a column of the store to colour the dots by, besides modality and split.
    """
    first, second, working = collected.first, collected.second, collected.working
    sides = working.first, working.second
    drawn = [
        np.sort(generator(n, "map").permutation(len(side))[:MOST]) for n, side in enumerate(sides)
    ]
    if working.paired:
        drawn[1] = np.flatnonzero(np.isin(working.item_index, drawn[0]))[:MOST]
    rows, tables = {}, {}
    for name, side, chosen in zip((first, second), sides, drawn, strict=True):
        rows[name] = side[chosen].astype(np.float64)
        tables[name] = _take(store, name, split, collected.places[name][chosen], by)
    means = {name: collected.moments[name].mean for name in rows}
    along = unit_rows(collected.gap[None])[0]
    squared_length = float(collected.gap @ collected.gap) - collected.gap_bias
    length = math.sqrt(max(squared_length, 0.0))
    shifts = {first: length / 2, second: -length / 2}
    plane = np.stack([along, _main_direction([rows[name] - means[name] for name in rows], along)])
    modalities = []
    for name, table in tables.items():
        x, y = plane @ (rows[name] - means[name]).T
        columns = _column(table, "caption"), _column(table, "key")
        groups: dict[str, list[Any]] = {"split": row_splits(table, store.kept_splits)}
        if by in table.schema.names:
            groups[by] = [None if value is None else str(value) for value in _column(table, by)]
        modalities.append(
            {
                "name": name,
                "shift": _rounded(np.array([shifts[name], 0.0])),
                "x": _rounded(x),
                "y": _rounded(y),
                "label": [text or key for text, key in zip(*columns, strict=True)],
                "groups": groups,
                "photo": _photos(store, table) if name == "image" else None,
            }
        )
    partners = np.searchsorted(drawn[0], working.item_index[drawn[1]]) if working.paired else ()
    pairs = [[int(item), row] for row, item in enumerate(partners)]
    data = {"modalities": modalities, "pairs": pairs, "gap": length}
    return Markup(
        json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    )


def _take(
    store: Store, modality: str, split: str | None, places: Indices, by: str | None
) -> pa.Table:
    """Return the rows of a split with these numbers, ascending, without their embeddings."""
    columns = dict.fromkeys(
        ["key", "caption", "path", "split", *ITEM_COLUMNS, *([by] if by else [])]
    )
    batches, start = [], 0
    for batch in store.batches(modality, list(columns), split=split):
        low, high = np.searchsorted(places, [start, start + len(batch)])
        batches.append(batch.take(pa.array(places[low:high] - start, pa.int64())))
        start += len(batch)
    return pa.Table.from_batches(batches)


def _main_direction(rows: list[Array], along: Array) -> Array:
    """Return the first principal direction (d,) of centred rows that is orthogonal to a unit
    vector.
    """
    scatter = np.sum([matrix.T @ matrix for matrix in rows], axis=0)
    flat = np.eye(len(along)) - np.outer(along, along)
    main: Array = np.linalg.eigh(flat @ scatter @ flat)[1][:, -1]
    main *= np.sign(main[np.abs(main).argmax()])  # the sign is arbitrary: runs should agree
    return main


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 4) for value in values]


def _column(table: pa.Table, name: str) -> list[Any]:
    """Return the values of a column, None each if there is none."""
    return table.column(name).to_pylist() if name in table.schema.names else [None] * len(table)


def _photos(store: Store, table: pa.Table) -> list[str | None]:
    """Return a thumbnail of each photo as a ``data:`` URL, None where it is not at hand, or the
    page is full.
    """
    found, size = list[str | None](), 0
    with PhotoFinder(beside=store.path) as photos:
        for path in _column(table, "path"):
            found.append(None)
            with suppress(*UNREADABLE):
                if size < PHOTO_BYTES:
                    found[-1] = thumbnail(photos.read_again(path), PHOTO_SIDE)
            size += len(found[-1] or "")
    return found
