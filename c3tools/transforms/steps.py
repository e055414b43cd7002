"""The steps of pipelines: normalise, centre, rescale, move along the gap, map to another modality,
retrieve, add noise.

A step is a small dataclass: its fields are its settings (saved in the recipe), `state` contains
what it fitted (saved as tensors). Steps are fitted in order, each on what the steps before it
leave. Noise is added to training inputs only; z is standard normal and drawn by the pipeline, keyed
by (seed, epoch, key of the row).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from ..arrays import Array, Indices, Matrix
from ..errors import TransformError
from ..moments import Moments, unit_rows
from ..seeds import generator, stable_hashes
from .fitting import FitData
from .operations import Affine, MemoryAttention, Noise, Operation, Unit
from .sigma import PUBLISHED_SIGMA, Sigma, parse_sigma

Role = Literal["training", "inference", "both"]


@dataclass(eq=False)
class Step:
    """One step of a pipeline: once it is fitted, an affine map of each modality, unless it has
    operations of its own.

    A step with a ``source`` applies to this modality alone.

    Attributes:
        role: which inputs it applies to: ``training``, ``inference`` or ``both``.
        modalities: which modalities it applies to; None for all.
    """

    kind: ClassVar[str] = ""
    centres: ClassVar[bool] = False
    noisy: ClassVar[bool] = False
    fits: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False

    role: Role = field(default="both", kw_only=True)
    modalities: tuple[str, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.state: dict[str, npt.NDArray[Any]] = {}
        source = getattr(self, "source", None)
        if source:
            self.modalities = (source,)
        elif self.modalities is not None:
            self.modalities = tuple(self.modalities)

    @property
    def sigma_rule(self) -> str | None:
        """The rule that sigma is still to be computed by, ``auto`` or ``pairs``."""
        sigma = getattr(self, "sigma", None)
        return sigma if isinstance(sigma, str) else None

    @property
    def fitted(self) -> bool:
        """Return whether the step can be applied."""
        return self.sigma_rule is None and (not self.fits or bool(self.state))

    def applies(self, modality: str, training: bool) -> bool:
        """Return whether the step takes part for inputs of this modality and role."""
        role = "training" if training else "inference"
        is_for_modality = self.modalities is None or modality in self.modalities
        return self.role in ("both", role) and is_for_modality

    def fit(self, data: FitData) -> None:
        """Keep in ``state`` what the maps consist of, such as ``centre/image``."""
        data.check_counts()
        self.state = {}
        for modality, affine in self.maps(data).items():
            for name, value in vars(affine).items():
                if value is not None:
                    self.state[f"{name}/{modality}"] = np.asarray(value)

    def maps(self, data: FitData) -> dict[str, Affine]:
        """Return the map of each modality that it applies to, if there are moments; one of "" is
        for all of them.

        Raises:
            KeyError: with a modality that has no moments, or too few rows for them.
        """
        if data.too_few:
            raise KeyError(min(data.too_few))
        names = sorted(data.moments) if self.modalities is None else self.modalities
        present = [name for name in names if name in data.moments]
        if not present:
            raise KeyError(names[0] if names else "text")
        return {name: self.map_of(data.moments[name]) for name in present}

    def map_of(self, moments: Moments) -> Affine:
        """Return the map of a modality, from its moments alone."""
        raise NotImplementedError

    @property
    def fitted_for(self) -> set[str]:
        """The modalities that it was fitted for, each by itself; none if it makes no difference."""
        modalities = {key.partition("/")[2] for key in self.state}
        return modalities - {""}

    def knows(self, modality: str) -> bool:
        """Return whether the step, if it is fitted per modality, was fitted for this one."""
        return modality in (self.fitted_for or {modality})

    def own_items(self, items: Sequence[str] | None, n: int) -> Indices | None:
        """Return hashes of the items of n training inputs, int64 (n,), if the step needs them.

        Raises:
            TransformError: if it needs them and they are not given, or not one per row.
        """
        return None

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Return what the fitted step does to rows of ``modality``.

        Raises:
            TransformError: with the modalities that it was fitted for, if this is not one of them.
        """
        fitted_modality = modality if self.fitted_for else ""
        parts: dict[str, Any] = {}
        for key, value in self.state.items():
            name, _, key_modality = key.partition("/")
            if "/" in key and key_modality == fitted_modality:
                parts[name] = value
        if not parts:
            raise TransformError(
                f"The step {self.kind} is not fitted for the modality {modality!r}, only for "
                f"{', '.join(sorted(self.fitted_for))}.",
                remedy=f"Fit on {modality} embeddings too, or load their moments with "
                "`c3 means load` and fit again.",
            )
        return (Affine(**parts),)


