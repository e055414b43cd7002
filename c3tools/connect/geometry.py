"""The geometry of the joint space while it is trained: one point of the log."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..geometry.spectrum import effective_dimension, eigenvalues, gap_vector, relative_gap
from ..metrics.retrieval import pair_recall
from ..moments import Moments

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Geometry:
    """Unit rows of held-out pairs, measured as in docs/geometry.md.

    Attributes:
        gap: distance of the means of the two modalities.
        effective_dimension: of each modality.
        paired_cosine: mean over pairs.
        unpaired_cosine: mean over all combinations that do not match.
        rmg: relative modality gap (Schrodi et al., 2024).
        recall: recall@1, 5 and 10 as fractions, from the first to the second modality and back.
    """

    gap: float
    effective_dimension: tuple[int, int]
    paired_cosine: float
    unpaired_cosine: float
    rmg: float | None
    recall: tuple[dict[str, float], dict[str, float]]

    @property
    def recall_at_1(self) -> float:
        """Mean of recall@1 in the two directions: what checkpoints are chosen by."""
        return (self.recall[0]["recall@1"] + self.recall[1]["recall@1"]) / 2


@dataclass(frozen=True)
class LogPoint:
    """The log at one step.

    Attributes:
        step: optimiser steps done.
        epoch: epochs done.
        loss: mean over the batches since the last point; None before training.
        logit_scale: at this step.
        seconds: of training so far.
        geometry: of the validation pairs.
    """

    step: int
    epoch: int
    loss: float | None
    logit_scale: float
    seconds: float
    geometry: Geometry

    def to_json(self, names: tuple[str, str]) -> dict[str, Any]:
        """The point as JSON values, the two modalities by name."""
        first, second = names
        value = asdict(self)
        geometry = value.pop("geometry")
        geometry["effective_dimension"] = dict(zip(names, geometry["effective_dimension"], strict=True))
        forward, backward = geometry["recall"]
        geometry["recall"] = {f"{first}_to_{second}": forward, f"{second}_to_{first}": backward}
        return {**value, **geometry}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LogPoint:
        """What `to_json` gave."""
        own = {name: value[name] for name in ("step", "epoch", "loss", "logit_scale", "seconds")}
        geometry = Geometry(
            gap=value["gap"],
            effective_dimension=tuple(value["effective_dimension"].values()),
            paired_cosine=value["paired_cosine"],
            unpaired_cosine=value["unpaired_cosine"],
            rmg=value["rmg"],
            recall=tuple(value["recall"].values()),
        )
        return cls(**own, geometry=geometry)


def measure(first: Floats, second: Floats, owner: Indices) -> Geometry:
    """Measure unit rows of items (n, d), and of what belongs to them (m, d); ``owner`` (m,) is the item of each."""
    moments = Moments.from_rows(first), Moments.from_rows(second)
    paired = float(np.einsum("ij,ij->i", first[owner], second, dtype=np.float64).mean())
    total = float((moments[0].n * moments[0].mean) @ (moments[1].n * moments[1].mean))
    rest = len(first) * len(second) - len(second)
    return Geometry(
        gap=float(np.linalg.norm(gap_vector(*moments))),
        effective_dimension=(
            effective_dimension(eigenvalues(moments[0].covariance)),
            effective_dimension(eigenvalues(moments[1].covariance)),
        ),
        paired_cosine=paired,
        unpaired_cosine=(total - paired * len(second)) / rest if rest else paired,
        rmg=relative_gap(paired, *moments),
        recall=pair_recall(first, second, owner),
    )
