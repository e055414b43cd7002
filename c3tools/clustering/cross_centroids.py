"""Clusters of two modalities: spherical k-means whose centroids change sides.

After Collapse the means of images and texts are equal, but rows of one kind are still nearer to
each other than to rows of the other, so k-means makes clusters of one kind as soon as they are
small. Here no row is compared with centroids of its own kind: images go to the nearest centroid of
the texts, texts to the nearest centroid of the images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..arrays import Indices, Matrix
from ..moments import unit_rows
from ..reporter import SILENT, Reporter

MOST_EXCHANGES = 6
_MOST_ROUNDS = 20
_BLOCK_ROWS = 8192
_ROUNDING = 1e-5  # more than a product of float32 unit rows is off by


def nearest_centroids(rows: Matrix, centroids: Matrix) -> Indices:
    """Return the centroid with the highest cosine of each row, int64 (n,); of equals the first.

    Cosines that differ by less than rounding are summed again, in one order, so that the result
    does not depend on the number of threads.

    Args:
        rows: float32 (n, d), unit rows.
        centroids: float32 (k, d), unit rows.
    """
    labels = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        cosines = block @ centroids.T
        best = cosines.argmax(axis=1)
        is_close = cosines > cosines.max(axis=1, keepdims=True) - _ROUNDING
        for row in np.flatnonzero(is_close.sum(axis=1) > 1):
            close = np.flatnonzero(is_close[row])
            exact = np.einsum("kd,d->k", centroids[close].astype(np.float64), block[row])
            best[row] = close[exact.argmax()]
        labels[start : start + _BLOCK_ROWS] = best
    return labels


def centroids_of(rows: Matrix, labels: Indices, former: Matrix) -> Matrix:
    """Return the unit mean of the rows of each cluster, float32 (k, d).

    A cluster without rows keeps its ``former`` centroid: without it, rows would be forced together.
    """
    centroids = former.copy()
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=len(former)))
    for cluster, members in enumerate(np.split(order, ends[:-1])):
        if len(members):
            mean = rows[members].mean(axis=0, dtype=np.float64)
            centroids[cluster] = unit_rows(mean[None])[0]
    return centroids


def spherical_kmeans(
    rows: Matrix, count: int, rng: np.random.Generator, reporter: Reporter = SILENT
) -> Matrix:
    """Return the centroids of spherical k-means (Dhillon and Modha, 2001), float32 (k, d).

    Args:
        rows: float32 (n, d), unit rows; at least ``count`` of them.
        count: the number of clusters.
        rng: draws the rows that are the first centroids.
        reporter: shows the progress.
    """
    centroids = rows[rng.permutation(len(rows))[:count]]
    labels = np.full(len(rows), -1)
    with reporter.progress("K-means", _MOST_ROUNDS) as progress:
        for _ in range(_MOST_ROUNDS):
            former = labels
            labels = nearest_centroids(rows, centroids)
            if np.array_equal(labels, former):
                break
            centroids = centroids_of(rows, labels, centroids)
            progress.advance()
    return centroids


def cross_centroids(
    first: Matrix,
    second: Matrix,
    count: int,
    rng: np.random.Generator,
    reporter: Reporter = SILENT,
) -> tuple[Matrix, Matrix]:
    """Cluster two modalities together, from spherical k-means of ``second`` (texts).

    Args:
        first: float32 (n, d), unit rows after Collapse.
        second: float32 (m, d), likewise.
        count: the number of clusters, at most m.
        rng: draws the starts.
        reporter: shows the progress.

    Returns:
        The centroids of the rows of ``first`` and of ``second``, float32 (k, d) each. A row belongs
        to the `nearest_centroids` centroid of the **other** modality.
    """
    second_centroids = spherical_kmeans(second, count, rng, reporter)
    first_centroids = second_centroids
    labels: tuple[Indices, ...] = ()
    with reporter.progress("Cross-centroids", MOST_EXCHANGES) as progress:
        for _ in range(MOST_EXCHANGES):
            former = labels
            first_labels = nearest_centroids(first, second_centroids)
            first_centroids = centroids_of(first, first_labels, first_centroids)
            second_labels = nearest_centroids(second, first_centroids)
            second_centroids = centroids_of(second, second_labels, second_centroids)
            labels = (first_labels, second_labels)
            if former and all(map(np.array_equal, labels, former)):
                break
            progress.advance()
    return first_centroids, second_centroids


def train_centroids(
    training: Mapping[str, Matrix],
    count: int,
    rng: np.random.Generator,
    reporter: Reporter = SILENT,
) -> dict[str, Matrix]:
    """Return the centroids of one modality or two, float32 (k, d), from unit rows (n, d) after the
    pipeline.

    Those of two start from spherical k-means of the texts, if there are texts.
    """
    if len(training) == 1:
        ((name, rows),) = training.items()
        return {name: spherical_kmeans(rows, count, rng, reporter)}
    first, second = sorted(training, key=lambda name: name == "text")
    trained = cross_centroids(training[first], training[second], count, rng, reporter)
    return dict(zip((first, second), trained, strict=True))


def deciding_centroids(centroids: Mapping[str, Matrix], modality: str) -> Matrix:
    """Return the centroids that rows of a modality are compared with: those of the other modality,
    if there are two.
    """
    others = [name for name in centroids if name != modality]
    return centroids[others[0] if others else modality]
