"""Quality of an index: its recall beside exact search, and the bias towards a modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..export.parts import Recipe
from ..io.locations import kind_of
from ..metrics.retrieval import NearestRows
from ..store import Store
from ..store.manifest import StoreWriter
from ..store.shards import part_name, read_batches
from ..transforms import Pipeline, preset
from ..transforms.fitting import first_rows
from .codes import (
    CodeFormat,
    add_codes,
    cell_count,
    codes_of,
    has_whole_vectors,
    load_faiss,
    set_nprobe,
)
from .transformed_rows import TransformedRows

_NEIGHBOURS = 10
_BIAS_ROWS = 2_000


def measure_recall(
    source: TransformedRows, recipe: Recipe, writer: StoreWriter, target: float
) -> dict[str, Any]:
    """Return recall@10 against exact search in the vectors, and the nprobe that it takes."""
    queries = np.ascontiguousarray(source.queries())

    # By NumPy, since FAISS multiplies so few queries one by one, at four times the cost
    exact = NearestRows(len(queries), _NEIGHBOURS)
    for name, rows in source.batches():
        exact.add(queries @ source.transform(rows, name).T)
    truth = exact.numbers[:, : exact.row_count]

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

    # Search it in 1, 2, 4, ... and all cells, until that is enough
    cells = cell_count(index)
    probes: list[int | None] = [1 << power for power in range(cells.bit_length())]
    if cells and cells not in probes:
        probes.append(cells)
    recall = 0.0
    nprobe: int | None = None
    for nprobe in probes or [None]:
        set_nprobe(index, nprobe)
        _, rows = index.search(queries, truth.shape[1])
        previous = recall
        recall = float((rows[:, :, None] == truth[:, None, :]).any(axis=2).mean())
        # What more cells do not find is lost by quantisation
        is_steady = nprobe is not None and nprobe >= 64 and recall - previous < 1e-3
        if recall >= target or (is_steady and not has_whole_vectors(index)):
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
        first, second = [applied.transform(rows, modality=name) for name, rows in samples.items()]
        shares = modality_bias(first, second, seed=seed)
        bias[label] = {}
        for name, share in zip(modalities, shares, strict=True):
            bias[label][name] = round(share.value, 4)
    return bias
