"""K-means of rows of any norm; that of unit rows is in `c3tools.clustering.cross_centroids`."""

from __future__ import annotations

import numpy as np

from ..arrays import Array, Indices

_ROUNDS = 20


def kmeans(rows: Array, count: int, rng: np.random.Generator) -> Indices:
    """Cluster rows by k-means (Lloyd, 1982) from k-means++ starts (Arthur and Vassilvitskii, 2007).

    Args:
        rows: float64 (n, d).
        count: the number of clusters; there are fewer where fewer rows are distinct.
        rng: draws the starts.

    Returns:
        The cluster of each row, int64 (n,), from 0.
    """
    rows = rows - rows.mean(axis=0)

    # Draw rows as starts, each with a probability in proportion to the squared distance from the
    # nearest start before it
    squares = np.einsum("ij,ij->i", rows, rows)
    centres = rows[rng.integers(len(rows), size=1)]
    from_nearest = np.full(len(rows), np.inf)
    while len(centres) < count:
        latest = centres[-1]
        distances = squares - 2 * rows @ latest + latest @ latest
        from_nearest = np.minimum(from_nearest, np.maximum(distances, 0))
        if not from_nearest.sum() > 0:
            break  # all distinct rows are starts
        row = rng.choice(len(rows), p=from_nearest / from_nearest.sum())
        centres = np.vstack([centres, rows[row]])

    # Move each centre to the mean of its rows
    for _ in range(_ROUNDS):
        # The squared distances, less those of the rows from 0
        distances = np.einsum("ij,ij->i", centres, centres) - 2 * rows @ centres.T
        labels = np.argmin(distances, axis=1)
        for label in np.unique(labels):
            centres[label] = rows[labels == label].mean(axis=0)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
