"""Steps with a memory: rows of the train split that are kept with the pipeline, and that inputs are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Indices, Matrix
from ..errors import MissingExtraError, TransformError
from ..seeds import generator, stable_hashes
from .fitting import FitData
from .operations import MemoryAttention, MixMemory, Operation, Search
from .steps import Step

_VISITED = 16  # an inverted index looks at one cell in this many


@dataclass(eq=False)
class MemoryStep(Step):
    """A step that compares rows with a memory.

    Attributes:
        memory: the modality whose train rows are the memory.
        tau: temperature; 0 takes the nearest row.
        neighbours: weigh only this many nearest rows; None weighs the whole memory.
        limit: at most this many memory rows, drawn at random (with a fixed seed) from those of the train split.
    """

    memory: str = "text"
    tau: float = 0.01
    neighbours: int | None = None
    limit: int = 500_000

    needs_unit = True
    needs_rows = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau >= 0 or self.limit < 1 or (self.neighbours is not None and self.neighbours < 1):
            raise TransformError(
                f"{self.kind} cannot use tau {self.tau}, neighbours {self.neighbours} and limit {self.limit}.",
                remedy="tau must be at least 0, and the other two at least 1.",
            )

    def draw(self, data: FitData) -> tuple[Matrix, Indices]:
        """Return a copy of the rows to keep, because later steps overwrite those they are fitted on; their numbers."""
        rows = data.rows_of(self.memory, self.kind)
        kept = np.arange(len(rows))
        if len(rows) > self.limit:
            kept = np.sort(generator(0, "memory", self.memory).choice(len(rows), self.limit, replace=False))
        return rows[kept], kept


@dataclass(eq=False)
class MemoryProjection(MemoryStep):
    """softmax(cos(e, M) / tau)-weighted mean of a memory M of the other modality (DeCap, Li et al., ICLR 2023).

    With tau 0 it takes the nearest row, which is CLIPRe (Su et al., 2022).

    Attributes:
        source: the modality that is projected.
        index: FAISS index string for a large memory, such as ``IVF1024,Flat``: ``neighbours`` are searched with it,
            which is approximate, once it is built at the first use; None compares with every row, in numpy.
            `TransformModule` always compares with every row.
    """

    source: str = "image"
    index: str | None = None

    kind = "memory-projection"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.modalities = (self.source,)
        self._search: tuple[Matrix, Search] | None = None
        if self.index is not None and self.neighbours is None and self.tau > 0:
            raise TransformError(
                f"memory-projection has the index {self.index!r} but no neighbours, so it would use the whole memory.",
                remedy="Set neighbours, for example 100.",
            )

    def fit(self, data: FitData) -> None:
        """Keep the memory's rows."""
        self.state = {"memory": self.draw(data)[0]}

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Attend over the memory."""
        memory: Matrix = self.state["memory"]
        if self.index is None:
            return (MemoryAttention(memory, self.tau, self.neighbours),)
        if self._search is None or self._search[0] is not memory:
            self._search = memory, memory_search(memory, self.index)
        return (MemoryAttention(memory, self.tau, self.neighbours, self._search[1]),)


@dataclass(eq=False)
class Retrieval(MemoryStep):
    """e + weight m / |m|, m the softmax(cos(e, M) / tau)-weighted mean of the rows of a memory M that are nearest to e.

    The retrieval of IFCap (Lee et al., EMNLP 2024), where texts with noise retrieve training captions, with a mix in
    place of its cross-attention. The memory contains the training captions themselves, so in training those of the
    input's own item are left out; an input without any others stays as it is. The memory is kept in float16, because it
    is most of what a decoder with this step takes on the disk.

    Attributes:
        weight: length of the mean that is added to vectors of length 1.
    """

    tau: float = 0.05
    neighbours: int = 10
    weight: float = 1.0

    kind = "retrieval"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rows: tuple[object, Matrix] | None = None  # the memory, and as float32
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise TransformError(
                f"retrieval cannot use the weight {self.weight}.", remedy="It must be a finite number of at least 0."
            )

    def fit(self, data: FitData) -> None:
        """Keep the memory's rows, and hashes of their items where these are known."""
        rows, kept = self.draw(data)
        self.state = {"memory": rows.astype(np.float16)}
        if self.memory in data.items:
            self.state["items"] = stable_hashes([data.items[self.memory][row] for row in kept])

    def own_items(self, items: Sequence[str] | None, n: int) -> Indices:
        """See `Step.own_items`."""
        if "items" not in self.state:
            raise TransformError(
                f"The step retrieval does not know the items of its {len(self.state['memory']):,} {self.memory} rows, "
                "so training inputs would retrieve themselves.",
                remedy=f"Fit on a store, or give the item of each row: fit(..., items={{{self.memory!r}: [...]}}).",
            )
        if items is None or len(items) != n:
            raise TransformError(
                f"The step retrieval needs the item of each of the {n} training inputs, or these would retrieve "
                f"themselves, but there are {0 if items is None else len(items)}.",
                remedy="Pass items=, one string per row, or training=False for inputs that are not in the memory.",
            )
        return stable_hashes(items)

    def operations(self, modality: str) -> tuple[Operation, ...]:
        """Add the mean of the nearest rows."""
        kept, items = self.state["memory"], self.state.get("items")
        if self._rows is None or self._rows[0] is not kept:
            self._rows = kept, kept.astype(np.float32)
        return (MixMemory(self._rows[1], self.tau, self.neighbours, self.weight, items),)


def memory_search(memory: Matrix, index: str) -> Search:
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

    def search(queries: Matrix, k: int) -> tuple[Matrix, Indices]:
        scores, rows = made.search(queries, k)
        # where too few rows were visited FAISS answers -1: such a neighbour gets no weight
        return np.where(rows < 0, np.float32(-np.inf), scores), np.maximum(rows, 0)

    return search
