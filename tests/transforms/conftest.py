from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from c3tools.moments import Moments
from c3tools.transforms import Pipeline
from c3tools.transforms.steps import Normalize, Step
from tests.stores import unit

Array = npt.NDArray[np.float64]


class Pairs(NamedTuple):
    """Synthetic pairs with a modality gap: x of images, y of texts, unit rows."""

    x: Array
    y: Array

    @property
    def moments(self) -> dict[str, Moments]:
        return {"image": Moments.from_rows(self.x), "text": Moments.from_rows(self.y)}

    @property
    def rows(self) -> dict[str, Array]:
        return {"image": self.x, "text": self.y}

    @property
    def keys(self) -> list[str]:
        return [f"row {i}" for i in range(len(self.x))]

    @property
    def items(self) -> list[str]:
        """Two rows each."""
        return [f"item {i // 2}" for i in range(len(self.x))]


def make_pairs(n: int = 120, dim: int = 24, seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, dim)) * np.linspace(0.4, 1.2, dim)
    gap = 0.25 * rng.normal(size=dim)
    x = shared + gap + 0.3 * rng.normal(size=(n, dim))
    y = shared - gap + 0.2 * rng.normal(size=(n, dim))
    # float32 values, so that the float64 formulas start from the same numbers
    return Pairs(*(unit(v).astype(np.float32).astype(np.float64) for v in (x, y)))


def between(*steps: Step) -> Pipeline:
    """A pipeline that normalises before and after these steps."""
    return Pipeline([Normalize(), *steps, Normalize()])


P = make_pairs()  # for tests that only read them
X, Y = P
MOMENTS, ROWS = P.moments, P.rows


def retrieved(
    q: Array, memory: Array, neighbours: int = 10, tau: float = 0.05, weight: float = 1
) -> Array:
    """One row (d,) and the mean of the nearest rows: sort all cosines, weigh the best."""
    best = memory[np.argsort(-(memory @ q), kind="stable")[:neighbours]]
    mean = softmax(best @ q / tau) @ best if tau else best[0]
    return np.asarray(unit((q + weight * mean / np.linalg.norm(mean))[None])[0])
