"""Build an index of a store, or update it after the store has grown.

Rows of new shards are added to an index that was built with the same settings. It keeps its cells and its pipeline, and
so the means of the rows that it was built from. `_reason_to_rebuild` lists when this is not possible.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..arrays import Matrix
from ..errors import StoreError, TransformError, telling_what_is_kept
from ..geometry.spaces import modality_bias
from ..identity import ModelIdentity
from ..io.artifact import holds_result
from ..io.files import write_atomically, write_json_atomically
from ..io.locations import is_url
from ..io.lock import locked
from ..reporter import SILENT, Reporter, counted
from ..store import Store, embedding_matrix
from ..store.shard_indexes import last_line
from ..transforms import Pipeline, open_pipeline
from ..transforms import preset as preset_named
from ..transforms.fitting import first_rows
from . import faiss_shards
from .index import HIT_COLUMNS, INDEX_FILE, ROWS_FILE, Index, shards_of

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
    holds_result(folder, "index", (INDEX_FILE, "part-00000.faiss"))
    store, chosen = Store.open(store, reporter=reporter), open_pipeline(pipeline, preset)
    modalities = list(modality) if modality else store.modalities
    for name in modalities:
        store.require(name)
    split = split or "all"
    settings = {
        "factory": factory,
        "modality": list(modality) if modality else None,
        "split": split,
        "kept_splits": None if split == "all" or store.kept_splits is None else sorted(store.kept_splits),
        "pipeline": chosen.record()["checksum"] if chosen.fitted else chosen.config(),
        "moments": None if chosen.fitted else _digest_of_loaded_moments(store),
        "shard_rows": shard_rows,
        "recall": recall,
        "seed": seed,
    }
    with locked(folder), telling_what_is_kept(lambda: _what_is_kept(folder)):
        shards = {name: shards_of(store, name) for name in modalities}
        before = None if rebuild else _open_before(folder, reporter)
        if before is not None:
            reason = _reason_to_rebuild(before, store, settings, shards)
            if reason is None:
                try:
                    return _add_rows(before, store, shards, reporter)
                except RuntimeError as error:  # some kinds of FAISS index are filled once
                    reason = f"FAISS cannot add rows to {before.record['factory']} ({last_line(error)})"
            reporter.message(f"Rebuilding {folder}: {reason}.")
        return _build(store, folder, chosen, settings, shards, reporter)


def _build(
    store: Store,
    folder: Path,
    chosen: Pipeline,
    settings: Mapping[str, Any],
    shards: Mapping[str, Mapping[str, str]],
    reporter: Reporter,
) -> Index:
    """Build the index as a whole, of these shards by modality; ``settings`` are those of `build_index`."""
    modalities, split, seed = list(shards), settings["split"], settings["seed"]
    if not chosen.fitted:
        chosen.fit(store)
        reporter.message(chosen.describe_fit(store))
    chosen.check_model(store.info.model)
    rows = _row_table(store, dict.fromkeys(modalities), split)
    n, dim = rows.num_rows, store.info.dim
    if n == 0:
        raise StoreError(
            f"The store {store.path} has no rows in the split {split!r} to index. Its splits are {store.list_splits()}."
        )

    def blocks(label: str) -> Iterator[Matrix]:
        with reporter.progress(label, n) as progress:
            for name in modalities:
                for batch in store.batches(name, split=split):
                    yield chosen.transform(embedding_matrix(batch), modality=name)
                    progress.advance(len(batch))

    queries = _sample_queries(store, chosen, modalities, split)
    used, empty = faiss_shards.train_index(settings["factory"], lambda: blocks("Training"), n, dim, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX_FILE).unlink(missing_ok=True)
    for old in [*folder.glob("part-*.faiss"), *folder.glob("rows*.parquet")]:
        old.unlink()
    try:
        names, parts = faiss_shards.write_shards(folder, empty, blocks("Indexing"), settings["shard_rows"])
    except RuntimeError as error:
        raise StoreError(
            f"FAISS cannot fill an index {used!r} block by block ({last_line(error)}).",
            remedy="Use --factory auto or another index.",
        ) from error
    measured = faiss_shards.measure_recall(parts, queries, blocks("Measuring recall"), settings["recall"])
    write_atomically(folder / ROWS_FILE, lambda path: pq.write_table(rows, path, compression="zstd"))
    record = {
        "modalities": modalities,
        "split": split,
        "model": store.info.model,
        "transform": chosen.record(),
        "factory": used,
        "dim": dim,
        "rows": n,
        "shards": names,
        "metric": "cosine",
        **measured,
        "row_files": [ROWS_FILE],
        "built_from": n,
        "added": n,
        "store": _location_of_store(store, folder),
        "store_shards": shards,
        "settings": settings,
    }
    chosen.save(folder)
    _write_record(folder, record)  # last: without it there is no index
    index = Index(folder, record, parts, rows, chosen)
    if len(modalities) == 2:
        index.bias = _bias(store, chosen, modalities, seed)
    return index


def _what_is_kept(folder: Path) -> str:
    if (folder / INDEX_FILE).is_file():
        return "The former index was kept."
    return "An index is built in one go; run the same command again to restart."


def _open_before(folder: Path, reporter: Reporter) -> Index | None:
    """Return the index that is in the folder; None if there is none, or it is damaged."""
    if not (folder / INDEX_FILE).is_file():
        return None
    try:
        return Index.open(folder, gpu=False)
    except StoreError as error:
        reporter.message(f"Rebuilding {folder}: {error.message}")
        return None


def _reason_to_rebuild(
    index: Index, store: Store, settings: Mapping[str, Any], shards: Mapping[str, Mapping[str, str]]
) -> str | None:
    """Return why the rows that an index lacks cannot be added to it; None if they can."""
    record = index.record
    if "settings" not in record:
        return "it does not record what it was built from"
    if not store.info.model.same_as(ModelIdentity(record["model"])):
        return "the store has embeddings of another model"
    for name, value in settings.items():
        if record["settings"].get(name) != value:
            if name == "moments":
                return "the moments that `c3 means` loaded into the store are different"
            if name == "kept_splits":
                return "the store now assigns its rows to splits in another way"
            shown = (
                "" if name == "pipeline" else f" was {_shown(record['settings'].get(name))} and is now {_shown(value)}"
            )
            return f"its {name}{shown or ' is different'}"
    if record["modalities"] != list(shards):
        return f"the store now has {_shown(list(shards))}, but the index was built from {_shown(record['modalities'])}"
    lost = len(index.lost_shards(shards))
    if lost:
        return f"{counted(lost, 'shard')} of the store changed or {'was' if lost == 1 else 'were'} removed"
    n = record["rows"] + index.count_missing(store, shards)
    if n > _GROWTH * record["built_from"]:
        return f"the store has {counted(n, 'row')}, more than twice the {record['built_from']:,} it was built from"
    return None


def _shown(value: Any) -> str:
    return "all" if value is None else ", ".join(value) if isinstance(value, list) else str(value)


def _add_rows(index: Index, store: Store, shards: Mapping[str, Mapping[str, str]], reporter: Reporter) -> Index:
    """Add the rows of the shards that an index lacks; index.json is replaced last, so a kill leaves the old index.

    Raises:
        RuntimeError: if FAISS cannot add rows to an index of this kind.
    """
    record, folder = index.record, index.path
    split = record["split"]
    missing = {name: sorted(map(int, parts)) for name, parts in index.missing_shards(shards).items()}
    rows = _row_table(store, missing, split)
    names, parts, row_files = list(record["shards"]), index.shards, list(record.get("row_files", [ROWS_FILE]))
    if rows.num_rows:
        with reporter.progress("Indexing", rows.num_rows) as progress:

            def blocks() -> Iterator[Matrix]:
                for name, numbers in missing.items():
                    for batch in store.batches(name, split=split, parts=numbers):
                        yield index.pipeline.transform(embedding_matrix(batch), modality=name)
                        progress.advance(len(batch))

            names, parts = faiss_shards.extend_shards(folder, names, parts, blocks(), record["settings"]["shard_rows"])
        row_files.append(f"rows-{len(row_files):05d}.parquet")
        write_atomically(folder / row_files[-1], lambda path: pq.write_table(rows, path, compression="zstd"))
    changed = {
        **record,
        "rows": record["rows"] + rows.num_rows,
        "shards": names,
        "row_files": row_files,
        "added": rows.num_rows,
        "store": _location_of_store(store, folder),
        "store_shards": shards,
    }
    _write_record(folder, changed)
    for old in [*folder.glob("part-*.faiss"), *folder.glob("rows-*.parquet")]:
        if old.name not in (*names, *row_files):
            old.unlink()
    return Index(folder, changed, parts, pa.concat_tables([index.rows, rows]), index.pipeline)


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write index.json, without the values that only concern this run."""
    write_json_atomically(folder / INDEX_FILE, {name: value for name, value in record.items() if name != "added"})


