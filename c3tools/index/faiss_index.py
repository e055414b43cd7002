"""FAISS indexes on disk: shards, the key of every row, and what they were made from.

    c3-index/
      index.json                    factory, dimension, rows, nprobe, measured recall, provenance
      part-00000.faiss              up to `shard_rows` vectors; every shard is a copy of one trained index
      rows.parquet                  key, modality, caption, path of each row, in the order of the vectors
      transform.json, .safetensors  the pipeline that index and queries went through

Scores are inner products of unit vectors, that is cosines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import MissingExtraError, StoreError
from ..io.files import write_atomically, write_json_atomically
from ..seeds import generator

Matrix = npt.NDArray[np.float32]
INDEX_FILE = "index.json"
ROWS_FILE = "rows.parquet"
SHARD_ROWS = 1_000_000
FLAT_ROWS = 20_000
QUANTISED_ROWS = 2_000_000
_TRAINING_ROWS_PER_CELL = 64
_LEAST_ROWS_PER_CELL = 39  # below it, FAISS warns that its k-means has too few points


def load_faiss() -> ModuleType:
    """The module faiss.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss-cpu", extra="cpu", purpose="Indexing and searching") from None
    return faiss


def choose_factory(n: int, dim: int) -> str:
    """The index string for ``n`` vectors of ``dim`` dimensions.

    Exact up to 20,000 rows; inverted lists of float16 vectors up to 2 million; beyond that product quantisation
    after a rotation.
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


class FaissIndex:
    """An index opened for searching.

    Attributes:
        path: its folder.
        record: the content of index.json.
        rows: the table of keys, one row per vector.
    """

    def __init__(self, path: Path, record: dict[str, Any], shards: list[Any], rows: pa.Table) -> None:
        self.path = path
        self.record = record
        self.rows = rows
        self._shards = shards

    @classmethod
    def open(cls, path: str | Path) -> FaissIndex:
        """Open the index in the folder ``path``; on GPUs where faiss sees some.

        Raises:
            StoreError: if there is none, or it is damaged.
            MissingExtraError: if faiss is not installed.
        """
        faiss = load_faiss()
        folder = Path(path)
        try:
            record = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            shards = [_on_gpu(faiss, faiss.read_index(str(folder / name))) for name in record["shards"]]
            rows = pq.read_table(folder / ROWS_FILE)
        except FileNotFoundError:
            raise StoreError(
                f"There is no index at {folder}.", remedy="Make one with `c3 index`, or name another with --index."
            ) from None
        except (OSError, ValueError, KeyError, RuntimeError, pa.ArrowException) as error:
            raise StoreError(
                f"The index at {folder} is damaged ({error}).", remedy="Make it again: c3 index"
            ) from error
        if sum(shard.ntotal for shard in shards) != rows.num_rows:
            raise StoreError(
                f"The index at {folder} has {sum(shard.ntotal for shard in shards):,} vectors and {rows.num_rows:,} "
                "keys.",
                remedy="Make it again: c3 index",
            )
        return cls(folder, record, shards, rows)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.record["dim"])

    def search(
        self, queries: Matrix, k: int, *, nprobe: int | None = None, between: tuple[int, int] | None = None
    ) -> tuple[Matrix, npt.NDArray[np.int64]]:
        """Scores and row numbers, both (q, k), of the best rows for each of the queries (q, d), best first.

        Where there are fewer than ``k`` rows, the row number is -1 and the score -inf. ``between`` looks only at
        row numbers from its first to before its second.

        Raises:
            StoreError: if the queries have another dimension.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise StoreError(
                f"The index holds vectors of {self.dim} dimensions; the queries have shape {queries.shape}.",
                remedy="Embed the queries with the model of the index.",
            )
        return search_shards(self._shards, queries, k, nprobe or self.record.get("nprobe"), between)


