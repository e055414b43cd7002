"""From the rows that queries found to the rows of each hit, for all queries at once.

Rows of several queries are in arrays, with the number of the query of each row, so that no Python
object is made for a row that is in no hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Indices, Mask, Matrix
from .items import Items


class FoundRow(NamedTuple):
    """A row that a hit has, with the first fields of `Hit`, rounded as they are shown."""

    score: float
    cosine: float
    row: int


class Candidates(NamedTuple):
    """n rows of one modality that a search found, before they have scores.

    Attributes:
        queries: the number of each row's query: int64 (n,).
        rows: the number of each row in the index: int64 (n,).
        products: the inner product of each row with its query: float32 (n,).
    """

    queries: Indices
    rows: Indices
    products: Matrix

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """Return the rows of several searches, one after the other."""
        return cls(*[np.concatenate(arrays) for arrays in zip(*parts, strict=True)])


@dataclass(frozen=True)
class ScoredRows:
    """n rows that queries found, with their scores.

    Attributes:
        queries: the number of each row's query: int64 (n,).
        rows: the number of each row in the index: int64 (n,).
        scores: float64 (n,).
        cosines: float32 (n,).
    """

    queries: Indices
    rows: Indices
    scores: Array
    cosines: Matrix

    @classmethod
    def joined(cls, parts: Sequence[ScoredRows]) -> ScoredRows:
        """Return the rows of several searches, one after the other."""
        return cls(
            np.concatenate([part.queries for part in parts]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.cosines for part in parts]),
        )

    def take(self, chosen: Indices | Mask) -> ScoredRows:
        """Return some of the rows, by their places or a mask (n,)."""
        return ScoredRows(
            self.queries[chosen], self.rows[chosen], self.scores[chosen], self.cosines[chosen]
        )

    def by_score(self) -> ScoredRows:
        """Return the rows of each query together, the best first; equal ones keep their order."""
        return self.take(np.lexsort((-self.scores, self.queries)))

    def rounded(self) -> list[FoundRow]:
        """Return the rows as they are shown."""
        columns = (self.scores.tolist(), self.cosines.tolist(), self.rows.tolist())
        return [
            FoundRow(round(score, 6), round(cosine, 6), row)
            for score, cosine, row in zip(*columns, strict=True)
        ]


@dataclass(frozen=True)
class ItemRows:
    """The rows of the best items of queries, of m items and n rows.

    Attributes:
        queries: the number of each item's query: int64 (m,).
        items: the place of each row's item among the m: int64 (n,).
        rows: the number of each row in the index, ascending in an item: int64 (n,).
    """

    queries: Indices
    items: Indices
    rows: Indices

    @classmethod
    def of_best(cls, best: ScoredRows, items: Items, k: int) -> ItemRows:
        """Return all rows of the first ``k`` items of each query, given the rows that were found,
        by score.
        """
        # The first row of each item, in the order of the scores
        item_of_row = items.numbers[best.rows]
        query_and_item = best.queries * len(items.numbers) + item_of_row  # as one number
        _, first_rows = np.unique(query_and_item, return_index=True)
        first_rows.sort()
        first_rows = first_rows[among_first(best.queries[first_rows], k)]

        # All rows of these items, one item after the other
        starts, counts = items.places_of(item_of_row[first_rows])
        item_of_each = np.repeat(np.arange(len(first_rows)), counts)
        place_in_item = np.arange(len(item_of_each)) - np.repeat(counts.cumsum() - counts, counts)
        rows = items.rows[starts[item_of_each] + place_in_item]
        return cls(best.queries[first_rows], item_of_each, rows)

    def without(self, known: ScoredRows, count: int) -> tuple[Indices, Indices]:
        """Return the query and the number of each row that is not known of its query, ascending.

        Args:
            known: rows of the same queries.
            count: of rows in the index.
        """
        wanted = self.queries[self.items] * count + self.rows
        others = np.setdiff1d(wanted, known.queries * count + known.rows)
        queries, rows = np.divmod(others, count)
        return queries, rows

    def scored(self, known: ScoredRows, count: int) -> list[tuple[int, list[FoundRow]]]:
        """Return each item as the number of its query and those of its rows that have a score, the
        best first.

        Args:
            known: the rows that have a score, of each item at least one.
            count: of rows in the index.
        """
        # Find the rows of the items among the known ones; query and row are one number
        wanted = self.queries[self.items] * count + self.rows
        numbers = known.queries * count + known.rows
        order = np.argsort(numbers)
        places = np.searchsorted(numbers, wanted, sorter=order)
        places = order[np.minimum(places, len(order) - 1)]
        has_score = numbers[places] == wanted
        found = known.take(places[has_score]).rounded()

        # Sort the rows of each item
        rows_of_items: list[list[FoundRow]] = [[] for _ in self.queries]
        for item, row in zip(self.items[has_score].tolist(), found, strict=True):
            rows_of_items[item].append(row)
        for rows in rows_of_items:
            rows.sort(key=lambda row: -row.score)
        return list(zip(self.queries.tolist(), rows_of_items, strict=True))


def among_first(queries: Indices, k: int) -> Mask:
    """Return which rows are among the first ``k`` of their query, given the number of each row's
    query, ascending: (n,).
    """
    place_of_first = np.searchsorted(queries, queries)
    return np.arange(len(queries)) - place_of_first < k