def _row_table(store: Store, parts: Mapping[str, Sequence[int] | None], split: str | None) -> pa.Table:
    """Return the columns of each row that a hit shows, in the order of the vectors.

    Args:
        store: the store.
        parts: numbers of the shards by modality; None for all of them.
        split: rows of this split only; None or ``all`` for all.
    """
    schema = pa.schema([(name, pa.string()) for name in HIT_COLUMNS])
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for modality, numbers in parts.items():
        for batch in store.batches(modality, split=split, parts=numbers):
            known = batch.select([name for name in columns if name in batch.schema.names]).to_pydict()
            known["modality"] = [modality] * len(batch)
            for name in columns:
                columns[name] += known.get(name, [None] * len(batch))
    return pa.table(columns, schema=schema)


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


def _bias(store: Store, pipeline: Pipeline, modalities: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    samples = {name: first_rows(store, name, None, BIAS_ROWS).embeddings for name in modalities}
    result = {}
    for label, used in (("before", preset_named("c1")), ("after", pipeline)):
        x, y = (used.transform(rows, modality=name) for name, rows in samples.items())
        shares = modality_bias(x, y, seed=seed)
        result[label] = {name: round(share.value, 4) for name, share in zip(modalities, shares, strict=True)}
    return result


def _digest_of_loaded_moments(store: Store) -> str | None:
    """Return a digest of the moments that pipelines are fitted on instead of those of the store; None without any."""
    loaded, _ = store.external_moments()
    digest = hashlib.sha256()
    for name, moments in sorted(loaded.items()):
        digest.update(f"{name} {moments.n}".encode() + moments.mean.tobytes() + moments.scatter.tobytes())
    return digest.hexdigest() if loaded else None


def _location_of_store(store: Store, folder: Path) -> str:
    """Return what an index in ``folder`` records of its store's place: relative to it if both may move together."""
    if not isinstance(store.path, Path):
        return str(store.path)
    target, start = store.path.resolve(), folder.resolve()
    return os.path.relpath(target, start) if target.is_relative_to(start.parent) else str(target)
