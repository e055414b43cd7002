"""Figures in one style, as inline SVG that follows the page's light or dark colours, or as
files.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import C3Error
from ..io.outputs import write_output
from . import palette

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8.5,
    "axes.labelcolor": palette.MUTED,
    "axes.edgecolor": palette.RULE,
    "axes.titlecolor": palette.INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.prop_cycle": cycler(color=palette.SERIES),
    "grid.color": palette.RULE,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": palette.INK,
    "lines.linewidth": 1.6,
    "patch.linewidth": 0,
    "text.color": palette.INK,
    "text.parse_math": False,
    "xtick.color": palette.RULE,
    "ytick.color": palette.RULE,
    "xtick.labelcolor": palette.MUTED,
    "ytick.labelcolor": palette.MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "c3tools",
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


styled = mpl.rc_context(_STYLE)
"""Decorator of a function that draws, so that titles, labels and legends get the shared style
too."""


@styled
def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any
) -> tuple[Figure, Any]:
    """Make a figure in the shared style.

    Args:
        width: in inches (a page column is about 4.6, the full width about 9.4).
        height: in inches.
        rows: of axes.
        columns: of axes.
        grid: passed on to `Figure.subplots`.

    Returns:
        The figure, and its axes: one `Axes`, or an array of them.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **grid)


def close_up(axes: Axes, *, ticks: bool = True) -> None:
    """Tidy axes that show positions rather than amounts: without a grid, and if wanted without
    ticks.
    """
    axes.grid(False)
    if not ticks:
        axes.set(xticks=[], yticks=[])


@styled
def figure_svg(figure: Figure, *, name: str, label: str) -> Markup:
    """Return the figure as inline SVG, its colours and font as CSS variables.

    Args:
        figure: made by `new_figure`.
        name: unique in the page; prefixes every id, so that figures do not clip or fill each other.
        label: what the figure shows, for screen readers.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for role, (light, _) in palette.ROLES.items():
        svg = svg.replace(light, f"var(--{role})")
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "var(--sans)", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    head = f'<svg role="img" aria-label="{escape(label)}" '
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda match: f"{head}{match[1]}>", svg)
    return Markup(svg)


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as PNG (200 dpi), SVG or PDF, chosen by the ending of ``path`` (or URL), in
    the light colours.

    Raises:
        C3Error: for another ending.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise C3Error(f"A figure must be .png, .svg or .pdf, not {path.name}.")
    content = io.BytesIO()
    # Without dates and versions, so that the same figure gives the same bytes
    metadata = {
        "png": {"Software": None},
        "svg": _NO_METADATA,
        "pdf": {"CreationDate": None},
    }[kind]
    with mpl.rc_context({**_STYLE, "svg.fonttype": "path"}):
        figure.savefig(content, format=kind, dpi=200, facecolor=palette.PAPER, metadata=metadata)
    write_output(path, ".svg", lambda temporary: temporary.write_bytes(content.getvalue()))
