"""A FAISS index of a store, for one modality or for all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import StoreError
from ..geometry.neighbours import modality_bias
from ..io.float16 import to_float32
from ..reporter import SilentTracker, Tracker
from ..store import Store, embedding_matrix, split_mask
from ..transforms import Pipeline
from .faiss_index import SHARD_ROWS, Matrix, build_index

BIAS_ROWS = 2_000
RECALL_QUERIES = 200
_SHOWN = ("caption", "path", "image_key")


@dataclass(frozen=True)
class IndexReport:
    """What was indexed.

    Attributes:
        output: the folder.
        record: content of index.json: factory, rows, nprobe, measured recall.
        bias: share of own-modality rows among the 10 nearest, per modality, before and after the transform, in a
            balanced sample (0.5 without bias); None for an index of one modality.
    """

    output: Path
    record: dict[str, Any]
    bias: dict[str, dict[str, float]] | None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"output": str(self.output), **self.record, "bias@10": self.bias}


def index_store(
    store: Store,
    pipeline: Pipeline,
    output: str | Path,
    *,
    modalities: list[str] | None = None,
    split: str | None = None,
    factory: str = "auto",
    shard_rows: int = SHARD_ROWS,
    target_recall: float = 0.98,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> IndexReport:
    """Index the transformed embeddings of a store, as documents are: as inference inputs, without noise.

    Args:
        store: where the embeddings are.
        pipeline: fitted; queries go through the same.
        output: the folder.
        modalities: one, or several for a mixed index; None for all.
        split: rows of this split only; None for all.
        factory: FAISS index string, or ``auto`` by the number of rows.
        shard_rows: vectors per file.
        target_recall: how many inverted lists a search visits is chosen so that recall@10 reaches this.
        seed: of training samples and of the sample that bias is measured on.
        tracker: told about each block of rows.

    Raises:
        StoreError: if there is nothing to index.
        TransformError: if the pipeline does not fit the store.
        MissingExtraError: if faiss is not installed.
    """
    pipeline.check_model(store.info.model)
    output = Path(output)
    chosen = modalities or store.modalities
    for modality in chosen:
        store.require(modality)
    source = _Source(store, pipeline, chosen, split, tracker or SilentTracker())
    rows = source.keys()
    if rows.num_rows == 0:
        raise StoreError(f"The store {store.path} has no rows in the split {split!r} to index.")
    record = {
        "modalities": chosen,
        "split": split or "all",
        "model": store.info.model,
        "transform": pipeline.record(),
    }
    written = build_index(
        output,
        source.blocks,
        rows,
        store.info.dim,
        factory=factory,
        shard_rows=shard_rows,
        queries=source.sample_queries(RECALL_QUERIES),
        target_recall=target_recall,
        seed=seed,
        record=record,
    )
    pipeline.save(output)
    bias = _bias(store, pipeline, chosen, seed) if len(chosen) == 2 else None
    return IndexReport(output, written, bias)


@dataclass(frozen=True)
class _Source:
    """The vectors of an index, as often as they are needed, and their keys."""

    store: Store
    pipeline: Pipeline
    modalities: list[str]
    split: str | None
    tracker: Tracker

    def keys(self) -> pa.Table:
        names = ["key", "modality", *_SHOWN]
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for modality in self.modalities:
            for batch in self.store.batches(modality):
                kept = batch.filter(pa.array(split_mask(batch, self.split)))
                columns["key"] += kept.column("key").to_pylist()
                columns["modality"] += [modality] * len(kept)
                for name in _SHOWN:
                    present = name in kept.schema.names
                    columns[name] += kept.column(name).to_pylist() if present else [None] * len(kept)
        return pa.table({name: pa.array(values, type=pa.string()) for name, values in columns.items()})

    def blocks(self) -> Iterator[Matrix]:
        for modality in self.modalities:
            for batch in self.store.batches(modality):
                x = to_float32(embedding_matrix(batch, self.store.info.dtype))[split_mask(batch, self.split)]
                if len(x):
                    yield self.pipeline.transform(x, modality=modality)
                self.tracker.advance(len(batch))

    def sample_queries(self, count: int) -> Matrix:
        """Rows of another modality where there is one, since rows of the index find themselves without effort."""
        others = [name for name in self.store.modalities if name not in self.modalities]
        modality = (others or self.modalities)[0]
        sample = [
            to_float32(embedding_matrix(batch, self.store.info.dtype)) for batch in _first(self.store, modality, count)
        ]
        x = np.concatenate(sample)[:count]
        try:
            return self.pipeline.transform(x, modality=modality)
        except Exception:
            # the other modality may have no means: then queries are rows of the index
            if not others:
                raise
            return next(iter(self.blocks()))[:count]


def _bias(store: Store, pipeline: Pipeline, modalities: list[str], seed: int) -> dict[str, dict[str, float]]:
    samples = {
        name: np.concatenate(
            [to_float32(embedding_matrix(b, store.info.dtype)) for b in _first(store, name, BIAS_ROWS)]
        )[:BIAS_ROWS]
        for name in modalities
    }
    first, second = modalities
    result = {}
    for label, used in (("before", Pipeline(_normalize_only())), ("after", pipeline)):
        x, y = (used.transform(samples[name], modality=name) for name in modalities)
        shares = modality_bias(x, y, seed=seed)
        result[label] = {first: round(shares[0].value, 4), second: round(shares[1].value, 4)}
    return result


def _normalize_only() -> list[Any]:
    from ..transforms import Normalize

    return [Normalize()]


def _first(store: Store, modality: str, count: int) -> Iterator[pa.RecordBatch]:
    seen = 0
    for batch in store.batches(modality):
        yield batch
        seen += len(batch)
        if seen >= count:
            return
