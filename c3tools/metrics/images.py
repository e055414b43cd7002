"""Scores of generated images from features: Fréchet distance, kernel distance, inception score, nearest photos.

"FID" is the Fréchet distance of the pool3 features of the Inception network of 2015 and nothing else; with the features
of an encoder it is named after it: ``FD-c3-mini``, ``KID-c3-mini``.

A score that is no mean over images has the influence of each image instead: the derivative of the score by the weight
of the image, times the number of images (the infinitesimal jackknife of Jaeckel, 1972). The standard error of the score
is that of the mean of the influences. `photo_values` makes values per photo of them, which
`c3tools.metrics.significance.crossed_interval` turns into intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import Array, Floats, Indices
from ..errors import MetricError
from ..moments import Moments, unit_rows

_BLOCK = 1024
_ROUNDING = 1e-10  # of the largest eigenvalue; smaller ones are 0
COPY_QUANTILE = 0.99


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return ``|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))`` of two Gaussians (Heusel et al., 2017).

    The covariances are those of samples (n - 1). The distance of two samples of one distribution is above 0, and the
    more so the fewer there are: compare it with that of real images at the same n.

    Raises:
        MetricError: if the dimensions differ, or one has fewer than two rows.
    """
    _require_comparable("Fréchet", (first.n, first.dim), (second.n, second.dim))
    one, two = (m.scatter / (m.n - 1) for m in (first, second))
    # tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric
    root = _power(*np.linalg.eigh(one), 0.5)
    cross = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(min=0)).sum()
    gap = float(np.sum((first.mean - second.mean) ** 2))
    return gap + float(np.trace(one) + np.trace(two) - 2 * cross)


def frechet_influence(first: Floats, second: Floats) -> tuple[Array, Array]:
    """Return the influence of each row on `frechet_distance`, float64 (n,) and (m,), each with the mean 0.

    The derivative by a covariance is ``I - T``, with T the optimal transport from one Gaussian to the other; of
    singular covariances (n <= d) it is that within the span of the rows. Two decompositions of a (d, d) matrix are
    needed: seconds with 2,048 dimensions.

    In simulations of pairs of Gaussian samples (16 to 256 dimensions, 100 to 1,000 rows, fewer rows than dimensions
    included) the standard error was 0.97 to 1.4 times the spread over samples where the distributions differ, and 1.0
    to 1.6 times it where they do not: there the derivative of the distance is 0. Leaving out 20 groups of rows in turn
    gave 0.9 to 1.6 times the spread, with 19 degrees of freedom, for 20 times the cost.

    Args:
        first: features (n, d).
        second: features (m, d).

    Raises:
        MetricError: as `frechet_distance` does.
    """
    _require_comparable("Fréchet", first.shape, second.shape)
    moments = [Moments.from_rows(rows) for rows in (first, second)]
    one, two = (m.scatter / (m.n - 1) for m in moments)
    off = [np.asarray(rows, dtype=np.float64) - m.mean for rows, m in zip((first, second), moments, strict=True)]
    gap = moments[0].mean - moments[1].mean
    own = np.linalg.eigh(one)
    root, back = _power(*own, 0.5), _power(*own, -0.5)
    crossed = np.linalg.eigh(root @ two @ root)
    # x^T T x is the squared length of x under the root of T
    maps = back @ _power(*crossed, 0.25), root @ _power(*crossed, -0.25)
    found = []
    for x, to, side in zip(off, maps, (1, -1), strict=True):
        squares = (np.sum(x**2, axis=1) - np.sum((x @ to) ** 2, axis=1)) * len(x) / (len(x) - 1)
        found.append(2 * side * (x @ gap) + squares - squares.mean())
    return found[0], found[1]


def kernel_distance(first: Floats, second: Floats) -> float:
    """Return the squared maximum mean discrepancy with the kernel ``(x.y / d + 1)^3``, unbiased (KID, 2018).

    It is computed from all pairs of rows, not from subsets. Its mean does not depend on n, and it may be negative.

    Args:
        first: features (n, d).
        second: features (m, d).

    Raises:
        MetricError: if the dimensions differ, or one has fewer than two rows.
    """
    _require_comparable("kernel", first.shape, second.shape)
    within = [float(_kernel_means_of_others(x).mean()) for x in (first, second)]
    return within[0] + within[1] - 2 * float(_kernel_sums(first, second).sum()) / (len(first) * len(second))


def kernel_influence(first: Floats, second: Floats) -> tuple[Array, Array]:
    """Return the influence of each row on `kernel_distance`, float64 (n,) and (m,), each with the mean 0.

    They are the projections of the U-statistic (Hoeffding, 1948): twice the mean kernel with the other rows of its set,
    minus that with the rows of the other set. In the simulations of `frechet_influence` the standard error was 1.0 to
    1.3 times the spread where the distributions differ, and 1.3 to 1.9 times it where they do not.

    Args:
        first: features (n, d).
        second: features (m, d).

    Raises:
        MetricError: as `kernel_distance` does.
    """
    _require_comparable("kernel", first.shape, second.shape)
    found = []
    for x, y in ((first, second), (second, first)):
        values = 2 * (_kernel_means_of_others(x) - _kernel_sums(x, y) / len(y))
        found.append(values - values.mean())
    return found[0], found[1]


def kernel_features(embeddings: Floats) -> Array:
    """Return unit vectors (n, d) at the length for which the kernel of `kernel_distance` is ``(cosine + 1)^3``."""
    return unit_rows(np.asarray(embeddings, dtype=np.float64)) * math.sqrt(embeddings.shape[1])


