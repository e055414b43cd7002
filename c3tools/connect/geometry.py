"""The geometry of the shared space during training: the log entries as values, JSON and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..arrays import Indices, Matrix
from ..geometry.spectrum import effective_dimension, eigenvalues, gap_vector, relative_gap
from ..metrics.retrieval import pair_recall
from ..moments import Moments
from ..pages import new_figure, palette, styled


@dataclass(frozen=True)
class Geometry:
    """Gap, cosines, dimensions and recall of held-out pairs, measured as in docs/reference/geometry.md.

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
        """Mean of recall@1 in the two directions, which checkpoints are chosen by."""
        return (self.recall[0]["recall@1"] + self.recall[1]["recall@1"]) / 2

    def to_dict(self, names: tuple[str, str]) -> dict[str, Any]:
        """Return the measures as JSON values, the two modalities by name."""
        first, second = names
        forward, backward = self.recall
        return {
            "gap": self.gap,
            "effective_dimension": dict(zip(names, self.effective_dimension, strict=True)),
            "paired_cosine": self.paired_cosine,
            "unpaired_cosine": self.unpaired_cosine,
            "rmg": self.rmg,
            "recall": {f"{first}_to_{second}": forward, f"{second}_to_{first}": backward},
        }


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

    def to_dict(self, names: tuple[str, str]) -> dict[str, Any]:
        """Return the point as JSON values, the two modalities by name."""
        own = {"step": self.step, "epoch": self.epoch, "loss": self.loss, "logit_scale": self.logit_scale}
        return {**own, "seconds": self.seconds, **self.geometry.to_dict(names)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> LogPoint:
        """Read what `to_dict` returned."""
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


def measure(first: Matrix, second: Matrix, item_index: Indices) -> Geometry:
    """Measure unit rows of items (n, d), and of what belongs to them (m, d).

    Args:
        first: one row per item.
        second: any number of rows per item.
        item_index: int64 (m,), the row of ``first`` that each row of ``second`` belongs to.
    """
    moments = Moments.from_rows(first), Moments.from_rows(second)
    dimensions = [effective_dimension(eigenvalues(side.covariance)) for side in moments]
    paired = float(np.einsum("ij,ij->i", first[item_index], second, dtype=np.float64).mean())
    total = float((moments[0].n * moments[0].mean) @ (moments[1].n * moments[1].mean))
    rest = len(first) * len(second) - len(second)
    return Geometry(
        gap=float(np.linalg.norm(gap_vector(*moments))),
        effective_dimension=(dimensions[0], dimensions[1]),
        paired_cosine=paired,
        unpaired_cosine=(total - paired * len(second)) / rest if rest else paired,
        rmg=relative_gap(paired, *moments),
        recall=pair_recall(first, second, item_index),
    )


@styled
def geometry_figure(log: Sequence[LogPoint], names: tuple[str, str], kept: int) -> Figure:
    """Draw gap, cosines, recall@1 and dimensions over steps; a dashed line is at the step whose weights are kept."""
    figure, grid = new_figure(9.4, 5.2, rows=2, columns=2)
    (gap, cosine), (recall, dimension) = grid
    steps = [point.step for point in log]
    found = [point.geometry for point in log]
    gap.plot(steps, [g.gap for g in found], color=palette.THIRD, label="gap")
    gap.plot(steps, [g.rmg for g in found], color=palette.FOURTH, linestyle=(0, (4, 2)), label="relative gap (RMG)")
    gap.set_title(f"Gap: {found[0].gap:.2f} at initialisation, {found[-1].gap:.2f} at the end; dashed: the kept step")
    cosine.plot(steps, [g.paired_cosine for g in found], color=palette.FIRST, label="pairs")
    cosine.plot(steps, [g.unpaired_cosine for g in found], color=palette.SECOND, label="others")
    scales = dict.fromkeys(f"{point.logit_scale:.0f}" for point in (log[0], log[-1]))
    cosine.set_title(f"Cosine; logit scale {' to '.join(scales)}")
    for side, colour in enumerate((palette.FIRST, palette.SECOND)):
        label = f"{names[side]} → {names[1 - side]}"
        recall.plot(steps, [g.recall[side]["recall@1"] for g in found], color=colour, label=label)
        dimension.plot(steps, [g.effective_dimension[side] for g in found], color=colour, label=names[side])
    recall.set_title("Recall@1 among the validation pairs")
    dimension.set_title("Effective dimension (99 %)")
    for axes in grid.flat:
        axes.axvline(kept, color=palette.MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="best")
    for axes in (gap, recall, dimension):
        axes.set_ylim(bottom=0)
    return figure
