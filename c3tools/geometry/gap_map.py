"""The map of a gap report: the rows of two modalities in a plane, where a slider closes the gap
before your eyes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from markupsafe import Markup

from ..arrays import Array, Indices
from ..io.images import UNREADABLE, thumbnail
from ..moments import unit_rows
from ..photos.finder import PhotoFinder
from ..seeds import generator
from ..store import Store
from ..store.rows import ITEM_COLUMNS, row_splits
from .collect import Collected, column_values, read_numbered_rows

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
    first, second = collected.first, collected.second
    working = collected.working
    first_drawn = _draw(len(working.first), side=0)
    if working.paired:
        second_drawn = np.flatnonzero(np.isin(working.item_index, first_drawn))[:MOST]
    else:
        second_drawn = _draw(len(working.second), side=1)

    # Positions relative to the mean of the modality
    centred = {
        first: working.first[first_drawn].astype(np.float64) - collected.moments[first].mean,
        second: working.second[second_drawn].astype(np.float64) - collected.moments[second].mean,
    }
    along_gap = unit_rows(collected.gap[None])[0]

    # The first principal direction of the rows that is orthogonal to the gap
    scatter = np.sum([rows.T @ rows for rows in centred.values()], axis=0)
    without_gap = np.eye(len(along_gap)) - np.outer(along_gap, along_gap)  # a projection (d, d)
    directions = np.linalg.eigh(without_gap @ scatter @ without_gap)[1]
    across = directions[:, -1]
    across *= np.sign(across[np.abs(across).argmax()])  # the sign is arbitrary: runs should agree
    plane = np.stack([along_gap, across])  # (2, d)

    # The debiased length of the gap: half of it moves each modality from the middle
    squared_length = float(collected.gap @ collected.gap) - collected.gap_bias
    length = math.sqrt(max(squared_length, 0.0))

    # The dots of each modality, with what is shown of their rows
    columns = ["key", "caption", "path", "split", *ITEM_COLUMNS]
    if by is not None and by not in columns:
        columns.append(by)
    modalities = []
    for name, drawn, shift in (
        (first, first_drawn, length / 2),
        (second, second_drawn, -length / 2),
    ):
        x, y = plane @ centred[name].T
        row_numbers = collected.places[name][drawn]
        table = read_numbered_rows(store, name, columns, row_numbers, split)
        captions = column_values(table, "caption")
        keys = column_values(table, "key")
        groups: dict[str, list[Any]] = {"split": row_splits(table)}  # that dots are coloured by
        if by in table.schema.names:
            groups[by] = [
                None if value is None else str(value) for value in column_values(table, by)
            ]
        photos = None
        if name == "image":
            photos = photos_of(store, column_values(table, "path"))
        modalities.append(
            {
                "name": name,
                "shift": _rounded(np.array([shift, 0.0])),
                "x": _rounded(x),
                "y": _rounded(y),
                "label": [caption or key for caption, key in zip(captions, keys, strict=True)],
                "groups": groups,
                "photo": photos,
            }
        )

    pairs = []
    if working.paired:
        partners = np.searchsorted(first_drawn, working.item_index[second_drawn])
        pairs = [[int(partner), row] for row, partner in enumerate(partners)]
    data = {"modalities": modalities, "pairs": pairs, "gap": length}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _draw(count: int, *, side: int) -> Indices:
    """Draw at most `MOST` row numbers, ascending.

    Args:
        count: of rows.
        side: 0 for the first modality, 1 for the second; each has a seed of its own.
    """
    return np.sort(generator(side, "map").permutation(count)[:MOST])


def _rounded(values: Array) -> list[float]:
    """Return numbers with the four decimals that the page needs."""
    return [round(float(value), 4) for value in values]


def photos_of(store: Store, paths: Sequence[str | None]) -> list[str | None]:
    """Return a thumbnail of each photo as a ``data:`` URL, None where it is not at hand, or the
    page is full.
    """
    thumbnails: list[str | None] = []
    total_bytes = 0
    with PhotoFinder(beside=store.path) as photos:
        for path in paths:
            url = None
            if total_bytes < PHOTO_BYTES:
                with suppress(*UNREADABLE):
                    url = thumbnail(photos.read_again(path), PHOTO_SIDE)
            thumbnails.append(url)
            total_bytes += len(url or "")
    return thumbnails
