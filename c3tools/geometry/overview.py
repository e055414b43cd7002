"""Every pair of the modalities of a store at a glance, from the shards' moments alone: no row is read."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from ..moments import Moments
from ..store.reader import Store
from .spectrum import gap_vector

_UNIT_TOLERANCE = 0.01


def gaps_between_modalities(store: Store, *, split: str | None = None) -> list[dict[str, Any]]:
    """The gap of each pair of modalities: ``{"first", "second", "length", "cosine_of_means"}``.

    Length and cosine are None where the moments of a modality are not those of unit vectors, or of none: the full
    report of such a pair measures it after normalising the rows.

    Args:
        store: the store.
        split: the rows of this split only.
    """
    moments = {name: store.moments(name, split) for name in store.modalities}
    rows = []
    for first, second in combinations(moments, 2):
        x, y = moments[first], moments[second]
        row: dict[str, Any] = {"first": first, "second": second, "length": None, "cosine_of_means": None}
        if _of_unit_rows(x) and _of_unit_rows(y):
            norms = float(np.linalg.norm(x.mean) * np.linalg.norm(y.mean))
            row["length"] = float(np.linalg.norm(gap_vector(x, y)))
            row["cosine_of_means"] = float(x.mean @ y.mean) / norms if norms > 0 else None
        rows.append(row)
    return rows


def _of_unit_rows(moments: Moments) -> bool:
    if moments.n == 0:
        return False
    squared = float(np.trace(moments.scatter)) / moments.n + float(moments.mean @ moments.mean)
    return bool(abs(squared - 1) <= _UNIT_TOLERANCE)
