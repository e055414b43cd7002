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
from ..transforms import Pipeline
from ..transforms.calibration import Calibration


@dataclass(frozen=True)
class Source:
    """Rows to cluster.

    Attributes:
        store: a store, an export or an index.
        pipeline: the fitted pipeline that rows go through as the encoder gives them.
        is_transformed: whether the rows of the store went through it already.
        coder: of an index; None for others.
        split: of the rows.
    """

    store: Store
    pipeline: Pipeline
    is_transformed: bool
    coder: CodeFormat | None
    split: str

    @classmethod
    def open(
        cls, store: Store, names: Sequence[str], split: str, pipeline: Pipeline | None
    ) -> Source:
        """Open the rows of these modalities.

        Args:
            store: a store, an export or an index.
            names: the modalities.
            split: of the rows.
            pipeline: that of earlier clusters; None to fit Collapse on the train split of a store.

        Raises:
            StoreError: if a modality has too few rows to be collapsed, rows of an export have not
                gone through its whole pipeline, or those of earlier clusters are of another model
                or pipeline.
        """
        if pipeline is not None:
            store.info.require_same_model(
                pipeline.provenance.get("model") or {},
                own=f"The store {store.path}",
                theirs="the clusters",
                remedy="Cluster this store separately, with another --output.",
            )
        # The pipeline of an export, and how many of its steps the rows went through
        pipeline_and_applied = Pipeline.of_export(store)
        if pipeline_and_applied is None:
            if pipeline is None:
                calibration = Calibration.fit(store)
                if len(names) > 1 and not calibration.moments:
                    raise StoreError(
                        f"{store.path} has too few train rows to estimate the mean of each "
                        f"modality, so {' and '.join(names)} rows cannot be clustered together.",
                        remedy=f"Embed more rows, load moments from the same model with `c3 means "
                        f"load FILE`, or cluster one modality: --modalities {names[0]}",
                    )
                pipeline = calibration.pipeline
            return cls(store, pipeline, is_transformed=False, coder=None, split=split)
        exported_pipeline, applied = pipeline_and_applied
        if pipeline and pipeline.record()["tensors"] != exported_pipeline.record()["tensors"]:
            raise StoreError(
                f"The rows of {store.path} went through a pipeline other than that of the "
                f"clustered rows.",
                remedy="Assign the rows of the store that was exported or indexed.",
            )
        # An index: its codes are of rows that went through all steps
        if store.info.code_size:
            store.require_listed(TRAINED_FILE)
            coder = CodeFormat(read_all(store.path / TRAINED_FILE))
            return cls(store, exported_pipeline, is_transformed=True, coder=coder, split=split)
        if applied < len(exported_pipeline.steps):
            raise StoreError(
                f"The rows of the export {store.path} have not gone through the whole pipeline.",
                remedy="Cluster the store that was exported.",
            )
        return cls(store, exported_pipeline, is_transformed=True, coder=None, split=split)

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
        """Yield the rows of a modality as unit rows, before the pipeline unless they went through
        it: float32 (n, d).
        """
        column = "embedding" if self.coder is None else "code"
        for batch in self.store.batches(modality, [column], split=self.split):
            if self.coder is None:
                yield unit_rows(embedding_matrix(batch))
            else:
                yield unit_rows(self.coder.trained.sa_decode(codes_of(batch)))

    def transform(self, rows: Matrix, modality: str) -> Matrix:
        """Return rows of `batches` as they are clustered: unit rows after the pipeline."""
        if self.is_transformed:
            return rows
        return unit_rows(self.pipeline.transform(rows, modality=modality))

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
