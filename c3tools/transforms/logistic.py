"""Logistic regression, for the whole package."""

from __future__ import annotations

import numpy as np

from ..arrays import Array

_MOST_STEPS = 25


def fit_logistic(x: Array, y: Array, ridge: float) -> Array:
    """Fit a logistic regression by Newton's method: weights (d + 1,), the intercept last and not
    penalised.

    Args:
        x: float64 (n, d).
        y: float64 (n,), 1 or 0.
        ridge: penalty on the squared weights, per row, with x scaled to a standard deviation of
            about 1.
    """
    scale = x.std(axis=0).mean() or 1.0
    design = np.hstack([x / scale, np.ones((len(x), 1))])
    penalty = np.full(design.shape[1], ridge * len(x))
    penalty[-1] = 1e-9  # hardly any, but enough for a solution where classes can be separated
    weights = np.zeros(design.shape[1])
    for _ in range(_MOST_STEPS):
        p = (1 + np.tanh(design @ weights / 2)) / 2  # the logistic function
        gradient = design.T @ (p - y) + penalty * weights
        weighted = design * np.sqrt(np.maximum(p * (1 - p), 1e-9))[:, None]
        hessian = weighted.T @ weighted + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-3:
            break
    weights[:-1] /= scale
    return weights
