"""The report in sentences: what Collapse and Corrupt will do to these embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..transforms import PUBLISHED_SIGMA
from .measures import Measured
from .spaces import COLLAPSE, RAW, SpaceMeasures


@dataclass(frozen=True)
class Advice:
    """What a reader takes away.

    Attributes:
        summary: one or two sentences about the space as it is.
        collapse: what Collapse will do.
        corrupt: what Corrupt will do.
    """

    summary: str
    collapse: str
    corrupt: str


def summarize(measured: Measured) -> Advice:
    """Put the numbers into words."""
    return Advice(_summary(measured), _collapse(measured), _corrupt(measured))


def _summary(measured: Measured) -> str:
    gap, pairs = measured.gap, measured.pairs
    first, second = measured.collected.first, measured.collected.second
    text = f"The means of {first} and {second} embeddings lie {gap.length:.2f} apart, on a sphere of radius 1."
    if pairs is None or pairs.unpaired_cosine is None:
        return text
    return (
        f"{text} The cosine of a {second} row is {_signed(pairs.paired_cosine)} with its own {first} row and "
        f"{_signed(pairs.unpaired_cosine)} with any other: what belongs together is told apart by the difference, "
        "not by the size, of these numbers."
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _collapse(measured: Measured) -> str:
    raw, collapsed = measured.spaces.get(RAW), measured.spaces.get(COLLAPSE)
    if raw is None or collapsed is None:
        return "Collapse cannot be applied to these embeddings."
    text = f"Subtracting each modality's mean takes the distance of the means from {raw.gap:.2f} to {collapsed.gap:.2f}"
    if raw.separability is not None and collapsed.separability is not None:
        text += (
            f", and a linear probe that tells the modalities apart falls from {100 * raw.separability.value:.0f} % to "
            f"{100 * collapsed.separability.value:.0f} % (50 % is a coin)"
        )
    text += "."
    if raw.modality_bias and collapsed.modality_bias:
        before, after = (
            float(np.mean([estimate.value for estimate in bias.values()]))
            for bias in (raw.modality_bias, collapsed.modality_bias)
        )
        text += f" Among the ten nearest of both modalities, {100 * before:.0f} % are of the query's own before it and "
        text += f"{100 * after:.0f} % after it."
    if raw.recall and collapsed.recall:
        changes = [
            100 * (collapsed.recall[direction]["recall@1"] - raw.recall[direction]["recall@1"])
            for direction in raw.recall
        ]
        listed = " and ".join(f"{change:+.1f}".replace("-", "−") for change in changes)
        text += f" Recall@1 changes by {listed} points in the two directions: "
        text += _change_in_words(changes, _within_intervals(raw, collapsed))
    return text


def _change_in_words(changes: list[float], uncertain: bool) -> str:
    if max(abs(change) for change in changes) <= 1:
        return "closing the gap hardly touches retrieval, which compares within one direction at a time."
    if uncertain:
        return "no more than so few rows leave uncertain."
    if max(changes) < -1:
        return "closing the gap costs retrieval here."
    if min(changes) > 1:
        return "closing the gap also helps retrieval here."
    return "closing the gap does not do the same to both."


def _within_intervals(raw: SpaceMeasures, collapsed: SpaceMeasures) -> bool:
    """Whether recall@1 after Collapse lies, in both directions, in the interval of the one before."""
    for direction, scores in collapsed.recall.items():
        interval = raw.intervals[direction]["recall@1"]
        if interval is None or not interval[0] <= scores["recall@1"] <= interval[1]:
            return False
    return True


def _corrupt(measured: Measured) -> str:
    rule, why = measured.recommended
    sigma = float(rule.sigma or 0.0)
    dim = next(iter(measured.modalities.values())).dim
    norm = float(np.sqrt(np.trace(measured.collected.fit_moments[measured.collected.second].covariance)))
    cosine = norm / float(np.hypot(norm, sigma * np.sqrt(dim))) if norm > 0 else 0.0
    text = (
        f"The rule of --sigma auto gives {sigma:.3f}: {why}. Noise of this size has a norm of "
        f"{sigma * np.sqrt(dim):.2f} on centred vectors of {norm:.2f}, so a noised {measured.collected.second} keeps a "
        f"cosine of {cosine:.2f} with itself."
    )
    if measured.pairs is not None and measured.pairs.residual_rms > 0:
        ratio = PUBLISHED_SIGMA / measured.pairs.residual_rms
        text += f" The published {PUBLISHED_SIGMA:.4f} is {ratio:.1f} times the alignment noise measured here."
    return text
