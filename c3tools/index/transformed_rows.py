"""The transformed rows of a store, a batch at a time: to train an index on, and to measure it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Indices, Matrix
from ..errors import TransformError
from ..moments import Moments
from ..store import Store, embedding_matrix
from ..transforms import Pipeline
from ..transforms.fitting import first_rows

_QUERIES = 200


@dataclass(frozen=True)
class TransformedRows:
    """The transformed rows of a store, in the order of the index.

    Attributes:
        store: the store.
        pipeline: the fitted pipeline.
        modalities: of the rows, one after the other.
        split: of the rows.
    """

    store: Store
    pipeline: Pipeline
    modalities: Sequence[str]
    split: str

    def batches(self) -> Iterator[tuple[str, Matrix]]:
        """Yield the modality and the embeddings (n, d) of some rows, before the transform."""
        for name in self.modalities:
            for batch in self.store.batches(name, ["embedding"], split=self.split):
                yield name, embedding_matrix(batch)

    def transform(self, rows: Matrix, modality: str) -> Matrix:
        """Return transformed rows, float32 (n, d)."""
        return self.pipeline.transform(rows, modality=modality)

    def sample(self, numbers: Indices) -> Matrix:
        """Return the rows of these numbers, which ascend, float32 (n, d)."""
        chosen = np.empty((len(numbers), self.store.info.dim), np.float32)
        first = 0  # number of the first row of a batch
        for name, rows in self.batches():
            start, stop = np.searchsorted(numbers, [first, first + len(rows)])
            if stop > start:
                chosen[start:stop] = self.transform(rows[numbers[start:stop] - first], name)
            first += len(rows)
        return chosen

    def moments(self, modality: str) -> Moments:
        """Return the moments of the transformed rows of one modality."""
        blocks = (
            Moments.from_rows(self.transform(rows, name))
            for name, rows in replace(self, modalities=[modality]).batches()
        )
        return Moments.total(blocks, self.store.info.dim)

    def queries(self) -> Matrix:
        """Return queries for tuning the search, if possible rows of a modality that is not indexed
        and that the pipeline is fitted for.

        Rows of the index itself would find themselves without effort.
        """
        for other in self.store.modalities:
            if other not in self.modalities:
                with suppress(TransformError):
                    rows = first_rows(self.store, other, None, _QUERIES)
                    return self.transform(rows.embeddings, other)
        first = self.modalities[0]
        rows = first_rows(self.store, first, self.split, _QUERIES)
        return self.transform(rows.embeddings, first)
