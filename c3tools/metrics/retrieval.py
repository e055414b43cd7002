"""Recall@k between two modalities, in both directions, with any number of captions per image.

A query has one or more positives in the gallery (an image has its own captions, a caption its own
image). Recall@k is the share of queries with at least one positive among their k nearest gallery
rows by inner product (cosine, for unit rows). It is exact: every query is compared with every
gallery row, in blocks of bounded memory.

Ties are broken at random, and the expected value is returned: the order of the rows makes no
difference, even where two images have the same caption or a transform makes embeddings equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb

import numpy as np

from ..arrays import Array, Floats, Indices

DEFAULT_KS = (1, 5, 10)
_BLOCK_BYTES = 64 * 2**20
_FIRST_ROWS = 256


def hits(
    queries: Floats,
    gallery: Floats,
    query_items: Indices,
    gallery_items: Indices,
    ks: Sequence[int] = DEFAULT_KS,
) -> dict[str, Array]:
    """Return whether a positive is among the ``k`` nearest of each query, by ``recall@k``: float64
    (n,).

    The mean of the values is the recall. A value between 0 and 1 is the probability over the order
    of ties.

    Args:
        queries: (n, d), any float dtype; the products are computed in it.
        gallery: (m, d), the same dtype.
        query_items: int64 (n,); a gallery row is a positive of a query when their items are equal.
            All have one.
        gallery_items: int64 (m,).
        ks: numbers of nearest rows, at least 1.
    """
    # The positives of each query, one query after another: those of query i are
    # positives[starts[i] : starts[i + 1]]
    by_item = np.argsort(gallery_items, kind="stable")
    sorted_items = gallery_items[by_item]
    first = np.searchsorted(sorted_items, query_items, side="left")
    counts = np.searchsorted(sorted_items, query_items, side="right") - first
    starts = np.concatenate([[0], np.cumsum(counts)])
    positives = by_item[np.repeat(first - starts[:-1], counts) + np.arange(starts[-1])]

    values = {f"recall@{k}": np.zeros(len(queries)) for k in ks}
    for block, scores in _scored_blocks(queries, gallery):
        # The scores of positives are read from the same product, so that rounding cannot rank them
        # against themselves
        block_counts = counts[block]
        block_starts = starts[block] - starts[block.start]
        query_rows = np.repeat(np.arange(len(scores)), block_counts)
        positive_scores = scores[query_rows, positives[starts[block.start] : starts[block.stop]]]
        best = np.maximum.reduceat(positive_scores, block_starts)

        # How many rows are above the best positive, and how many of each kind tie with it
        above = np.count_nonzero(scores > best[:, None], axis=1)
        is_tied = positive_scores == np.repeat(best, block_counts)
        tied_positives = np.add.reduceat(is_tied.astype(np.int64), block_starts)
        not_below = np.count_nonzero(scores >= best[:, None], axis=1)
        tied_negatives = not_below - above - tied_positives

        # A positive is a hit if fewer than k rows are above it; if others tie with it, they share
        # the places that are left
        for k in ks:
            is_hit = above < k
            recall = values[f"recall@{k}"]
            recall[block] = is_hit
            for row in np.flatnonzero(is_hit & (tied_negatives > 0)):
                recall[block.start + row] = _hit_probability(
                    k - int(above[row]), int(tied_positives[row]), int(tied_negatives[row])
                )
    return values


def _hit_probability(places: int, positives: int, negatives: int) -> float:
    """Return the probability of a positive in the first places, of rows in random order."""
    tied = positives + negatives
    drawn = min(places, tied)
    return 1 - comb(negatives, drawn) / comb(tied, drawn)


def pair_hits(
    first: Floats, second: Floats, item_index: Indices, ks: Sequence[int] = DEFAULT_KS
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the hits in both directions between items and the rows that belong to them; see
    `hits`.

    Args:
        first: (n, d), one row per item (images).
        second: (m, d), any number of rows per item (captions).
        item_index: int64 (m,), the row of ``first`` that each row of ``second`` belongs to.
        ks: numbers of nearest rows.

    Returns:
        first → second, where any row of the item counts as a hit, and second → first. Items without
        rows in ``second`` are no queries, but stay in the gallery.
    """
    items = np.arange(len(first), dtype=np.int64)
    items_with_rows = np.unique(item_index)
    forth = hits(first[items_with_rows], second, items_with_rows, item_index, ks)
    back = hits(second, first, item_index, items, ks)
    return forth, back


def nearest(queries: Floats, gallery: Floats, k: int) -> tuple[Indices, Array]:
    """Return the ``k`` nearest gallery rows of each query, best first, and their products: int64,
    float64 (n, k).

    Of rows with equal products the first comes first. Where the gallery has fewer rows, all are
    taken.
    """
    k = min(k, len(gallery))
    rows = np.empty((len(queries), k), np.int64)
    products = np.empty((len(queries), k))
    for block, scores in _scored_blocks(queries, gallery):
        if k == 1:  # without sorting
            rows[block] = scores.argmax(axis=1)[:, None]
        else:
            rows[block] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        products[block] = np.take_along_axis(scores, rows[block], axis=1)
    return rows, products


class NearestRows:
    """The k nearest rows of each query, of rows that come a batch at a time.

    Of rows with equal products the first comes first.

    Args:
        query_count: number of queries, q.
        k: of rows for each query.

    Attributes:
        numbers: of the nearest rows, best first, counted over all batches; -1 where fewer rows
            have come: int64 (q, k).
        products: of the nearest rows, -inf where fewer have come: (q, k), float32 unless those
            that were added are float64.
        row_count: number of rows that have come.
    """

    def __init__(self, query_count: int, k: int) -> None:
        self.numbers = np.full((query_count, k), -1, np.int64)
        self.products = np.full((query_count, k), -np.inf, np.float32)
        self.row_count = 0

    def add(self, products: Floats) -> None:
        """Add the next n rows, by their products (q, n) with the queries; -inf keeps a row out."""
        query_count, k = self.numbers.shape
        former_queries = np.repeat(np.arange(query_count), k)
        start = 0
        while start < products.shape[1]:
            # A block has at most four times as many rows as came before, so that few of them are
            # nearer to a query than those that it has
            block = products[:, start : start + max(_FIRST_ROWS, 4 * self.row_count)]
            query, column = np.nonzero(block > self.products[:, -1:])
            queries = np.concatenate([former_queries, query])
            candidates = np.concatenate([self.products.ravel(), block[query, column]])
            numbers = np.concatenate([self.numbers.ravel(), self.row_count + column])

            # Sorting is stable, so former rows come before new ones with equal products
            order = np.lexsort((-candidates, queries))
            first = np.searchsorted(queries[order], np.arange(query_count))
            best = order[first[:, None] + np.arange(k)]
            self.products = candidates[best]
            self.numbers = numbers[best]
            self.row_count += block.shape[1]
            start += block.shape[1]


def _scored_blocks(queries: Floats, gallery: Floats) -> Iterator[tuple[slice, Floats]]:
    """Yield blocks of queries, and their products (block, m) with the gallery."""
    size = max(1, _BLOCK_BYTES // (len(gallery) * queries.dtype.itemsize + 1))
    for start in range(0, len(queries), size):
        block = slice(start, min(start + size, len(queries)))
        yield block, queries[block] @ gallery.T
