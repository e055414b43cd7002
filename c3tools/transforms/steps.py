"""Steps that transform each modality separately: normalise, centre, rescale, move along the gap, add noise.

A step is a small dataclass: its fields are its settings (saved in the recipe), `state` contains what it fitted (saved
as tensors). Steps are fitted in order, each on what the steps before it leave. Noise is added to training inputs only;
z is standard normal and drawn by the pipeline, keyed by (seed, epoch, key of the row).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..arrays import Array, Indices
from ..errors import TransformError
from ..moments import Moments
from .fitting import FitData
from .operations import Affine, MixNoise, Noise, Operation, Unit
from .sigma import PUBLISHED_SIGMA, RULES, parse_sigma

Role = Literal["training", "inference", "both"]


@dataclass(eq=False)
class Step:
    """One step of a pipeline.

    Attributes:
        role: which inputs it applies to: ``training``, ``inference`` or ``both``.
        modalities: which modalities it applies to; None for all.
    """

    kind: ClassVar[str] = ""
    needs_unit: ClassVar[bool] = False
    keeps_unit: ClassVar[bool] = False
    centres: ClassVar[bool] = False
    noisy: ClassVar[bool] = False
    fits: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False

    role: Role = field(default="both", kw_only=True)
    modalities: tuple[str, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.state: dict[str, npt.NDArray[np.generic]] = {}
        if self.modalities is not None:
            self.modalities = tuple(self.modalities)
        if self.role not in ("training", "inference", "both"):
            raise TransformError(
                f"The step {self.kind} has an unknown role {self.role!r}.", remedy="Use training, inference or both."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Return the fields, as saved in the recipe."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def sigma_rule(self) -> str | None:
        """The rule that sigma is still to be computed by (see `Pipeline.settle_sigma`), ``auto`` or ``pairs``."""
        return next((rule for rule in RULES if rule == getattr(self, "sigma", None)), None)

    @property
    def fitted(self) -> bool:
        """Return whether the step can be applied."""
        return self.sigma_rule is None and (not self.fits or bool(self.state))

    def applies(self, modality: str, training: bool) -> bool:
        """Return whether the step takes part for inputs of this modality and role."""
        return self.role in ("both", "training" if training else "inference") and (
            self.modalities is None or modality in self.modalities
        )

    def fit(self, data: FitData) -> None:
        """Fill ``state`` from ``data``."""

    def knows(self, modality: str) -> bool:
        """Return whether the step, if it is fitted per modality, was fitted for this one."""
        fitted_for = {key.partition("/")[2] for key in self.state if "/" in key}
        return not fitted_for or modality in fitted_for

    def own_items(self, items: Sequence[str] | None, n: int) -> Indices | None:
        """Return hashes of the items of n training inputs, int64 (n,), if the step needs them.

        Raises:
            TransformError: if it needs them and they are not given, or not one per row.
        """
        return None

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Return what the fitted step does to rows of ``modality``."""
        raise NotImplementedError

    def tensor(self, name: str, modality: str | None = None) -> Array:
        """Return a fitted tensor, or raise a TransformError that names the modalities that were fitted."""
        key = name if modality is None else f"{name}/{modality}"
        if key not in self.state:
            known = sorted(k.partition("/")[2] for k in self.state if k.startswith(f"{name}/"))
            raise TransformError(
                f"The step {self.kind} is not fitted for the modality {modality!r}, only for {', '.join(known)}.",
                remedy=f"Fit on {modality} embeddings too, or load their moments with `c3 means --load` and fit again.",
            )
        return self.state[key]  # type: ignore[return-value]

    def _fitted_moments(self, data: FitData) -> dict[str, Moments]:
        """Return the moments of the modalities that the step is fitted for: those it applies to, if they have any."""
        names = self.modalities if self.modalities is not None else tuple(sorted(data.moments))
        present = {name: data.moments[name] for name in names if name in data.moments}
        if not present:
            data.moments_of(names[0] if names else "text", self.kind)
        return present


