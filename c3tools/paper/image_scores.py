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
from typing import NamedTuple

import numpy as np

from ..arrays import Array, Floats, Indices, Mask
from ..errors import MetricError
from ..metrics.retrieval import nearest
from ..moments import unit_rows

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
    first_mean = first.mean(axis=0, dtype=np.float64)
    second_mean = second.mean(axis=0, dtype=np.float64)
    first_covariance = np.cov(first, rowvar=False)
    second_covariance = np.cov(second, rowvar=False)
    gap = first_mean - second_mean

    # With R = S1^(1/2), the matrix P = R S2 R is symmetric and has the eigenvalues of S1 S2: the
    # sum of their roots is tr (S1 S2)^(1/2)
    values, vectors = np.linalg.eigh(first_covariance)
    root = _power(values, vectors, 0.5)
    inverse_root = _power(values, vectors, -0.5)
    product_values, product_vectors = np.linalg.eigh(root @ second_covariance @ root)
    trace_of_root = np.sqrt(product_values.clip(min=0)).sum()
    traces = gap @ gap + np.trace(first_covariance) + np.trace(second_covariance)
    distance = float(traces - 2 * trace_of_root)

    # The optimal transport is R^-1 P^(1/2) R^-1 from the first Gaussian to the second, and
    # R P^(-1/2) R back. Each is a matrix times its transpose: the influences need that matrix
    transport_root = inverse_root @ _power(product_values, product_vectors, 0.25)
    transport_root_back = root @ _power(product_values, product_vectors, -0.25)
    return (
        distance,
        _frechet_influences(first, first_mean, gap, transport_root),
        _frechet_influences(second, second_mean, -gap, transport_root_back),
    )


def _frechet_influences(rows: Floats, mean: Array, gap: Array, transport_root: Array) -> Array:
    """Return the influence of each row (n,) on the Fréchet distance.

    Args:
        rows: features (n, d).
        mean: of the rows (d,).
        gap: this mean minus that of the other Gaussian (d,).
        transport_root: R (d, d) with T = R R^T, the optimal transport to the other Gaussian.
    """
    centred = np.asarray(rows, dtype=np.float64) - mean
    lengths = np.sum(centred**2, axis=1)
    transported = np.sum((centred @ transport_root) ** 2, axis=1)  # x^T T x
    by_covariance = (lengths - transported) * len(rows) / (len(rows) - 1)
    by_mean = 2 * (centred @ gap)
    return np.asarray(by_mean + by_covariance - by_covariance.mean())


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
    first_mean, first_influences = _kernel_excess(first, second)
    second_mean, second_influences = _kernel_excess(second, first)
    return first_mean + second_mean, first_influences, second_influences


def _kernel_excess(rows: Floats, other_rows: Floats) -> tuple[float, Array]:
    """Return by how much rows are nearer to their own set than to another.

    Returns:
        The mean over rows of the mean kernel with the other rows of the set, minus that with the
        rows of the other set; and the influence of each row (n,).
    """
    with_itself = (np.einsum("ij,ij->i", rows, rows, dtype=np.float64) / rows.shape[1] + 1) ** 3
    within = (_kernel_sums(rows, rows) - with_itself) / (len(rows) - 1)
    across = _kernel_sums(rows, other_rows) / len(other_rows)
    mean = float((within - across).mean())
    return mean, 2 * (within - across - mean)


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
    # the lower bounds stand for log 0, whose term is 0
    ratios = np.maximum(p, 1e-300) / np.maximum(marginal, 1e-300)
    divergences = np.asarray(np.sum(p * np.log(ratios), axis=1))
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
    photos = np.unique(np.concatenate([np.asarray(numbers) for _, numbers in parts]))
    values = np.full(len(photos), score)
    for influence, numbers in parts:
        places = np.searchsorted(photos, numbers)
        sums = np.bincount(places, weights=influence, minlength=len(photos))
        values += len(photos) / len(influence) * sums
    return values


class NearestPhotos(NamedTuple):
    """The nearest training photo of each generated image.

    Attributes:
        rows: number of the photo, int64 (n,).
        cosines: of the image and the photo, float64 (n,).
        are_copies: whether the image is nearer than 99% of real images are to theirs, bool (n,).
    """

    rows: Indices
    cosines: Array
    are_copies: Mask


def nearest_photos(generated: Floats, training: Floats, real: Floats) -> NearestPhotos:
    """Find the nearest training photo of each generated image, by the cosine of their features.

    Args:
        generated: features (n, d).
        training: features (m, d) of the photos that were learned from.
        real: features (k, d) of other real images, to say what is near.
    """
    gallery = unit_rows(np.asarray(training, dtype=np.float64))
    rows, cosines = nearest(unit_rows(np.asarray(generated, dtype=np.float64)), gallery, 1)
    _, real_cosines = nearest(unit_rows(np.asarray(real, dtype=np.float64)), gallery, 1)
    near = np.quantile(real_cosines, COPY_QUANTILE)
    return NearestPhotos(rows[:, 0], cosines[:, 0], cosines[:, 0] > near)


def _require_two(distance: str, first: Floats, second: Floats) -> None:
    if min(len(first), len(second)) < 2:
        raise MetricError(
            f"The {distance} distance needs at least two images of each kind, but there are "
            f"{len(first)} and {len(second)}."
        )


def _power(values: Array, vectors: Array, exponent: float) -> Array:
    """Return a power (d, d) of the matrix with these eigenvalues (d,) and eigenvectors (d, d).

    Negative eigenvalues are rounding errors. A negative power is that of the pseudo-inverse.
    """
    smallest = _ROUNDING * values.max() if exponent < 0 else 0
    is_positive = values > smallest
    safe_values = np.where(is_positive, values, 1)
    powers = np.where(is_positive, safe_values**exponent, 0)
    return np.asarray((vectors * powers) @ vectors.T)


def _kernel_sums(x: Floats, y: Floats) -> Array:
    """Return the sum (n,) of the kernels of each row of ``x`` (n, d) with all of ``y`` (m, d)."""
    sums = []
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK].astype(np.float64)
        kernels = (block @ y.T / x.shape[1] + 1) ** 3
        sums.append(kernels.sum(axis=1))
    return np.concatenate(sums)
