"""Scores of generated images from features: Fréchet distance, kernel distance, inception score,
nearest photos.

"FID" is the Fréchet distance of the pool3 features of the Inception network of 2015 and nothing
else; with the features of an encoder it is named after it: ``FD-c3-mini``, ``KID-c3-mini``.

A score that is no mean over images has the influence of each image instead: the derivative of the
score by the weight of the image, times the number of images (the infinitesimal jackknife of
Jaeckel, 1972). The standard error of the score is that of the mean of the influences.
`photo_values` makes values per photo of them, which `c3tools.metrics.significance.crossed_interval`
turns into intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..arrays import Array, Floats, Indices, Mask
from ..errors import MetricError
from ..moments import Moments, unit_rows
from .retrieval import nearest

_BLOCK = 1024
_ROUNDING = 1e-10  # of the largest eigenvalue; smaller ones are 0
COPY_QUANTILE = 0.99


# a score, and the influence on it of each row of the first set (n,) and of the second (m,), each
# with the mean 0
Measured = tuple[float, Array, Array]
# one that does not depend on a second set
MeasuredAlone = tuple[float, Array, None]


def frechet_distance(first: Floats, second: Floats) -> Measured:
    """Return ``|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))`` of two Gaussians (Heusel et
    al., 2017).

    The covariances are those of samples (n - 1). The distance of two samples of one distribution is
    above 0, and the more so the fewer there are: compare it with that of real images at the same n.

    In the influences, the derivative by a covariance is ``I - T``, with T the optimal transport
    from one Gaussian to the other; of singular covariances (n <= d) it is that within the span of
    the rows. In simulations of pairs of Gaussian samples (16 to 256 dimensions, 100 to 1,000 rows,
    fewer rows than dimensions included) the standard error was 0.97 to 1.4 times the spread over
    samples where the distributions differ, and 1.0 to 1.6 times it where they do not: there the
    derivative of the distance is 0.

    Args:
        first: features (n, d).
        second: features (m, d).

    Raises:
        MetricError: if one has fewer than two rows.
    """
    _require_two("Fréchet", first, second)
    moments = [Moments.from_rows(rows) for rows in (first, second)]
    one, two = (m.scatter / (m.n - 1) for m in moments)
    gap = moments[0].mean - moments[1].mean
    # tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is
    # symmetric
    own = np.linalg.eigh(one)
    root, back = _power(*own, 0.5), _power(*own, -0.5)
    crossed = np.linalg.eigh(root @ two @ root)
    distance = float(
        gap @ gap + np.trace(one) + np.trace(two) - 2 * np.sqrt(crossed[0].clip(min=0)).sum()
    )
    # x^T T x is the squared length of x under the root of T
    maps = back @ _power(*crossed, 0.25), root @ _power(*crossed, -0.25)
    found = []
    for rows, m, to, side in zip((first, second), moments, maps, (1, -1), strict=True):
        x = np.asarray(rows, dtype=np.float64) - m.mean
        squares = (np.sum(x**2, axis=1) - np.sum((x @ to) ** 2, axis=1)) * len(x) / (len(x) - 1)
        found.append(2 * side * (x @ gap) + squares - squares.mean())
    return distance, found[0], found[1]


def kernel_distance(first: Floats, second: Floats) -> Measured:
    """Return the squared maximum mean discrepancy with the kernel ``(x.y / d + 1)^3``, unbiased
    (KID, 2018).

    It is computed from all pairs of rows, not from subsets. Its mean does not depend on n, and it
    may be negative. The influences are the projections of the U-statistic (Hoeffding, 1948): twice
    the mean kernel with the other rows of its set, minus that with the rows of the other set. In
    the simulations of `frechet_distance` the standard error was 1.0 to 1.3 times the spread where
    the distributions differ, and 1.3 to 1.9 times it where they do not.

    Args:
        first: features (n, d).
        second: features (m, d).

    Raises:
        MetricError: if one has fewer than two rows.
    """
    _require_two("kernel", first, second)
    means, influences = [], []
    for x, y in ((first, second), (second, first)):
        own = (np.einsum("ij,ij->i", x, x, dtype=np.float64) / x.shape[1] + 1) ** 3
        of_others = (_kernel_sums(x, x) - own) / (len(x) - 1)
        across = _kernel_sums(x, y) / len(y)
        means.append(float((of_others - across).mean()))
        influences.append(2 * (of_others - across - means[-1]))
    return sum(means), influences[0], influences[1]


def kernel_features(embeddings: Floats) -> Array:
    """Return unit vectors (n, d) at the length for which the kernel of `kernel_distance` is
    ``(cosine + 1)^3``.
    """
    return unit_rows(np.asarray(embeddings, dtype=np.float64)) * math.sqrt(embeddings.shape[1])


def inception_score(probabilities: Floats) -> tuple[float, Array]:
    """Return ``exp(mean KL(p(y|x) || p(y)))`` over all images (Salimans et al., 2016), and the
    influence of each (n,).

    Args:
        probabilities: (n, classes), rows that sum to 1.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    marginal = p.mean(axis=0)
    divergences = np.asarray(
        np.sum(p * np.log(np.maximum(p, 1e-300) / np.maximum(marginal, 1e-300)), axis=1)
    )
    score = float(np.exp(divergences.mean()))
    return score, score * (divergences - divergences.mean())


