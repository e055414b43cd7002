"""Searching an index by text, by image, by vector, or by the key of a row in the store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..io.float16 import to_float32
from ..store import Store, embedding_matrix
from ..store.importers import read_vectors
from ..transforms import Pipeline
from .faiss_index import FaissIndex, Matrix


@dataclass(frozen=True)
class Hit:
    """One row that was found.

    Attributes:
        score: cosine with the query after the transform.
        key: of the row.
        modality: of the row.
        caption: for texts.
        path: for images.
    """

    score: float
    key: str
    modality: str
    caption: str | None = None
    path: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The hit as JSON values, without what it has not."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Searcher:
    """An index with the pipeline that its rows went through."""

    def __init__(self, index: FaissIndex, pipeline: Pipeline) -> None:
        self.index = index
        self.pipeline = pipeline

    @classmethod
    def open(cls, path: str | Path) -> Searcher:
        """Open the index in the folder ``path``.

        Raises:
            StoreError: if there is none, or it is damaged.
            TransformError: if the pipeline beside it is damaged.
        """
        return cls(FaissIndex.open(path), Pipeline.load(path))

    def search(
        self, vectors: Matrix, modality: str, k: int = 10, *, within: str | None = None, nprobe: int | None = None
    ) -> list[list[Hit]]:
        """The best ``k`` rows for each of the raw embeddings ``vectors`` (q, d), best first.

        Args:
            vectors: embeddings as the model gives them; they go through the index's pipeline here.
            modality: of the queries; decides which mean is subtracted.
            k: how many.
            within: rows of this modality only.
            nprobe: inverted lists to visit; None for what the index was tuned to.

        Raises:
            TransformError: if the pipeline does not know the modality, or dimensions differ.
            StoreError: if the index has no rows of ``within``.
        """
        if k < 1:
            raise StoreError(f"k is {k}; at least 1 row is found.")
        queries = self.pipeline.transform(vectors, modality=modality)
        scores, rows = self.index.search(queries, k, nprobe=nprobe, between=self._rows_of(within))
        return [
            [self._hit(float(score), int(row)) for score, row in zip(*found, strict=True) if row >= 0]
            for found in zip(scores, rows, strict=True)
        ]

    def _rows_of(self, modality: str | None) -> tuple[int, int] | None:
        """First and last-but-one row of a modality, whose rows stand together."""
        if modality is None:
            return None
        names = self.index.rows.column("modality").to_pylist()
        if modality not in names:
            known = ", ".join(sorted(set(names)))
            raise StoreError(f"The index {self.index.path} has no {modality} rows; it has {known}.")
        first = names.index(modality)
        return first, first + names.count(modality)

    def _hit(self, score: float, row: int) -> Hit:
        values = self.index.rows.slice(row, 1).to_pylist()[0]
        return Hit(round(score, 6), values["key"], values["modality"], values["caption"], values["path"])


def vectors_of_file(path: Path) -> Matrix:
    """Query vectors (q, d) from a file; a single vector (d,) is one query.

    Raises:
        StoreError: if the file cannot be read.
    """
    if path.suffix.lower() == ".npy" and path.exists():
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise StoreError(f"{path} cannot be read ({error}).") from error
        if array.ndim == 1:
            return to_float32(array[None])
    return to_float32(read_vectors(path).vectors[:])


def vector_of_key(store: Store, key: str, modality: str | None = None) -> tuple[Matrix, str]:
    """The embedding (1, d) of a row of the store, and its modality.

    Raises:
        StoreError: if no row has the key.
    """
    for name in [modality] if modality else store.modalities:
        for batch in store.batches(name, ["key", "embedding"]):
            keys = batch.column("key").to_pylist()
            if key in keys:
                row = keys.index(key)
                return to_float32(embedding_matrix(batch.slice(row, 1), store.info.dtype)), name
    raise StoreError(f"No row of the store {store.path} has the key {key!r}.")
