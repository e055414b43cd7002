"""The figures of the gap report. Each function returns a matplotlib figure in the shared style of c3tools.pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..pages import close_up, figure_svg, new_figure, palette, styled
from ..seeds import generator
from .assumptions import group_directions
from .measures import Measured
from .reading import Rows
from .spaces import COLLAPSE, RAW, SpaceMeasures
from .spectrum import ModalityMeasures

Array = npt.NDArray[np.float64]

MAX_POINTS = 160
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_COLOURS = (palette.FIRST, palette.SECOND)
_SOFT = (palette.FIRST_SOFT, palette.SECOND_SOFT)


def all_figures(measured: Measured) -> dict[str, tuple[Figure, str]]:
    """Every figure the data allow: name → (figure, what it shows in words)."""
    first, second = measured.collected.first, measured.collected.second
    figures: dict[str, tuple[Figure, str]] = {}
    if measured.collected.sums is not None and len(measured.collected.sums.groups) > 1:
        figures["gap-length"] = (gap_length(measured), "Histogram of the gap's length over groups of pairs")
        figures["gap-direction"] = (
            gap_direction(measured),
            "Histogram of cosines of one group's gap with the next",
        )
    if any(len(values) for values in measured.orthogonal.values()):
        figures["orthogonality"] = (orthogonality(measured), "Histogram of cosines of differences with the gap")
    if measured.noise is not None:
        figures["noise-marginals"] = (noise_marginals(measured), "Alignment noise against a normal distribution")
        figures["noise-size"] = (noise_size(measured), "Standard deviation of the alignment noise per dimension")
        figures["noise-direction"] = (noise_direction(measured), "Histogram of cosines between residuals")
    figures["spectra"] = (spectra(measured.modalities), f"Covariance spectra of {first} and {second}")
    figures["projection"] = (projection(measured), f"{first} and {second} in two dimensions, before and after Collapse")
    if measured.collected.working.paired:
        figures["recall"] = (recall(list(measured.spaces.values()), (first, second)), "Recall@1 under each preset")
    return figures


def figure_svgs(measured: Measured, prefix: str = "gap") -> dict[str, Markup]:
    """Every figure as inline SVG for a page, by name; ``prefix`` keeps two reports on one page apart."""
    return {
        name: figure_svg(figure, name=f"{prefix}-{name}", label=label)
        for name, (figure, label) in all_figures(measured).items()
    }


@styled
def gap_length(measured: Measured) -> Figure:
    """The paper's gap length: norms of pair differences averaged in groups."""
    sums = measured.collected.sums
    assert sums is not None
    values = np.linalg.norm(sums.groups, axis=1)
    figure, axes = new_figure(3.05, 2.2)
    _histogram(axes, [values], [palette.THIRD], low=0.0, high=max(1.0, float(values.max()) * 1.1))
    axes.axvline(measured.gap.length, color=palette.INK, linewidth=1)
    axes.set_title("Gap length")
    axes.set_xlabel(f"norm of the mean of {sums.group_pairs} pairs")
    return figure


@styled
def gap_direction(measured: Measured) -> Figure:
    """The paper's gap direction: cosine of one group's gap with the next one's."""
    sums = measured.collected.sums
    assert sums is not None
    figure, axes = new_figure(3.05, 2.2)
    _histogram(axes, [group_directions(sums.groups)], [palette.THIRD], low=-1.0, high=1.0)
    axes.set_title("Gap direction")
    axes.set_xlabel("cosine with the next group")
    return figure


@styled
def orthogonality(measured: Measured) -> Figure:
    """The paper's gap orthogonality, for both modalities."""
    figure, axes = new_figure(3.05, 2.2)
    _histogram(axes, list(measured.orthogonal.values()), _COLOURS, low=-1.0, high=1.0, bins=80)
    axes.set_title("Gap orthogonality")
    axes.set_xlabel("cosine of differences with the gap")
    _legend(axes, list(measured.orthogonal))
    return figure


@styled
def noise_marginals(measured: Measured) -> Figure:
    """Standardised alignment noise, all dimensions together, with the normal density."""
    noise = measured.noise
    assert noise is not None
    density, edges = noise.standardised
    figure, axes = new_figure(3.05, 2.2)
    axes.stairs(density, edges, fill=True, color=palette.THIRD_SOFT)
    z = np.linspace(-4, 4, 121)
    axes.plot(z, np.exp(-z * z / 2) / np.sqrt(2 * np.pi), color=palette.INK, linewidth=1.1)
    axes.set_xlim(-4, 4)
    axes.set_yticks([])
    axes.set_title("Noise: Gaussian?")
    axes.set_xlabel("standardised residual; line: normal")
    return figure


@styled
def noise_size(measured: Measured) -> Figure:
    """Standard deviation of the alignment noise in each dimension."""
    noise = measured.noise
    assert noise is not None
    values = noise.per_dimension
    figure, axes = new_figure(3.05, 2.2)
    _histogram(axes, [values], [palette.THIRD], low=0.0, high=float(values.max()) * 1.05, bins=50)
    if measured.pairs is not None:
        axes.axvline(measured.pairs.residual_rms, color=palette.INK, linewidth=1)
    axes.set_title("Noise: same size everywhere?")
    axes.set_xlabel("standard deviation per dimension; line: rms")
    return figure


