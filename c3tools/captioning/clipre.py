"""CLIPRe: the caption of an image is the nearest training text (Su et al., 2022). Nothing is trained."""

from __future__ import annotations

import numpy as np

from ..arrays import Indices, Matrix
from ..moments import unit_rows

_BLOCK_ROWS = 256


def nearest(queries: Matrix, memory: Matrix, count: int) -> Indices:
    """Return the rows of ``memory`` (m, d) with the highest cosine to each query (n, d): (n, count), best first.

    Of rows with equal cosines the first comes first.
    """
    unit, found = unit_rows(memory), np.empty((len(queries), count), dtype=np.int64)
    for start in range(0, len(queries), _BLOCK_ROWS):
        # a query's own norm does not change its order
        scores = -(queries[start : start + _BLOCK_ROWS] @ unit.T)
        found[start : start + _BLOCK_ROWS] = np.argsort(scores, axis=1, kind="stable")[:, :count]
    return found
