"""The geometry of the shared space during training: measures at one step, and a figure over all
steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..arrays import Indices, Matrix
from ..geometry.measures import effective_dimension, eigenvalues, relative_gap
from ..metrics.retrieval import pair_hits
from ..moments import Moments
from ..pages import new_figure, palette, styled


def measure(
    first: Matrix, second: Matrix, item_index: Indices, names: tuple[str, str]
) -> dict[str, Any]:
    """Measure unit rows of items (n, d), and of what belongs to them (m, d), as in
    docs/reference/gap-report.md.

    Args:
        first: one row per item.
        second: any number of rows per item.
        item_index: int64 (m,), the row of ``first`` that each row of ``second`` belongs to.
        names: of the two modalities.

    Returns:
        JSON values: the distance of the means (``gap``), ``effective_dimension`` by modality, the
        mean cosine of pairs and of all other combinations, the relative modality gap (``rmg``;
        Schrodi et al., 2024), and by direction ``recall`` at 1, 5 and 10 as fractions.
    """
    first_moments = Moments.from_rows(first)
    second_moments = Moments.from_rows(second)
    dimensions = {}
    for name, moments in zip(names, (first_moments, second_moments), strict=True):
        dimensions[name] = effective_dimension(eigenvalues(moments.covariance))

    paired_cosine = float(np.einsum("ij,ij->i", first[item_index], second, dtype=np.float64).mean())
    first_total = first_moments.n * first_moments.mean
    second_total = second_moments.n * second_moments.mean
    total = float(first_total @ second_total)
    unpaired_count = len(first) * len(second) - len(second)
    unpaired_cosine = paired_cosine
    if unpaired_count:
        unpaired_cosine = (total - paired_cosine * len(second)) / unpaired_count

    recall = {}
    directions = ("_to_".join(names), "_to_".join(names[::-1]))
    all_hits = pair_hits(first, second, item_index)
    for direction, hits in zip(directions, all_hits, strict=True):
        recall[direction] = {name: float(values.mean()) for name, values in hits.items()}
    return {
        "gap": float(np.linalg.norm(first_moments.mean - second_moments.mean)),
        "effective_dimension": dimensions,
        "paired_cosine": paired_cosine,
        "unpaired_cosine": unpaired_cosine,
        "rmg": relative_gap(paired_cosine, first_moments, second_moments),
        "recall": recall,
    }


@styled
def geometry_figure(log: Sequence[Mapping[str, Any]], names: tuple[str, str], kept: int) -> Figure:
    """Draw gap, cosines, recall@1 and dimensions over steps.

    Args:
        log: points with ``step``, ``logit_scale`` and what `measure` returns, in the order of the
            steps.
        names: of the two modalities.
        kept: the step whose weights are kept; a dashed line is there.
    """
    steps = [point["step"] for point in log]
    start, end = log[0], log[-1]
    panels = (
        (
            f"Gap: {start['gap']:.2f} at initialisation, {end['gap']:.2f} at the end; dashed: the "
            f"kept step",
            {"gap": "gap", "rmg": "relative gap (RMG)"},
            log,
        ),
        (
            f"Cosine; logit scale {start['logit_scale']:.0f} to {end['logit_scale']:.0f}",
            {"paired_cosine": "pairs", "unpaired_cosine": "others"},
            log,
        ),
        (
            "Recall@1 among the validation pairs",
            {f"{a}_to_{b}": f"{a} → {b}" for a, b in (names, names[::-1])},
            [{way: recall["recall@1"] for way, recall in point["recall"].items()} for point in log],
        ),
        (
            "Effective dimension (99%)",
            {name: name for name in names},
            [point["effective_dimension"] for point in log],
        ),
    )
    figure, grid = new_figure(9.4, 5.2, 2, 2)
    for axes, (title, labels, points) in zip(grid.flat, panels, strict=True):
        for (key, label), colour in zip(
            labels.items(), (palette.FIRST, palette.SECOND), strict=True
        ):
            axes.plot(steps, [point[key] for point in points], color=colour, label=label)
        axes.set(title=title, xlabel="step")
        axes.axvline(kept, color=palette.MUTED, linewidth=0.9, linestyle="--")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params("x", nbins=5, integer=True)
        axes.legend()
        if "paired_cosine" not in labels:
            axes.set_ylim(bottom=0)
    return figure