class Normalize(Step):
    """e / |e|."""

    kind = "normalize"
    fits = False

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Divide by the norm."""
        return (Unit(),)


class Collapse(Step):
    """e - mu of its own modality (C3, Zhang et al., ICLR 2024): removes the modality gap.

    mu is the mean over the train split of L2-normalised vectors, and is not normalised itself.
    Where a modality has too few rows for a mean, mu is 0 for all, so that none is moved against the
    others.
    """

    kind = "collapse"
    centres = True

    def maps(self, data: FitData) -> dict[str, Affine]:
        """Subtract the mean of each modality, or nothing."""
        if not data.too_few:
            return super().maps(data)
        nothing = Affine(centre=np.zeros(data.dim or 0))
        names = self.modalities or sorted({*data.moments, *data.too_few})
        return dict.fromkeys(names, nothing)

    def map_of(self, moments: Moments) -> Affine:
        """Subtract the modality's mean."""
        return Affine(centre=moments.mean)


@dataclass(eq=False)
class FairScale(Step):
    """e / sqrt(tr(S_q S_m)) for centred unit rows of the modality m: one search ranks rows of all
    modalities fairly.

    The variance of a row's inner products with queries is then the same for every modality, on
    average over queries. S, the covariance of centred unit rows, is taken as C / tr C, C the
    covariance of the rows before they were centred.

    Attributes:
        queries: the modality q of the queries.
    """

    queries: str = "text"

    kind = "fair-scale"

    def maps(self, data: FitData) -> dict[str, Affine]:
        """Scale every modality by a number of its own."""
        of_queries = data.gap_from[self.queries].covariance
        maps = {}
        for name, moments in data.gap_from.items():
            covariance = moments.covariance
            traces = np.trace(of_queries) * np.trace(covariance)
            spread = np.sum(of_queries * covariance) / max(traces, 1e-30)
            if not spread > 0:
                raise TransformError(
                    f"All {name} rows or all {self.queries} rows are equal, so they cannot be "
                    f"scaled."
                )
            maps[name] = Affine(scale=1 / np.sqrt(spread))
        return maps


@dataclass(eq=False)
class Standardize(Step):
    """(e - mu) / s per dimension, s the population standard deviation of the modality.

    Attributes:
        epsilon: dimensions whose s is below this are only centred.
    """

    epsilon: float = 1e-8

    kind = "standardize"
    centres = True

    def map_of(self, moments: Moments) -> Affine:
        """Centre and scale."""
        deviation = np.sqrt(np.diag(moments.covariance))
        divisor = np.where(deviation < self.epsilon, 1.0, deviation)
        return Affine(centre=moments.mean, scale=1 / divisor)


@dataclass(eq=False)
class Whiten(Step):
    """(e - mu) S^(-1/2), S = (1 - a) C + a tr(C)/d I: whitening that stays in the embedding's own
    axes (ZCA).

    Attributes:
        shrinkage: a, from above 0 (about the covariance C as it is) to 1 (a multiple of the
            identity).
    """

    shrinkage: Annotated[float, Meta(gt=0, le=1)] = 0.1

    kind = "whiten"
    centres = True

    def map_of(self, moments: Moments) -> Affine:
        """Centre and apply the inverse square root of the covariance."""
        covariance = moments.covariance
        dim = moments.dim
        isotropic = self.shrinkage * np.trace(covariance) / dim * np.eye(dim)
        shrunk = (1 - self.shrinkage) * covariance + isotropic
        values, vectors = np.linalg.eigh(shrunk)
        if values[0] <= 0:
            raise TransformError("All rows of a modality are equal, so they cannot be whitened.")
        return Affine(centre=moments.mean, matrix=(vectors / np.sqrt(values)) @ vectors.T)


@dataclass(eq=False)
class GapShift(Step):
    """x - delta/2 u, y + delta/2 u along the unit gap u (Mind the Gap, Liang et al., NeurIPS 2022).

    Attributes:
        first: the modality x, whose mean the gap points to.
        second: the modality y.
        delta: how far the two move towards each other; None for the length of the gap, which closes
            it.
    """

    first: str = "image"
    second: str = "text"
    delta: float | None = None

    kind = "gap-shift"
    centres = True

    def maps(self, data: FitData) -> dict[str, Affine]:
        """Move each modality half the way."""
        unit, length = data.unit_gap(self.first, self.second)
        half = unit * ((length if self.delta is None else self.delta) / 2)
        return {self.first: Affine(centre=half), self.second: Affine(centre=-half)}


