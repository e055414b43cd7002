"""Build an index of a store, or add the rows of new shards to one that was built with the same settings.

An index that grows keeps its cells and its pipeline, and so the means of the rows that it was built from. After any
other change of the store or the settings it is made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..arrays import Matrix
from ..errors import C3Error, StoreError, TransformError, telling_what_is_kept
from ..geometry.spaces import modality_bias
from ..identity import ModelIdentity
from ..io.artifact import claimed, digest_of, replacing, write_record
from ..io.locations import is_url
from ..reporter import SILENT, Reporter
from ..store import Store, embedding_matrix
from ..store.shard_indexes import last_line, load_faiss, save_index
from ..transforms import Pipeline, open_pipeline
from ..transforms import preset as preset_named
from ..transforms.fitting import first_rows
from . import faiss_shards
from .index import KIND, ROWS_FILE, Index, row_table, shards_of

BIAS_ROWS = 2_000
RECALL_QUERIES = 200
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
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        output: The folder to write to.
        factory: auto (Flat for few rows, IVF,SQfp16 for more, OPQ,IVF,PQ for many), or a FAISS index string.
        modality: Index only these modalities. By default all, in one index.
        split: Use only the rows of this split: train, val, test or all.
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
    kept = "The former index was kept; run the same command again to make the new one."
    with (
        claimed(folder, KIND, settings, overwrite=True, reporter=reporter) as target,
        telling_what_is_kept(lambda: kept),
    ):
        shards = shards_of(store, modalities)
        if target.there and not rebuild:
            try:
                before = Index.open(folder, gpu=False)
                reason = _reason_to_rebuild(before, store, target.settings, shards)
                if reason is None:
                    return _add_rows(before, store, shards, reporter)
            except C3Error as error:
                reason = error.message
            except RuntimeError as error:  # some kinds of FAISS index are filled once
                reason = f"FAISS cannot add rows to this index ({last_line(error)})"
            reporter.message(f"Rebuilding {folder}: {reason}.")
        return _build(store, folder, chosen, target.settings, shards, reporter)


def _reason_to_rebuild(
    index: Index, store: Store, settings: Mapping[str, Any], shards: Mapping[str, Mapping[str, str]]
) -> str | None:
    """Return why the rows that an index lacks cannot be added to it; None if they can."""
    record = index.record
    if not store.info.model.same_as(ModelIdentity(record["model"])):
        return "the store has embeddings of another model"
    if changed := [name for name, value in settings.items() if record["settings"].get(name) != value]:
        return f"its {changed[0]} was {record['settings'].get(changed[0])} and is now {settings[changed[0]]}"
    known = record["store_shards"]
    if [*known] != [*shards] or any(not own.items() <= shards[name].items() for name, own in known.items()):
        return "shards of the store changed or were removed"
    new = sum(store.shard_rows(name, int(part)) for name in shards for part in shards[name].keys() - known[name].keys())
    if record["rows"] + new > _GROWTH * record["built_from"]:
        return f"the store has more than twice the {record['built_from']:,} rows it was built from"
    return None


def _build(
    store: Store,
    folder: Path,
    chosen: Pipeline,
    settings: Mapping[str, Any],
    shards: Mapping[str, Mapping[str, str]],
    reporter: Reporter,
) -> Index:
    """Build the index as a whole, of these shards by modality; ``settings`` are those of `build_index`."""
    split, seed = settings["split"], settings["seed"]
    if not chosen.fitted:
        chosen.fit(store)
        reporter.message(chosen.describe_fit(store))
    chosen.check_model(store.info.model)
    parts = {name: store.parts(name) for name in shards}
    rows = row_table(store, parts, split)
    n, dim = rows.num_rows, store.info.dim
    if n == 0:
        raise StoreError(
            f"The store {store.path} has no rows in the split {split!r} to index. Its splits are {store.list_splits()}."
        )
    queries = _sample_queries(store, chosen, list(shards), split)

    def blocks(label: str) -> Iterator[Matrix]:
        return _blocks(store, chosen, parts, split, label, n, reporter)

    used, empty = faiss_shards.train_index(settings["factory"], lambda: blocks("Training"), n, dim, seed=seed)
    with replacing(folder, keep=False) as new:
        try:
            filled = [*faiss_shards.fill_shards(empty, blocks("Indexing"), settings["shard_rows"])]
        except RuntimeError as error:
            raise StoreError(
                f"FAISS cannot fill an index {used!r} block by block ({last_line(error)}).",
                remedy="Use --factory auto or another index.",
            ) from error
        measured = faiss_shards.measure_recall(filled, queries, blocks("Measuring recall"), settings["recall"])
        made = {"model": store.info.model, "factory": used, "dim": dim, "metric": "cosine", "built_from": n, **measured}
        index = _write(new, folder, made, settings, filled, 0, rows, chosen, store, shards)
    if len(shards) == 2:
        samples = {name: first_rows(store, name, None, BIAS_ROWS).embeddings for name in shards}
        index.bias = {}
        for label, pipeline in (("before", preset_named("c1")), ("after", chosen)):
            x, y = (pipeline.transform(rows, modality=name) for name, rows in samples.items())
            shares = modality_bias(x, y, seed=seed)
            index.bias[label] = {name: round(share.value, 4) for name, share in zip(shards, shares, strict=True)}
    index.record["added"] = n
    return index


def _add_rows(index: Index, store: Store, shards: Mapping[str, Mapping[str, str]], reporter: Reporter) -> Index:
    """Add the rows of the shards that an index lacks.

    Raises:
        RuntimeError: if FAISS cannot add rows to an index of this kind.
    """
    record, settings, filled = index.record, index.record["settings"], index.shards
    known = record["store_shards"]
    parts = {name: sorted(int(part) for part in own if part not in known[name]) for name, own in shards.items()}
    rows = row_table(store, parts, settings["split"])
    kept = len(filled)
    if rows.num_rows:
        faiss = load_faiss()
        empty = faiss.clone_index(filled[-1])
        empty.reset()
        kept -= filled[-1].ntotal < settings["shard_rows"]
        begun = faiss.clone_index(filled[-1]) if kept < len(filled) else None
        made = _blocks(store, index.pipeline, parts, settings["split"], "Indexing", rows.num_rows, reporter)
        filled = [*filled[:kept], *faiss_shards.fill_shards(empty, made, settings["shard_rows"], begun)]
    all_rows = pa.concat_tables([index.rows, rows])
    with replacing(index.path, keep=False) as new:
        for name in record["shards"][:kept]:
            try:
                os.link(index.path / name, new / name)
            except OSError:  # not every file system has hard links
                shutil.copyfile(index.path / name, new / name)
        grown = _write(new, index.path, record, settings, filled, kept, all_rows, index.pipeline, store, shards)
    grown.record["added"] = rows.num_rows
    return grown


def _write(
    new: Path,
    folder: Path,
    made: Mapping[str, Any],
    settings: Mapping[str, Any],
    filled: Sequence[Any],
    kept: int,
    rows: pa.Table,
    pipeline: Pipeline,
    store: Store,
    shards: Mapping[str, Mapping[str, str]],
) -> Index:
    """Write the files of an index to ``new``, which is to become ``folder``; the first ``kept`` parts are there."""
    names = [f"part-{part:05d}.faiss" for part in range(len(filled))]
    for name, part in [*zip(names, filled, strict=True)][kept:]:
        save_index(part, new / name)
    pq.write_table(rows, new / ROWS_FILE, compression="zstd")
    pipeline.save(new)
    place = str(store.path)
    if isinstance(store.path, Path):  # relative if both may move together
        target, start = store.path.resolve(), folder.resolve()
        place = os.path.relpath(target, start) if target.is_relative_to(start.parent) else str(target)
    record = {
        **{name: value for name, value in made.items() if name not in ("files", "format_version")},
        "rows": rows.num_rows,
        "shards": names,
        "settings": settings,
        "store": place,
        "store_shards": shards,
    }
    write_record(new, KIND, record)
    return Index(folder, record, list(filled), rows, pipeline)


def _blocks(
    store: Store,
    pipeline: Pipeline,
    parts: Mapping[str, Sequence[int]],
    split: str,
    label: str,
    n: int,
    reporter: Reporter,
) -> Iterator[Matrix]:
    """Yield the transformed rows of these shards, n of them, and show the progress."""
    with reporter.progress(label, n) as progress:
        for name, numbers in parts.items():
            for batch in store.batches(name, split=split, parts=numbers):
                yield pipeline.transform(embedding_matrix(batch), modality=name)
                progress.advance(len(batch))


def _sample_queries(store: Store, pipeline: Pipeline, modalities: Sequence[str], split: str | None) -> Matrix:
    """Return queries for tuning the search, if possible rows of another modality that the pipeline is fitted for.

    Rows of the index itself would find themselves without effort.
    """
    others = [name for name in store.modalities if name not in modalities]
    modality = (others or modalities)[0]
    try:
        return pipeline.transform(first_rows(store, modality, None, RECALL_QUERIES).embeddings, modality=modality)
    except TransformError:
        if not others:
            raise
        rows = first_rows(store, modalities[0], split, RECALL_QUERIES)
        return pipeline.transform(rows.embeddings, modality=modalities[0])
