"""Simulations of the theory of the modality gap: each file is one of them, and returns a `Simulation`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from ...pages import Table, figure_svg, save_figure


@dataclass
class Simulation:
    """Result of a simulation.

    Attributes:
        name: of the simulation, as `c3 simulate` has it.
        table: the result in numbers.
        values: the JSON object.
        figure: the result in a figure.
        found: the result in words.
        paper: the paper's result, in words.
    """

    name: str
    table: Table
    values: dict[str, Any]
    figure: Figure
    found: str
    paper: str

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
