"""Searching a large memory with FAISS instead of comparing with every row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..errors import MissingExtraError, TransformError

Rows = npt.NDArray[np.float32]
Search = Callable[[Rows, int], tuple[Rows, npt.NDArray[np.int64]]]
_VISITED = 16  # an inverted index looks at one cell in this many


def memory_search(memory: Rows, index: str) -> Search:
    """A function from queries (n, d) and k to the inner products and row numbers, both (n, k), of the best rows.

    Args:
        memory: float32 (m, d), unit rows.
        index: FAISS index string.

    Raises:
        MissingExtraError: if faiss is not installed.
        TransformError: if FAISS refuses the index string for this memory.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss-cpu", extra="cpu", purpose="A memory with an index") from None
    try:
        made = faiss.index_factory(memory.shape[1], index, faiss.METRIC_INNER_PRODUCT)
        made.train(memory)
        made.add(memory)
    except RuntimeError as error:
        raise TransformError(
            f"FAISS cannot make the index {index!r} of a memory of {len(memory):,} rows "
            f"({str(error).strip().splitlines()[-1]}).",
            remedy="Use another index string, or leave `index` out: the memory is then searched exactly.",
        ) from error
    inverted = faiss.try_extract_index_ivf(made)
    if inverted is not None:
        inverted.nprobe = max(1, inverted.nlist // _VISITED)

    def search(queries: Rows, k: int) -> tuple[Rows, npt.NDArray[np.int64]]:
        scores, rows = made.search(queries, k)
        # where too few rows were visited FAISS answers -1: such a place gets no weight
        return np.where(rows < 0, np.float32(-np.inf), scores), np.maximum(rows, 0)

    return search
