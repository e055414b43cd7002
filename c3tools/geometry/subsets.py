"""Is the gap the same in every subset of the pairs? Subsets are the values of a column that the user names."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .assumptions import Answer, Assumption
from .collect import Collected

Array = npt.NDArray[np.float64]

SUBSETS = "Is the gap the same in every subset?"
MIN_ITEMS = 3
SAME, ALIKE = 0.3, 0.6
"""A difference of 0.3 of the gap's length is a turn of 17 degrees (a cosine of 0.95); 0.6 one of 35 (0.82)."""


def compare_subsets(collected: Collected, gap: Array) -> list[dict[str, Any]]:
    """The gap of each subset: pairs, items, length, cosine with the gap, and how far it differs beyond chance.

    The mean difference of a subset of m of n items is off the mean over all by chance, by a squared distance of
    ``tr(S) (1 / m - 1 / n)``, S the covariance of the pair differences. ``difference`` is the distance that is left
    when this is taken off, over the length of the gap; None for subsets of fewer than 3 items.
    """
    sums, length = collected.sums, float(np.linalg.norm(gap))
    if sums is None:
        return []
    overall, total = float(np.linalg.norm(sums.mean)), float(sums.variance.sum())
    rows = []
    for number, name in enumerate(collected.subset_names):
        pairs, items, mean = int(sums.subset_pairs[number]), int(sums.subset_items[number]), sums.subset_means[number]
        if not pairs:
            continue
        norm = float(np.linalg.norm(mean))
        chance = total * max(1 / items - 1 / collected.items, 0.0)
        beyond = max(float(np.sum((mean - sums.mean) ** 2)) - chance, 0.0)
        rows.append(
            {
                "value": name,
                "pairs": pairs,
                "items": items,
                "length": norm,
                "cosine_with_gap": float(mean @ gap / (norm * length)) if norm * length > 0 else None,
                "difference": float(np.sqrt(beyond)) / overall if overall > 0 and items >= MIN_ITEMS else None,
            }
        )
    return rows


def same_in_every_subset(rows: list[dict[str, Any]]) -> Assumption:
    """The verdict, by the subset whose gap differs most."""
    known = [row for row in rows if row["difference"] is not None]
    if len(known) < 2:
        because = f"{len(known)} of {len(rows)} subsets have at least {MIN_ITEMS} items with pairs."
        return Assumption("subsets", SUBSETS, "unknown", None, because)
    worst = max(known, key=lambda row: row["difference"])
    value = float(worst["difference"])
    answer: Answer = "yes" if value <= SAME else "partly" if value <= ALIKE else "no"
    return Assumption(
        "subsets",
        SUBSETS,
        answer,
        value,
        f"The gap of {worst['value']!r} ({worst['items']:,} items) differs most from that of all pairs: by "
        f"{100 * value:.0f} % of its length, beyond what so few items differ by chance ({len(known)} subsets).",
    )