def build_index(
    folder: Path,
    blocks: Callable[[], Iterable[Matrix]],
    rows: pa.Table,
    dim: int,
    *,
    factory: str = "auto",
    shard_rows: int = SHARD_ROWS,
    queries: Matrix | None = None,
    target_recall: float = 0.98,
    seed: int = 0,
    record: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train, fill and write an index; returns the content of index.json.

    Args:
        folder: where to.
        blocks: gives the vectors, float32 (m, d), in the order of ``rows``; called up to three times.
        rows: one row per vector.
        dim: dimension.
        factory: FAISS index string, or ``auto`` by the number of rows.
        shard_rows: vectors per file.
        queries: (q, d), to measure the recall@10 against exact search, and to choose how many inverted lists are
            visited: the fewest that reach ``target_recall``.
        target_recall: see ``queries``.
        seed: of the training sample.
        record: more for index.json.

    Raises:
        StoreError: if there are no rows, or FAISS refuses the index string.
    """
    faiss = load_faiss()
    n = rows.num_rows
    if n == 0:
        raise StoreError("There are no rows to index.")
    chosen = choose_factory(n, dim) if factory == "auto" else factory
    try:
        empty = faiss.index_factory(dim, chosen, faiss.METRIC_INNER_PRODUCT)
        if not empty.is_trained:
            sample = _sample(blocks(), n, _training_rows(empty, faiss), seed)
            device = _on_gpu(faiss, empty)
            device.train(sample)
            empty = device if device is empty else faiss.index_gpu_to_cpu(device)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise StoreError(
            f"FAISS cannot make the index {chosen!r} from {n:,} rows of {dim} dimensions ({reason}).",
            remedy="Use --factory auto, Flat, or fewer cells.",
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX_FILE).unlink(missing_ok=True)
    for old in folder.glob("part-*.faiss"):
        old.unlink()
    names, shards = [], []
    for part, shard in enumerate(_filled(faiss, empty, blocks(), shard_rows)):
        name = f"part-{part:05d}.faiss"
        write_atomically(folder / name, lambda path, shard=shard: faiss.write_index(shard, str(path)))  # type: ignore[misc]
        names.append(name)
        shards.append(shard)
    write_atomically(folder / ROWS_FILE, lambda path: pq.write_table(rows, path, compression="zstd"))
    result: dict[str, Any] = {"factory": chosen, "dim": dim, "rows": n, "shards": names, "metric": "cosine"}
    if queries is not None and len(queries):
        result |= measure_recall(shards, queries, exact_neighbours(blocks(), queries, 10), target_recall)
    write_json_atomically(folder / INDEX_FILE, {**(record or {}), **result})
    return result


def exact_neighbours(blocks: Iterable[Matrix], queries: Matrix, k: int) -> npt.NDArray[np.int64]:
    """Row numbers (q, min(k, n)) of the rows with the largest inner products, best first, by brute force."""
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


def measure_recall(shards: list[Any], queries: Matrix, truth: npt.NDArray[np.int64], target: float) -> dict[str, Any]:
    """Recall@k of the index against the exact neighbours (q, k), and the nprobe that was needed for it."""
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
    shards: Iterable[Any],
    queries: Matrix,
    k: int,
    nprobe: int | None,
    between: tuple[int, int] | None = None,
) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """Best scores and row numbers over all shards, both (q, k), among the rows ``between`` two numbers or all."""
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores, rows, start = [], [], 0
    for shard in shards:
        span = None
        if between is not None:
            # FAISS trusts the range: beyond its vectors it reads other memory
            span = (min(max(between[0] - start, 0), shard.ntotal), min(max(between[1] - start, 0), shard.ntotal))
        if span is None or span[0] < span[1]:
            found_scores, found = shard.search(queries, k, params=_parameters(shard, nprobe, span))
            missing = found < 0
            scores.append(np.where(missing, -np.inf, found_scores))
            rows.append(np.where(missing, -1, found + start))
        start += shard.ntotal
    all_scores, all_rows = np.hstack(scores), np.hstack(rows)
    best = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(all_scores, best, 1), np.take_along_axis(all_rows, best, 1)


def _parameters(index: Any, nprobe: int | None, span: tuple[int, int] | None) -> Any:
    """Search parameters of the kind that the index wants."""
    faiss = load_faiss()
    options: dict[str, Any] = {}
    if span is not None:
        options["sel"] = faiss.IDSelectorRange(*span)
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, nprobe, span)
        return None if inner is None else faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=int(nprobe or index.nprobe), **options)
    if hasattr(faiss, "IndexHNSW") and isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(**options)
    return faiss.SearchParameters(**options) if options else None


def _filled(faiss: ModuleType, empty: Any, blocks: Iterable[Matrix], shard_rows: int) -> Iterator[Any]:
    shard = faiss.clone_index(empty)
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


def _training_rows(index: Any, faiss: ModuleType) -> int:
    cells = _inverted_lists(index)
    return max(cells * _TRAINING_ROWS_PER_CELL, 65_536)


def _inverted_lists(index: Any) -> int:
    """Number of cells of an index with inverted lists, 0 for another."""
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


def _on_gpu(faiss: ModuleType, index: Any) -> Any:
    """The index on all GPUs where faiss was built for them and sees some, else as it is."""
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return index
    try:
        return faiss.index_cpu_to_all_gpus(index)
    except RuntimeError:
        return index  # not every index type exists on GPUs
