"""The steps that add noise: training inputs only.

z is standard normal and drawn by the pipeline, keyed by (seed, epoch, key of the row).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..errors import TransformError
from .operations import MixNoise, Noise, Operation
from .sigma import PUBLISHED_SIGMA, parse_sigma
from .steps import FitData, Role, Step


@dataclass(eq=False)
class GaussianNoise(Step):
    """e + sigma N(0, I) (Corrupt; C3, Zhang et al., ICLR 2024; CapDec, Nukrai et al., 2022, with variance sigma^2).

    Attributes:
        sigma: standard deviation per dimension; the published value is sqrt(0.016).
    """

    sigma: float = PUBLISHED_SIGMA
    role: Role = field(default="training", kw_only=True)

    kind: ClassVar[str] = "gaussian-noise"
    noisy: ClassVar[bool] = True
    fits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_sigma(self.sigma, also=())

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Isotropic noise."""
        return (Noise(self.sigma),)


@dataclass(eq=False)
class AdaptiveNoise(Step):
    """(1 - l) e + l |e| z / |z| (LAFITE_G, Zhou et al., CVPR 2022): noise in proportion to the vector.

    Attributes:
        mix: l, from 0 (no noise) to 1 (nothing but noise); the published value is 0.75.
    """

    mix: float = 0.75
    role: Role = field(default="training", kw_only=True)

    kind: ClassVar[str] = "adaptive-noise"
    noisy: ClassVar[bool] = True
    fits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mix <= 1:
            raise TransformError(f"The step {self.kind} has mix {self.mix}.", remedy="mix goes from 0 to 1.")

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """A mix with a random direction."""
        return (MixNoise(self.mix),)


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
        """Correlated noise."""
        return (Noise(1.0, self.tensor("matrix")),)


@dataclass(eq=False)
class SpanNoise(Step):
    """e + sigma (z - (z . u) u): noise without its part along the unit gap u.

    Attributes:
        first: one end of the gap.
        second: the other end.
        sigma: standard deviation per dimension, outside the gap.
    """

    first: str = "image"
    second: str = "text"
    sigma: float = PUBLISHED_SIGMA
    role: Role = field(default="training", kw_only=True)

    kind: ClassVar[str] = "span-noise"
    noisy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_sigma(self.sigma, also=())

    def fit(self, data: FitData) -> None:
        """Keep the direction of the gap."""
        self.state = {"direction": data.unit_gap(self.first, self.second, self.kind)[0]}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Isotropic noise in the complement of the gap."""
        unit = self.tensor("direction")
        return (Noise(self.sigma, np.eye(len(unit)) - np.outer(unit, unit)),)
