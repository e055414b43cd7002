"""Dimensional collapse by depth: a random deep ReLU network loses dimensions layer by layer.

The paper's second figure: 10,000 standard normal inputs through 50 layers of width 512, Xavier weights, no bias. The
covariance of each layer's pre-activations spans fewer and fewer dimensions. It takes about five seconds on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ...errors import C3Error
from ...metrics.significance import to_json
from ...moments import Moments, unit_rows
from ...pages import Table, new_figure, palette, styled
from ...reporter import SILENT, Reporter
from ...seeds import generator
from ..spectrum import effective_dimension, effective_rank, eigenvalues
from . import Simulation


@dataclass(frozen=True, eq=False)
class LayerSpan:
    """Dimensions that one layer's pre-activations span; layer 0 is the input.

    Attributes:
        layer: its number.
        effective_dimension: see `effective_dimension`.
        effective_rank: see `effective_rank`.
        cosine: mean cosine of two different inputs.
        spectrum: float64 (d,), eigenvalues of the covariance relative to the largest.
    """

    layer: int
    effective_dimension: int
    effective_rank: float
    cosine: float
    spectrum: npt.NDArray[np.float64]


def simulate_depth(
    *,
    width: int = 512,
    layers: int = 50,
    rows: int = 10_000,
    every: int = 5,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Simulation:
    """Measure the effective dimension by layer of a deep random ReLU network.

    Args:
        width: Width of every layer.
        layers: Number of layers.
        rows: Number of inputs.
        every: Number of layers between two measurements.
        seed: Seed for all random numbers.
        reporter: Shows the progress over the layers.
    """
    spans = span_by_layer(width=width, layers=layers, rows=rows, every=every, seed=seed, reporter=reporter)
    first, last = spans[0], spans[-1]
    keys = ("layer", "effective_dimension", "effective_rank", "cosine")
    rows_by_layer = [
        [str(s.layer), f"{s.effective_dimension} of {width}", f"{s.effective_rank:.1f}", f"{s.cosine:.3f}"]
        for s in spans
    ]
    return Simulation(
        name="depth",
        table=Table(["layer", "eff. dim", "eff. rank", "mean cosine"], rows_by_layer),
        values=to_json({"width": width, "layers": [{key: getattr(s, key) for key in keys} for s in spans]}),
        figure=_draw_figure(spans),
        found=f"From {first.effective_dimension} dimensions at the input, {last.effective_dimension} are left after "
        f"{last.layer} layers, where two inputs have a mean cosine of {last.cosine:.2f}.",
        paper="The deeper the random network, the fewer the dimensions of its output (dimensional collapse). This puts "
        "each encoder into a narrow cone of its own.",
    )


def span_by_layer(
    *, width: int, layers: int, rows: int, every: int, seed: int = 0, reporter: Reporter = SILENT
) -> list[LayerSpan]:
    """Send standard normal rows through a random ReLU network and measure every few layers.

    Args:
        width: of every layer.
        layers: number of layers.
        rows: inputs.
        every: layers between two measurements; the input and the last layer are always measured.
        seed: of weights and inputs.
        reporter: shows the progress over the layers.

    Raises:
        C3Error: if a number is below 1, or there are fewer than 3 rows.
    """
    if min(width, layers, every) < 1 or rows < 3:
        raise C3Error("Width, layers and every must be at least 1, and rows at least 3.")
    rng = generator(seed, "depth")
    x = rng.standard_normal((rows, width), dtype=np.float32)  # (n, d)
    measured = [_measure(0, x)]
    bound = np.float32(np.sqrt(6 / (width + width)))  # Xavier uniform
    with reporter.progress("Layers", layers) as progress:
        for layer in range(1, layers + 1):
            weights = rng.uniform(-bound, bound, (width, width)).astype(np.float32)
            x = (x if layer == 1 else np.maximum(x, 0)) @ weights
            # the scale halves with every layer and would underflow; spans and cosines do not depend on it
            x /= x.std()
            if layer % every == 0 or layer == layers:
                measured.append(_measure(layer, x))
            progress.advance()
    return measured


def _measure(layer: int, x: npt.NDArray[np.float32]) -> LayerSpan:
    values = eigenvalues(Moments.from_rows(x).covariance)
    total = unit_rows(x).sum(axis=0, dtype=np.float64)
    cosine = (float(total @ total) - len(x)) / (len(x) * (len(x) - 1))
    return LayerSpan(layer, effective_dimension(values), effective_rank(values), cosine, values / values[0])


@styled
def _draw_figure(layers: Sequence[LayerSpan]) -> Figure:
    """Draw spectra by layer, and the effective dimension against depth."""
    figure, (left, right) = new_figure(9.4, 3.2, columns=2)
    for number, found in enumerate(layers):
        share = number / max(len(layers) - 1, 1)
        values = found.spectrum[found.spectrum > 1e-9]
        left.plot(np.arange(1, len(values) + 1), values, color=palette.FIRST, alpha=1 - 0.75 * share, linewidth=1.1)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set(title="Spectrum by layer, paler with depth", xlabel="dimension, by size", ylabel="variance, relative")
    numbers = [found.layer for found in layers]
    right.plot(numbers, [found.effective_dimension for found in layers], "o-", color=palette.FIRST, markersize=4)
    right.set(title="Effective dimension (99 %)", xlabel="layer", ylim=(0, None))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
