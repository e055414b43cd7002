"""The rows to cluster, from a store, an export or an index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..arrays import Indices, Matrix
from ..errors import StoreError
from ..index.codes import TRAINED_FILE, CodeFormat, codes_of
from ..io.locations import read_all
from ..moments import unit_rows
from ..reporter import Progress
from ..store import Store, embedding_matrix
from ..store.shards import FUSED
from ..transforms import Pipeline
from ..transforms.calibration import Calibration
from ..transforms.space import Space


@dataclass(frozen=True)
class Source:
    """Rows to cluster.

    Attributes:
        store: a store, an export or an index.
        pipeline: the fitted pipeline that leads from the encoder's embeddings to clustered rows.
        path: the steps of it that the rows of the store have not gone through.
        coder: of an index; None for others.
        split: of the rows.
    """

    store: Store
    pipeline: Pipeline
    path: Pipeline
    coder: CodeFormat | None
    split: str

    @classmethod
    def open(cls, store: Store, names: Sequence[str], split: str, clusters: Space | None) -> Source:
        """Open the rows of these modalities.

        Args:
            store: a store, an export or an index.
            names: the modalities.
            split: of the rows.
            clusters: the space of earlier clusters; None to take the pipeline of an export, or to
                fit Collapse on the train split of a store.

        Raises:
            StoreError: if a modality has too few rows to be collapsed.
            TransformError: if the rows do not lead to the space of the clusters, or have noise.
        """
        rows = Space.of(store)
        if clusters is None:
            pipeline = rows.pipeline or _fitted_pipeline(store, names)
            clusters = Space.after(pipeline, "new clusters")
        assert clusters.pipeline is not None
        # Fused rows are clustered with fused rows alone
        path = clusters.path_from(rows, {*names} - {FUSED})
        coder = None
        if store.info.code_size:
            store.require_listed(TRAINED_FILE)
            coder = CodeFormat(read_all(store.path / TRAINED_FILE))
        return cls(store, clusters.pipeline, path, coder, split)

    def table(self, modality: str, columns: Sequence[str]) -> pa.Table:
        """Return columns of all rows of a modality, in the order of `batches`.

        Raises:
            StoreError: if no rows are in the split.
        """
        batches = list(self.store.batches(modality, columns, split=self.split))
        if not batches:
            raise StoreError(
                f"{self.store.path} has no {modality} rows in the split {self.split!r}.",
                remedy="Choose another --split.",
            )
        return pa.Table.from_batches(batches)

    def batches(self, modality: str) -> Iterator[Matrix]:
        """Yield the rows of a modality as unit rows, before the path: float32 (n, d)."""
        column = "embedding" if self.coder is None else "code"
        for batch in self.store.batches(modality, [column], split=self.split):
            if self.coder is None:
                yield unit_rows(embedding_matrix(batch))
            else:
                yield unit_rows(self.coder.trained.sa_decode(codes_of(batch)))

    def transform(self, rows: Matrix, modality: str) -> Matrix:
        """Return rows of `batches` as they are clustered: unit rows after the pipeline."""
        if not self.path.steps:
            return rows
        return unit_rows(self.path.transform(rows, modality=modality))

    def sample(self, modality: str, numbers: Indices, progress: Progress) -> Matrix:
        """Return the rows of `batches` with these numbers, which ascend: float32 (n, d)."""
        sample = np.empty((len(numbers), self.store.info.dim), np.float32)
        first = 0  # number of the first row of a batch
        for rows in self.batches(modality):
            start, stop = np.searchsorted(numbers, [first, first + len(rows)])
            sample[start:stop] = rows[numbers[start:stop] - first]
            first += len(rows)
            progress.advance(len(rows))
        return sample


def _fitted_pipeline(store: Store, names: Sequence[str]) -> Pipeline:
    """Return Collapse fitted on the train split of a store.

    Raises:
        StoreError: if there are several modalities, and one has too few rows for a mean.
    """
    calibration = Calibration.fit(store)
    if len(names) > 1 and not calibration.moments:
        raise StoreError(
            f"{store.path} has too few train rows to estimate the mean of each modality, so "
            f"{' and '.join(names)} rows cannot be clustered together.",
            remedy=f"Embed more rows, load moments from the same model with `c3 means load FILE`, "
            f"or cluster one modality: --modalities {names[0]}",
        )
    return calibration.pipeline
