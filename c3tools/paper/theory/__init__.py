"""Simulations of the theory of the modality gap: random networks, and contrastive training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...geometry.rounding import rounded
from ...pages import Table, new_figure, palette, save_figure, styled

Run = Mapping[str, Any]
"""The measures of one run, or of one point of it, by name."""


@dataclass
class Simulation:
    """Result of a simulation: runs, or points of one, each with the same measures.

    Attributes:
        runs: the results.
        x: the measure on the horizontal axis of the figure, and its label.
        panels: of the figure: title → label of a curve → the measure that it shows.
        found: the result in words.
        paper: the paper's result, in words.
        settings: what the runs share, for the JSON object.
    """

    runs: Sequence[Run]
    x: tuple[str, str]
    panels: Mapping[str, Mapping[str, str]]
    found: str
    paper: str
    settings: Mapping[str, Any]

    @property
    def table(self) -> Table:
        """The runs in numbers."""
        columns = [name.replace("_", " ") for name in self.runs[0]]
        rows = []
        for run in self.runs:
            cells = []
            for value in run.values():
                if value is None:
                    cells.append("–")
                else:
                    cells.append(f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
            rows.append(cells)
        return Table(columns, rows)

    @property
    @styled
    def figure(self) -> Figure:
        """The runs in a figure; it is drawn at each access."""
        width = 9.4 if len(self.panels) > 1 else 6.4
        figure, grid = new_figure(width, 3.2, columns=len(self.panels), squeeze=False)
        key, label = self.x
        x = [run[key] for run in self.runs]
        for axes, (title, curves) in zip(grid[0], self.panels.items(), strict=True):
            for (name, measure), colour in zip(curves.items(), palette.SERIES, strict=False):
                # None becomes NaN, which is not drawn
                y = np.array([run[measure] for run in self.runs], float)
                axes.plot(x, y, "o-", color=colour, label=name, markersize=4)
            axes.set(title=title, xlabel=label, ylim=(min(0, axes.dataLim.y0), None))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            if len(curves) > 1:
                axes.legend(loc="best")
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Return what `c3 simulate --json` prints."""
        return rounded({**self.settings, "runs": self.runs})  # type: ignore[no-any-return]

    def save_figure(self, path: Path) -> None:
        """Write the figure as SVG, PNG or PDF, by the ending of ``path``."""
        save_figure(self.figure, path)