@dataclass(eq=False)
class ProjectOutGap(Step):
    """e - (e . u) u: removes the coordinate along the unit gap u.

    Attributes:
        first: one end of the gap.
        second: the other end.
    """

    first: str = "image"
    second: str = "text"

    kind = "project-out-gap"

    def maps(self, data: FitData) -> dict[str, Affine]:
        """Project every modality onto the complement of the gap."""
        unit, _ = data.unit_gap(self.first, self.second)
        return {"": Affine(matrix=np.eye(len(unit)) - np.outer(unit, unit))}


@dataclass(eq=False)
class MatchMoments(Step):
    """(e - mu_y) s_x / s_y + mu_x per dimension, s the population standard deviation (TOMCap,
    2026).

    Moves the modality y (``source``) so that mean and variance of every dimension are those of x
    (``target``); a dimension in which y does not vary takes the mean of x.
    """

    source: str = "image"
    target: str = "text"

    kind = "match-moments"

    def maps(self, data: FitData) -> dict[str, Affine]:
        """Centre, scale by the ratio of the deviations, and move to the other mean."""
        x = data.moments[self.target]
        y = data.moments[self.source]
        x_deviation = np.sqrt(np.diag(x.covariance))
        y_deviation = np.sqrt(np.diag(y.covariance))
        is_constant = y_deviation < np.finfo(np.float64).tiny
        ratio = x_deviation / np.where(is_constant, 1.0, y_deviation)
        scale = np.where(is_constant, 0.0, ratio)
        return {self.source: Affine(centre=y.mean, scale=scale, offset=x.mean)}


