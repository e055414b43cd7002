"""Comparison of methods on the same images with the same seeds, for captions and for images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..arrays import Array
from ..metrics.significance import crossed_interval
from ..pages.render import signed
from .methods import ABLATION

INTERVAL = "95 % interval"  # heading
_BEFORE = {"C2_1": ("C1",), "C2_2": ("C1",), "C3": ("C2_2", "C2_1", "C1")}  # a step, and what it follows


def compared(methods: Collection[str]) -> list[tuple[str, str]]:
    """Return the pairs of methods that notes compare, before and after: the steps of C3, and C3 with all others.

    Collapse alone and Corrupt alone each follow C1. C3 follows Corrupt alone or, if that is missing, what there is.
    """
    steps = []
    for name, earlier in _BEFORE.items():
        found = [before for before in earlier if before in methods]
        if name in methods and found:
            steps.append((found[0], name))
    return steps + [("C3", name) for name in methods if "C3" in methods and name not in ABLATION]


def stacked(values: Sequence[Sequence[float]]) -> Array:
    """Return float64 (seeds, images), without images if a seed lacks them or has others."""
    return np.array(values) if len({len(each) for each in values}) == 1 else np.empty((len(values), 0))


def paired_difference(
    before: Mapping[int, Sequence[float]],
    after: Mapping[int, Sequence[float]],
    metric: str,
    *,
    decimals: int = 1,
    over: str = "images",
) -> str | None:
    """Return the difference of two methods in a score with its 95 % interval, and what it shows.

    Args:
        before, after: by seed, a value per image, the same images in all; seeds that only one has are left out.
        metric: name of the score.
        decimals: of the numbers.
        over: what the values are of.

    Returns:
        None if the methods share no seed, or fewer than 3 images.
    """
    seeds = [seed for seed in after if seed in before]
    values = stacked([found[seed] for found in (before, after) for seed in seeds])
    differences = values[len(seeds) :] - values[: len(seeds)]
    ends = crossed_interval(differences) if seeds else None
    if ends is None:
        return None
    sampled = f"{over} and seeds" if len(seeds) > 1 else f"{over} (one seed)"
    shown = "" if ends[0] > 0 or ends[1] < 0 else "; not shown to differ"
    between = " to ".join(signed(end, decimals) for end in ends)
    return f"{signed(float(differences.mean()), decimals)} {metric}, 95 % interval {between} over {sampled}{shown}"
