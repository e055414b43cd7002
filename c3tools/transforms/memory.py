"""Steps with a memory: rows of the train split that are kept with the pipeline, and that inputs are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import MissingExtraError, TransformError
from .fitting import FitData
from .operations import Indices, MemoryAttention, Operation, Rows, Search
from .steps import Step

_VISITED = 16  # an inverted index looks at one cell in this many


@dataclass(eq=False)
class MemoryProjection(Step):
    """softmax(cos(e, M) / tau)-weighted mean of a memory M of the other modality (DeCap, Li et al., ICLR 2023).

    Attributes:
        source: the modality that is projected.
        memory: the modality whose train rows are the memory.
        tau: temperature; 0 takes the nearest row, which is CLIPRe (Su et al., 2022).
        neighbours: weigh only this many nearest rows; None weighs the whole memory.
        limit: at most this many memory rows, the first ones.
        index: FAISS index string for a large memory, such as ``IVF1024,Flat``: ``neighbours`` are searched with it,
            which is approximate, once it is built at the first use; None compares with every row, in numpy.
            `TransformModule` always compares with every row.
    """

    source: str = "image"
    memory: str = "text"
    tau: float = 0.01
    neighbours: int | None = None
    limit: int = 500_000
    index: str | None = None

    kind: ClassVar[str] = "memory-projection"
    needs_unit: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.modalities = (self.source,)
        self._search: tuple[Rows, Search] | None = None
        if self.index is not None and self.neighbours is None and self.tau > 0:
            raise TransformError(
                f"memory-projection has the index {self.index!r} but no neighbours, so it would use the whole memory.",
                remedy="Set neighbours, for example 100.",
            )
        _check_settings(self)

    def fit(self, data: FitData) -> None:
        """Keep the memory's rows."""
        self.state = {"memory": _memory_rows(self, data)}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Attend over the memory."""
        memory: Rows = self.state["memory"]  # type: ignore[assignment]
        return (MemoryAttention(memory, self.tau, self.neighbours, self._searching(memory)),)

    def _searching(self, memory: Rows) -> Search | None:
        if self.index is None:
            return None
        if self._search is None or self._search[0] is not memory:
            self._search = memory, memory_search(memory, self.index)
        return self._search[1]


def memory_search(memory: Rows, index: str) -> Search:
    """Return a function from queries (n, d) and k to the inner products and row numbers, both (n, k), of the best rows.

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
            remedy="Use another index string, or leave out `index` to search the memory exactly.",
        ) from error
    inverted = faiss.try_extract_index_ivf(made)
    if inverted is not None:
        inverted.nprobe = max(1, inverted.nlist // _VISITED)

    def search(queries: Rows, k: int) -> tuple[Rows, Indices]:
        scores, rows = made.search(queries, k)
        # where too few rows were visited FAISS answers -1: such a neighbour gets no weight
        return np.where(rows < 0, np.float32(-np.inf), scores), np.maximum(rows, 0)

    return search


def _check_settings(step: MemoryProjection) -> None:
    if not step.tau >= 0 or step.limit < 1 or (step.neighbours is not None and step.neighbours < 1):
        raise TransformError(
            f"{step.kind} cannot use tau {step.tau}, neighbours {step.neighbours} and limit {step.limit}.",
            remedy="tau must be at least 0, and the other two at least 1.",
        )


def _memory_rows(step: MemoryProjection, data: FitData) -> Rows:
    """Return a copy of the rows to keep, because later steps overwrite those they are fitted on."""
    return data.rows_of(step.memory, step.kind)[: step.limit].copy()
