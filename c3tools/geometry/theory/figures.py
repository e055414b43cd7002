"""The figures of `c3 simulate`, in the shared style of c3tools.pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ...pages import new_figure, palette, styled
from .depth import LayerSpan
from .initialisation import PAPER_EFFECTIVE, InitialGap
from .optimisation import PAPER_TRACE, TracePoint
from .stable_region import StableDraws, loss_bound
from .temperature import Survival

_COLOURS = (palette.FIRST, palette.SECOND)


@styled
def initial_gap(results: Sequence[InitialGap]) -> Figure:
    """Gap and effective dimensions of random encoders."""
    figure, (left, right) = new_figure(9.4, 3.0, columns=2)
    seeds = np.arange(len(results))
    left.bar(seeds, [found.length for found in results], width=0.55, color=palette.THIRD)
    left.set_ylim(bottom=0)
    left.set_title("Gap at initialisation")
    left.set_ylabel("distance of the means")
    names = list(results[0].effective)
    for number, (name, colour) in enumerate(zip(names, _COLOURS, strict=True)):
        values = [found.effective[name] for found in results]
        right.bar(seeds + (number - 0.5) * 0.36, values, width=0.34, color=colour, label=name)
        if name in PAPER_EFFECTIVE and results[0].dim == 512:
            right.axhline(PAPER_EFFECTIVE[name], color=colour, linewidth=0.8, linestyle=(0, (3, 3)))
    right.set_title("Effective dimension; dashed: the paper, 500 pairs")
    right.legend(loc="upper left", ncols=2)
    right.set_ylim(0, 1.25 * max(max(found.effective.values()) for found in results))
    for axes in (left, right):
        axes.set_xticks(seeds, [str(found.seed) for found in results])
        axes.set_xlabel("seed of the weights")
    return figure


@styled
def depth(layers: Sequence[LayerSpan]) -> Figure:
    """Spectra by layer, and effective dimension against depth."""
    figure, (left, right) = new_figure(9.4, 3.2, columns=2)
    for number, found in enumerate(layers):
        share = number / max(len(layers) - 1, 1)
        values = found.spectrum[found.spectrum > 1e-9]
        left.plot(np.arange(1, len(values) + 1), values, color=palette.FIRST, alpha=1 - 0.75 * share, linewidth=1.1)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_title("Spectrum by layer, paler with depth")
    left.set_xlabel("dimension, by size")
    left.set_ylabel("variance, relative")
    numbers = [found.layer for found in layers]
    right.plot(numbers, [found.effective_dimension for found in layers], "o-", color=palette.FIRST, markersize=4)
    right.set_ylim(bottom=0)
    right.set_title("Effective dimension (99 %)")
    right.set_xlabel("layer")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def training_trace(trace: Sequence[TracePoint], *, paper: bool) -> Figure:
    """Loss and gap over steps, with the paper's values where the settings are the paper's."""
    figure, (left, right) = new_figure(9.4, 3.0, columns=2)
    steps = [point.step for point in trace]
    left.plot(steps, [point.loss for point in trace], color=palette.FIRST)
    right.plot(steps, [point.gap for point in trace], color=palette.SECOND)
    if paper:
        for axes, column in ((left, 0), (right, 1)):
            inside = [step for step in PAPER_TRACE if step <= steps[-1]]
            axes.plot(inside, [PAPER_TRACE[step][column] for step in inside], "o", color=palette.INK, markersize=4)
    left.set_title("Loss" + ("; dots: the paper" if paper else ""))
    right.set_title("Gap" + ("; dots: the paper" if paper else ""))
    for axes, highest in ((left, max(p.loss for p in trace)), (right, max(p.gap for p in trace))):
        axes.set_ylim(0, 1.08 * highest)
        axes.set_xlabel("step of gradient descent")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


@styled
def stable_region(draws: StableDraws) -> Figure:
    """Loss of simulated queries against their lead over the temperature, under the bound."""
    figure, axes = new_figure(7.2, 3.8)
    x = draws.lead / draws.tau
    inside = (x > -12) & (x < 22)
    share = draws.loss[inside] / np.maximum(draws.bound[inside], 1e-300)
    chosen = np.flatnonzero(inside)[:: max(1, int(inside.sum()) // 1_500)]
    axes.scatter(x[chosen], draws.loss[chosen], s=5, color=palette.FIRST, linewidths=0, alpha=0.6, label="simulated")
    grid = np.linspace(-12, 22, 300)
    for n, style in ((int(draws.n.max()), "-"), (2, (0, (4, 2)))):
        bound = loss_bound(grid, 1.0, n)
        axes.plot(grid, bound, color=palette.SECOND, linestyle=style, label=f"bound, n = {n:,}")
    axes.set_xlabel("lead of the positive over the temperature, r / tau")
    axes.set_ylabel("loss")
    axes.set_title(
        f"Inside the stable region the loss is small (median: {100 * float(np.median(share)):.0f} % of its bound)"
    )
    axes.legend(loc="upper right")
    axes.set_ylim(0, 14)
    return figure


@styled
def temperature(results: Sequence[Survival]) -> Figure:
    """The gap that is left after training, against the logit scale."""
    figure, axes = new_figure(6.4, 3.4)
    scales = [found.logit_scale for found in results]
    axes.axhline(
        results[0].start_gap, color=palette.MUTED, linewidth=0.9, linestyle=(0, (3, 3)), label="before training"
    )
    axes.plot(scales, [found.gap for found in results], "o-", color=palette.THIRD, markersize=5, label="after training")
    axes.set_xscale("log")
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_title("The gap that survives training")
    axes.set_xlabel("logit scale (1 / temperature)")
    axes.set_ylabel("gap on held-out pairs")
    axes.legend(loc="best")
    return figure
