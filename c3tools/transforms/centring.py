"""Steps that normalise, centre and rescale each modality by itself, or move it along the gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import TransformError
from .operations import Affine, Operation, Unit
from .steps import FitData, Step


@dataclass(eq=False)
class Normalize(Step):
    """e / |e|."""

    kind: ClassVar[str] = "normalize"
    keeps_unit: ClassVar[bool] = True
    fits: ClassVar[bool] = False

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Division by the norm."""
        return (Unit(),)


@dataclass(eq=False)
class Collapse(Step):
    """e - mu of its own modality (C3, Zhang et al., ICLR 2024): removes the modality gap.

    mu is the mean over the train split of L2-normalised vectors, and is not normalised itself.
    """

    kind: ClassVar[str] = "collapse"
    needs_unit: ClassVar[bool] = True
    centres: ClassVar[bool] = True

    def fit(self, data: FitData) -> None:
        """Keep the mean of each modality."""
        self.state = {f"mean/{m}": data.moments_of(m, self.kind).mean for m in self._chosen(data)}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Subtraction of the modality's mean."""
        return (Affine(centre=self.tensor("mean", modality)),)


@dataclass(eq=False)
class GapShift(Step):
    """x - delta/2 u, y + delta/2 u along the unit gap u (Mind the Gap, Liang et al., NeurIPS 2022).

    Attributes:
        first: the modality x, whose mean the gap points to.
        second: the modality y.
        delta: how far the two move towards each other; None for the length of the gap, which closes it.
    """

    first: str = "image"
    second: str = "text"
    delta: float | None = None

    kind: ClassVar[str] = "gap-shift"
    needs_unit: ClassVar[bool] = True
    centres: ClassVar[bool] = True

    def fit(self, data: FitData) -> None:
        """Keep half the shift of each modality."""
        unit, length = data.unit_gap(self.first, self.second, self.kind)
        half = unit * ((length if self.delta is None else self.delta) / 2)
        self.state = {f"shift/{self.first}": half, f"shift/{self.second}": -half}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """A translation along the gap."""
        return (Affine(centre=self.tensor("shift", modality)),)


@dataclass(eq=False)
class ProjectOutGap(Step):
    """e - (e . u) u: removes the coordinate along the unit gap u.

    Attributes:
        first: one end of the gap.
        second: the other end.
    """

    first: str = "image"
    second: str = "text"

    kind: ClassVar[str] = "project-out-gap"
    needs_unit: ClassVar[bool] = True

    def fit(self, data: FitData) -> None:
        """Keep the direction of the gap."""
        self.state = {"direction": data.unit_gap(self.first, self.second, self.kind)[0]}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """A projection onto the complement of the gap."""
        unit = self.tensor("direction")
        return (Affine(matrix=np.eye(len(unit)) - np.outer(unit, unit)),)


@dataclass(eq=False)
class Standardize(Step):
    """(e - mu) / s per dimension, s the population standard deviation of the modality.

    Attributes:
        epsilon: dimensions whose s is below this are only centred.
    """

    epsilon: float = 1e-8

    kind: ClassVar[str] = "standardize"
    needs_unit: ClassVar[bool] = True
    centres: ClassVar[bool] = True

    def fit(self, data: FitData) -> None:
        """Keep mean and reciprocal deviation of each modality."""
        self.state = {}
        for modality in self._chosen(data):
            moments = data.moments_of(modality, self.kind)
            deviation = np.sqrt(np.diag(moments.covariance))
            constant = deviation < self.epsilon
            self.state[f"mean/{modality}"] = moments.mean
            self.state[f"scale/{modality}"] = np.where(constant, 1.0, 1 / np.where(constant, 1.0, deviation))

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Centring and scaling."""
        return (Affine(centre=self.tensor("mean", modality), scale=self.tensor("scale", modality)),)


@dataclass(eq=False)
class Whiten(Step):
    """(e - mu) S^(-1/2), S = (1 - a) C + a tr(C)/d I: whitening that stays in the embedding's own axes (ZCA).

    Attributes:
        shrinkage: a, from 0 (the covariance C as it is) to 1 (a multiple of the identity).
    """

    shrinkage: float = 0.1

    kind: ClassVar[str] = "whiten"
    needs_unit: ClassVar[bool] = True
    centres: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrinkage <= 1:
            raise TransformError(f"shrinkage is {self.shrinkage}; it goes from 0 to 1.")

    def fit(self, data: FitData) -> None:
        """Keep mean and inverse square root of the covariance of each modality."""
        self.state = {}
        for modality in self._chosen(data):
            moments = data.moments_of(modality, self.kind)
            covariance = moments.covariance
            dim = moments.dim
            shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * np.trace(covariance) / dim * np.eye(dim)
            values, vectors = np.linalg.eigh(shrunk)
            if values[0] <= values[-1] * dim * np.finfo(np.float64).eps:
                raise TransformError(
                    f"The covariance of {modality} is singular ({moments.n} rows, {dim} dimensions, "
                    f"shrinkage {self.shrinkage}), so it cannot be whitened.",
                    remedy="Set shrinkage above 0 (0.1 is the default), or fit on more rows.",
                )
            self.state[f"mean/{modality}"] = moments.mean
            self.state[f"matrix/{modality}"] = (vectors / np.sqrt(values)) @ vectors.T

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Centring and a symmetric map."""
        return (Affine(centre=self.tensor("mean", modality), matrix=self.tensor("matrix", modality)),)
