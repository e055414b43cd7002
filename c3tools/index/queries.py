"""Queries of an index: embeddings of one modality, and one query of several parts.

query = combined(pipeline, [text, photo], weights=[1, 0.5])   # "red", and like this photo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Matrix
from ..errors import StoreError, UnusedOptionError
from ..moments import unit_rows
from ..store.shards import FUSED
from ..transforms import Pipeline

_LEAST_NORM = 1e-3  # of a sum of unit vectors that says anything


@dataclass(frozen=True)
class Query:
    """Queries that are searched for, each by itself.

    Attributes:
        labels: what results call them.
        embeddings: (q, d).
        modality: of all of them; None of one that is combined of several modalities.
        is_transformed: whether they have gone through the pipeline.
    """

    labels: list[str]
    embeddings: Matrix
    modality: str | None
    is_transformed: bool = False

    def transformed(self, pipeline: Pipeline) -> Matrix:
        """Return the embeddings (q, d) after the pipeline."""
        if self.is_transformed or self.modality is None:
            return self.embeddings
        return pipeline.transform(self.embeddings, modality=self.modality)


def combined(
    pipeline: Pipeline, queries: Sequence[Query], weights: Sequence[float] | None = None
) -> Query:
    """Return one query of all parts: the unit sum of their collapsed unit vectors.

    Args:
        pipeline: of the index.
        queries: the parts.
        weights: of the parts, in their order; a part with a negative one is searched without. None
            for 1 each.

    Raises:
        UnusedOptionError: if there are weights, and one part.
        StoreError: if there is not one weight for each part, all are zero, the parts cancel each
            other, or the pipeline does not centre one of their modalities.
        TransformError: if the pipeline is not fitted for a modality.
    """
    # One weight for each part
    labels = [label for query in queries for label in query.labels]
    if len(labels) == 1:
        raise UnusedOptionError("--weights", "with a query of one part")
    weights = [1.0] * len(labels) if weights is None else list(weights)
    if len(weights) != len(labels) or not np.isfinite(weights).all():
        raise StoreError(
            f"One weight is needed for each of the {len(labels)} parts of the query "
            f"({', '.join(labels)}), but --weights has "
            f"{', '.join(f'{weight:g}' for weight in weights)}.",
            remedy=f"For example: --weights {','.join(['1'] * (len(labels) - 1))},0.5",
        )
    if not any(weights):
        raise StoreError(
            "All weights of the query are 0.",
            remedy="Give at least one part a weight other than 0.",
        )

    # Without its mean subtracted, every vector of a modality has the modality gap in it
    for query in queries:
        # A fused row is made of an image and a text that went through the pipeline
        modality = "image" if query.modality == FUSED else query.modality
        if modality is not None and not pipeline.centres(modality):
            raise StoreError(
                f"Parts of a query cannot be combined, because the index does not subtract the "
                f"mean of {modality} vectors.",
                remedy="Build it with `c3 index` and the default preset, after `c3 means load` if "
                f"the store has too few {modality} rows for a mean.",
            )

    # The unit sum of the parts
    vectors = np.concatenate([unit_rows(query.transformed(pipeline)) for query in queries])
    vector = np.asarray(weights) @ vectors.astype(np.float64)
    norm = np.linalg.norm(vector)
    if norm < _LEAST_NORM * np.abs(weights).sum():
        raise StoreError(
            f"The parts of the query ({', '.join(labels)}) cancel each other out.",
            remedy="Use other weights.",
        )

    # What results call it, and its modality, if all parts are of one
    parts = labels
    if set(weights) != {1.0}:
        parts = [f"{weight:g} × {label}" for label, weight in zip(labels, weights, strict=True)]
    # A part of weight 0 is not in the sum
    modalities = [query.modality for query in queries for _ in query.labels]
    summed = {name for name, weight in zip(modalities, weights, strict=True) if weight != 0}
    only_modality = summed.pop() if len(summed) == 1 else None
    unit_sum = (vector / norm).astype(np.float32)
    return Query([" + ".join(parts)], unit_sum[None], only_modality, is_transformed=True)
