"""Steps that are fitted on rows of two modalities: maps of one into the other, and measured noise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..arrays import Array
from ..errors import TransformError
from .fitting import FitData
from .operations import Affine, Noise, Operation, Unit
from .sigma import parse_sigma
from .steps import Role, Step


class FewPairsWarning(UserWarning):
    """A map was fitted on fewer pairs than it takes to determine all of it."""


@dataclass(eq=False)
class MapStep(Step):
    """A step that moves the rows of one modality to another, and leaves those of others as they are.

    Attributes:
        source: the modality that is moved.
        target: the modality that it is moved to.
    """

    source: str = "image"
    target: str = "text"

    needs_unit: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.modalities = (self.source,)


@dataclass(eq=False)
class ReAlign(MapStep):
    """mu_x + sqrt(tr_x / tr_y) (e - mu_y), then norm, then re-centred on mu_x (ReAlign, 2026).

    Moves the modality y (``source``) into the distribution of x (``target``) with unpaired statistics alone: anchor
    (means), trace (variances), and centroid, the last because normalising moves the mean again.
    """

    kind: ClassVar[str] = "realign"

    def fit(self, data: FitData) -> None:
        """Keep both means, the ratio of the spreads, and the mean that normalising leaves."""
        x, y = data.moments_of(self.target, self.kind), data.moments_of(self.source, self.kind)
        spread = float(np.trace(y.covariance))
        if spread <= 0:
            raise TransformError(f"All {self.source} rows that realign is fitted on are equal.")
        scale = np.sqrt(np.trace(x.covariance) / spread)
        moved = (data.rows_of(self.source, self.kind) - y.mean) * scale + x.mean
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        drift = moved.mean(axis=0) - x.mean
        self.state = {"target": x.mean, "source": y.mean, "scale": np.array(scale), "drift": drift}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Match mean and trace, normalise, match the centroid."""
        moved = Affine(self.tensor("source"), float(self.tensor("scale")), offset=self.tensor("target"))
        return (moved, Unit(), Affine(centre=self.tensor("drift")))


@dataclass(eq=False)
class MatchMoments(MapStep):
    """(e - mu_y) s_x / s_y + mu_x per dimension, s the population standard deviation (TOMCap, 2026).

    Moves the modality y (``source``) so that mean and variance of every dimension are those of x (``target``); a
    dimension in which y does not vary takes the mean of x.
    """

    needs_rows: ClassVar[bool] = False
    kind: ClassVar[str] = "match-moments"

    def fit(self, data: FitData) -> None:
        """Keep both means and the ratio of the deviations."""
        x, y = data.moments_of(self.target, self.kind), data.moments_of(self.source, self.kind)
        to, of = (np.sqrt(np.diag(moments.covariance)) for moments in (x, y))
        constant = of < np.finfo(np.float64).tiny
        scale = np.where(constant, 0.0, to / np.where(constant, 1.0, of))
        self.state = {"target": x.mean, "source": y.mean, "scale": scale}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Centre, scale, and move to the other mean."""
        return (Affine(self.tensor("source"), self.tensor("scale"), offset=self.tensor("target")),)


@dataclass(eq=False)
class PairedMap(MapStep):
    """A matrix M fitted on centred pairs: e -> (e - mean_x) M + mean_y, x of ``source`` and y of ``target``."""

    needs_pairs: ClassVar[bool] = True

    def fit(self, data: FitData) -> None:
        """Centre the pairs in float64, keep both means and the matrix."""
        x, y = (rows.astype(np.float64) for rows in data.pairs_of(self.source, self.target, self.kind))
        source, target = x.mean(axis=0), y.mean(axis=0)
        self.state = {"source": source, "target": target, "matrix": self.matrix(x - source, y - target)}

    def matrix(self, x: Array, y: Array) -> Array:
        """Return the matrix (d, d) from centred pairs, both (n, d)."""
        raise NotImplementedError

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Apply the fitted map."""
        return (Affine(self.tensor("source"), matrix=self.tensor("matrix"), offset=self.tensor("target")),)


