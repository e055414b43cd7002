"""Measures that need moments alone: dimensions, means and their errors, the gap. No row is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Array
from ..moments import Moments

_EXPLAINED = 0.99


@dataclass(frozen=True, eq=False)
class ModalityMeasures:
    """Measures of one modality, as in the report's JSON, and its spectrum.

    Attributes:
        n: rows.
        dim: d.
        effective_dimension: see `effective_dimension`.
        effective_rank: see `effective_rank`.
        participation_ratio: ``(sum l)^2 / sum l^2`` of the eigenvalues l of the covariance; 0 if there is no variance.
        mean_norm: length of the mean of the rows, not the mean of their lengths.
        mean_norm_error: standard error of that length; NaN for one row or a mean of zero.
        mean_direction_error_degrees: standard error of the mean's direction; None likewise.
        rows_for_one_degree: independent rows at which that error falls to one degree; None likewise.
        independent_rows: rows that the errors count as independent (captions of one image are not).
        limited_by_rows: whether n, not the encoder, bounds the dimensions (``n - 1 < d``).
        spectrum: float64 (d,), eigenvalues of the covariance, descending.
    """

    n: int
    dim: int
    effective_dimension: int
    effective_rank: float
    participation_ratio: float
    mean_norm: float
    mean_norm_error: float
    mean_direction_error_degrees: float | None
    rows_for_one_degree: int | None
    independent_rows: int
    limited_by_rows: bool
    spectrum: Array


def eigenvalues(covariance: Array) -> Array:
    """Return the eigenvalues (d,) of a covariance (d, d), descending, negative rounding errors set to zero."""
    return np.asarray(np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0))


def effective_dimension(values: Array) -> int:
    """Return the smallest k whose k largest singular values make up more than 99 % of their sum.

    The paper's measure of dimensional collapse (Zhang et al., ICLR 2024), with the singular values of the
    covariance of L2-normalised rows. 0 if there is no variance at all.

    Args:
        values: (d,) eigenvalues of the covariance, descending.
    """
    total = values.sum()
    return int(np.argmax(np.cumsum(values) > _EXPLAINED * total)) + 1 if total > 0 else 0


def effective_rank(values: Array) -> float:
    """Return ``exp(-sum p log p)``, ``p = s / sum(s)`` (Roy and Vetterli, 2007); 0 if there is no variance."""
    if values.sum() <= 0:
        return 0.0
    p = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def measure_modality(moments: Moments, independent: int | None = None) -> ModalityMeasures:
    """Measure one modality from its moments.

    The errors of the mean treat ``independent`` rows as independent draws: the mean's length has the variance of
    the rows along the mean over that number, its direction the variance across it.

    Args:
        moments: of the L2-normalised rows.
        independent: how many rows count as independent; all of them by default. For captions, the images.
    """
    rows = moments.n if independent is None else min(independent, moments.n)
    covariance, length = moments.covariance, float(np.linalg.norm(moments.mean))
    values = eigenvalues(covariance)
    length_error, direction_error, enough = float("nan"), None, None
    if length > 0 and rows > 1:
        unit = moments.mean / length
        along = float(unit @ covariance @ unit)
        across = max(float(np.trace(covariance)) - along, 0.0)
        length_error = float(np.sqrt(max(along, 0.0) / (rows - 1)))
        direction_error = float(np.degrees(np.arctan(np.sqrt(across / (rows - 1)) / length)))
        enough = int(np.ceil(across / (length * np.tan(np.radians(1.0))) ** 2)) + 1
    squares = float(values @ values)
    return ModalityMeasures(
        n=moments.n,
        dim=moments.dim,
        effective_dimension=effective_dimension(values),
        effective_rank=effective_rank(values),
        participation_ratio=float(values.sum()) ** 2 / squares if squares > 0 else 0.0,
        mean_norm=length,
        mean_norm_error=length_error,
        mean_direction_error_degrees=direction_error,
        rows_for_one_degree=enough,
        independent_rows=rows,
        limited_by_rows=moments.n - 1 < moments.dim,
        spectrum=values,
    )


def gap_vector(first: Moments, second: Moments) -> Array:
    """Return the modality gap ``mu_x - mu_y`` (d,) (Liang et al., NeurIPS 2022); its norm is the gap's length."""
    return first.mean - second.mean


def relative_gap(paired_cosine: float, first: Moments, second: Moments) -> float | None:
    """Return RMG (Schrodi et al., 2024): the distance of pairs over itself plus the distance within modalities.

    ``D = (1 - cos) / 2``; num = mean D over pairs; den = num + (mean D within x + mean D within y) / 2, diagonals
    excluded: the mean cosine of different rows is ``(n^2 |mu|^2 - sum |x|^2) / (n (n - 1))``. None for fewer than two
    rows of a modality.
    """
    within = []
    for moments in (first, second):
        n, squared_mean = moments.n, float(moments.mean @ moments.mean)
        if n < 2:
            return None
        squares = float(np.trace(moments.scatter)) + n * squared_mean
        within.append((n * n * squared_mean - squares) / (n * (n - 1)))
    num = (1 - paired_cosine) / 2
    den = num + ((1 - within[0]) / 2 + (1 - within[1]) / 2) / 2
    return num / den if den > 0 else None
