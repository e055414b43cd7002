"""Quality of an index: its recall beside exact search, and the bias towards a modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Indices, Matrix
from ..export.parts import Recipe
from ..io.locations import kind_of
from ..store import Store
from ..store.manifest import StoreWriter
from ..store.shards import part_name, read_batches
from ..transforms import Pipeline, preset
from ..transforms.fitting import first_rows
from .codes import CodeFormat, NearestCells, add_codes, cell_count, codes_of, load_faiss
from .rows import TransformedRows

_NEIGHBOURS = 10
_FEW_CELLS = 64  # up to which all numbers of visited cells are measured in one pass
_BIAS_ROWS = 2_000


def measure_recall(
    source: TransformedRows, recipe: Recipe, writer: StoreWriter, target: float
) -> dict[str, Any]:
    """Return recall@10 against exact search in the vectors, and the nprobe that it takes."""
    queries = np.ascontiguousarray(source.queries())
    truth = nearest_rows(source, queries, _NEIGHBOURS)
    assert isinstance(recipe.format, CodeFormat)
    trained = recipe.format.trained
    recall = 0.0
    nprobe: int | None = None
    for probes in _probes(cell_count(trained)):
        found = _search_parts(recipe, source.modalities, writer, queries, probes)
        for nprobe in probes:
            previous = recall
            is_found = (found[nprobe][:, :, None] == truth[:, None, :]).any(axis=2)
            recall = float(is_found.mean())
            # without inverted lists' misses, more probes change nothing: what is lost is lost by
            # quantisation
            is_steady = nprobe is not None and nprobe >= 64 and recall - previous < 1e-3
            if recall >= target or is_steady:
                return _recall_record(nprobe, recall, truth, queries)
    return _recall_record(nprobe, recall, truth, queries)


def _recall_record(
    nprobe: int | None, recall: float, truth: Indices, queries: Matrix
) -> dict[str, Any]:
    name = f"recall@{truth.shape[1]}"
    return {"nprobe": nprobe, name: round(recall, 4), "recall_queries": len(queries)}


def _probes(cells: int) -> list[list[int | None]]:
    """Return the numbers of visited cells to try, in groups that are measured together."""
    if not cells:
        return [[None]]
    numbers = [1 << power for power in range(int(np.log2(cells)) + 1)]
    groups: list[list[int | None]] = [[number for number in numbers if number <= _FEW_CELLS]]
    groups += [[number] for number in numbers if number > _FEW_CELLS]
    return groups


def _search_parts(
    recipe: Recipe,
    modalities: Sequence[str],
    writer: StoreWriter,
    queries: Matrix,
    probes: Sequence[int | None],
) -> dict[int | None, Indices]:
    """Return the rows that an index finds, (q, k), by the number of cells that are visited.

    The parts are searched one after the other, so that only one of them is in memory.
    """
    faiss = load_faiss()
    assert isinstance(recipe.format, CodeFormat)
    trained = recipe.format.trained
    cells = NearestCells.of(trained, queries, max(nprobe or 0 for nprobe in probes))
    nearest = {nprobe: _Nearest(_NEIGHBOURS) for nprobe in probes}
    for modality in modalities:
        for number in recipe.store.parts(modality):
            part = faiss.clone_index(trained)
            path = writer.written(part_name(modality, number))
            if kind_of(path) is None:  # a shard without rows has no part
                continue
            for batch in read_batches(path, modality, recipe.info, ["code"]):
                add_codes(part, codes_of(batch))
            for nprobe in probes if part.ntotal else ():
                if cells is None or nprobe is None:
                    scores, rows = part.search(queries, _NEIGHBOURS)
                else:
                    scores, rows = cells.search(part, nprobe, _NEIGHBOURS)
                nearest[nprobe].add(scores, rows, part.ntotal)
    return {nprobe: found.rows for nprobe, found in nearest.items()}


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
    nearest = _Nearest(k)
    for name, rows in source.batches():
        # by NumPy, since FAISS multiplies so few queries one by one, at four times the cost
        scores = queries @ source.transform(rows, name).T
        most = min(k, len(rows))
        numbers = np.sort(np.argpartition(scores, -most, axis=1)[:, -most:], axis=1)
        nearest.add(np.take_along_axis(scores, numbers, axis=1), numbers, len(rows))
    return nearest.rows


@dataclass
class _Nearest:
    """The best rows of several searches, in parts of the rows one after the other.

    Attributes:
        k: number of rows to keep.
        scores: of these, best first: float32 (q, k).
        rows: their numbers among all parts, (q, k); -1 for none.
        searched: number of rows of the parts so far.
    """

    k: int
    scores: Matrix = field(default_factory=lambda: np.empty((0, 0), np.float32))
    rows: Indices = field(default_factory=lambda: np.empty((0, 0), np.int64))
    searched: int = 0

    def add(self, scores: Matrix, rows: Indices, count: int) -> None:
        """Take the best of a further part of ``count`` rows, by their numbers in it, (q, k)."""
        numbered = np.where(rows < 0, -1, rows + self.searched)
        scores = np.where(rows < 0, -np.inf, scores)
        if self.searched:
            scores = np.hstack([self.scores, scores])
            numbered = np.hstack([self.rows, numbered])
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self.scores = np.take_along_axis(scores, best, axis=1)
        self.rows = np.take_along_axis(numbered, best, axis=1)
        self.searched += count