@dataclass(eq=False)
class RidgeMap(PairedMap):
    """Linear map from source to target with least squared error, penalised (ridge regression).

    M = (X^T X + penalty n I)^(-1) X^T Y.

    Attributes:
        penalty: strength of the ridge, per row.
    """

    penalty: float = 1e-3

    kind: ClassVar[str] = "ridge-map"

    def matrix(self, x: Array, y: Array) -> Array:
        """Solve the normal equations."""
        gram = x.T @ x + self.penalty * len(x) * np.eye(x.shape[1])
        spectrum = np.linalg.eigvalsh(gram)
        if spectrum[0] <= spectrum[-1] * len(gram) * np.finfo(np.float64).eps:
            raise TransformError(
                f"The covariance of the {len(x)} {self.source} rows is singular, so no map can be fitted.",
                remedy="Set a penalty above 0 (0.001 is the default), or fit on more pairs.",
            )
        return np.asarray(np.linalg.solve(gram, x.T @ y), dtype=np.float64)


@dataclass(eq=False)
class Procrustes(PairedMap):
    """Orthogonal map of centred source rows that comes nearest to the target rows (Schönemann, 1966).

    M = U V^T from the singular vectors of X^T Y. With fewer pairs than dimensions these leave directions open, in which
    any rotation fits equally well: of all solutions the one nearest to the identity is taken, and a warning says so.
    """

    kind: ClassVar[str] = "procrustes"

    def matrix(self, x: Array, y: Array) -> Array:
        """Decompose the cross-covariance into singular values, and complete what it leaves open."""
        left, values, right = np.linalg.svd(x.T @ y)
        dim = len(values)
        rank = int(np.count_nonzero(values > values[0] * dim * np.finfo(np.float64).eps)) if values[0] > 0 else 0
        if rank < dim:
            warnings.warn(
                f"Procrustes is fitted on {len(x)} pairs, which determine only {rank} of {dim} dimensions; in the "
                "others the map nearest to the identity is used. More pairs than dimensions determine all of it.",
                FewPairsWarning,
                stacklevel=2,
            )
        fitted = left[:, :rank] @ right[:rank]
        open_left, open_right = (
            left[:, rank:],
            right[rank:],
        )  # (d, d - rank) and (d - rank, d), any basis of these spaces
        turn, _, back = np.linalg.svd(open_left.T @ open_right.T)
        return np.asarray(fitted + open_left @ (turn @ back) @ open_right, dtype=np.float64)


@dataclass(eq=False)
class CovarianceNoise(Step):
    """e + z S^(1/2): noise with the shape of the alignment noise, S the covariance of x_i - y_i over pairs.

    The alignment noise of real encoders is not isotropic; this draws from what was measured.

    Attributes:
        first: modality of the x_i.
        second: modality of the y_i.
        sigma: rescale so that the root mean square per dimension is sigma; None keeps the measured size.
    """

    first: str = "image"
    second: str = "text"
    sigma: float | None = None
    role: Role = field(default="training", kw_only=True)

    kind: ClassVar[str] = "covariance-noise"
    noisy: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = True
    needs_pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma is not None:
            parse_sigma(self.sigma, also=())

    def fit(self, data: FitData) -> None:
        """Keep the symmetric square root of the residuals' covariance."""
        x, y = data.pairs_of(self.first, self.second, self.kind)
        residuals = x.astype(np.float64) - y
        residuals -= residuals.mean(axis=0)
        covariance = residuals.T @ residuals / len(residuals)
        power = np.trace(covariance) / len(covariance)
        if power == 0:
            raise TransformError(
                f"All {len(x)} pairs differ by the same vector, so there is no alignment noise to imitate.",
                remedy="Fit on more pairs.",
            )
        if self.sigma is not None:
            covariance *= self.sigma**2 / power
        values, vectors = np.linalg.eigh(covariance)
        self.state = {"matrix": (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Add correlated noise."""
        return (Noise(1.0, self.tensor("matrix")),)
