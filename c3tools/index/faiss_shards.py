"""FAISS: indexes in shards, each a copy of one trained index; scores are inner products of unit vectors, so cosines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Indices, Matrix
from ..errors import StoreError
from ..reporter import counted
from ..seeds import generator
from ..store.shard_indexes import last_line, load_faiss

SHARD_ROWS = 1_000_000
FLAT_ROWS = 20_000
QUANTISED_ROWS = 2_000_000
_TRAINING_ROWS_PER_CELL = 64
_LEAST_ROWS_PER_CELL = 39  # below it, FAISS warns that its k-means has too few points


def choose_factory(n: int, dim: int) -> str:
    """Return the index string for ``n`` vectors of ``dim`` dimensions.

    It is exact up to 20,000 rows, has inverted lists of float16 vectors up to 2 million, and beyond that product
    quantisation after a rotation.
    """
    if n <= FLAT_ROWS:
        return "Flat"
    cells = 1 << round(np.log2(4 * np.sqrt(n)))
    while cells * _LEAST_ROWS_PER_CELL > n:
        cells //= 2
    if n <= QUANTISED_ROWS:
        return f"IVF{cells},SQfp16"
    pieces = next((m for m in (64, 32, 16, 8, 4) if m * 4 <= dim), 1)
    return f"OPQ{pieces}_{pieces * 4},IVF{cells},PQ{pieces}"


def read_shards(paths: Iterable[Path], *, gpu: bool = True) -> list[Any]:
    """Read FAISS indexes from files, onto GPUs where faiss sees some and ``gpu`` is true.

    Raises:
        RuntimeError: if a file is missing or damaged.
        MissingExtraError: if faiss is not installed.
    """
    read = [load_faiss().read_index(str(path)) for path in paths]
    return [_on_gpu(shard) for shard in read] if gpu else read


def train_index(
    factory: str, blocks: Callable[[], Iterable[Matrix]], n: int, dim: int, *, seed: int
) -> tuple[str, Any]:
    """Return the index string, and an empty index of it, trained on a sample of the ``n`` vectors of ``blocks``.

    A ``factory`` of ``auto`` is replaced by that of `choose_factory`.

    Raises:
        StoreError: if FAISS refuses the index string.
        MissingExtraError: if faiss is not installed.
    """
    faiss = load_faiss()
    factory = choose_factory(n, dim) if factory == "auto" else factory
    try:
        empty = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not empty.is_trained:
            sample = _sample(blocks(), n, max(_inverted_lists(empty) * _TRAINING_ROWS_PER_CELL, 65_536), seed)
            device = _on_gpu(empty)
            device.train(sample)
            empty = device if device is empty else faiss.index_gpu_to_cpu(device)
    except RuntimeError as error:
        raise StoreError(
            f"FAISS cannot make the index {factory!r} from {counted(n, 'row')} of {dim} dimensions "
            f"({last_line(error)}).",
            remedy="Use --factory auto, Flat, or fewer cells.",
        ) from error
    return factory, empty


def fill_shards(empty: Any, blocks: Iterable[Matrix], shard_rows: int, begun: Any = None) -> Iterator[Any]:
    """Yield copies of the trained index ``empty`` with up to ``shard_rows`` vectors each; ``begun`` is filled first."""
    faiss = load_faiss()
    shard = faiss.clone_index(empty) if begun is None else begun
    for block in blocks:
        start = 0
        while start < len(block):
            take = min(shard_rows - shard.ntotal, len(block) - start)
            shard.add(np.ascontiguousarray(block[start : start + take]))
            start += take
            if shard.ntotal == shard_rows:
                yield shard
                shard = faiss.clone_index(empty)
    if shard.ntotal:
        yield shard


def exact_neighbours(blocks: Iterable[Matrix], queries: Matrix, k: int) -> Indices:
    """Return the numbers (q, min(k, n)) of the rows with the largest inner products, best first, by brute force."""
    scores = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    start = 0
    for block in blocks:
        scores = np.hstack([scores, queries @ block.T])
        rows = np.hstack([rows, np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        start += len(block)
    return rows


def measure_recall(
    shards: list[Any], queries: Matrix, blocks: Iterable[Matrix], target: float, k: int = 10
) -> dict[str, Any]:
    """Return recall@k against exact search in the vectors of ``blocks``, and the nprobe that it takes."""
    truth = exact_neighbours(blocks, queries, k)
    cells = max((_inverted_lists(shard) for shard in shards), default=0)
    probes: list[int | None] = [1 << power for power in range(int(np.log2(cells)) + 1)] if cells else [None]
    recall, nprobe = 0.0, probes[0]
    for nprobe in probes:
        found = search_shards(shards, queries, truth.shape[1], nprobe)[1]
        hits = (found[:, :, None] == truth[:, None, :]).any(axis=2).sum()
        previous, recall = recall, float(hits / truth.size)
        # without inverted lists' misses, more probes change nothing: what is lost is lost by quantisation
        if recall >= target or (nprobe and nprobe >= 64 and recall - previous < 1e-3):
            break
    return {"nprobe": nprobe, f"recall@{truth.shape[1]}": round(recall, 4), "recall_queries": len(queries)}


def search_shards(
    shards: Iterable[Any], queries: Matrix, k: int, nprobe: int | None, wanted: npt.NDArray[np.bool_] | None = None
) -> tuple[Matrix, Indices]:
    """Return the best scores and row numbers over all shards, both (q, k), best first.

    Where there are fewer than ``k`` rows, the row number is -1 and the score -inf. ``wanted`` (n,) tells which rows are
    looked at; None for all.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores = [np.full((len(queries), k), -np.inf, np.float32)]
    rows = [np.full((len(queries), k), -1, np.int64)]
    start = 0
    for shard in shards:
        own = None if wanted is None else wanted[start : start + shard.ntotal]
        if own is None or own.any():
            parameters = _parameters(shard, nprobe, None if own is None or own.all() else own, k)
            found_scores, found = shard.search(queries, k, params=parameters)
            missing = found < 0
            scores.append(np.where(missing, -np.inf, found_scores))
            rows.append(np.where(missing, -1, found + start))
        start += shard.ntotal
    all_scores, all_rows = np.hstack(scores), np.hstack(rows)
    best = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(all_scores, best, 1), np.take_along_axis(all_rows, best, 1)


