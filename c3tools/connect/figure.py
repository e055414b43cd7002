"""The log of a training as a figure: what becomes of the gap, of the cosines, of retrieval, and of the dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..pages import new_figure, palette, styled
from .geometry import LogPoint


@styled
def geometry_figure(log: Sequence[LogPoint], names: tuple[str, str], kept: int) -> Figure:
    """Four panels over steps; the dashed line is the step whose weights are kept."""
    figure, grid = new_figure(9.4, 5.2, rows=2, columns=2)
    (gap, cosine), (recall, dimension) = grid
    steps = [point.step for point in log]
    found = [point.geometry for point in log]
    first, second = names
    gap.plot(steps, [g.gap for g in found], color=palette.THIRD, label="gap")
    gap.plot(steps, [g.rmg for g in found], color=palette.FOURTH, linestyle=(0, (4, 2)), label="relative gap (RMG)")
    gap.set_title(f"Gap: {found[0].gap:.2f} at initialisation, {found[-1].gap:.2f} at the end; dashed: kept")
    cosine.plot(steps, [g.paired_cosine for g in found], color=palette.FIRST, label="pairs")
    cosine.plot(steps, [g.unpaired_cosine for g in found], color=palette.SECOND, label="others")
    scales = dict.fromkeys(f"{point.logit_scale:.0f}" for point in (log[0], log[-1]))
    cosine.set_title(f"Cosine; logit scale {' to '.join(scales)}")
    for forward, label, colour in (
        (0, f"{first} → {second}", palette.FIRST),
        (1, f"{second} → {first}", palette.SECOND),
    ):
        recall.plot(steps, [g.recall[forward]["recall@1"] for g in found], color=colour, label=label)
    recall.set_title("Recall@1 among the validation pairs")
    for side, (name, colour) in enumerate(zip(names, (palette.FIRST, palette.SECOND), strict=True)):
        dimension.plot(steps, [g.effective_dimension[side] for g in found], color=colour, label=name)
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
