"""The figures of the gap report: matplotlib figures in the style of c3tools.pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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


class LabelledFigure(NamedTuple):
    """A figure, and its label for screen readers."""

    figure: Figure
    label: str


def figure_blocks(report: Measured, prefix: str = "gap") -> dict[str, FigureBlock]:
    """Return the figures of a report as blocks of a page; ``prefix`` keeps their ids apart from
    others on the page.
    """
    blocks = {}
    for name, (figure, label) in all_figures(report).items():
        svg = figure_svg(figure, name=f"{prefix}-{name}", label=label)
        caption = _PROJECTION if name == "projection" else ""
        blocks[name] = FigureBlock(svg, caption, wide=name in _WIDE)
    return blocks


@styled
def all_figures(report: Measured) -> dict[str, LabelledFigure]:
    """Draw every figure that the data allow, by name.

    The first six are those of the paper: length, direction and orthogonality of the gap, and the
    alignment noise.
    """
    data = report.collected
    if data is None or report.gap is None:
        return {"spectra": _spectra(report.modalities)}
    figures = {}

    # How length and direction of the gap vary along the store
    sample = data.sample
    if sample.paired and len(sample.sums.group_means) > 1:
        groups = sample.sums.group_means
        lengths = np.linalg.norm(groups, axis=1)
        figures["gap-length"] = _histogram(
            "Gap length",
            f"norm of the mean of {sample.group_size} pairs",
            {"": lengths},
            ends=(0.0, max(1.0, float(lengths.max()) * 1.1)),
            line=report.gap.length.value,
        )
        cosines = row_cosines(groups[:-1], groups[1:])
        figures["gap-direction"] = _histogram(
            "Gap direction", "cosine with the next group", {"": cosines}
        )
    if any(len(values) for values in report.orthogonal.values()):
        figures["orthogonality"] = _histogram(
            "Gap orthogonality", "cosine of differences with the gap", report.orthogonal, bins=80
        )

    # The alignment noise: its marginals, its size by dimension, its direction
    noise = report.noise
    if noise is not None and report.pairs is not None:
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
        label = "Alignment noise against a normal distribution"
        figures["noise-marginals"] = LabelledFigure(figure, label)
        figures["noise-size"] = _histogram(
            "Noise: same size everywhere?",
            "standard deviation per dimension; line: rms",
            {"": noise.per_dimension},
            ends=(0.0, noise.std_largest * 1.05 or 1.0),
            bins=50,
            line=report.pairs.residual_rms.value,
        )
        figures["noise-direction"] = _histogram(
            "Noise direction", "cosine between residuals of two items", {"": noise.cosines}, bins=80
        )
    figures["spectra"] = _spectra(report.modalities)
    figures["projection"] = _projection(report, data.working)
    return figures


def _histogram(
    title: str,
    label: str,
    groups: Mapping[str, Array],
    *,
    ends: tuple[float, float] = (-1.0, 1.0),
    bins: int = 60,
    line: float | None = None,
) -> LabelledFigure:
    """Draw shares rather than counts, so that groups of different sizes compare; outlined, as they
    may overlap.

    The names of several groups stand in a legend; a single group needs none. Values beyond the ends
    of the axis count at the ends; ``line`` is a value to mark.
    """
    figure, axes = new_figure(3.05, 2.2)
    edges = np.linspace(*ends, bins + 1)
    colours = _COLOURS if len(groups) > 1 else (palette.THIRD,)
    for (name, values), colour in zip(groups.items(), colours, strict=True):
        counts, _ = np.histogram(np.clip(values, *ends), bins=edges)
        shares = counts / max(len(values), 1)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(shares, edges, color=colour, linewidth=1.1, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set(title=title, xlabel=label, yticks=[], xlim=ends, ylim=(0, None))
    if line is not None:
        axes.axvline(line, color=palette.INK, linewidth=1)
    if len(groups) > 1:
        axes.legend(loc="upper left", handlelength=1.2)
    return LabelledFigure(figure, f"{title}: histogram of the {label}")


def _spectra(modalities: Mapping[str, ModalityMeasures]) -> LabelledFigure:
    """Draw the covariance eigenvalues and their cumulative share, the effective dimensions
    marked.
    """
    figure, (left, right) = new_figure(9.4, 3.1, columns=2)
    lowest = min(measures.effective_dimension for measures in modalities.values())
    for (name, measures), colour in zip(modalities.items(), _COLOURS, strict=False):
        spectrum = measures.spectrum
        values = spectrum[spectrum > spectrum[0] * 1e-9]
        share = np.cumsum(spectrum) / max(spectrum.sum(), 1e-30)
        left.plot(np.arange(1, len(values) + 1), values, color=colour, label=name)
        right.plot(np.arange(1, len(share) + 1), share, color=colour, label=name)

        # A dot at the effective dimension k, which is 0 if there is no variance
        k = measures.effective_dimension
        if k == 0:
            continue
        left.plot([k], [spectrum[k - 1]], "o", color=colour, markersize=5)
        right.plot([k], [share[k - 1]], "o", color=colour, markersize=5)
        # The lower dimension is written left of its dot, the other one right of it
        is_lowest = k <= lowest
        right.annotate(
            f"{k}",
            (k, share[k - 1]),
            (-2, -13) if is_lowest else (2, -13),
            textcoords="offset points",
            color=colour,
            ha="right" if is_lowest else "left",
        )

    def power_of_ten(value: float, _: int | None) -> str:
        exponent = f"{np.log10(value):.0f}"
        return f"10{exponent.translate(_RAISED)}"  # such as 10⁻³

    # Axes: the eigenvalues on the left, their cumulative share on the right
    left.set_yscale("log")
    left.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
    left.yaxis.set_minor_formatter(NullFormatter())
    dim = max(measures.dim for measures in modalities.values())
    left.set(title="Spectrum", xlabel="dimension, by size", ylabel="variance", xlim=(0, dim))
    left.legend()
    right.axhline(0.99, color=palette.MUTED, linewidth=0.8, linestyle="--")
    title = "Share explained; dots: effective dimension (99%)"
    right.set(title=title, xlabel="number of dimensions", xlim=(0, dim), ylim=(0, 1.03))
    return LabelledFigure(figure, f"Covariance spectra: {' and '.join(modalities)}")


def _projection(report: Measured, working: Sample) -> LabelledFigure:
    """Draw both modalities on their two main axes, pairs joined, before Collapse, and after it if
    it could be fitted.
    """
    # At most `MAX_POINTS` rows of each modality: pairs of different items, if there are pairs
    rng = generator(0, "projection")
    if working.paired:
        items, rows_of_items = np.unique(working.item_index, return_index=True)
        drawn = np.sort(rng.permutation(len(items))[:MAX_POINTS])
        first_rows = items[drawn]
        second_rows = rows_of_items[drawn]
    else:
        first_rows = rng.permutation(len(working.first))[:MAX_POINTS]
        second_rows = rng.permutation(len(working.second))[:MAX_POINTS]

    figure, panels = new_figure(9.4, 3.9, columns=len(report.transformed), squeeze=False)
    for axes, (space, (first, second)) in zip(panels[0], report.transformed.items(), strict=True):
        # The two main axes of both modalities together
        both = np.concatenate([first, second]).astype(np.float64)
        mean = both.mean(axis=0)
        centred = both - mean
        vectors = np.linalg.eigh(centred.T @ centred)[1]
        plane = vectors[:, :-3:-1]  # (d, 2), the main axis first
        # The signs of eigenvectors are arbitrary: make the largest component positive, so that
        # runs agree
        largest = plane[np.abs(plane).argmax(axis=0), [0, 1]]
        plane = plane * np.sign(largest)

        # Dots, and a line for each pair
        points = [(first[first_rows] - mean) @ plane, (second[second_rows] - mean) @ plane]
        if working.paired:
            lines = list(np.stack(points, axis=1))
            axes.add_collection(
                LineCollection(lines, colors=palette.RULE, linewidths=0.7, zorder=1)
            )
        for dots, name, colour in zip(points, report.modalities, _COLOURS, strict=True):
            axes.scatter(*dots.T, s=11, color=colour, linewidths=0, zorder=2, label=name)
        axes.set_title("Before" if space == RAW else "After Collapse")
        axes.set_aspect("equal", adjustable="datalim")
        close_up(axes, ticks=False)
    panels[0][0].legend(loc="upper left", markerscale=1.6)
    spaces = "before and after Collapse" if len(report.transformed) > 1 else "before Collapse"
    names = " and ".join(report.modalities)
    return LabelledFigure(figure, f"{names} in two dimensions, {spaces}")