def photo_values(score: float, parts: Sequence[tuple[Array, Sequence[int]]]) -> Array:
    """Return a value per photo, float64 (photos,), whose mean is the score and which vary over
    photos as it does.

    A photo contributes itself and the images that were generated from its texts, so that both are
    left out together. Photos without a row in any part have no value: a constant would count as an
    observation, and make intervals too narrow.

    Args:
        score: of all images.
        parts: for generated images, and for real ones if the score depends on them: the influence
            (n,) of each and the number (n,) of its photo. Values are in the order of the numbers.
    """
    numbers = np.concatenate([np.asarray(photos) for _, photos in parts])
    photos = np.unique(numbers)
    values = np.full(len(photos), score)
    for influence, of_photos in parts:
        sums = np.bincount(
            np.searchsorted(photos, of_photos), weights=influence, minlength=len(photos)
        )
        values += len(photos) / len(influence) * sums
    return values


def nearest_photos(
    generated: Floats, training: Floats, real: Floats
) -> tuple[Indices, Array, Mask]:
    """Find the nearest training photo of each generated image, by the cosine of their features.

    Args:
        generated: features (n, d).
        training: features (m, d) of the photos that were learned from.
        real: features (k, d) of other real images, to say what is near.

    Returns:
        The number of the photo, int64 (n,); the cosine, float64 (n,); and, bool (n,), whether the
        image is nearer than
        99 % of the real images are to theirs.
    """
    units = (
        unit_rows(np.asarray(features, dtype=np.float64))
        for features in (training, generated, real)
    )
    gallery, *asked = units
    (rows, cosines), (_, usual) = (nearest(features, gallery, 1) for features in asked)
    return rows[:, 0], cosines[:, 0], cosines[:, 0] > np.quantile(usual, COPY_QUANTILE)


def _require_two(distance: str, first: Floats, second: Floats) -> None:
    if min(len(first), len(second)) < 2:
        raise MetricError(
            f"The {distance} distance needs at least two images of each kind, but there are "
            f"{len(first)} and "
            f"{len(second)}."
        )


def _power(values: Array, vectors: Array, exponent: float) -> Array:
    """Return a power (d, d) of the matrix with these eigenvalues (d,) and eigenvectors (d, d).

    Negative eigenvalues are rounding errors. A negative power is that of the pseudo-inverse.
    """
    kept = values > (_ROUNDING * values.max() if exponent < 0 else 0)
    return np.asarray(
        (vectors * np.where(kept, np.where(kept, values, 1) ** exponent, 0)) @ vectors.T
    )


def _kernel_sums(x: Floats, y: Floats) -> Array:
    """Return the sum (n,) of the kernels of each row of ``x`` (n, d) with all of ``y`` (m, d)."""
    blocks = range(0, len(x), _BLOCK)
    sums = [
        ((x[i : i + _BLOCK].astype(np.float64) @ y.T / x.shape[1] + 1) ** 3).sum(axis=1)
        for i in blocks
    ]
    return np.concatenate(sums)