def inception_score(probabilities: Floats) -> float:
    """Return ``exp(mean KL(p(y|x) || p(y)))`` over all images (Salimans et al., 2016).

    Args:
        probabilities: (n, classes), rows that sum to 1.

    Raises:
        MetricError: if there is no image.
    """
    if not len(probabilities):
        raise MetricError("The inception score needs at least one image.")
    return float(np.exp(_divergences(probabilities).mean()))


def inception_influence(probabilities: Floats) -> Array:
    """Return the influence of each image on `inception_score`, float64 (n,), with the mean 0.

    Args:
        probabilities: (n, classes), rows that sum to 1.
    """
    divergences = _divergences(probabilities)
    return np.asarray(np.exp(divergences.mean()) * (divergences - divergences.mean()))


def photo_values(score: float, parts: Sequence[tuple[Array, Sequence[int]]], photos: int) -> Array:
    """Return a value per photo, float64 (photos,), whose mean is the score and which vary over photos as it does.

    A photo contributes itself and the images that were generated from its texts, so that both are left out together.

    Args:
        score: of all images.
        parts: for generated and for real images, the influence (n,) of each and the number (n,) of its photo.
        photos: number of photos.
    """
    values = np.full(photos, score)
    for influence, numbers in parts:
        values += photos / len(influence) * np.bincount(numbers, weights=influence, minlength=photos)
    return values


@dataclass(frozen=True)
class Nearest:
    """The training photo that is nearest to each generated image, by the cosine of their features.

    Attributes:
        rows: int64 (n,), the number of the photo.
        cosines: float64 (n,).
        copied: bool (n,), whether it is nearer than 99 % of real images that were not trained on are to theirs; none
            if there are no such images.
        threshold: that cosine; None if there are none.
    """

    rows: Indices
    cosines: Array
    copied: npt.NDArray[np.bool_]
    threshold: float | None


def nearest_photos(generated: Floats, training: Floats, real: Floats | None = None) -> Nearest:
    """Find the nearest training photo of each generated image.

    Args:
        generated: features (n, d).
        training: features (m, d) of the photos that were learned from.
        real: features (k, d) of other real images, to say what is near.
    """
    rows, cosines = _nearest(generated, training)
    if real is None or not len(real):
        return Nearest(rows, cosines, np.zeros(len(rows), dtype=bool), None)
    threshold = float(np.quantile(_nearest(real, training)[1], COPY_QUANTILE))
    return Nearest(rows, cosines, cosines > threshold, threshold)


def disjoint_halves(n: int, seed: int = 0) -> tuple[Indices, Indices]:
    """Return the rows of two halves of n, drawn by the seed; of an odd n one row is left out."""
    order = np.random.default_rng(seed).permutation(n)
    return order[: n // 2], order[n // 2 : 2 * (n // 2)]


def _require_comparable(distance: str, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Refuse features of these shapes if their dimensions differ, or one has fewer than two rows."""
    if first[1] != second[1]:
        raise MetricError(f"Features of {first[1]} and {second[1]} dimensions cannot be compared.")
    if min(first[0], second[0]) < 2:
        raise MetricError(
            f"The {distance} distance needs at least two images of each kind, but there are {first[0]} and {second[0]}."
        )


def _power(values: Array, vectors: Array, exponent: float) -> Array:
    """Return a power (d, d) of the matrix with these eigenvalues (d,) and eigenvectors (d, d).

    Negative eigenvalues are rounding errors. A negative power is that of the pseudo-inverse.
    """
    kept = values > (_ROUNDING * values.max() if exponent < 0 else 0)
    return np.asarray((vectors * np.where(kept, np.where(kept, values, 1) ** exponent, 0)) @ vectors.T)


def _kernel_sums(x: Floats, y: Floats) -> Array:
    """Return the sum (n,) of the kernels of each row of ``x`` (n, d) with all of ``y`` (m, d)."""
    blocks = range(0, len(x), _BLOCK)
    sums = [((x[i : i + _BLOCK].astype(np.float64) @ y.T / x.shape[1] + 1) ** 3).sum(axis=1) for i in blocks]
    return np.concatenate(sums)


def _kernel_means_of_others(x: Floats) -> Array:
    """Return the mean (n,) of the kernels of each row of ``x`` (n, d) with the others."""
    own = (np.einsum("ij,ij->i", x, x, dtype=np.float64) / x.shape[1] + 1) ** 3
    return np.asarray((_kernel_sums(x, x) - own) / (len(x) - 1))


def _divergences(probabilities: Floats) -> Array:
    """Return ``KL(p(y|x) || p(y))`` of each image (n,)."""
    p = np.asarray(probabilities, dtype=np.float64)
    marginal = p.mean(axis=0)
    terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(marginal, 1e-300))), 0)
    return np.asarray(terms.sum(axis=1))


def _nearest(queries: Floats, gallery: Floats) -> tuple[Indices, Array]:
    unit_q, unit_g = (unit_rows(np.asarray(rows, dtype=np.float64)) for rows in (queries, gallery))
    found = np.empty(len(queries), dtype=np.int64)
    cosines = np.empty(len(queries))
    for start in range(0, len(queries), _BLOCK):
        scores = unit_q[start : start + _BLOCK] @ unit_g.T
        rows = scores.argmax(axis=1)
        found[start : start + _BLOCK], cosines[start : start + _BLOCK] = rows, scores[np.arange(len(rows)), rows]
    return found, cosines
