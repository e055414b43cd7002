"""Measures that need all pairs of rows, on the working set: uniformity, separability, modality bias."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..seeds import generator
from .reading import Rows

Array = npt.NDArray[np.float64]

MAX_UNIFORMITY_ROWS = 2_000
MAX_PROBE_ROWS = 1_000
MAX_BIAS_ROWS = 1_000
BIAS_K = 10
_RIDGE = 1e-2
_NEWTON_STEPS = 25


def uniformity(rows: Rows, *, seed: int = 0) -> tuple[float, int]:
    """``log E exp(-2 |x_i - x_j|^2)`` over pairs of different rows (Wang and Isola, ICML 2020).

    Args:
        rows: (n, d), L2-normalised, n at least 2.
        seed: of the sample of 2,000 rows, where there are more.

    Returns:
        The value (0 when all rows are equal, lower when they spread), and the number of rows it rests on.
    """
    x = subsample(rows, MAX_UNIFORMITY_ROWS, seed, "uniformity")
    n = len(x)
    squares = np.einsum("ij,ij->i", x, x)
    total = 0.0
    for start in range(0, n, 1024):
        block = x[start : start + 1024]
        squared = squares[start : start + 1024, None] + squares[None, :] - 2 * (block @ x.T)  # (block, n)
        total += float(np.exp(-2 * np.maximum(squared, 0), out=squared).sum(dtype=np.float64))
    # each row meets itself at distance zero: exp(0) = 1
    return float(np.log((total - n) / (n * (n - 1)))), n


def separability(first: Rows, second: Rows, *, collapse: bool = False, seed: int = 0) -> tuple[float, int]:
    """Held-out accuracy of a logistic probe that tells the modalities apart: 1.0 with a gap, 0.5 ideally.

    Balanced halves, at most 1,000 rows per modality; L2-regularised logistic regression by Newton's method, fitted
    on one half and scored on the other, and the other way round.

    Args:
        first: (m, d).
        second: (k, d).
        collapse: subtract each modality's mean first and normalise again, the mean being that of the half the probe
            is fitted on: a mean that includes the held-out rows pushes the accuracy below one half.
        seed: of the sample and the halves.

    Returns:
        Accuracy, and the number of rows it rests on.
    """
    count = min(len(first), len(second), MAX_PROBE_ROWS)
    halves = []
    for label, rows in ((1, first), (0, second)):
        chosen = subsample(rows, count, seed, f"probe {label}").astype(np.float64)
        chosen = chosen[generator(seed, "probe halves", label).permutation(count)]
        halves.append((chosen[: count // 2], chosen[count // 2 : 2 * (count // 2)]))
    count = 2 * (count // 2)
    labels = np.repeat([1.0, 0.0], count // 2)
    right = 0
    for fit, held in ((0, 1), (1, 0)):
        means = [half[fit].mean(axis=0) if collapse else np.zeros(half[fit].shape[1]) for half in halves]
        fit_rows, held_rows = (
            _unit(np.concatenate([half[side] - mean for half, mean in zip(halves, means, strict=True)]))
            for side in (fit, held)
        )
        weights = _logistic(fit_rows, labels)
        right += int(np.sum((held_rows @ weights[:-1] + weights[-1] > 0) == (labels > 0.5)))
    return right / (2 * count), 2 * count


def modality_bias(first: Rows, second: Rows, k: int = BIAS_K, *, seed: int = 0) -> tuple[float, float, int]:
    """Share of the top-k neighbours, in a corpus of both, that have the query's own modality.

    The corpus is balanced (as many rows of each, at most 1,000), the query itself left out; without any bias the
    share is close to one half.

    Returns:
        The share for queries of the first modality, of the second, and the number of rows of the corpus.
    """
    count = min(len(first), len(second), MAX_BIAS_ROWS)
    corpus = np.concatenate([subsample(first, count, seed, "bias"), subsample(second, count, seed, "bias")])
    own = np.arange(2 * count) < count
    k = min(k, 2 * count - 1)
    shares = np.empty(2 * count)
    for start in range(0, 2 * count, 1024):
        scores = corpus[start : start + 1024] @ corpus.T  # (block, corpus)
        rows = np.arange(len(scores))
        scores[rows, start + rows] = -np.inf
        nearest = np.argpartition(scores, 2 * count - k, axis=1)[:, -k:]
        shares[start : start + 1024] = (own[nearest] == own[start + rows, None]).mean(axis=1)
    return float(shares[:count].mean()), float(shares[count:].mean()), 2 * count


def subsample(rows: Rows, count: int, seed: int, purpose: str) -> Rows:
    """At most ``count`` rows, chosen by seed, in their order."""
    if len(rows) <= count:
        return rows
    chosen = generator(seed, "subsample", purpose, len(rows)).choice(len(rows), count, replace=False)
    return rows[np.sort(chosen)]


def _unit(rows: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def _logistic(x: Array, y: Array) -> Array:
    """Weights (d + 1,) of L2-regularised logistic regression, the intercept last and not penalised."""
    scale = x.std(axis=0).mean() or 1.0
    design = np.hstack([x / scale, np.ones((len(x), 1))])
    penalty = np.full(design.shape[1], _RIDGE * len(x))
    penalty[-1] = 1e-9
    weights = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (p - y) + penalty * weights
        hessian = (design * np.maximum(p * (1 - p), 1e-9)[:, None]).T @ design
        step = np.linalg.solve(hessian + np.diag(penalty), gradient)
        weights -= step
        if np.abs(step).max() < 1e-3:
            break
    weights[:-1] /= scale
    return weights
