"""The figures of the gap report. Each drawing function returns a matplotlib figure in the style of c3tools.pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..arrays import Array, Floats, Indices
from ..pages import FigureBlock, close_up, figure_svg, new_figure, palette, styled
from ..seeds import generator
from .measures import Measured
from .residuals import Residuals, group_directions
from .spaces import COLLAPSE, RAW, SpaceMeasures
from .spectrum import ModalityMeasures

MAX_POINTS = 160
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_COLOURS = (palette.FIRST, palette.SECOND)
_WIDE = ("spectrum", "spectra", "projection", "recall")
_CAPTIONS = {
    "projection": "The two main axes of both modalities together. Before Collapse, the first axis is mostly the gap. "
    "After it, both modalities occupy the same region, and the remaining lines are alignment noise.",
    "recall": "Recall@1 in both directions, with 95 % intervals.",
}


def all_figures(measured: Measured) -> dict[str, tuple[Figure, str]]:
    """Draw every figure that the data allow: name → (figure, label for screen readers).

    The first six are those of the paper: length, direction and orthogonality of the gap, and the alignment noise.
    """
    first, second = measured.collected.first, measured.collected.second
    sums, noise, pairs = measured.collected.sums, measured.noise, measured.pairs
    figures: dict[str, tuple[Figure, str]] = {}
    if sums is not None and len(sums.groups) > 1:
        lengths = np.linalg.norm(sums.groups, axis=1)
        label, high = f"norm of the mean of {sums.group_pairs} pairs", max(1.0, float(lengths.max()) * 1.1)
        figure = histogram("Gap length", label, {"": lengths}, low=0.0, high=high, line=measured.gap.length)
        figures["gap-length"] = figure, "Histogram of the gap's length over groups of pairs"
        figure = histogram("Gap direction", "cosine with the next group", {"": group_directions(sums.groups)})
        figures["gap-direction"] = figure, "Histogram of cosines of one group's gap with the next"
    if any(len(values) for values in measured.orthogonal.values()):
        figure = histogram("Gap orthogonality", "cosine of differences with the gap", measured.orthogonal, bins=80)
        figures["orthogonality"] = figure, "Histogram of cosines of differences with the gap"
    if noise is not None:
        figures["noise-marginals"] = noise_marginals(noise), "Alignment noise against a normal distribution"
        label, sizes = "standard deviation per dimension; line: rms", noise.per_dimension
        line, high = None if pairs is None else pairs.residual_rms, float(sizes.max()) * 1.05 or 1.0
        figure = histogram("Noise: same size everywhere?", label, {"": sizes}, low=0.0, high=high, bins=50, line=line)
        figures["noise-size"] = figure, "Standard deviation of the alignment noise per dimension"
        figure = histogram("Noise direction", "cosine between residuals of two items", {"": noise.cosines}, bins=80)
        figures["noise-direction"] = figure, "Histogram of cosines between residuals"
    figures["spectra"] = spectra(measured.modalities), f"Covariance spectra of {first} and {second}"
    figures["projection"] = projection(measured), f"{first} and {second} in two dimensions, before and after Collapse"
    if measured.collected.working.paired:
        figures["recall"] = recall(list(measured.spaces.values()), (first, second)), "Recall@1 under each preset"
    return figures


def figure_blocks(figures: Mapping[str, tuple[Figure, str]], prefix: str = "gap") -> dict[str, FigureBlock]:
    """Turn figures and their labels into blocks of a page; ``prefix`` keeps two reports on one page apart."""
    return {
        name: FigureBlock(
            figure_svg(figure, name=f"{prefix}-{name}", label=label), _CAPTIONS.get(name, ""), wide=name in _WIDE
        )
        for name, (figure, label) in figures.items()
    }


@styled
def histogram(
    title: str,
    label: str,
    groups: Mapping[str, Array],
    *,
    low: float = -1.0,
    high: float = 1.0,
    bins: int = 60,
    line: float | None = None,
) -> Figure:
    """Draw shares rather than counts, so that groups of different sizes compare; outlined, as they may overlap.

    Args:
        title: of the figure.
        label: of the horizontal axis.
        groups: the values of one group, or of both modalities by name.
        low: left end of the axis; values beyond count at the end.
        high: right end.
        bins: number of bars.
        line: a value to mark.
    """
    figure, axes = new_figure(3.05, 2.2)
    edges = np.linspace(low, high, bins + 1)
    colours = _COLOURS if len(groups) > 1 else (palette.THIRD,)
    for values, colour in zip(groups.values(), colours, strict=True):
        if not len(values):
            continue
        share = np.histogram(np.clip(values, low, high), bins=edges)[0] / len(values)
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(share, edges, color=colour, linewidth=1.1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set(title=title, xlabel=label, yticks=[], xlim=(low, high), ylim=(0, None))
    if line is not None:
        axes.axvline(line, color=palette.INK, linewidth=1)
    if len(groups) > 1:
        for name, colour in zip(groups, colours, strict=True):
            axes.plot([], [], color=colour, label=name)
        axes.legend(loc="upper left", handlelength=1.2)
    return figure


@styled
def noise_marginals(noise: Residuals) -> Figure:
    """Draw the standardised alignment noise, all dimensions together, with the normal density."""
    density, edges = noise.standardised
    figure, axes = new_figure(3.05, 2.2)
    axes.stairs(density, edges, fill=True, color=palette.THIRD_SOFT)
    z = np.linspace(-4, 4, 121)
    axes.plot(z, np.exp(-z * z / 2) / np.sqrt(2 * np.pi), color=palette.INK, linewidth=1.1)
    axes.set(title="Noise: Gaussian?", xlabel="standardised residual; line: normal", yticks=[], xlim=(-4, 4))
    return figure


@styled
def spectra(modalities: Mapping[str, ModalityMeasures]) -> Figure:
    """Draw the covariance eigenvalues and their cumulative share, the effective dimensions marked."""
    figure, (left, right) = new_figure(9.4, 3.1, columns=2)
    for (name, found), colour in zip(modalities.items(), _COLOURS, strict=False):
        values = found.spectrum[found.spectrum > found.spectrum[0] * 1e-9]
        index = np.arange(1, len(values) + 1)
        share = np.cumsum(found.spectrum) / max(found.spectrum.sum(), 1e-30)
        left.plot(index, values, color=colour, label=name)
        right.plot(np.arange(1, len(share) + 1), share, color=colour, label=name)
        k = found.effective_dimension
        if k:
            left.plot([k], [found.spectrum[k - 1]], "o", color=colour, markersize=5)
            right.plot([k], [share[k - 1]], "o", color=colour, markersize=5)
            lower = k <= min(other.effective_dimension for other in modalities.values())
            side, place = ("right", (-2, -13)) if lower else ("left", (2, -13))
            right.annotate(f"{k}", (k, share[k - 1]), place, textcoords="offset points", color=colour, ha=side)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    left.yaxis.set_minor_formatter(NullFormatter())
    low, high = left.get_ylim()
    if high < 30 * low:  # at least one labelled power of ten on either side
        left.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
    left.set(title="Spectrum", xlabel="dimension, by size", ylabel="variance", xlim=(0, found.dim))
    right.axhline(0.99, color=palette.MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    title = "Share explained; dots: effective dimension (99 %)"
    right.set(title=title, xlabel="number of dimensions", xlim=(0, found.dim), ylim=(0, 1.03))
    left.legend()
    return figure


@styled
def projection(measured: Measured, seed: int = 0) -> Figure:
    """Draw both modalities on their two main axes, pairs joined, before and after Collapse."""
    working = measured.collected.working
    names = (measured.collected.first, measured.collected.second)
    spaces = [name for name in (RAW, COLLAPSE) if name in measured.transformed]
    figure, panels = new_figure(9.4, 3.9, columns=len(spaces), squeeze=False)
    picked, partner = _picked(working.item_index, len(working.first), len(working.second), seed)
    for axes, space in zip(panels[0], spaces, strict=True):
        x, y = measured.transformed[space]
        flat = _plane(x, y)
        a, b = flat(x[picked]), flat(y[partner])
        if working.paired:
            lines = list(np.stack([a, b], axis=1))
            axes.add_collection(LineCollection(lines, colors=palette.RULE, linewidths=0.7, zorder=1))
        axes.scatter(*a.T, s=11, color=palette.FIRST, linewidths=0, zorder=2, label=names[0])
        axes.scatter(*b.T, s=11, color=palette.SECOND, linewidths=0, zorder=2, label=names[1])
        axes.set_title("Before" if space == RAW else "After Collapse")
        axes.set_aspect("equal", adjustable="datalim")
        close_up(axes, ticks=False)
    panels[0][0].legend(loc="upper left", markerscale=1.6)
    return figure


@styled
def recall(spaces: Sequence[SpaceMeasures], names: tuple[str, str]) -> Figure:
    """Draw recall@1 in both directions under each preset, with 95 % intervals."""
    figure, axes = new_figure(9.4, 0.75 + 0.36 * len(spaces))
    positions = np.arange(len(spaces))[::-1]
    directions = [f"{names[0]}_to_{names[1]}", f"{names[1]}_to_{names[0]}"]
    for direction, colour, offset in zip(directions, _COLOURS, (0.13, -0.13), strict=True):
        for position, space in zip(positions, spaces, strict=True):
            interval = space.intervals[direction]["recall@1"]
            if interval is not None:
                axes.plot([100 * end for end in interval], [position + offset] * 2, color=colour, linewidth=1.1)
        values = [100 * space.recall[direction]["recall@1"] for space in spaces]
        axes.plot(values, positions + offset, "o", color=colour, markersize=5, label=direction.replace("_", " "))
    axes.set_yticks(positions, [space.preset for space in spaces])
    axes.tick_params(axis="y", labelcolor=palette.INK)
    axes.set(xlabel="recall@1, %", xlim=(0, None), ylim=(-0.6, len(spaces) - 0.4))
    close_up(axes, grid="x")
    axes.legend(loc="best", ncols=1)
    return figure


def _power_of_ten(value: float, _: int) -> str:
    exponent = round(float(np.log10(value)))
    return "1" if exponent == 0 else f"10{str(exponent).translate(_RAISED)}"


def _plane(x: Floats, y: Floats):  # type: ignore[no-untyped-def]
    """Return a function that projects rows on the two main axes of both modalities together."""
    both = np.concatenate([x, y]).astype(np.float64)
    mean = both.mean(axis=0)
    _, axes = np.linalg.eigh((both - mean).T @ (both - mean))
    plane = axes[:, :-3:-1]
    # the signs of eigenvectors are arbitrary: make the larger component positive, so that runs agree
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])
    return lambda rows: (rows - mean) @ plane


def _picked(item_index: Indices, firsts: int, seconds: int, seed: int) -> tuple[Indices, Indices]:
    """Choose rows of both modalities to draw: pairs of different items, or rows of each where nothing is paired."""
    rng = generator(seed, "projection")
    if len(item_index):
        items, rows = np.unique(item_index, return_index=True)
        chosen = np.sort(rng.permutation(len(items))[:MAX_POINTS])
        return items[chosen], rows[chosen]
    count = min(firsts, seconds, MAX_POINTS)
    return np.sort(rng.permutation(firsts)[:count]), np.sort(rng.permutation(seconds)[:count])