@dataclass(eq=False)
class ReAlign(Step):
    """mu_y + sqrt(tr_y / tr_x) (e - mu_x), then norm, then re-centred on mu_y (ReAlign, 2026).

    Moves the modality x (``source``) into the distribution of y (``target``) with unpaired
    statistics alone: anchor (means), trace (variances), and centroid, the last because normalising
    moves the mean again.
    """

    source: str = "image"
    target: str = "text"

    kind = "realign"
    needs_rows = True

    def fit(self, data: FitData) -> None:
        """Keep both means, the ratio of the spreads, and the mean that normalising leaves."""
        super().fit(data)
        target_mean = self.state[f"offset/{self.source}"]
        source_mean = self.state[f"centre/{self.source}"]
        scale = self.state[f"scale/{self.source}"]
        moved = unit_rows((data.rows[self.source] - source_mean) * scale + target_mean)
        self.state["drift"] = moved.mean(axis=0) - target_mean

    def maps(self, data: FitData) -> dict[str, Affine]:
        """Match mean and trace."""
        x = data.moments[self.source]
        y = data.moments[self.target]
        if not np.trace(x.covariance) > 0:
            raise TransformError(
                f"All {self.source} rows are equal, so their spread cannot be matched."
            )
        scale = np.sqrt(np.trace(y.covariance) / np.trace(x.covariance))
        return {self.source: Affine(centre=x.mean, scale=scale, offset=y.mean)}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Match mean and trace, normalise, match the centroid."""
        return (*super().operations(modality), Unit(), Affine(centre=self.state["drift"]))


@dataclass(eq=False)
class _PairedMap(Step):
    """A matrix M fitted on centred pairs: e -> (e - mean_x) M + mean_y, x of ``source`` and y of
    ``target``.
    """

    source: str = "image"
    target: str = "text"

    needs_rows = True
    needs_pairs = True

    def maps(self, data: FitData) -> dict[str, Affine]:
        """Centre the pairs in float64, and fit the matrix on them."""
        source_rows, target_rows = data.pairs_of(self.source, self.target)
        x = source_rows.astype(np.float64)
        y = target_rows.astype(np.float64)
        x_mean = x.mean(axis=0)
        y_mean = y.mean(axis=0)
        matrix = self.matrix(x - x_mean, y - y_mean)
        return {self.source: Affine(centre=x_mean, matrix=matrix, offset=y_mean)}

    def matrix(self, x: Array, y: Array) -> Array:
        """Return the matrix (d, d) from centred pairs, both (n, d)."""
        raise NotImplementedError


@dataclass(eq=False)
class RidgeMap(_PairedMap):
    """Linear map from source to target with least squared error, penalised (ridge regression).

    M = (X^T X + penalty n I)^(-1) X^T Y.

    Attributes:
        penalty: strength of the ridge, per row.
    """

    penalty: Annotated[float, Meta(gt=0)] = 1e-3

    kind = "ridge-map"

    def matrix(self, x: Array, y: Array) -> Array:
        """Solve the normal equations."""
        gram = x.T @ x + self.penalty * len(x) * np.eye(x.shape[1])
        return np.asarray(np.linalg.solve(gram, x.T @ y), dtype=np.float64)


class Procrustes(_PairedMap):
    """Orthogonal map of centred source rows that comes nearest to the target rows (Schönemann,
    1966).

    M = U V^T from the singular vectors of X^T Y. With fewer pairs than dimensions these leave
    directions open, in which any rotation fits equally well: of all solutions the one nearest to
    the identity is taken, and a warning says so.
    """

    kind = "procrustes"

    def matrix(self, x: Array, y: Array) -> Array:
        """Return the orthogonal (d, d) map from centred pairs, both (n, d).

        It comes from the singular vectors of the cross-covariance. Directions that the pairs leave
        open get the rotation nearest to the identity.
        """
        left, values, right = np.linalg.svd(x.T @ y)
        dim = len(values)
        rank = int(np.count_nonzero(values > values[0] * dim * np.finfo(np.float64).eps))
        if rank < dim:
            warnings.warn(
                f"Procrustes is fitted on {len(x)} pairs, which determine only {rank} of {dim} "
                f"dimensions; in the others, the map nearest to the identity is used. Use more "
                f"pairs than dimensions to determine all of them.",
                stacklevel=2,
            )
        # Any basis of the rest: (d, d - rank) and (d - rank, d)
        open_left = left[:, rank:]
        open_right = right[rank:]
        turn, _, back = np.linalg.svd(open_left.T @ open_right.T)
        fitted = left[:, :rank] @ right[:rank]
        return np.asarray(fitted + open_left @ (turn @ back) @ open_right, dtype=np.float64)


@dataclass(eq=False)
class _MemoryStep(Step):
    """A step that compares rows with a memory.

    Attributes:
        memory: the modality whose train rows are the memory.
        tau: temperature; 0 takes the nearest row.
        neighbours: weigh only this many nearest rows; None weighs the whole memory.
        limit: at most this many memory rows, drawn at random (with a fixed seed) from those of the
            train split.
    """

    memory: str = "text"
    tau: Annotated[float, Meta(ge=0)] = 0.01
    neighbours: Annotated[int, Meta(gt=0)] | None = None
    limit: Annotated[int, Meta(gt=0)] = 500_000

    needs_rows = True

    def draw(self, data: FitData) -> tuple[Matrix, Indices]:
        """Return a copy of the rows to keep, because later steps overwrite those they are fitted
        on; and their numbers, ascending.
        """
        rows = data.rows[self.memory]
        numbers = np.arange(len(rows))
        if len(rows) > self.limit:
            rng = generator(0, "memory", self.memory)
            numbers = np.sort(rng.choice(len(rows), self.limit, replace=False))
        return rows[numbers], numbers


@dataclass(eq=False)
class MemoryProjection(_MemoryStep):
    """softmax(cos(e, M) / tau)-weighted mean of a memory M of the other modality (DeCap, Li et al.,
    ICLR 2023).

    With tau 0 it takes the nearest row, which is CLIPRe (Su et al., 2022).

    Attributes:
        source: the modality that is projected.
    """

    source: str = "image"

    kind = "memory-projection"

    def fit(self, data: FitData) -> None:
        """Keep the memory's rows."""
        self.state = {"memory": self.draw(data)[0]}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Attend over the memory."""
        return (MemoryAttention(self.state["memory"], self.tau, self.neighbours),)


@dataclass(eq=False)
class Retrieval(_MemoryStep):
    """e + weight m / |m|, m the softmax(cos(e, M) / tau)-weighted mean of the rows of a memory M
    that are nearest to e.

    The retrieval of IFCap (Lee et al., EMNLP 2024), where texts with noise retrieve training
    captions, with a mix in place of its cross-attention. The memory contains the training captions
    themselves, so in training those of the input's own item are left out; an input without any
    others stays as it is. The memory is kept in float16, because it is most of what a decoder with
    this step takes on the disk.

    Attributes:
        weight: length of the mean that is added to vectors of length 1.
    """

    tau: Annotated[float, Meta(ge=0)] = 0.05
    neighbours: Annotated[int, Meta(gt=0)] = 10
    weight: float = 1.0

    kind = "retrieval"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rows: tuple[object, Matrix] | None = None  # the memory, and as float32

    def fit(self, data: FitData) -> None:
        """Keep the memory's rows, and hashes of their items where these are known."""
        rows, numbers = self.draw(data)
        self.state = {"memory": rows.astype(np.float16)}
        if self.memory in data.items:
            items = data.items[self.memory]
            self.state["items"] = stable_hashes([items[number] for number in numbers])

    def own_items(self, items: Sequence[str] | None, n: int) -> Indices:
        """See `Step.own_items`."""
        if "items" not in self.state or items is None or len(items) != n:
            raise TransformError(
                f"The step retrieval needs the item of each of the {len(self.state['memory']):,} "
                f"{self.memory} rows that it was fitted on, and of each of the {n} training "
                f"inputs, because inputs would otherwise retrieve themselves.",
                remedy=f"Fit on a store, or with fit(..., items={{{self.memory!r}: [...]}}), and "
                f"pass items=, one for "
                "each row; or training=False for inputs that are not in the memory.",
            )
        return stable_hashes(items)

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Add the mean of the nearest rows."""
        memory = self.state["memory"]
        if self._rows is None or self._rows[0] is not memory:
            self._rows = memory, memory.astype(np.float32)
        attention = MemoryAttention(
            memory=self._rows[1],
            tau=self.tau,
            neighbours=self.neighbours,
            weight=self.weight,
            items=self.state.get("items"),
        )
        return (attention,)


@dataclass(eq=False)
class GaussianNoise(Step):
    """e + sigma N(0, I) (Corrupt; C3, Zhang et al., ICLR 2024; CapDec, Nukrai et al., 2022, with
    variance sigma^2).

    Attributes:
        sigma: standard deviation per dimension; ``auto`` or ``pairs`` until the pipeline is fitted
            on captions, with ``pairs`` on some with their images, by the rules of
            `c3tools.transforms.sigma`.
    """

    role: Literal["training"] = field(default="training", kw_only=True)
    sigma: Sigma = PUBLISHED_SIGMA

    kind = "gaussian-noise"
    noisy = True
    fits = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma is not None:
            parse_sigma(self.sigma)

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Add noise, of the shape that was fitted if one was."""
        scale = 1.0 if self.sigma is None else float(self.sigma)
        return (Noise(scale, self.state.get("matrix")),)


