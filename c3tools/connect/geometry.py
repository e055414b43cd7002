"""The geometry of the shared space during training: measures of one moment, and a figure of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
def geometry_figure(log: Sequence[Mapping[str, Any]], names: tuple[str, str], kept: int) -> Figure:
    """Draw gap, cosines, recall@1 and dimensions over steps.

    Args:
        log: points with ``step``, ``logit_scale`` and what `Geometry.to_dict` returns, in the order of the steps.
        names: of the two modalities.
        kept: the step whose weights are kept; a dashed line is there.
    """
    figure, grid = new_figure(9.4, 5.2, rows=2, columns=2)
    (gap, cosine), (recall, dimension) = grid
    steps = [point["step"] for point in log]
    gap.plot(steps, [point["gap"] for point in log], color=palette.THIRD, label="gap")
    rmg = [point["rmg"] for point in log]
    gap.plot(steps, rmg, color=palette.FOURTH, linestyle=(0, (4, 2)), label="relative gap (RMG)")
    ends = f"{log[0]['gap']:.2f} at initialisation, {log[-1]['gap']:.2f} at the end"
    gap.set_title(f"Gap: {ends}; dashed: the kept step")
    cosine.plot(steps, [point["paired_cosine"] for point in log], color=palette.FIRST, label="pairs")
    cosine.plot(steps, [point["unpaired_cosine"] for point in log], color=palette.SECOND, label="others")
    scales = dict.fromkeys(f"{point['logit_scale']:.0f}" for point in (log[0], log[-1]))
    cosine.set_title(f"Cosine; logit scale {' to '.join(scales)}")
    for (one, other), colour in zip((names, names[::-1]), (palette.FIRST, palette.SECOND), strict=True):
        hits = [point["recall"][f"{one}_to_{other}"]["recall@1"] for point in log]
        recall.plot(steps, hits, color=colour, label=f"{one} → {other}")
        dimensions = [point["effective_dimension"][one] for point in log]
        dimension.plot(steps, dimensions, color=colour, label=one)
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