@dataclass(eq=False)
class Normalize(Step):
    """e / |e|."""

    kind: ClassVar[str] = "normalize"
    keeps_unit: ClassVar[bool] = True
    fits: ClassVar[bool] = False

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Divide by the norm."""
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
        self.state = {f"mean/{modality}": moments.mean for modality, moments in self._fitted_moments(data).items()}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Subtract the modality's mean."""
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
        """Move along the gap."""
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
        """Project onto the complement of the gap."""
        return (Affine(matrix=_complement(self.tensor("direction"))),)


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
        for modality, moments in self._fitted_moments(data).items():
            deviation = np.sqrt(np.diag(moments.covariance))
            constant = deviation < self.epsilon
            self.state[f"mean/{modality}"] = moments.mean
            self.state[f"scale/{modality}"] = np.where(constant, 1.0, 1 / np.where(constant, 1.0, deviation))

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Centre and scale."""
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
            raise TransformError(f"shrinkage must be between 0 and 1, not {self.shrinkage}.")

    def fit(self, data: FitData) -> None:
        """Keep mean and inverse square root of the covariance of each modality."""
        self.state = {}
        for modality, moments in self._fitted_moments(data).items():
            covariance, dim = moments.covariance, moments.dim
            shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * np.trace(covariance) / dim * np.eye(dim)
            values, vectors = np.linalg.eigh(shrunk)
            if values[0] <= values[-1] * dim * np.finfo(np.float64).eps:
                raise TransformError(
                    f"The covariance of {modality} is singular ({moments.n} rows, {dim} dimensions, shrinkage "
                    f"{self.shrinkage}), so it cannot be whitened.",
                    remedy="Set shrinkage above 0 (0.1 is the default), or fit on more rows.",
                )
            self.state[f"mean/{modality}"] = moments.mean
            self.state[f"matrix/{modality}"] = (vectors / np.sqrt(values)) @ vectors.T

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Centre and apply the symmetric map."""
        return (Affine(centre=self.tensor("mean", modality), matrix=self.tensor("matrix", modality)),)


@dataclass(eq=False)
class GaussianNoise(Step):
    """e + sigma N(0, I) (Corrupt; C3, Zhang et al., ICLR 2024; CapDec, Nukrai et al., 2022, with variance sigma^2).

    Attributes:
        sigma: standard deviation per dimension; ``auto`` or ``pairs`` until the pipeline is fitted on captions, with
            ``pairs`` on some with their images, by the rules of `c3tools.transforms.sigma`.
    """

    sigma: float | Literal["auto", "pairs"] = PUBLISHED_SIGMA
    role: Role = field(default="training", kw_only=True)

    kind: ClassVar[str] = "gaussian-noise"
    noisy: ClassVar[bool] = True
    fits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_sigma(self.sigma)

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Add isotropic noise."""
        return (Noise(float(self.sigma)),)


@dataclass(eq=False)
class SpanNoise(Step):
    """e + sigma (z - (z . u) u): noise without its part along the unit gap u.

    Attributes:
        first: one end of the gap.
        second: the other end.
        sigma: standard deviation per dimension, outside the gap; a rule as in `GaussianNoise`.
    """

    first: str = "image"
    second: str = "text"
    sigma: float | Literal["auto", "pairs"] = PUBLISHED_SIGMA
    role: Role = field(default="training", kw_only=True)

    kind: ClassVar[str] = "span-noise"
    noisy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_sigma(self.sigma)

    def fit(self, data: FitData) -> None:
        """Keep the direction of the gap."""
        self.state = {"direction": data.unit_gap(self.first, self.second, self.kind)[0]}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Add isotropic noise in the complement of the gap."""
        return (Noise(float(self.sigma), _complement(self.tensor("direction"))),)


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
            raise TransformError(f"mix must be between 0 and 1, not {self.mix}.")

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Mix with a random direction."""
        return (MixNoise(self.mix),)


def _complement(unit: Array) -> Array:
    """Return the projection (d, d) onto the complement of the unit vector (d,)."""
    return np.asarray(np.eye(len(unit)) - np.outer(unit, unit))


def order_findings(steps: Sequence[Step]) -> list[str]:
    """Return what is wrong with the order and the roles of ``steps``, one sentence each.

    The method is normalise, collapse, corrupt, re-normalise. What breaks it does not fail, it silently costs accuracy
    (C3, Zhang et al., ICLR 2024): noise on validation inputs, means subtracted twice, no re-normalisation.
    """
    findings = []
    for step in steps:
        if step.noisy and step.role != "training":
            findings.append(
                f"{step.kind} has the role {step.role}, but noise is for training inputs only, not for validation or "
                "inference inputs."
            )
    for role in ("training", "inference"):
        findings += _path_findings([step for step in steps if step.role in ("both", role)], role)
    return list(dict.fromkeys(findings))


def _path_findings(path: Sequence[Step], role: str) -> list[str]:
    findings = []
    unit = changed = False
    noise: Step | None = None
    centred: Step | None = None
    for step in path:
        if step.needs_unit and not unit:
            after = f"but comes after {centred.kind}" if centred else "but there is no normalize before it"
            findings.append(f"{step.kind} is fitted on vectors of norm 1, {after}.")
        if step.centres:
            if noise is not None:
                findings.append(
                    f"{noise.kind} comes before {step.kind}, but noise is added to centred vectors: centre first."
                )
            if centred is not None:
                findings.append(f"{step.kind} comes after {centred.kind}, so the mean would be subtracted twice.")
            centred = step
        if step.noisy:
            noise = step
        unit = step.keeps_unit
        changed = changed or not step.keeps_unit
    if changed and not unit:
        findings.append(f"{role} inputs do not end with normalize, but decoders and searches expect norm 1.")
    return findings
