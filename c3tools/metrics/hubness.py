"""Hubs: gallery rows that are among the nearest of many queries, and recall that is corrected for them.

In many dimensions some rows are near everything (Radovanović, Nanopoulos and Ivanović, JMLR 2010). CSLS (Conneau et
al., ICLR 2018) takes off each row's mean cosine with its own nearest: ``csls(q, g) = 2 cos(q, g) - r(q) - r(g)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import Array, Floats, Indices
from ..errors import MetricError
from .retrieval import DEFAULT_KS, ranks, recall_at

NEIGHBOURS = 10
_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Hubness:
    """Unevenness of how often the rows of a gallery are among the nearest of queries.

    Attributes:
        skewness: of the number of queries that have a row among their ten nearest (N_10): the third standardised
            moment over the rows of the gallery. 0 is even; above 1 there are hubs.
        gini: Gini coefficient of the same numbers, 0 (even) to 1.
        recall: recall@k by CSLS, fractions.
    """

    skewness: float
    gini: float
    recall: dict[str, float]


def pair_hubness(
    first: Floats, second: Floats, item_index: Indices, ks: Sequence[int] = DEFAULT_KS, *, k: int = NEIGHBOURS
) -> tuple[Hubness, Hubness]:
    """Measure hubs and recall by CSLS in both directions.

    Args:
        first: (n, d), unit rows, one per item (images).
        second: (m, d), unit rows, any number per item (captions).
        item_index: int64 (m,), the row of ``first`` that each row of ``second`` belongs to.
        ks: of the recall.
        k: nearest neighbours that are counted, and that CSLS takes the mean of.

    Returns:
        first → second and second → first, with the queries of `c3tools.metrics.retrieval.pair_ranks`.

    Raises:
        MetricError: if there is no query.
    """
    items = np.arange(len(first), dtype=np.int64)
    asking = np.unique(item_index)
    if not len(asking):
        raise MetricError("Counting hubs needs at least one query.")
    queries = first[asking]
    near_second, first_crowding = nearest(queries, second, k)
    near_first, second_crowding = nearest(second, first, k)
    if len(asking) < len(first):  # rows that nobody asks for stay in the gallery
        first_crowding, second_crowding = nearest(first, second, k)[1], nearest(second, queries, k)[1]
    forward = csls_recall(queries, second, second_crowding, asking, item_index, ks)
    backward = csls_recall(second, first, first_crowding, item_index, items, ks)
    found = []
    for near, gallery, recall in ((near_second, second, forward), (near_first, first, backward)):
        counts = np.bincount(near.ravel(), minlength=len(gallery))
        found.append(Hubness(skewness(counts), gini(counts), recall))
    return found[0], found[1]


def nearest(queries: Floats, gallery: Floats, k: int = NEIGHBOURS) -> tuple[Indices, Array]:
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


def csls_recall(
    queries: Floats,
    gallery: Floats,
    crowding: Array,
    query_items: Indices,
    gallery_items: Indices,
    ks: Sequence[int] = DEFAULT_KS,
) -> dict[str, float]:
    """Return recall@k by CSLS; ``crowding`` (m,) is each gallery row's mean cosine with its nearest queries.

    A query's own term is the same for the whole gallery, and leaves its order as it is.
    """
    doubled = np.hstack([2 * queries, np.ones((len(queries), 1), queries.dtype)])
    lowered = np.hstack([gallery, -crowding[:, None].astype(gallery.dtype)])
    return recall_at(ranks(doubled, lowered, query_items, gallery_items), ks)


def skewness(counts: npt.NDArray[np.integer]) -> float:
    """Return the third standardised moment of the counts; 0 if all are equal."""
    centred = counts - counts.mean()
    variance = float(np.mean(centred**2))
    return float(np.mean(centred**3)) / variance**1.5 if variance > 0 else 0.0


def gini(counts: npt.NDArray[np.integer]) -> float:
    """Return the Gini coefficient of the counts, ``sum_ij |c_i - c_j| / (2 m sum c)``; 0 if all are 0."""
    ascending, m = np.sort(counts), len(counts)
    total = float(ascending.sum())
    if not total:
        return 0.0
    return float(((2 * np.arange(1, m + 1) - m - 1) * ascending).sum()) / (m * total)
