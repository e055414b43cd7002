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
    # the gallery rows that match each query, one query after another, and their n + 1 bounds
    order = np.argsort(gallery_items, kind="stable")
    first = np.searchsorted(gallery_items[order], query_items, side="left")
    matches = np.searchsorted(gallery_items[order], query_items, side="right") - first
    bounds = np.concatenate([[0], np.cumsum(matches)])
    columns = order[np.repeat(first - bounds[:-1], matches) + np.arange(bounds[-1])]
    found = {f"recall@{k}": np.zeros(len(queries)) for k in ks}
    for part, scores in _scored(queries, gallery):
        # positives' scores are read from the same product, so that rounding cannot rank them
        # against themselves
        starts, counts = bounds[part] - bounds[part.start], matches[part]
        own = scores[
            np.repeat(np.arange(len(scores)), counts),
            columns[bounds[part.start] : bounds[part.stop]],
        ]
        best = np.maximum.reduceat(own, starts)
        better = np.count_nonzero(scores > best[:, None], axis=1)
        positives = np.add.reduceat((own == np.repeat(best, counts)).astype(np.int64), starts)
        # that tie with the best
        negatives = np.count_nonzero(scores >= best[:, None], axis=1) - better - positives
        for k, values in zip(ks, found.values(), strict=True):
            values[part] = better < k
            for row in np.flatnonzero((better < k) & (negatives > 0)):
                wrong, tied = int(negatives[row]), int(negatives[row] + positives[row])
                drawn = min(k - int(better[row]), tied)
                values[part.start + row] = 1 - comb(wrong, drawn) / comb(tied, drawn)
    return found


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
        rows in
        ``second`` are no queries, but stay in the gallery.
    """
    items, with_rows = np.arange(len(first), dtype=np.int64), np.unique(item_index)
    return hits(first[with_rows], second, with_rows, item_index, ks), hits(
        second, first, item_index, items, ks
    )


def nearest(queries: Floats, gallery: Floats, k: int) -> tuple[Indices, Array]:
    """Return the ``k`` nearest gallery rows of each query, best first, and their products: int64,
    float64 (n, k).

    Of rows with equal products the first comes first. Where the gallery has fewer rows, all are
    taken.
    """
    k = min(k, len(gallery))
    found, products = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    for part, scores in _scored(queries, gallery):
        one = k == 1  # without sorting
        found[part] = (
            scores.argmax(1)[:, None] if one else np.argsort(-scores, axis=1, kind="stable")[:, :k]
        )
        products[part] = np.take_along_axis(scores, found[part], axis=1)
    return found, products


def _scored(queries: Floats, gallery: Floats) -> Iterator[tuple[slice, Floats]]:
    """Yield blocks of queries, and their products (block, m) with the gallery."""
    block = max(1, _BLOCK_BYTES // (len(gallery) * queries.dtype.itemsize + 1))
    for start in range(0, len(queries), block):
        part = slice(start, min(start + block, len(queries)))
        yield part, queries[part] @ gallery.T
