"""The figures of the gap report: matplotlib figures in the style of c3tools.pages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..arrays import Array
from ..pages import FigureBlock, close_up, figure_svg, new_figure, palette, styled
from ..seeds import generator
from .collect import Sample
from .measures import EDGES, ModalityMeasures, row_cosines
from .spaces import RAW
from .verdict import Measured

MAX_POINTS = 160
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_COLOURS = (palette.FIRST, palette.SECOND)
_WIDE = ("spectra", "projection")
_PROJECTION = (
    "The two main axes of both modalities together. Before Collapse, the first axis is mostly the "
    "gap. After it, both "
    "modalities occupy the same region, and the remaining lines are alignment noise."
)


def figure_blocks(report: Measured, prefix: str = "gap") -> dict[str, FigureBlock]:
    """Return the figures of a report as blocks of a page; ``prefix`` keeps their ids apart from
    others on the page.
    """
    return {
        name: FigureBlock(
            figure_svg(figure, name=f"{prefix}-{name}", label=label),
            _PROJECTION if name == "projection" else "",
            wide=name in _WIDE,
        )
        for name, (figure, label) in all_figures(report).items()
    }


@styled
def all_figures(report: Measured) -> dict[str, tuple[Figure, str]]:
    """Draw every figure that the data allow: name → (figure, label for screen readers).

    The first six are those of the paper: length, direction and orthogonality of the gap, and the
    alignment noise.
    """
    data, noise, pairs = report.collected, report.noise, report.pairs
    if data is None or report.gap is None:
        return {"spectra": _spectra(report.modalities)}
    figures, sample = dict[str, tuple[Figure, str]](), data.sample
    groups = sample.sums.group_means if sample.paired else np.empty((0, 1))
    if len(groups) > 1:
        lengths = np.linalg.norm(groups, axis=1)
        label = f"norm of the mean of {sample.group_size} pairs"
        ends = 0.0, max(1.0, float(lengths.max()) * 1.1)
        figures["gap-length"] = _histogram(
            "Gap length", label, {"": lengths}, ends, line=report.gap.length.value
        )
        cosines = row_cosines(groups[:-1], groups[1:])
        figures["gap-direction"] = _histogram(
            "Gap direction", "cosine with the next group", {"": cosines}
        )
    if any(len(values) for values in report.orthogonal.values()):
        label = "cosine of differences with the gap"
        figures["orthogonality"] = _histogram(
            "Gap orthogonality", label, report.orthogonal, bins=80
        )
    if noise and pairs:
        figure, axes = new_figure(3.05, 2.2)
        axes.stairs(noise.marginals, EDGES, fill=True, color=palette.THIRD_SOFT)
        z = np.linspace(-4, 4, 121)
        axes.plot(z, np.exp(-z * z / 2) / np.sqrt(2 * np.pi), color=palette.INK, linewidth=1.1)
        axes.set(
            title="Noise: Gaussian?",
            xlabel="standardised residual; line: normal",
            yticks=[],
            xlim=(-4, 4),
        )
        figures["noise-marginals"] = figure, "Alignment noise against a normal distribution"
        title, label = "Noise: same size everywhere?", "standard deviation per dimension; line: rms"
        ends, line = (0.0, noise.std_largest * 1.05 or 1.0), pairs.residual_rms.value
        figures["noise-size"] = _histogram(
            title, label, {"": noise.per_dimension}, ends, bins=50, line=line
        )
        label = "cosine between residuals of two items"
        figures["noise-direction"] = _histogram(
            "Noise direction", label, {"": noise.cosines}, bins=80
        )
    figures["spectra"] = _spectra(report.modalities)
    figures["projection"] = _projection(report, data.working)
    return figures


def _histogram(
    title: str,
    label: str,
    groups: Mapping[str, Array],
    ends: tuple[float, float] = (-1.0, 1.0),
    *,
    bins: int = 60,
    line: float | None = None,
) -> tuple[Figure, str]:
    """Draw shares rather than counts, so that groups of different sizes compare; outlined, as they
    may overlap.

    Values beyond the ends of the axis count at the ends; ``line`` is a value to mark.
    """
    figure, axes = new_figure(3.05, 2.2)
    edges = np.linspace(*ends, bins + 1)
    for (name, values), colour in zip(
        groups.items(), _COLOURS if len(groups) > 1 else (palette.THIRD,), strict=True
    ):
        share = np.histogram(np.clip(values, *ends), bins=edges)[0] / max(len(values), 1)
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(share, edges, color=colour, linewidth=1.1, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set(title=title, xlabel=label, yticks=[], xlim=ends, ylim=(0, None))
    if line is not None:
        axes.axvline(line, color=palette.INK, linewidth=1)
    if len(groups) > 1:
        axes.legend(loc="upper left", handlelength=1.2)
    return figure, f"{title}: histogram of the {label}"


def _spectra(modalities: Mapping[str, ModalityMeasures]) -> tuple[Figure, str]:
    """Draw the covariance eigenvalues and their cumulative share, the effective dimensions
    marked.
    """
    figure, (left, right) = new_figure(9.4, 3.1, columns=2)
    lowest = min(found.effective_dimension for found in modalities.values())
    for (name, found), colour in zip(modalities.items(), _COLOURS, strict=False):
        values, k = (
            found.spectrum[found.spectrum > found.spectrum[0] * 1e-9],
            found.effective_dimension,
        )
        share = np.cumsum(found.spectrum) / max(found.spectrum.sum(), 1e-30)
        left.plot(np.arange(1, len(values) + 1), values, color=colour, label=name)
        right.plot(np.arange(1, len(share) + 1), share, color=colour, label=name)
        if k:
            left.plot([k], [found.spectrum[k - 1]], "o", color=colour, markersize=5)
            right.plot([k], [share[k - 1]], "o", color=colour, markersize=5)
            side, place = ("right", (-2, -13)) if k <= lowest else ("left", (2, -13))
            right.annotate(
                f"{k}", (k, share[k - 1]), place, textcoords="offset points", color=colour, ha=side
            )
    left.set_yscale("log")
    left.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"10{f'{np.log10(value):.0f}'.translate(_RAISED)}")
    )
    left.yaxis.set_minor_formatter(NullFormatter())
    dim = max(found.dim for found in modalities.values())
    left.set(title="Spectrum", xlabel="dimension, by size", ylabel="variance", xlim=(0, dim))
    right.axhline(0.99, color=palette.MUTED, linewidth=0.8, linestyle="--")
    title = "Share explained; dots: effective dimension (99 %)"
    right.set(title=title, xlabel="number of dimensions", xlim=(0, dim), ylim=(0, 1.03))
    left.legend()
    return figure, f"Covariance spectra: {' and '.join(modalities)}"


def _projection(report: Measured, working: Sample) -> tuple[Figure, str]:
    """Draw both modalities on their two main axes, pairs joined, before and after Collapse."""
    rng = generator(0, "projection")
    if working.paired:  # pairs of different items
        items, rows = np.unique(working.item_index, return_index=True)
        drawn = np.sort(rng.permutation(len(items))[:MAX_POINTS])
        chosen = [items[drawn], rows[drawn]]
    else:
        chosen = [
            rng.permutation(len(rows))[:MAX_POINTS] for rows in (working.first, working.second)
        ]
    figure, panels = new_figure(9.4, 3.9, columns=len(report.transformed), squeeze=False)
    for axes, (space, sides) in zip(panels[0], report.transformed.items(), strict=True):
        both = np.concatenate(sides).astype(np.float64)
        mean = both.mean(axis=0)
        both -= mean
        plane = np.linalg.eigh(both.T @ both)[1][:, :-3:-1]
        # the signs of eigenvectors are arbitrary: make the larger component positive, so that runs
        # agree
        plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])
        points = [
            (rows[numbers] - mean) @ plane for rows, numbers in zip(sides, chosen, strict=True)
        ]
        if working.paired:
            lines = LineCollection(
                [*np.stack(points, axis=1)], colors=palette.RULE, linewidths=0.7, zorder=1
            )
            axes.add_collection(lines)
        for own, name, colour in zip(points, report.modalities, _COLOURS, strict=True):
            axes.scatter(*own.T, s=11, color=colour, linewidths=0, zorder=2, label=name)
        axes.set_title("Before" if space == RAW else "After Collapse")
        axes.set_aspect("equal", adjustable="datalim")
        close_up(axes, ticks=False)
    panels[0][0].legend(loc="upper left", markerscale=1.6)
    return figure, f"{' and '.join(report.modalities)} in two dimensions, before and after Collapse"
