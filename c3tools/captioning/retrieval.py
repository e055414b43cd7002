"""CLIPRe: the caption of an image is the nearest training text (Su et al., 2022). Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DecoderError

_BLOCK_ROWS = 256


@dataclass(frozen=True)
class NearestCaption:
    """A memory of captions with their embeddings.

    Attributes:
        embeddings: float32 (m, d), any norm but 0.
        captions: m captions.
    """

    embeddings: npt.NDArray[np.float32]
    captions: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.embeddings) != len(self.captions) or not len(self.captions):
            raise DecoderError(
                f"A memory needs one caption per embedding, and at least one; there are {len(self.embeddings)} "
                f"embeddings and {len(self.captions)} captions."
            )

    def caption(self, queries: npt.NDArray[np.float32]) -> list[str]:
        """The caption with the highest cosine to each of the queries (n, d); the first of equal ones."""
        return [self.captions[row] for row in nearest(queries, self.embeddings, 1)[:, 0]]


def nearest(queries: npt.NDArray[np.float32], memory: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Rows of ``memory`` (m, d) with the highest cosine to each of ``queries`` (n, d): int64 (n, count), best first."""
    if queries.shape[1] != memory.shape[1]:
        raise DecoderError(f"Queries have {queries.shape[1]} dimensions, the memory {memory.shape[1]}.")
    unit = memory / np.linalg.norm(memory, axis=1, keepdims=True)
    found = np.empty((len(queries), count), dtype=np.int64)
    for start in range(0, len(queries), _BLOCK_ROWS):
        # a query's own norm does not change its order
        scores = -(queries[start : start + _BLOCK_ROWS] @ unit.T)
        found[start : start + _BLOCK_ROWS] = np.argsort(scores, axis=1, kind="stable")[:, :count]
    return found
