"""What a step is, and what it is fitted on.

A step is a small dataclass: its fields are its settings (saved in the recipe), `state` holds what it fitted
(saved as tensors). Steps are fitted in order, each on what the steps before it leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..errors import TransformError
from ..moments import Moments
from .operations import Array, Operation, Rows

Role = Literal["training", "inference", "both"]
State = dict[str, npt.NDArray[np.generic]]


@dataclass(eq=False)
class FitData:
    """What a step is fitted on: statistics and rows of the vectors that reach it.

    Attributes:
        moments: of each modality; empty once a non-linear step made them unknown.
        rows: float32 (n, d) of each modality; rows of two modalities are pairs, in the same order.
        gap_from: the moments that the modality gap is taken from: those of the vectors that enter the pipeline,
            since a step after Collapse would find no gap.
    """

    moments: dict[str, Moments] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    gap_from: dict[str, Moments] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        for moments in self.moments.values():
            return moments.dim
        for rows in self.rows.values():
            return int(rows.shape[1])
        raise TransformError("There is nothing to fit on: neither moments nor rows were given.")

    def moments_of(self, modality: str, step: str) -> Moments:
        """Moments of one modality, or an error that says what the step lacks."""
        return self._moments_in(self.moments, modality, step)

    def _moments_in(self, moments: dict[str, Moments], modality: str, step: str) -> Moments:
        if modality in moments:
            return moments[modality]
        known = ", ".join(sorted(moments)) or "nothing"
        raise TransformError(
            f"The step {step} needs the moments of {modality!r}; it was given those of {known}.",
            remedy=f"Fit on a store that has {modality} rows in its train split, or load their means with "
            "`c3 means --load`.",
        )

    def rows_of(self, modality: str, step: str) -> Rows:
        """Rows of one modality, or an error that says what the step lacks."""
        if modality not in self.rows or len(self.rows[modality]) == 0:
            raise TransformError(
                f"The step {step} is fitted on {modality} rows, not on moments, and none were given.",
                remedy=f"Pass rows={{{modality!r}: array}} to fit(); `c3 export` takes them from the train split.",
            )
        return self.rows[modality]

    def pairs_of(self, first: str, second: str, step: str) -> tuple[Rows, Rows]:
        """Paired rows of two modalities, or an error that says what the step lacks."""
        x, y = self.rows_of(first, step), self.rows_of(second, step)
        if len(x) != len(y):
            raise TransformError(
                f"The step {step} needs pairs; there are {len(x)} {first} rows and {len(y)} {second} rows.",
                remedy="Pass rows in which row i of the one belongs to row i of the other.",
            )
        return x, y

    def unit_gap(self, first: str, second: str, step: str) -> tuple[Array, float]:
        """Direction (d,) and length of ``mean(first) - mean(second)`` of the vectors that enter the pipeline."""
        ends = [self._moments_in(self.gap_from, modality, step).mean for modality in (first, second)]
        gap = ends[0] - ends[1]
        length = float(np.linalg.norm(gap))
        if length < 1e-9:
            raise TransformError(
                f"The step {step} needs a modality gap, and the means of {first} and {second} are the same.",
                remedy="Fit on embeddings that are not centred yet.",
            )
        return gap / length, length


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
        self.state: State = {}
        if self.modalities is not None:
            self.modalities = tuple(self.modalities)
        if self.role not in ("training", "inference", "both"):
            raise TransformError(
                f"The step {self.kind} has the role {self.role!r}.", remedy="Roles are training, inference and both."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The fields, as saved in the recipe."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def fitted(self) -> bool:
        """Whether the step can be applied."""
        return not self.fits or bool(self.state)

    def applies(self, modality: str, training: bool) -> bool:
        """Whether the step takes part for inputs of this modality and role."""
        return self.role in ("both", "training" if training else "inference") and (
            self.modalities is None or modality in self.modalities
        )

    def fit(self, data: FitData) -> None:
        """Fill ``state`` from ``data``."""

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """What the fitted step does to rows of ``modality``."""
        raise NotImplementedError

    def tensor(self, name: str, modality: str | None = None) -> Array:
        """A fitted tensor, or an error that names the modalities that were fitted."""
        key = name if modality is None else f"{name}/{modality}"
        if key not in self.state:
            known = sorted(k.partition("/")[2] for k in self.state if k.startswith(f"{name}/"))
            raise TransformError(
                f"The step {self.kind} is not fitted for the modality {modality!r}; it knows {', '.join(known)}.",
                remedy=f"Fit on {modality} embeddings too, or load their means with `c3 means --load`.",
            )
        return self.state[key]  # type: ignore[return-value]

    def _chosen(self, data: FitData) -> list[str]:
        names = self.modalities if self.modalities is not None else tuple(sorted(data.moments))
        present = [name for name in names if name in data.moments]
        if not present:
            data.moments_of(names[0] if names else "text", self.kind)
        return present


def registry(*steps: type[Step]) -> Mapping[str, type[Step]]:
    """Step classes by their kind."""
    return {step.kind: step for step in steps}