def _parameters(index: Any, nprobe: int | None, wanted: npt.NDArray[np.bool_] | None, k: int) -> Any:
    """Return search parameters of the class that the index needs; ``wanted`` (n,) selects the rows to search."""
    faiss = load_faiss()
    options: dict[str, Any] = {}
    if wanted is not None:
        options["sel"] = faiss.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, nprobe, wanted, k)
        return None if inner is None else faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=int(nprobe or index.nprobe), **options)
    if hasattr(faiss, "IndexHNSW") and isinstance(index, faiss.IndexHNSW):
        if wanted is not None:  # the graph is searched among all rows: as many more have to be visited
            options["efSearch"] = max(index.hnsw.efSearch, -(-k * len(wanted) // int(wanted.sum())))
        return faiss.SearchParametersHNSW(**options)
    return faiss.SearchParameters(**options) if options else None


def _inverted_lists(index: Any) -> int:
    """Return the number of inverted lists of an index, 0 if it has none."""
    faiss = load_faiss()
    while hasattr(index, "index"):
        index = faiss.downcast_index(index.index)
    return int(getattr(index, "nlist", 0))


def _sample(blocks: Iterable[Matrix], n: int, wanted: int, seed: int) -> Matrix:
    chosen = np.sort(generator(seed, "index training").choice(n, size=min(n, wanted), replace=False))
    pieces, start = [], 0
    for block in blocks:
        first, last = np.searchsorted(chosen, [start, start + len(block)])
        pieces.append(block[chosen[first:last] - start])
        start += len(block)
    return np.concatenate(pieces)


def _on_gpu(index: Any) -> Any:
    """Return the index on all GPUs where faiss was built for them and sees some, else as it is."""
    faiss = load_faiss()
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return index
    try:
        return faiss.index_cpu_to_all_gpus(index)
    except RuntimeError:
        return index  # not every index type exists on GPUs