@styled
def noise_direction(measured: Measured) -> Figure:
    """The paper's noise direction: cosines between residuals of different items."""
    noise = measured.noise
    assert noise is not None
    figure, axes = new_figure(3.05, 2.2)
    _histogram(axes, [noise.cosines], [palette.THIRD], low=-1.0, high=1.0, bins=80)
    axes.set_title("Noise direction")
    axes.set_xlabel("cosine between residuals of two items")
    return figure


@styled
def spectra(modalities: Mapping[str, ModalityMeasures]) -> Figure:
    """Covariance eigenvalues and their cumulative share, the effective dimensions marked."""
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
            right.annotate(
                f"{k}",
                (k, share[k - 1]),
                xytext=(2, -13) if not lower else (-2, -13),
                textcoords="offset points",
                color=colour,
                ha="right" if lower else "left",
            )
    left.set_yscale("log")
    left.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    left.yaxis.set_minor_formatter(NullFormatter())
    low, high = left.get_ylim()
    if high < 30 * low:  # at least one labelled power of ten on either side
        left.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
    left.set_title("Spectrum")
    left.set_xlabel("dimension, by size")
    left.set_ylabel("variance")
    right.axhline(0.99, color=palette.MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    right.set_ylim(0, 1.03)
    right.set_title("Share explained; dots: effective dimension (99 %)")
    right.set_xlabel("number of dimensions")
    for axes in (left, right):
        axes.set_xlim(0, found.dim)
    left.legend()
    return figure


@styled
def projection(measured: Measured, seed: int = 0) -> Figure:
    """Both modalities on their two main axes, pairs joined, before and after Collapse."""
    working = measured.collected.working
    names = (measured.collected.first, measured.collected.second)
    spaces = [name for name in (RAW, COLLAPSE) if name in measured.transformed]
    figure, panels = new_figure(9.4, 3.9, columns=len(spaces), squeeze=False)
    picked, partner = _picked(working.owner, len(working.first), len(working.second), seed)
    for axes, space in zip(panels[0], spaces, strict=True):
        x, y = measured.transformed[space]
        flat = _plane(x, y)
        a, b = flat(x[picked]), flat(y[partner])
        if working.paired:
            axes.add_collection(
                LineCollection(list(np.stack([a, b], axis=1)), colors=palette.RULE, linewidths=0.7, zorder=1)
            )
        axes.scatter(*a.T, s=11, color=palette.FIRST, linewidths=0, zorder=2, label=names[0])
        axes.scatter(*b.T, s=11, color=palette.SECOND, linewidths=0, zorder=2, label=names[1])
        axes.set_title("Before" if space == RAW else "After Collapse")
        axes.set_aspect("equal", adjustable="datalim")
        close_up(axes, ticks=False)
    panels[0][0].legend(loc="upper left", markerscale=1.6)
    return figure


@styled
def recall(spaces: Sequence[SpaceMeasures], names: tuple[str, str]) -> Figure:
    """Recall@1 in both directions under each preset, with 95 % intervals."""
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
    axes.set_xlabel("recall@1, %")
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(spaces) - 0.4)
    close_up(axes, grid="x")
    axes.legend(loc="best", ncols=1)
    return figure


def _histogram(axes, groups, colours, *, low: float, high: float, bins: int = 60) -> None:  # type: ignore[no-untyped-def]
    """Shares rather than counts, so that groups of different sizes compare; outlined, so that they can overlap."""
    edges = np.linspace(low, high, bins + 1)
    for values, colour in zip(groups, colours, strict=True):
        if not len(values):
            continue
        share = np.histogram(np.clip(values, low, high), bins=edges)[0] / len(values)
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(share, edges, color=colour, linewidth=1.1)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yticks([])
    axes.set_ylim(bottom=0)


def _power_of_ten(value: float, _: int) -> str:
    exponent = round(float(np.log10(value)))
    return "1" if exponent == 0 else f"10{str(exponent).translate(_RAISED)}"


def _legend(axes, names: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    for name, colour in zip(names, _COLOURS, strict=True):
        axes.plot([], [], color=colour, label=name)
    axes.legend(loc="upper left", handlelength=1.2)


def _plane(x: Rows, y: Rows):  # type: ignore[no-untyped-def]
    """A function that puts rows on the two main axes of both modalities together."""
    both = np.concatenate([x, y]).astype(np.float64)
    mean = both.mean(axis=0)
    _, axes = np.linalg.eigh((both - mean).T @ (both - mean))
    plane = axes[:, :-3:-1]
    # the signs of eigenvectors are arbitrary: make the larger component positive, so that runs agree
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])
    return lambda rows: (rows - mean) @ plane


def _picked(
    owner: npt.NDArray[np.int64], firsts: int, seconds: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of both modalities to show: pairs of different items, or rows of each where nothing is paired."""
    rng = generator(seed, "projection")
    if len(owner):
        items, rows = np.unique(owner, return_index=True)
        chosen = np.sort(rng.permutation(len(items))[:MAX_POINTS])
        return items[chosen], rows[chosen]
    count = min(firsts, seconds, MAX_POINTS)
    return np.sort(rng.permutation(firsts)[:count]), np.sort(rng.permutation(seconds)[:count])
