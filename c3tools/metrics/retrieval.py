"""Recall@k between two modalities, in both directions, with any number of captions per image.

A query has one or more positives in the gallery (an image has its own captions, a caption its own image). Recall@k
is the share of queries with at least one positive among their k nearest gallery rows by inner product (cosine, for
unit rows). It is exact: every query is compared with every gallery row, in blocks of bounded memory.

Ties are broken at random, and the expected value is returned: the order of the rows makes no difference, even where
two images have the same caption or a transform makes embeddings equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from ..arrays import Array, Floats, Indices
from ..errors import MetricError

DEFAULT_KS = (1, 5, 10)
_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Ranks:
    """Ranks of the best positive of each query in the gallery.

    Attributes:
        better: int64 (n,), gallery rows that score strictly higher than the best positive.
        tied_negatives: int64 (n,), negatives that score the same.
        tied_positives: int64 (n,), positives that score the same, itself included (at least 1).
        gallery: number of gallery rows.
    """

    better: Indices
    tied_negatives: Indices
    tied_positives: Indices
    gallery: int

    def hits(self, k: int) -> Array:
        """Return the probability, over the order of ties, that a positive is among the first ``k``: float64 (n,)."""
        free = k - self.better
        hits = (free > 0).astype(np.float64)
        for row in np.flatnonzero((free > 0) & (self.tied_negatives > 0)):
            negatives, positives = int(self.tied_negatives[row]), int(self.tied_positives[row])
            drawn = min(int(free[row]), negatives + positives)
            hits[row] = 1 - comb(negatives, drawn) / comb(negatives + positives, drawn)
        return hits


def ranks(queries: Floats, gallery: Floats, query_items: Indices, gallery_items: Indices) -> Ranks:
    """Rank the best positive of every query.

    Args:
        queries: (n, d), any float dtype; the products are computed in it.
        gallery: (m, d), the same dtype.
        query_items: int64 (n,); a gallery row is a positive of a query when their items are equal.
        gallery_items: int64 (m,).

    Raises:
        MetricError: if shapes do not fit, or a query has no positive in the gallery.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise MetricError(f"Queries {queries.shape} and gallery {gallery.shape} have different dimensions.")
    if len(queries) != len(query_items) or len(gallery) != len(gallery_items):
        raise MetricError("Every query and every gallery row needs an item.")
    orphans = int(np.sum(~np.isin(query_items, gallery_items)))
    if orphans:
        raise MetricError(
            f"{orphans} of {len(queries)} queries have no matching row in the gallery.",
            remedy="Leave them out, or add the rows that they match.",
        )
    columns, bounds = _positives(query_items, gallery_items)
    better = np.zeros(len(queries), dtype=np.int64)
    tied_negatives, tied_positives = np.zeros_like(better), np.zeros_like(better)
    block = max(1, _BLOCK_BYTES // max(1, len(gallery) * queries.dtype.itemsize))
    for start in range(0, len(queries), block):
        stop = min(start + block, len(queries))
        scores = queries[start:stop] @ gallery.T  # (block, m)
        # positives' scores are read from the same product, so that rounding cannot rank them against themselves
        starts = bounds[start:stop] - bounds[start]
        counts = np.diff(bounds[start : stop + 1])
        own = scores[np.repeat(np.arange(stop - start), counts), columns[bounds[start] : bounds[stop]]]
        best = np.maximum.reduceat(own, starts)
        at_least = np.count_nonzero(scores >= best[:, None], axis=1)
        above = np.count_nonzero(scores > best[:, None], axis=1)
        tied = np.add.reduceat((own == np.repeat(best, counts)).astype(np.int64), starts)
        better[start:stop], tied_positives[start:stop] = above, tied
        tied_negatives[start:stop] = at_least - above - tied
    return Ranks(better, tied_negatives, tied_positives, len(gallery))


def recall_at(found: Ranks, ks: Sequence[int] = DEFAULT_KS) -> dict[str, float]:
    """Return ``{"recall@1": ...}`` as fractions, for each k.

    Raises:
        MetricError: if there is no query, or a k is below 1.
    """
    if not len(found.better):
        raise MetricError("Recall needs at least one query.")
    if min(ks) < 1:
        raise MetricError(f"k in recall@k must be at least 1, not {min(ks)}.")
    return {f"recall@{k}": float(found.hits(k).mean()) for k in ks}


def pair_ranks(first: Floats, second: Floats, item_index: Indices) -> tuple[Ranks, Ranks]:
    """Rank in both directions between items and the rows that belong to them.

    Args:
        first: (n, d), one row per item (images).
        second: (m, d), any number of rows per item (captions).
        item_index: int64 (m,), the row of ``first`` that each row of ``second`` belongs to.

    Returns:
        first → second, where any row of the item counts as a hit, and second → first. Items without rows in
        ``second`` are no queries, but stay in the gallery.
    """
    items = np.arange(len(first), dtype=np.int64)
    with_rows = np.unique(item_index)
    return ranks(first[with_rows], second, with_rows, item_index), ranks(second, first, item_index, items)


def pair_recall(
    first: Floats, second: Floats, item_index: Indices, ks: Sequence[int] = DEFAULT_KS
) -> tuple[dict[str, float], dict[str, float]]:
    """Return recall@k in both directions, as `recall_at` gives it, from the arguments of `pair_ranks`."""
    forward, backward = pair_ranks(first, second, item_index)
    return recall_at(forward, ks), recall_at(backward, ks)


def _positives(query_items: Indices, gallery_items: Indices) -> tuple[Indices, Indices]:
    """Return the gallery rows that match each query, one query after another, and their n + 1 bounds."""
    order = np.argsort(gallery_items, kind="stable")
    first = np.searchsorted(gallery_items[order], query_items, side="left")
    counts = np.searchsorted(gallery_items[order], query_items, side="right") - first
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], counts)
    return order[np.repeat(first, counts) + within], bounds


def nearest(queries: Floats, gallery: Floats, k: int) -> tuple[Indices, Array]:
    """Return the ``k`` nearest gallery rows of each query in any order, int64 (n, k), and their mean cosine, (n,).

    Among equal ones any are taken. Where the gallery has fewer rows, all are taken.
    """
    k = min(k, len(gallery))
    found, means = np.empty((len(queries), k), np.int64), np.empty(len(queries))
    block = max(1, _BLOCK_BYTES // max(1, len(gallery) * queries.dtype.itemsize))
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ gallery.T  # (block, m)
        near = np.argpartition(scores, len(gallery) - k, axis=1)[:, len(gallery) - k :]
        found[start : start + block] = near
        means[start : start + block] = np.take_along_axis(scores, near, axis=1).mean(axis=1, dtype=np.float64)
    return found, means
