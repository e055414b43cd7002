"""Build an index of a store, or add the rows of new shards to one that was built with the same settings.

An index that grows keeps its cells and its pipeline, and so the means of the rows that it was built from. After any
other change of the store or the settings it is made again. The vectors are in parts of one modality each, copies of one
trained FAISS index; scores are inner products of unit vectors, so cosines.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..arrays import Matrix
from ..errors import C3Error, StoreError, TransformError, telling_what_is_kept
from ..geometry.spaces import modality_bias
from ..io.artifact import claimed, digest_of, replacing, write_record
from ..io.locations import is_url
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator
from ..store import Store, embedding_matrix
from ..store.shard_indexes import last_line, load_faiss, save_index
from ..transforms import Pipeline, open_pipeline
from ..transforms import preset as preset_named
from ..transforms.fitting import first_rows
from .index import KIND, ROWS_FILE, Index, row_table, search_shards, shards_of

_BIAS_ROWS = 2_000
_RECALL_QUERIES = 200
_FLAT_ROWS = 20_000
_QUANTISED_ROWS = 2_000_000
_TRAINING_ROWS_PER_CELL = 64
_LEAST_ROWS_PER_CELL = 39  # below it, FAISS warns that its k-means has too few points
_GROWTH = 2  # times the rows it was built from, beyond which means and cells are computed again


def build_index(
    store: Store | str | Path = "c3-store",
    output: str | Path = "c3-index",
    *,
    factory: str = "auto",
    modality: Sequence[str] | None = None,
    split: str | None = None,
    preset: str = "gr-clip",
    pipeline: Pipeline | str | Path | None = None,
    shard_rows: int = 1_000_000,
    recall: float = 0.98,
    seed: int = 0,
    rebuild: bool = False,
    reporter: Reporter = SILENT,
) -> Index:
    """Index the transformed embeddings of a store, as inference inputs without noise.

    If ``output`` has an index with the same settings, and the store has only grown since, the new rows are added;
    ``record["added"]`` is their number. Otherwise the index is rebuilt, and a message gives the reason.

    Args:
        store: See `embed`.
        output: The folder to write to.
        factory: auto (Flat for few rows, IVF,SQfp16 for more, OPQ,IVF,PQ for many), or a FAISS index string.
        modality: Index only these modalities. By default all, in one index.
        split: See `gap_report`.
        preset: The preset that transforms vectors and queries; c1 leaves them unchanged.
        pipeline: Your own pipeline instead of a preset.
        shard_rows: Number of vectors per file.
        recall: The recall@10 that the search is tuned to reach.
        seed: Seed for all random numbers.
        rebuild: Rebuild the index, with the means of all rows, instead of adding to it.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is nothing to index, or FAISS refuses the factory.
        OutputError: if ``output`` contains other files, or another run is writing to it.
        TransformError: if the pipeline does not fit the store.
        MissingExtraError: if faiss is not installed.
    """
    if is_url(output):
        raise StoreError(f"A FAISS index cannot be written to {output}.", remedy="Choose a folder on this machine.")
    folder = Path(output)
    store, chosen = Store.open(store, reporter=reporter), open_pipeline(pipeline, preset)
    modalities = list(modality) if modality else store.modalities
    for name in modalities:
        store.require(name)
    split = split or "all"
    loaded = [moments.mean for _, moments in sorted(store.external_moments()[0].items())]
    settings = {
        "model": store.info.model,
        "factory": factory,
        "modality": list(modality) if modality else None,
        "split": split,
        "kept_splits": None if split == "all" or store.kept_splits is None else sorted(store.kept_splits),
        "pipeline": chosen.record()["checksum"] if chosen.fitted else chosen.config(),
        "moments": None if chosen.fitted or not loaded else digest_of(*loaded),
        "shard_rows": shard_rows,
        "recall": recall,
        "seed": seed,
    }
    shards = shards_of(store, modalities)
    local = isinstance(store.path, Path)  # relative, since both may move together
    source = {"store": os.path.relpath(store.path, folder) if local else str(store.path), "store_shards": shards}
    kept = "The former index was kept; run the same command again to make the new one."
    with (
        claimed(folder, KIND, settings, overwrite=True, reporter=reporter) as target,
        telling_what_is_kept(lambda: kept),
    ):
        settings = dict(target.settings)
        if target.there and not rebuild:
            try:
                before = Index.open(folder)
                reason = _reason_to_rebuild(before.record, store, settings, shards)
                if reason is None:
                    return _add_rows(before, store, source, reporter)
            except C3Error as error:
                reason = error.message
            except RuntimeError as error:  # some kinds of FAISS index are filled once
                reason = f"FAISS cannot add rows to this index ({last_line(error)})"
            reporter.message(f"Rebuilding {folder}: {reason}.")
        return _build(store, folder, chosen, settings, source, reporter)


def _reason_to_rebuild(
    record: Mapping[str, Any], store: Store, settings: Mapping[str, Any], shards: Mapping[str, Mapping[str, str]]
) -> str | None:
    """Return why the rows that an index lacks cannot be added to it; None if they can."""
    former, known = record["settings"], record["store_shards"]
    if changed := [name for name, value in settings.items() if former.get(name) != value]:
        return f"its {changed[0]} was {former.get(changed[0])} and is now {settings[changed[0]]}"
    if [*known] != [*shards] or any(not own.items() <= shards[name].items() for name, own in known.items()):
        return "shards of the store changed or were removed"
    rows = sum(
        store.shards[name, int(part)].rows for name in shards for part in shards[name].keys() - known[name].keys()
    )
    if record["rows"] + rows > _GROWTH * record["built_from"]:
        return f"the store has more than twice the {record['built_from']:,} rows it was built from"
    return None


def _build(
    store: Store,
    folder: Path,
    chosen: Pipeline,
    settings: Mapping[str, Any],
    source: Mapping[str, Any],
    reporter: Reporter,
) -> Index:
    """Build the index as a whole, with the settings of `build_index`; ``source`` names the store and its shards."""
    faiss, split, dim = load_faiss(), settings["split"], store.info.dim
    if not chosen.fitted:
        chosen.fit(store)
        reporter.message(chosen.describe_fit(store))
    chosen.check_model(store.info.model)
    parts = {name: store.parts(name) for name in source["store_shards"]}
    rows = row_table(store, parts, split)
    n = rows.num_rows
    if n == 0:
        raise StoreError(
            f"The store {store.path} has no rows in the split {split!r} to index. Its splits are {store.list_splits()}."
        )
    queries = _sample_queries(store, chosen, list(parts), split)
    x, blocks = _vectors(store, chosen, parts, split, n, reporter)
    factory = choose_factory(n, dim) if settings["factory"] == "auto" else settings["factory"]
    try:
        empty = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not empty.is_trained:
            wanted = min(n, max(_cells(empty) * _TRAINING_ROWS_PER_CELL, 65_536))
            sample = generator(settings["seed"], "index training").choice(n, size=wanted, replace=False)
            empty.train(x[np.sort(sample)])
        filled = _fill(empty, blocks, settings["shard_rows"])
    except RuntimeError as error:
        raise StoreError(
            f"FAISS cannot make the index {factory!r} from {counted(n, 'row')} of {dim} dimensions "
            f"({last_line(error)}).",
            remedy="Use --factory auto, Flat, or fewer cells.",
        ) from error
    made = {"model": store.info.model, "factory": factory, "dim": dim, "metric": "cosine", "built_from": n}
    record = {**made, **_measure_recall(filled, queries, x, settings["recall"]), "settings": settings, **source}
    index = Index(folder, record, filled, rows, chosen)
    with replacing(folder, keep=False) as new:
        _write(new, index, 0)
    if len(parts) == 2:
        samples = {name: first_rows(store, name, None, _BIAS_ROWS).embeddings for name in parts}
        index.bias = {}
        for label, pipeline in (("before", preset_named("c1")), ("after", chosen)):
            x, y = (pipeline.transform(rows, modality=name) for name, rows in samples.items())
            shares = modality_bias(x, y, seed=settings["seed"])
            index.bias[label] = {name: round(share.value, 4) for name, share in zip(parts, shares, strict=True)}
    index.record["added"] = n
    return index


def _add_rows(index: Index, store: Store, source: Mapping[str, Any], reporter: Reporter) -> Index:
    """Add the rows of the shards that an index lacks, as parts of their own.

    Raises:
        RuntimeError: if FAISS cannot add rows to an index of this kind.
    """
    settings, known, before = index.record["settings"], index.record["store_shards"], index.rows.num_rows
    parts = {n: sorted(map(int, own.keys() - known[n].keys())) for n, own in source["store_shards"].items()}
    index.rows = row_table(store, parts, settings["split"], index.rows)
    added, kept = index.rows.num_rows - before, index.record["shards"]
    empty = load_faiss().clone_index(index.shards[-1])
    empty.reset()
    _, blocks = _vectors(store, index.pipeline, parts, settings["split"], added, reporter)
    index.shards += _fill(empty, blocks, settings["shard_rows"])
    index.record |= source
    with replacing(index.path, keep=False) as new:
        for name in kept:
            try:
                os.link(index.path / name, new / name)
            except OSError:  # not every file system has hard links
                shutil.copyfile(index.path / name, new / name)
        _write(new, index, len(kept))
    index.record["added"] = added
    return index


def _write(new: Path, index: Index, kept: int) -> None:
    """Write the files of an index to the folder ``new``; the first ``kept`` parts are there."""
    names = [f"part-{part:05d}.faiss" for part in range(len(index.shards))]
    for name, part in [*zip(names, index.shards, strict=True)][kept:]:
        save_index(part, new / name)
    pq.write_table(index.rows, new / ROWS_FILE, compression="zstd")
    index.pipeline.save(new)
    index.record |= {"rows": index.rows.num_rows, "shards": names}
    write_record(new, KIND, index.record)


def _vectors(
    store: Store, pipeline: Pipeline, parts: Mapping[str, Sequence[int]], split: str, n: int, reporter: Reporter
) -> tuple[Matrix, list[Matrix]]:
    """Return the n transformed rows of these shards (n, d), and the blocks of them that are of one modality."""
    x, blocks, end = np.empty((n, store.info.dim), np.float32), [], 0
    with reporter.progress("Indexing", n) as progress:
        for name, numbers in parts.items():
            first = end
            for batch in store.batches(name, split=split, parts=numbers):
                end += len(batch)
                x[end - len(batch) : end] = pipeline.transform(embedding_matrix(batch), modality=name)
                progress.advance(len(batch))
            blocks.append(x[first:end])
    return x, blocks


def _fill(empty: Any, blocks: Sequence[Matrix], shard_rows: int) -> list[Any]:
    """Return copies of the trained index ``empty`` with up to ``shard_rows`` vectors of one modality each."""
    filled = []
    for block in blocks:
        for start in range(0, len(block), shard_rows):
            filled.append(load_faiss().clone_index(empty))
            filled[-1].add(block[start : start + shard_rows])
    return filled


def _measure_recall(shards: Sequence[Any], queries: Matrix, x: Matrix, target: float) -> dict[str, Any]:
    """Return recall@10 against exact search in the vectors, and the nprobe that it takes."""
    faiss, k = load_faiss(), min(10, len(x))
    truth = faiss.knn(np.ascontiguousarray(queries), x, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
    cells = _cells(shards[0])
    probes: list[int | None] = [1 << power for power in range(int(np.log2(cells)) + 1)] if cells else [None]
    recall, nprobe = 0.0, probes[0]
    for nprobe in probes:
        found = search_shards(shards, queries, k, nprobe)[1]
        previous, recall = recall, float((found[:, :, None] == truth[:, None, :]).any(axis=2).mean())
        # without inverted lists' misses, more probes change nothing: what is lost is lost by quantisation
        if recall >= target or (nprobe and nprobe >= 64 and recall - previous < 1e-3):
            break
    return {"nprobe": nprobe, f"recall@{k}": round(recall, 4), "recall_queries": len(queries)}


def _cells(index: Any) -> int:
    """Return the number of inverted lists of an index, 0 if it has none."""
    inverted = load_faiss().try_extract_index_ivf(index)
    return int(inverted.nlist) if inverted else 0


def _sample_queries(store: Store, pipeline: Pipeline, modalities: Sequence[str], split: str) -> Matrix:
    """Return queries for tuning the search, if possible rows of another modality that the pipeline is fitted for.

    Rows of the index itself would find themselves without effort.
    """
    for other in (name for name in store.modalities if name not in modalities):
        with suppress(TransformError):
            return pipeline.transform(first_rows(store, other, None, _RECALL_QUERIES).embeddings, modality=other)
    rows = first_rows(store, modalities[0], split, _RECALL_QUERIES)
    return pipeline.transform(rows.embeddings, modality=modalities[0])


def choose_factory(n: int, dim: int) -> str:
    """Return the index string for ``n`` vectors of ``dim`` dimensions.

    It is exact up to 20,000 rows, has inverted lists of float16 vectors up to 2 million, and beyond that product
    quantisation after a rotation.
    """
    if n <= _FLAT_ROWS:
        return "Flat"
    cells = 1 << round(np.log2(4 * np.sqrt(n)))
    while cells * _LEAST_ROWS_PER_CELL > n:
        cells //= 2
    if n <= _QUANTISED_ROWS:
        return f"IVF{cells},SQfp16"
    pieces = next((m for m in (64, 32, 16, 8, 4) if m * 4 <= dim), 1)
    return f"OPQ{pieces}_{pieces * 4},IVF{cells},PQ{pieces}"
