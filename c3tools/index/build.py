"""Building an index of a store: the rows go through a pipeline and into FAISS, the search is tuned and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, TransformError, telling_what_is_kept
from ..geometry.spaces import modality_bias
from ..io.files import write_atomically, write_json_atomically
from ..io.locations import is_url
from ..io.lock import locked
from ..io.outputs import Output
from ..reporter import SILENT, Reporter
from ..store import Store, embedding_matrix
from ..transforms import Pipeline, open_pipeline
from ..transforms import preset as preset_named
from ..transforms.fitting import first_rows
from . import faiss_shards
from .faiss_shards import SHARD_ROWS, Matrix
from .index import HIT_COLUMNS, INDEX_FILE, ROWS_FILE, Index

BIAS_ROWS = 2_000
RECALL_QUERIES = 200


def build_index(
    store: Store | str | Path,
    output: str | Path = "c3-index",
    *,
    factory: str = "auto",
    modality: Sequence[str] | None = None,
    split: str | None = None,
    preset: str = "gr-clip",
    pipeline: Pipeline | str | Path | None = None,
    shard_rows: int = SHARD_ROWS,
    recall: float = 0.98,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Index:
    """Index the transformed embeddings of a store, as inference inputs without noise.

    Args:
        store: a store, its folder, or its URL.
        output: the folder to write to; an index that is there is built anew.
        factory: FAISS index string, or ``auto`` by the number of rows.
        modality: one, or several for a mixed index; None for all.
        split: rows of this split only; None for all.
        preset: what vectors and queries go through, a key of `c3tools.transforms.PRESETS`.
        pipeline: instead of a preset: a pipeline, a folder with a fitted one, or a YAML or JSON file. One that is not
            fitted is fitted on the train split of the store.
        shard_rows: vectors per file.
        recall: recall@10 that the number of inverted lists to visit is tuned to.
        seed: of training samples and of the sample that bias is measured on.
        reporter: shows the progress.

    Raises:
        StoreError: if there is nothing to index, or FAISS refuses the factory.
        OutputError: if ``output`` holds other files, or is written by another run.
        TransformError: if the pipeline does not fit the store.
        MissingExtraError: if faiss is not installed.
    """
    if is_url(output):
        raise StoreError(f"A FAISS index is not written to {output}.", remedy="Name a folder of this machine.")
    folder = Path(output)
    Output(folder, "index", (INDEX_FILE, "part-00000.faiss")).holds_result()
    with locked(folder), telling_what_is_kept(lambda: "An index is built as a whole; the same command starts again."):
        return _build(
            Store.open(store, reporter=reporter),
            folder,
            open_pipeline(pipeline, preset),
            factory=factory,
            modality=modality,
            split=split,
            shard_rows=shard_rows,
            recall=recall,
            seed=seed,
            reporter=reporter,
        )


def _build(
    store: Store,
    folder: Path,
    chosen: Pipeline,
    *,
    factory: str,
    modality: Sequence[str] | None,
    split: str | None,
    shard_rows: int,
    recall: float,
    seed: int,
    reporter: Reporter,
) -> Index:
    """Build the index; the arguments are those of `build_index`."""
    if not chosen.fitted:
        chosen.fit(store)
    chosen.check_model(store.info.model)
    modalities = list(modality) if modality else store.modalities
    for name in modalities:
        store.require(name)
    rows = _row_table(store, modalities, split)
    n, dim = rows.num_rows, store.info.dim
    if n == 0:
        raise StoreError(f"The store {store.path} has no rows in {split!r} to index; it has {store.list_splits()}.")
    with reporter.progress("Indexing") as progress:

        def blocks() -> Iterator[Matrix]:
            for name in modalities:
                for batch in store.batches(name, split=split):
                    yield chosen.transform(embedding_matrix(batch), modality=name)
                    progress.advance(len(batch))

        queries = _sample_queries(store, chosen, modalities, blocks)
        used, empty = faiss_shards.train_index(factory, blocks, n, dim, seed=seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX_FILE).unlink(missing_ok=True)
        names, shards = faiss_shards.write_shards(folder, empty, blocks(), shard_rows)
        measured = faiss_shards.measure_recall(shards, queries, blocks(), recall)
    write_atomically(folder / ROWS_FILE, lambda path: pq.write_table(rows, path, compression="zstd"))
    record = {
        "modalities": modalities,
        "split": split or "all",
        "model": store.info.model,
        "transform": chosen.record(),
        "factory": used,
        "dim": dim,
        "rows": n,
        "shards": names,
        "metric": "cosine",
        **measured,
    }
    write_json_atomically(folder / INDEX_FILE, record)
    chosen.save(folder)
    index = Index(folder, record, shards, rows, chosen)
    if len(modalities) == 2:
        index.bias = _bias(store, chosen, modalities, seed)
    return index


def _row_table(store: Store, modalities: Sequence[str], split: str | None) -> pa.Table:
    """Return key, modality and what a hit shows of each row, in the order of the vectors."""
    schema = pa.schema([(name, pa.string()) for name in (*HIT_COLUMNS, "image_key")])
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for modality in modalities:
        for batch in store.batches(modality, split=split):
            known = batch.select([name for name in columns if name in batch.schema.names]).to_pydict()
            known["modality"] = [modality] * len(batch)
            for name in columns:
                columns[name] += known.get(name, [None] * len(batch))
    return pa.table(columns, schema=schema)


def _sample_queries(
    store: Store, pipeline: Pipeline, modalities: Sequence[str], blocks: Callable[[], Iterator[Matrix]]
) -> Matrix:
    """Return queries to tune the search with: rows of another modality where there is one that the pipeline knows.

    Rows of the index itself would find themselves without effort.
    """
    others = [name for name in store.modalities if name not in modalities]
    modality = (others or modalities)[0]
    try:
        return pipeline.transform(first_rows(store, modality, None, RECALL_QUERIES).embeddings, modality=modality)
    except TransformError:
        if not others:
            raise
        return next(blocks())[:RECALL_QUERIES]


def _bias(store: Store, pipeline: Pipeline, modalities: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    samples = {name: first_rows(store, name, None, BIAS_ROWS).embeddings for name in modalities}
    result = {}
    for label, used in (("before", preset_named("c1")), ("after", pipeline)):
        x, y = (used.transform(rows, modality=name) for name, rows in samples.items())
        shares = modality_bias(x, y, seed=seed)
        result[label] = {name: round(share.value, 4) for name, share in zip(modalities, shares, strict=True)}
    return result
