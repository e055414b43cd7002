"""CLIPRe: the caption of an image is the nearest training text (Su et al., 2022). Nothing is trained."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...errors import DecoderError
from ...moments import unit_rows
from ...store.rows import Rows

_BLOCK_ROWS = 256


def nearest_captions(queries: npt.NDArray[np.float32], memory: Rows) -> list[str]:
    """Return for each query (n, d) the caption with the highest cosine; of equal ones the first.

    Args:
        queries: embeddings of images.
        memory: m captions (column ``caption``) with their embeddings.

    Raises:
        DecoderError: if the memory is empty, or of another dimension.
    """
    if not len(memory):
        raise DecoderError("There are no captions to choose from.", remedy="Add at least one caption.")
    return [memory.captions[row] for row in nearest(queries, memory.embeddings, 1)[:, 0]]


def nearest(queries: npt.NDArray[np.float32], memory: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Return the rows of ``memory`` (m, d) with the highest cosine to each query (n, d): int64 (n, count), best first.

    Raises:
        DecoderError: if the dimensions differ.
    """
    if queries.shape[1] != memory.shape[1]:
        raise DecoderError(f"Queries have {queries.shape[1]} dimensions, but the memory has {memory.shape[1]}.")
    unit = unit_rows(memory)
    found = np.empty((len(queries), count), dtype=np.int64)
    for start in range(0, len(queries), _BLOCK_ROWS):
        # a query's own norm does not change its order
        scores = -(queries[start : start + _BLOCK_ROWS] @ unit.T)
        found[start : start + _BLOCK_ROWS] = np.argsort(scores, axis=1, kind="stable")[:, :count]
    return found
