"""An index of a store on disk: open it, search it by text, image, vector or key.

c3-index/
index.json                    factory, dimension, rows, nprobe, measured recall, shards of the store, settings
part-00000.faiss              up to `shard_rows` vectors of one modality
rows.parquet                  key, modality, caption, path of each row, in the order of the vectors
transform.json, .safetensors  the pipeline that rows and queries are transformed with
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..arrays import Indices, Matrix
from ..errors import C3Error, StoreError
from ..identity import ModelIdentity
from ..io.artifact import Kind, reading
from ..io.files import recorded_file
from ..io.locations import is_url, kind_of, location
from ..reporter import SILENT, Reporter, counted
from ..store import Store, embedding_matrix
from ..store.import_embeddings import read_rows
from ..store.metadata import INFO_FILE
from ..store.rows import keys_of, one_array
from ..store.shard_indexes import has_indexes, indexed_shards, load_faiss, read_index
from ..store.shards import shard_schema
from ..transforms import Pipeline, preset
from .results import Hit, SearchResult

KIND = Kind("index", "index.json", StoreError, "c3 index", "--index", others=("part-00000.faiss",), again="--rebuild")
ROWS_FILE = "rows.parquet"
_ANY = "any"  # a modality to search in: all of them, in one ranking
_OWN = Path("c3-index")  # where c3 index writes to
_ROW_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "modality", "caption", "path", "image_key")])
_PROVENANCE = ("format_version", "files", "model", "store", "store_shards", "settings")


class Index:
    """An index that is open for searching, with the pipeline that transformed its rows.

    Attributes:
        path: its folder.
        record: the content of index.json.
        rows: the table of keys, one row per vector.
        pipeline: the fitted pipeline; it transforms queries too.
        shards: the FAISS indexes, each of rows of one modality.
        bias: share of own-modality rows among the 10 nearest, per modality, before and after the transform, in a
            balanced sample (0.5 without bias); None for one modality, and for an index that was opened or extended.
    """

    def __init__(
        self, path: Path, record: dict[str, Any], shards: list[Any], rows: pa.Table, pipeline: Pipeline
    ) -> None:
        self.path = path
        self.record = record
        self.rows = rows
        self.pipeline = pipeline
        self.bias: dict[str, dict[str, float]] | None = None
        self.shards = shards

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Open the index in the folder ``path``; it is searched on GPUs where faiss finds any.

        A store whose shards have FAISS indexes (`c3 embed --faiss`) is opened as one exact index of its embeddings as
        they are: nothing is centred, so each modality is best ranked by itself.

        Raises:
            StoreError: if there is no index, it is damaged, or shards of a store have no index.
            TransformError: if its pipeline is damaged.
            MissingExtraError: if faiss is not installed.
        """
        faiss = load_faiss()
        if kind_of(location(path) / INFO_FILE) == "file":
            return cls._of_store(Store.open(path))
        with reading(path, KIND) as (folder, record):
            try:
                shards = [faiss.read_index(str(recorded_file(folder, name))) for name in record["shards"]]
                rows = pq.read_table(folder / ROWS_FILE, columns=_ROW_SCHEMA.names)
            except (OSError, pa.ArrowException) as error:
                raise ValueError(error) from error
            if (vectors := sum(shard.ntotal for shard in shards)) != rows.num_rows:
                raise ValueError(f"it has {counted(vectors, 'vector')}, but {counted(rows.num_rows, 'key')}")
            return cls(folder, record, shards, rows, Pipeline.load(folder))

    @classmethod
    def _of_store(cls, store: Store) -> Index:
        """Return the indexes of the shards of a store as one."""
        having, lacking = indexed_shards(store)
        if lacking or not having:
            raise StoreError(
                f"{len(lacking):,} of {counted(len(lacking) + len(having), 'shard')} of the store {store.path} have no "
                "FAISS index of their present rows.",
                remedy=f"Make those that are missing: c3 verify {store.path} --repair"
                if has_indexes(store)
                else "Run the `c3 embed` that made it with --faiss, or make an index: c3 index",
            )
        rows = row_table(store, {name: [part for own, part in having if own == name] for name in store.modalities})
        record = {
            "model": store.info.model,
            "factory": "Flat",
            "dim": store.info.dim,
            "rows": rows.num_rows,
            "metric": "cosine",
            "store": "." if isinstance(store.path, Path) else str(store.path),
            "store_shards": shards_of(store, store.modalities),
        }
        return cls(store.path, record, [read_index(store, *shard) for shard in having], rows, preset("c1"))

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}: {self.rows.num_rows:,} rows, {self.record['factory']})"

    def to_dict(self) -> dict[str, Any]:
        """Return how the index was built, and its recall, as JSON values; index.json has the provenance too."""
        measured = {name: value for name, value in self.record.items() if name not in _PROVENANCE}
        return {"output": str(self.path), **measured, "bias@10": self.bias}

    @property
    def store_path(self) -> Path:
        """The store that the index was built from: its folder, or a path-like object for a URL."""
        recorded = self.record["store"]
        return location(recorded) if is_url(recorded) else Path(os.path.normpath(self.path / recorded))

    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: Any = None,
        vector: npt.ArrayLike | str | Path | None = None,
        key: str | None = None,
        modality: str = "text",
        within: str | None = None,
        k: int = 10,
        nprobe: int | None = None,
        store: Store | str | Path | None = None,
        device: str | None = None,
        backend: str = "auto",
        reporter: Reporter = SILENT,
    ) -> list[SearchResult]:
        """Find the rows nearest to one or several queries of the same kind; return one result per query.

        Each modality of the index has its own ranking, texts last. In a common ranking, the modality gap would put rows
        of the query's own modality first.

        Args:
            text: Texts to search for.
            image: Search with these images.
            vector: Search with the vectors in this file (npy, npz, ...).
            key: Search with the row of the store that has this key.
            modality: Modality of the vectors in ``vector``: image, text, ...
            within: Return only rows of this modality (image, text, ...). any: rank all modalities together. By default
                each modality in its own ranking.
            k: Number of results per modality.
            nprobe: Number of inverted lists to search. More are slower and find more. By default the tuned value of the
                index.
            store: The store to read the row of ``key`` from. By default the store of the index.
            device: cpu, cuda, cuda:1 or mps. By default the fastest available.
            backend: auto, torch or openvino (for CPUs; needs the extra openvino).
            reporter: Gets the messages of the encoder, and a message if the index is out of date.

        Raises:
            StoreError: if there is not exactly one kind of query, a text is empty, the index has no rows of ``within``,
                the key is unknown, or vectors or the store are of another model.
            TransformError: if the pipeline is not fitted for the modality, or dimensions differ.
            EncoderError: if the recorded model cannot be loaded, or an image cannot be read.
        """
        given = {"text": text, "image": image, "vector": vector, "key": key}
        kinds = [name for name, value in given.items() if value is not None]
        texts = [text] if isinstance(text, str) else list(text or ())
        if len(kinds) != 1 or not all(query.strip() for query in texts):
            raise StoreError(
                f"One kind of query is needed, with content, but these were given: {', '.join(kinds) or 'none'}.",
                remedy='For example: c3 search "a dog on a beach"',
            )
        self._warn_if_stale(reporter)
        if key is not None:
            opened = Store.open(self.store_path if store is None else store)
            self._require_same_model(opened.info.model, f"the store {opened.path}")
            labels, (embeddings, modality) = [key], _vector_of_key(opened, key)
        elif isinstance(vector, str | Path):
            rows, model = read_rows(vector, modality)
            self._require_same_model(model, str(vector))
            embeddings, labels = rows.embeddings, [f"{vector} row {row}" for row in range(len(rows))]
        elif vector is not None:
            embeddings = np.atleast_2d(np.asarray(vector))
            labels = [f"vector row {row}" for row in range(len(embeddings))]
        else:
            from ..encoders import resolve_encoder

            encoder = resolve_encoder(recorded=self.record["model"], device=device, backend=backend, reporter=reporter)
            if texts:
                labels, embeddings, modality = texts, encoder.encode_texts(texts), "text"
            else:
                images = list(image) if isinstance(image, list | tuple) else [image]
                labels = [str(one) if isinstance(one, str | Path) else "image" for one in images]
                embeddings, modality = encoder.encode_images(images), "image"
        results = [SearchResult(label, []) for label in labels]
        for group in [within] if within else self._groups():
            scores, found = self.nearest(embeddings, modality, k, within=group, nprobe=nprobe)
            for result, own, numbers in zip(results, scores, found, strict=True):
                hits = self.rows.take(numbers[numbers >= 0]).to_pylist()
                result.hits.extend(Hit(round(float(score), 6), **hit) for score, hit in zip(own, hits, strict=False))
        return results

    def nearest(
        self, embeddings: npt.ArrayLike, modality: str, k: int, *, within: str | None = None, nprobe: int | None = None
    ) -> tuple[Matrix, Indices]:
        """Return scores and row numbers, both (q, k), of the rows nearest to raw embeddings (q, d), best first.

        If there are fewer than ``k`` rows, the row number is -1 and the score -inf. Other arguments and errors are
        those of `search`; ``within`` None is any.
        """
        if k < 1:
            raise StoreError(f"k must be at least 1, not {k}.")
        queries = self.pipeline.transform(embeddings, modality=modality)
        if queries.shape[1] != self.record["dim"]:
            raise StoreError(
                f"The index has vectors of {self.record['dim']} dimensions, but the queries have {queries.shape[1]}.",
                remedy="Embed the queries with the model of the index.",
            )
        starts = np.cumsum([0, *(shard.ntotal for shard in self.shards)])[:-1]
        owners = self.rows.column("modality").take(starts).to_pylist()
        chosen = [within in (None, _ANY, owner) for owner in owners]
        if not any(chosen):
            raise StoreError(
                f"The index {self.path} has no {within} rows. Its modalities are {', '.join(self._groups())}.",
                remedy=f"Choose one of them with --in, or {_ANY} for one ranking of all rows.",
            )
        return search_shards(self._searched, queries, k, nprobe or self.record.get("nprobe"), chosen)

    @cached_property
    def _searched(self) -> list[Any]:
        """Return the indexes on all GPUs that faiss sees; some kinds exist on CPUs only."""
        faiss = load_faiss()
        if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
            return self.shards
        moved = []
        for shard in self.shards:
            inverted = faiss.try_extract_index_ivf(shard)
            if inverted and self.record.get("nprobe"):
                inverted.nprobe = self.record["nprobe"]
            try:
                moved.append(faiss.index_cpu_to_all_gpus(shard))
            except RuntimeError:
                moved.append(shard)
        return moved

    def _require_same_model(self, model: ModelIdentity, theirs: str) -> None:
        recorded = ModelIdentity(self.record["model"])
        remedy = "Use embeddings of the model that the index was built from."
        recorded.require_same(model, own=f"The index {self.path}", theirs=theirs, error=StoreError, remedy=remedy)

    def _groups(self) -> list[str]:
        """Return the modalities to search one by one: images first, texts last."""
        present = [str(name) for name in self.rows.column("modality").unique().to_pylist()]
        return sorted(present, key=lambda name: (name == "text", name != "image", name))

    def _warn_if_stale(self, reporter: Reporter) -> None:
        """Say so if the store has changed since it was indexed; an index can be searched without its store."""
        if kind_of(self.store_path / INFO_FILE) != "file":
            return
        try:
            store = Store.open(self.store_path)
            modalities = self.record.get("settings", {}).get("modality") or store.modalities
            changed = shards_of(store, modalities) != self.record["store_shards"]
            text = f"The store {store.path} has changed since it was indexed; `c3 index` brings the index up to date."
        except C3Error as error:
            changed, text = True, f"The index {self.path} cannot be compared with its store: {error.message}"
        if changed:
            reporter.message(text)


