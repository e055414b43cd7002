"""Scores of generated images from features: Fréchet distance, kernel distance, inception score, nearest photos.

"FID" is the Fréchet distance of the pool3 features of the Inception network of 2015 and nothing else; with the features
of an encoder it is named after it: ``FD-c3-mini``, ``KID-c3-mini``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import MetricError
from ..moments import Array, Moments, unit_rows

Floats = npt.NDArray[np.floating]
_BLOCK = 1024
COPY_QUANTILE = 0.99


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return ``|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))`` of two Gaussians (Heusel et al., 2017).

    The covariances are those of samples (n - 1). The distance of two samples of one distribution is above 0, and the
    more so the fewer there are: compare it with that of real images at the same n.

    Raises:
        MetricError: if the dimensions differ, or one has fewer than two rows.
    """
    if first.dim != second.dim:
        raise MetricError(f"Features of {first.dim} and {second.dim} dimensions cannot be compared.")
    if min(first.n, second.n) < 2:
        raise MetricError(
            f"The Fréchet distance needs at least two images of each kind, but there are {first.n} and {second.n}."
        )
    one, two = (m.scatter / (m.n - 1) for m in (first, second))
    # tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(min=0)).sum()
    gap = float(np.sum((first.mean - second.mean) ** 2))
    return gap + float(np.trace(one) + np.trace(two) - 2 * cross)


def kernel_distance(first: Floats, second: Floats) -> float:
    """Return the squared maximum mean discrepancy with the kernel ``(x.y / d + 1)^3``, unbiased (KID, 2018).

    It is computed from all pairs of rows, not from subsets. Its mean does not depend on n, and it may be negative.

    Args:
        first: features (n, d).
        second: features (m, d).

    Raises:
        MetricError: if the dimensions differ, or one has fewer than two rows.
    """
    if first.shape[1] != second.shape[1]:
        raise MetricError(f"Features of {first.shape[1]} and {second.shape[1]} dimensions cannot be compared.")
    if min(len(first), len(second)) < 2:
        raise MetricError(
            f"The kernel distance needs at least two images of each kind, but there are {len(first)} and {len(second)}."
        )
    within = [(_kernel_sum(x, x) - _diagonal_sum(x)) / (len(x) * (len(x) - 1)) for x in (first, second)]
    return within[0] + within[1] - 2 * _kernel_sum(first, second) / (len(first) * len(second))


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
    p = np.asarray(probabilities, dtype=np.float64)
    marginal = p.mean(axis=0)
    terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(marginal, 1e-300))), 0)
    return float(np.exp(terms.sum(axis=1).mean()))


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

    rows: npt.NDArray[np.int64]
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


def disjoint_halves(n: int, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows of two halves of n, drawn by the seed; of an odd n one row is left out."""
    order = np.random.default_rng(seed).permutation(n)
    return order[: n // 2], order[n // 2 : 2 * (n // 2)]


def _kernel_sum(x: Floats, y: Floats) -> float:
    d = x.shape[1]
    blocks: Sequence[int] = range(0, len(x), _BLOCK)
    return float(sum(((x[i : i + _BLOCK].astype(np.float64) @ y.T / d + 1) ** 3).sum() for i in blocks))


def _diagonal_sum(x: Floats) -> float:
    return float(((np.einsum("ij,ij->i", x, x, dtype=np.float64) / x.shape[1] + 1) ** 3).sum())


def _nearest(queries: Floats, gallery: Floats) -> tuple[npt.NDArray[np.int64], Array]:
    unit_q, unit_g = (unit_rows(np.asarray(rows, dtype=np.float64)) for rows in (queries, gallery))
    found = np.empty(len(queries), dtype=np.int64)
    cosines = np.empty(len(queries))
    for start in range(0, len(queries), _BLOCK):
        scores = unit_q[start : start + _BLOCK] @ unit_g.T
        rows = scores.argmax(axis=1)
        found[start : start + _BLOCK], cosines[start : start + _BLOCK] = rows, scores[np.arange(len(rows)), rows]
    return found, cosines
