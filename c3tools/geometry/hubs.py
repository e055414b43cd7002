"""Rows that are among the nearest of many queries: hubs (Radovanović, Nanopoulos and Ivanović,
JMLR 2010).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ..corpus.splits import ALL
from ..metrics.retrieval import NearestRows
from ..pages import FigureBlock
from ..seeds import generator
from ..store import Store, embedding_matrix
from ..store.rows import ITEM_COLUMNS, keys_of, match_items, own_items
from ..transforms import Pipeline
from .collect import column_values, read_numbered_rows
from .gap_map import photos_of

LIST = 10
"""Rows in the list of a query."""
SHOWN = 10
MOST_QUERIES = 1_000
LEAST_ROWS = 40
"""With fewer rows, or fewer queries, most rows are in many lists."""


@dataclass(frozen=True)
class Hubs:
    """The rows of one modality that are in most lists of the ten nearest rows.

    Attributes:
        lists: the number of lists that each of them is in, most first.
        keys: of these rows.
        labels: the caption of each, else its path, else its key.
        paths: of each, if it has one.
        queries: number of queries, each with a list.
        asked: the modality of the queries.
        searched: number of rows that were searched.
    """

    lists: list[int]
    keys: list[str]
    labels: list[str]
    paths: list[str | None]
    queries: int
    asked: str
    searched: int

    @property
    def mean_lists(self) -> float:
        """The mean number of lists that a row is in."""
        return self.queries * LIST / self.searched

    def to_dict(self) -> dict[str, Any]:
        """Return the hubs as the report's JSON has them."""
        rows = [
            {"key": key, "label": label, "lists": lists}
            for key, label, lists in zip(self.keys, self.labels, self.lists, strict=True)
        ]
        return {
            "asked": self.asked,
            "queries": self.queries,
            "searched": self.searched,
            "mean_lists": self.mean_lists,
            "rows": rows,
        }


def find_hubs(
    store: Store,
    modality: str,
    asked: str,
    pipeline: Pipeline,
    *,
    split: str | None = None,
    seed: int = 0,
) -> Hubs | None:
    """Return the hubs among all rows of a modality, for at most 1,000 train rows of another one as
    queries; None with fewer than 40 queries or rows.

    A query does not count for rows of its own item, which are near to it by right. Rows are read a
    batch at a time.

    Args:
        store: of the rows.
        modality: of the rows that are searched.
        asked: the modality of the queries.
        pipeline: a fitted one that rows and queries go through.
        split: the rows that are searched.
        seed: draws the queries.

    Raises:
        StoreError: if rows cannot be read.
    """
    train_rows = store.count(asked, "train")
    searched = store.count(modality, split or ALL)
    if min(train_rows, searched) < LEAST_ROWS:
        return None
    query_count = min(train_rows, MOST_QUERIES)
    drawn = generator(seed, "hubs").choice(train_rows, query_count, replace=False)
    columns = ["key", "embedding", *ITEM_COLUMNS]
    query_rows = read_numbered_rows(store, asked, columns, np.sort(drawn), "train")
    queries = pipeline.transform(embedding_matrix(query_rows), modality=asked)
    query_items = own_items(query_rows)
    item_of_query = match_items(query_items, query_items)  # the first query of the same item

    nearest = NearestRows(query_count, LIST)
    for batch in store.batches(modality, columns, split=split or ALL):
        rows = pipeline.transform(embedding_matrix(batch), modality=modality)
        cosines = queries @ rows.T  # (q, n)
        item_of_row = match_items(query_items, own_items(batch))
        for row in np.flatnonzero(item_of_row >= 0):
            cosines[item_of_query == item_of_row[row], row] = -np.inf
        nearest.add(cosines)
    lists = np.bincount(nearest.numbers[nearest.numbers >= 0], minlength=searched)

    # Read what the rows in most lists are
    hub_rows = np.argsort(-lists, kind="stable")[:SHOWN]
    ascending = np.sort(hub_rows)
    table = read_numbered_rows(store, modality, ["key", "caption", "path"], ascending, split)
    table = table.take(np.searchsorted(ascending, hub_rows))
    keys = keys_of(table)
    paths = column_values(table, "path")
    labels = [
        caption or path or key
        for caption, path, key in zip(column_values(table, "caption"), paths, keys, strict=True)
    ]
    return Hubs(
        lists=lists[hub_rows].tolist(),
        keys=keys,
        labels=labels,
        paths=paths,
        queries=query_count,
        asked=asked,
        searched=searched,
    )


def photo_strip(store: Store, hubs: Hubs) -> FigureBlock | None:
    """Return the photos of hubs beside each other, most lists first; None if none can be read."""
    photos = []
    for key, url in zip(hubs.keys, photos_of(store, hubs.paths), strict=True):
        if url is not None:
            photos.append(Markup('<img src="{}" alt="{}">').format(url, key))
    if not photos:
        return None
    style = "display: flex; flex-wrap: wrap; gap: .6rem"
    strip = Markup('<div style="{}">{}</div>').format(style, Markup("").join(photos))
    return FigureBlock(strip, "The photos of the table, in its order.", wide=True)