def search_shards(
    shards: Sequence[Any], queries: Matrix, k: int, nprobe: int | None, chosen: Sequence[bool] | None = None
) -> tuple[Matrix, Indices]:
    """Return the best scores and row numbers over FAISS indexes, both (q, k), best first.

    Where there are fewer than ``k`` rows, the row number is -1 and the score -inf.

    Args:
        shards: the indexes; rows are numbered through all of them.
        queries: (q, d), unit rows.
        k: number of rows.
        nprobe: number of inverted lists to search, in indexes that have them.
        chosen: which indexes to search; None for all.
    """
    faiss, queries, start = load_faiss(), np.ascontiguousarray(queries, dtype=np.float32), 0
    scores = [np.full((len(queries), k), -np.inf, np.float32)]
    rows = [np.full((len(queries), k), -1, np.int64)]
    for shard, wanted in zip(shards, chosen or [True] * len(shards), strict=True):
        if wanted:
            inverted = faiss.try_extract_index_ivf(shard)
            if inverted and nprobe:
                inverted.nprobe = nprobe
            found_scores, found = shard.search(queries, k)
            scores.append(np.where(found < 0, -np.inf, found_scores))
            rows.append(np.where(found < 0, -1, found + start))
        start += shard.ntotal
    all_scores, all_rows = np.hstack(scores), np.hstack(rows)
    best = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(all_scores, best, 1), np.take_along_axis(all_rows, best, 1)


