"""Dimensional collapse by depth: a random deep ReLU network loses dimensions layer by layer.

The paper's second figure: 10,000 standard normal inputs through 50 layers of width 512, Xavier weights, no bias. The
covariance of each layer's pre-activations spans fewer and fewer dimensions. Five seconds or so on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import C3Error
from ...moments import Moments, unit_rows
from ...reporter import SilentTracker, Tracker
from ...seeds import generator
from ..spectrum import effective_dimension, effective_rank, eigenvalues

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerSpan:
    """What one layer's pre-activations span; layer 0 is the input.

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
    spectrum: Array


def span_by_layer(
    *,
    width: int = 512,
    layers: int = 50,
    rows: int = 10_000,
    every: int = 5,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> list[LayerSpan]:
    """Send standard normal rows through a random ReLU network and measure every few layers.

    Args:
        width: of every layer.
        layers: how many.
        rows: inputs.
        every: measure each so many layers; the input and the last layer always.
        seed: of weights and inputs.
        tracker: told about layers done.

    Raises:
        C3Error: if a number is below 1, or there are fewer than 3 rows.
    """
    if min(width, layers, every) < 1 or rows < 3:
        raise C3Error("Width, layers and every must be at least 1, and rows at least 3.")
    tracker = tracker or SilentTracker()
    rng = generator(seed, "depth")
    x = rng.standard_normal((rows, width), dtype=np.float32)  # (n, d)
    measured = [_measure(0, x)]
    bound = np.float32(np.sqrt(6 / (width + width)))  # Xavier uniform
    for layer in range(1, layers + 1):
        weights = rng.uniform(-bound, bound, (width, width)).astype(np.float32)
        x = (x if layer == 1 else np.maximum(x, 0)) @ weights
        # the scale halves with every layer and would underflow; spans and cosines do not depend on it
        x /= x.std()
        if layer % every == 0 or layer == layers:
            measured.append(_measure(layer, x))
        tracker.advance()
    return measured


def _measure(layer: int, x: npt.NDArray[np.float32]) -> LayerSpan:
    values = eigenvalues(Moments.from_rows(x).covariance)
    total = unit_rows(x).sum(axis=0, dtype=np.float64)
    cosine = (float(total @ total) - len(x)) / (len(x) * (len(x) - 1))
    return LayerSpan(layer, effective_dimension(values), effective_rank(values), cosine, values / values[0])
