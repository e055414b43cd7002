"""Quality of an index: its recall beside exact search, and the bias towards a modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Indices, Matrix
from ..export.parts import Recipe
from ..io.locations import kind_of
from ..metrics.retrieval import nearest
from ..store import Store
from ..store.manifest import StoreWriter
from ..store.shards import part_name, read_batches
from ..transforms import Pipeline, preset
from ..transforms.fitting import first_rows
from .codes import CodeFormat, add_codes, cell_count, codes_of, load_faiss, set_nprobe
from .transformed_rows import TransformedRows

_NEIGHBOURS = 10
_BIAS_ROWS = 2_000


def measure_recall(
    source: TransformedRows, recipe: Recipe, writer: StoreWriter, target: float
) -> dict[str, Any]:
    """Return recall@10 against exact search in the vectors, and the nprobe that it takes."""
    queries = np.ascontiguousarray(source.queries())
    truth = nearest_rows(source, queries, _NEIGHBOURS)

    # Add the codes of all parts, in the order of the rows
    assert isinstance(recipe.format, CodeFormat)
    index = load_faiss().clone_index(recipe.format.trained)
    for modality in source.modalities:
        for number in recipe.store.parts(modality):
            path = writer.written(part_name(modality, number))
            if kind_of(path) is None:  # a shard without rows has no part
                continue
            for batch in read_batches(path, modality, recipe.info, ["code"]):
                add_codes(index, codes_of(batch))

    # Search it in 1, 2, 4, ... cells, until that is enough
    probes: list[int | None] = [1 << power for power in range(cell_count(index).bit_length())]
    recall = 0.0
    nprobe: int | None = None
    for nprobe in probes or [None]:
        set_nprobe(index, nprobe)
        _, rows = index.search(queries, truth.shape[1])
        previous = recall
        recall = float((rows[:, :, None] == truth[:, None, :]).any(axis=2).mean())
        # without inverted lists' misses, more probes change nothing: what is lost is lost by
        # quantisation
        is_steady = nprobe is not None and nprobe >= 64 and recall - previous < 1e-3
        if recall >= target or is_steady:
            break
    name = f"recall@{truth.shape[1]}"
    return {"nprobe": nprobe, name: round(recall, 4), "recall_queries": len(queries)}


def measure_bias(
    store: Store, pipeline: Pipeline, modalities: Sequence[str], seed: int
) -> dict[str, dict[str, float]]:
    """Return the share of own-modality rows among the 10 nearest, before and after the pipeline."""
    from ..geometry.spaces import modality_bias

    samples = {name: first_rows(store, name, None, _BIAS_ROWS).embeddings for name in modalities}
    bias: dict[str, dict[str, float]] = {}
    for label, applied in (("before", preset("c1")), ("after", pipeline)):
        x, y = (applied.transform(rows, modality=name) for name, rows in samples.items())
        shares = modality_bias(x, y, seed=seed)
        bias[label] = {}
        for name, share in zip(modalities, shares, strict=True):
            bias[label][name] = round(share.value, 4)
    return bias


def nearest_rows(source: TransformedRows, queries: Matrix, k: int) -> Indices:
    """Return the numbers of the rows with the largest inner products, (q, k), best first."""
    products = np.empty((len(queries), 0))
    numbers = np.empty((len(queries), 0), np.int64)
    first = 0  # number of the first row of a batch
    for name, rows in source.batches():
        # by NumPy, since FAISS multiplies so few queries one by one, at four times the cost
        batch_numbers, batch_products = nearest(queries, source.transform(rows, name), k)
        products = np.hstack([products, batch_products])
        numbers = np.hstack([numbers, batch_numbers + first])
        best = np.argsort(-products, axis=1, kind="stable")[:, :k]
        products = np.take_along_axis(products, best, axis=1)
        numbers = np.take_along_axis(numbers, best, axis=1)
        first += len(rows)
    return numbers