def row_table(
    store: Store, parts: Mapping[str, Sequence[int]], split: str | None = None, before: pa.Table | None = None
) -> pa.Table:
    """Return the columns of each row that a hit shows, of these shards by modality, in the order of the vectors.

    They come after the rows ``before`` them. A text has the path of its image.
    """
    tables = [_ROW_SCHEMA.empty_table() if before is None else before]
    for modality, numbers in parts.items():
        columns = [name for name in shard_schema(modality, store.info).names if name in _ROW_SCHEMA.names]
        for batch in store.batches(modality, columns, split=split, parts=numbers):
            owner = pa.array([modality] * len(batch), pa.string())
            tables.append(pa.Table.from_batches([batch]).append_column("modality", owner))
    rows = pa.concat_tables(tables, promote_options="permissive").select(_ROW_SCHEMA.names)
    images = rows.filter(pc.equal(rows.column("modality"), pa.scalar("image")))
    places = pc.index_in(one_array(rows.column("image_key")), value_set=one_array(images.column("key")))
    paths = pc.coalesce(one_array(rows.column("path")), one_array(images.column("path")).take(places))
    return rows.set_column(_ROW_SCHEMA.get_field_index("path"), "path", paths)


def shards_of(store: Store, modalities: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the checksums of the shards of a store, by modality and number."""
    known = (name for name in modalities if name in store.modalities)
    return {name: {str(part): store.shard_digest(name, part) for part in store.parts(name)} for name in known}


def find_index(folder: str | Path | None = None) -> Path:
    """Return the folder that is given; for None ``c3-index``, or the store here if that alone has FAISS indexes."""
    if folder is not None:
        return location(folder)
    if not _OWN.exists():
        place = location(os.environ.get("C3_STORE") or "c3-store")
        if kind_of(place / INFO_FILE) == "file" and has_indexes(Store.open(place)):
            return place
    return _OWN


def _vector_of_key(store: Store, key: str) -> tuple[Matrix, str]:
    """Return the embedding (1, d) of a row of the store, and its modality.

    Raises:
        StoreError: if no row has the key.
    """
    for name in store.modalities:
        for part in store.parts(name):  # keys are looked at before any embedding is read
            keys = [own for batch in store.batches(name, ["key"], parts=[part]) for own in keys_of(batch)]
            if key in keys:
                blocks = [embedding_matrix(batch) for batch in store.batches(name, ["embedding"], parts=[part])]
                return np.concatenate(blocks)[keys.index(key)][None], name
    raise StoreError(f"The store {store.path} has no row with the key {key!r}.")
