"""Simulations of the theory of the modality gap: random networks, and contrastive training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ...pages import Table, figure_svg, new_figure, save_figure, styled

Curve = tuple[npt.ArrayLike, npt.ArrayLike, str, Any, str]  # x, y, style of line and dots, colour, label


@dataclass
class Panel:
    """One of the axes of a figure.

    Attributes:
        title: above the axes.
        xlabel: below them.
        curves: what is drawn.
        options: of the axes. A linear vertical axis starts at 0.
    """

    title: str
    xlabel: str
    curves: Sequence[Curve]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Simulation:
    """Result of a simulation: runs, or points of one, each with the same measures.

    Attributes:
        name: of the simulation, as `c3 simulate` has it.
        runs: the results.
        columns: of the table: heading → the cell, with the attributes of a run: ``{0.loss:.3f}``.
        values: the JSON object.
        panels: of the figure.
        found: the result in words.
        paper: the paper's result, in words.
    """

    name: str
    runs: Sequence[object]
    columns: Mapping[str, str]
    values: dict[str, Any]
    panels: Sequence[Panel]
    found: str
    paper: str

    @property
    def table(self) -> Table:
        """The runs in numbers."""
        return Table(list(self.columns), [[cell.format(run) for cell in self.columns.values()] for run in self.runs])

    @property
    def figure(self) -> Figure:
        """The runs in a figure; it is drawn at each access."""
        return _draw(self.panels)

    def to_dict(self) -> dict[str, Any]:
        """Return what `c3 simulate --json` prints."""
        return self.values

    def save_figure(self, path: Path) -> None:
        """Write the figure as SVG, PNG or PDF, by the ending of ``path``."""
        save_figure(self.figure, path)

    def _repr_html_(self) -> str:
        figure = figure_svg(self.figure, name=self.name, label=self.found)
        words = Markup("<p>{}</p><p>The paper: {}</p>").format(self.found, self.paper)
        return f"{self.table._repr_html_()}{words}{figure}"


@styled
def _draw(panels: Sequence[Panel]) -> Figure:
    figure, grid = new_figure(9.4 if len(panels) > 1 else 6.4, 3.2, columns=len(panels), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        for x, y, style, colour, label in panel.curves:
            axes.plot(x, y, style, color=colour, label=label, markersize=4)
        axes.set(title=panel.title, xlabel=panel.xlabel, **panel.options)
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        if axes.get_yscale() == "linear":
            axes.set_ylim(0, 1.08 * axes.dataLim.y1)
        if axes.get_xscale() == "linear":
            whole = all(float(value).is_integer() for x, *_ in panel.curves for value in np.asarray(x))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole, steps=[1, 2, 5, 10]))
        if any(label for *_, label in panel.curves):
            axes.legend(loc="best")
    return figure
