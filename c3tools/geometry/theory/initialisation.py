"""The gap at initialisation: two encoders with random weights already lie apart, each in a cone of its own.

A random network maps everything it sees close to one direction: its output varies in few dimensions around a large
mean (dimensional collapse; Liang et al., NeurIPS 2022; Zhang et al., ICLR 2024). Two networks have two means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import C3Error
from ...moments import Moments, unit_rows
from ...seeds import generator
from ..spectrum import gap_vector, measure_modality

Array = npt.NDArray[np.float64]

PAPER_EFFECTIVE = {"image": 25, "text": 230}
"""Effective dimensions, of 512, of a random CLIP on 500 COCO pairs in the paper's figure."""


@dataclass(frozen=True)
class InitialGap:
    """The gap of one pair of random encoders, or of the toy.

    Attributes:
        seed: of the weights, or of the draw.
        length: of the gap, after normalisation.
        effective: effective dimension per modality.
        matched: the same on equally many rows of each, one text per image, as n rows span at most n - 1 dimensions.
        mean_norm: norm of the mean per modality.
        rows: rows per modality.
        dim: d.
    """

    seed: int
    length: float
    effective: dict[str, int]
    matched: dict[str, int]
    mean_norm: dict[str, float]
    rows: dict[str, int]
    dim: int


def measure_initial_gap(
    seed: int, rows: dict[str, npt.NDArray[np.floating]], owner: Sequence[int] | None = None
) -> InitialGap:
    """Measure the embeddings (n, d) of two modalities.

    Args:
        seed: of the weights, or of the draw.
        rows: images (m, d) and texts (n, d), in this order.
        owner: the image of each text, for equally many rows of both; by default as many texts as there are images.
    """
    units = {name: unit_rows(x.astype(np.float64)) for name, x in rows.items()}
    moments = {name: Moments.from_rows(x) for name, x in units.items()}
    first, second = moments.values()
    found = {name: measure_modality(m) for name, m in moments.items()}
    texts = np.unique(owner, return_index=True)[1] if owner is not None else np.arange(min(first.n, second.n))
    chosen = dict(zip(rows, (np.arange(len(texts)), texts), strict=True))
    matched = {name: measure_modality(Moments.from_rows(x[chosen[name]])) for name, x in units.items()}
    return InitialGap(
        seed=seed,
        length=float(np.linalg.norm(gap_vector(first, second))),
        effective={name: m.effective_dimension for name, m in found.items()},
        matched={name: m.effective_dimension for name, m in matched.items()},
        mean_norm={name: m.mean_norm for name, m in found.items()},
        rows={name: m.n for name, m in found.items()},
        dim=first.dim,
    )


def toy_gap(dim: int, constant: Sequence[int]) -> float:
    """The closed form of the toy: ``sqrt(k_x / d + k_y / d)``.

    Each modality is standard normal in d dimensions, k of them constant. After normalisation its mean is its
    constant part over ``sqrt(d)``, of squared length ``k / d`` up to terms that vanish with d; the constants of the
    two modalities are independent, hence orthogonal in the mean. With k = 257 of 512 both ways it is 1.00.

    Args:
        dim: d.
        constant: k of the first and of the second modality.

    Raises:
        C3Error: if a k is not between 0 and d.
    """
    if any(not 0 <= k <= dim for k in constant):
        raise C3Error(f"Between 0 and {dim} dimensions can be constant, not {', '.join(map(str, constant))}.")
    return float(np.sqrt(sum(constant) / dim))


def simulate_toy(dim: int, constant: tuple[int, int], *, n: int = 500, seed: int = 0) -> InitialGap:
    """Draw the toy of `toy_gap` and measure it."""
    rows = {}
    for name, k in zip(("image", "text"), constant, strict=True):
        rng = generator(seed, "toy gap", name)
        x = rng.standard_normal((n, dim))
        fixed = rng.permutation(dim)[:k]
        x[:, fixed] = rng.standard_normal(k)
        rows[name] = x
    return measure_initial_gap(seed, dict(rows))