@dataclass(eq=False)
class SpanNoise(GaussianNoise):
    """e + sigma (z - (z . u) u): noise without its part along the unit gap u.

    Attributes:
        first: one end of the gap.
        second: the other end.
    """

    first: str = "image"
    second: str = "text"

    kind = "span-noise"
    fits = True

    def fit(self, data: FitData) -> None:
        """Keep the projection onto the complement of the gap."""
        unit, _ = data.unit_gap(self.first, self.second)
        self.state = {"matrix": np.eye(len(unit)) - np.outer(unit, unit)}


@dataclass(eq=False)
class CovarianceNoise(SpanNoise):
    """e + z S^(1/2): noise with the shape of the alignment noise, S the covariance of x_i - y_i
    over pairs.

    The alignment noise of real encoders is not isotropic; this draws from what was measured.

    Attributes:
        first: modality of the x_i.
        second: modality of the y_i.
        sigma: rescale so that the root mean square per dimension is sigma; None keeps the measured
            size.
    """

    sigma: float | None = None  # type: ignore[assignment]

    kind = "covariance-noise"
    needs_rows = True
    needs_pairs = True

    def fit(self, data: FitData) -> None:
        """Keep the symmetric square root of the residuals' covariance, of root mean square 1 if
        sigma is given.
        """
        x, y = data.pairs_of(self.first, self.second)
        residuals = x.astype(np.float64) - y
        residuals -= residuals.mean(axis=0)
        covariance = residuals.T @ residuals / len(residuals)
        if self.sigma is not None:
            covariance /= np.trace(covariance) / len(covariance)
        values, vectors = np.linalg.eigh(covariance)
        self.state = {"matrix": (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T}


@dataclass(eq=False)
class AdaptiveNoise(Step):
    """(1 - l) e + l |e| z / |z| (LAFITE_G, Zhou et al., CVPR 2022): noise in proportion to the
    vector.

    Attributes:
        mix: l, from 0 (no noise) to 1 (nothing but noise); the published value is 0.75.
    """

    role: Literal["training"] = field(default="training", kw_only=True)
    mix: Annotated[float, Meta(ge=0, le=1)] = 0.75

    kind = "adaptive-noise"
    noisy = True
    fits = False

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Mix with a random direction."""
        return (Noise(self.mix, relative=True),)
