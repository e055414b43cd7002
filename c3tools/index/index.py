"""An index of a store on disk: open it, search it by text, image, vector or key.

c3-index/
index.json                    factory, dimension, rows, nprobe, measured recall, shards of the store, settings
part-00000.faiss              up to `shard_rows` vectors
rows.parquet                  key, modality, caption, path of each row, in the order of the vectors
transform.json, .safetensors  the pipeline that rows and queries are transformed with
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..arrays import Indices, Matrix
from ..errors import C3Error, EncoderError, StoreError
from ..identity import ModelIdentity
from ..io.artifact import Kind, reading
from ..io.files import recorded_file
from ..io.locations import is_url, kind_of, location
from ..reporter import SILENT, Reporter, counted
from ..store import Store
from ..store.import_embeddings import read_rows
from ..store.metadata import INFO_FILE
from ..store.shard_indexes import has_indexes, indexed_shards, load_faiss, read_index
from ..store.shards import shard_schema
from ..transforms import Pipeline, preset
from . import faiss_shards
from .results import Hit, SearchResult, vector_of_key, with_vectors

if TYPE_CHECKING:
    from ..encoders import Encoder

KIND = Kind("index", "index.json", StoreError, "c3 index", "--index", others=("part-00000.faiss",), again="--rebuild")
ROWS_FILE = "rows.parquet"
ANY = "any"  # a modality to search in: all of them, in one ranking
OWN = Path("c3-index")  # where c3 index writes to
HIT_COLUMNS = ("key", "modality", "caption", "path", "image_key")
_PROVENANCE = ("format_version", "files", "model", "store", "store_shards", "settings")


class Index:
    """An index that is open for searching, with the pipeline that transformed its rows.

    Attributes:
        path: its folder.
        record: the content of index.json.
        rows: the table of keys, one row per vector.
        pipeline: the fitted pipeline; it transforms queries too.
        shards: the FAISS indexes.
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
    def open(cls, path: str | Path, *, gpu: bool = True) -> Index:
        """Open the index in the folder ``path``, on GPUs if faiss finds any and ``gpu`` is true.

        A store whose shards have FAISS indexes (`c3 embed --faiss`) is opened as one exact index of its embeddings as
        they are: nothing is centred, so each modality is best ranked by itself.

        Raises:
            StoreError: if there is no index, it is damaged, or shards of a store have no index.
            TransformError: if its pipeline is damaged.
            MissingExtraError: if faiss is not installed.
        """
        load_faiss()
        if kind_of(location(path) / INFO_FILE) == "file":
            return cls._of_store(Store.open(path))
        with reading(path, KIND) as (folder, record):
            try:
                shards = faiss_shards.read_shards([recorded_file(folder, name) for name in record["shards"]], gpu=gpu)
                rows = pq.read_table(folder / ROWS_FILE, columns=list(HIT_COLUMNS))
            except (FileNotFoundError, pa.ArrowException) as error:
                raise ValueError(error) from error
            if (vectors := sum(shard.ntotal for shard in shards)) != rows.num_rows:
                raise ValueError(f"it has {counted(vectors, 'vector')}, but {counted(rows.num_rows, 'key')}")
            return cls(folder, record, shards, rows, Pipeline.load(folder))

    @classmethod
    def _of_store(cls, store: Store) -> Index:
        """Return the indexes of the shards of a store as one."""
        having, lacking = indexed_shards(store)
        if lacking or not having:
            some = has_indexes(store)
            raise StoreError(
                f"{len(lacking):,} of {counted(len(lacking) + len(having), 'shard')} of the store {store.path} have no "
                f"FAISS index{' of their present rows' if some else ''}.",
                remedy=f"Make those that are missing: c3 verify {store.path} --repair"
                if some
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
        recorded = str(self.record.get("store", "c3-store"))
        if is_url(recorded) or "store" not in self.record:
            return location(recorded)
        return Path(os.path.normpath(self.path / recorded))

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
        vectors: bool = False,
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
            vectors: Include the embeddings of the query and of the rows.
            store: The store to read rows from. By default the store of the index.
            device: cpu, cuda, cuda:1 or mps. By default the fastest available.
            backend: auto, torch or openvino (for CPUs; needs the extra openvino).
            reporter: Gets the messages of the encoder, and a message if the index is out of date.

        Raises:
            StoreError: if there is not exactly one kind of query, a text is empty, the index has no rows of ``within``,
                the key is unknown, or vectors or the store are of another model.
            TransformError: if the pipeline is not fitted for the modality, or dimensions differ.
            EncoderError: if the recorded model cannot be loaded.
        """
        given = {"text": text, "image": image, "vector": vector, "key": key}
        kinds = [name for name, value in given.items() if value is not None]
        if len(kinds) != 1:
            raise StoreError(
                f"Exactly one kind of query is needed, but these were given: {', '.join(kinds) or 'none'}.",
                remedy='For example: c3 search "a dog on a beach"',
            )
        if text is not None and not all(query.strip() for query in ([text] if isinstance(text, str) else text)):
            raise StoreError("The query is empty.", remedy='For example: c3 search "a dog on a beach"')
        self._warn_if_stale(reporter)
        if key is not None:
            labels, (embeddings, modality) = [key], vector_of_key(self._source(store), key)
        elif isinstance(vector, str | Path):
            given_rows, model = read_rows(vector, modality)
            self._require_same_model(model, str(vector))
            embeddings, labels = given_rows.embeddings, [f"{vector} row {row}" for row in range(len(given_rows))]
        elif vector is not None:
            embeddings = np.atleast_2d(np.asarray(vector))
            labels = [f"vector row {row}" for row in range(len(embeddings))]
        else:
            from ..encoders import resolve_encoder

            encoder = resolve_encoder(recorded=self.record["model"], device=device, backend=backend, reporter=reporter)
            if text is not None:
                labels = [text] if isinstance(text, str) else list(text)
                embeddings, modality = encoder.encode_texts(labels), "text"
            else:
                images = list(image) if isinstance(image, list | tuple) else [image]
                embeddings, modality = _encode_images(images, encoder), "image"
                labels = [str(one) if isinstance(one, str | Path) else "image" for one in images]
        results = [SearchResult(label, []) for label in labels]
        for group in [within] if within else self._groups():
            within_group = None if group == ANY else group
            scores, rows = self.nearest(embeddings, modality, k, within=within_group, nprobe=nprobe)
            for result, *found in zip(results, scores, rows, strict=True):
                result.hits.extend(self._hits(*found))
        return with_vectors(results, embeddings.astype(np.float32), self._source(store)) if vectors else results

    def nearest(
        self, embeddings: npt.ArrayLike, modality: str, k: int, *, within: str | None = None, nprobe: int | None = None
    ) -> tuple[Matrix, Indices]:
        """Return scores and row numbers, both (q, k), of the rows nearest to raw embeddings (q, d), best first.

        If there are fewer than ``k`` rows, the row number is -1 and the score -inf. Other arguments and errors are
        those of `search`.
        """
        if k < 1:
            raise StoreError(f"k must be at least 1, not {k}.")
        queries = self.pipeline.transform(embeddings, modality=modality)
        if queries.shape[1] != self.record["dim"]:
            raise StoreError(
                f"The index has vectors of {self.record['dim']} dimensions, but the queries have {queries.shape[1]}.",
                remedy="Embed the queries with the model of the index.",
            )
        return faiss_shards.search_shards(
            self.shards, queries, k, nprobe or self.record.get("nprobe"), self._rows_of(within)
        )

    def _source(self, store: Store | str | Path | None) -> Store:
        """Open the store that embeddings are read from."""
        opened = Store.open(self.store_path if store is None else store)
        self._require_same_model(opened.info.model, f"the store {opened.path}")
        return opened

    def _require_same_model(self, model: ModelIdentity, theirs: str) -> None:
        recorded = ModelIdentity(self.record["model"])
        remedy = "Use embeddings of the model that the index was built from."
        recorded.require_same(model, own=f"The index {self.path}", theirs=theirs, error=StoreError, remedy=remedy)

    def _groups(self) -> list[str]:
        """Return the modalities to search one by one: images first, texts last."""
        present = [str(name) for name in pc.unique(self.rows.column("modality")).to_pylist()]
        return sorted(present, key=lambda name: (name == "text", name != "image", name))

    def _is_of(self, modality: str) -> Any:
        return pc.equal(self.rows.column("modality"), pa.scalar(modality))

    def _rows_of(self, modality: str | None) -> npt.NDArray[np.bool_] | None:
        """Return which rows (n,) are of a modality; None for all."""
        if modality is None:
            return None
        wanted = self._is_of(modality).to_numpy()
        if not wanted.any():
            known = ", ".join(self._groups())
            raise StoreError(
                f"The index {self.path} has no {modality} rows. Its modalities are {known}.",
                remedy=f"Choose one of them with --in, or {ANY} for one ranking of all rows.",
            )
        return np.asarray(wanted, dtype=bool)

    def _hits(self, scores: Matrix, rows: Indices) -> list[Hit]:
        """Return the hits of one query from scores and row numbers, both (k,)."""
        found = rows >= 0
        table = self.rows.take(rows[found]).select(HIT_COLUMNS)
        paths = self._paths({key for key in table.column("image_key").to_pylist() if key is not None})
        hits = [
            Hit(round(float(score), 6), *row)
            for score, *row in zip(scores[found], *(column.to_pylist() for column in table.columns), strict=True)
        ]
        return [replace(hit, path=paths.get(hit.image_key)) if hit.image_key and not hit.path else hit for hit in hits]

    def _paths(self, keys: set[str]) -> dict[str | None, str]:
        """Return the paths of the images with these keys, as far as the index has them."""
        if not keys:
            return {}
        images = self.rows.filter(self._is_of("image")).select(["key", "path"])
        chosen = images.filter(pc.is_in(images.column("key"), pa.array(sorted(keys), pa.string())))
        return {key: path for key, path in zip(*(c.to_pylist() for c in chosen.columns), strict=True) if path}

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


def row_table(store: Store, parts: Mapping[str, Sequence[int]], split: str | None = None) -> pa.Table:
    """Return the columns of each row that a hit shows, of these shards by modality, in the order of the vectors."""
    schema = pa.schema([(name, pa.string()) for name in HIT_COLUMNS])
    tables = [schema.empty_table()]
    for modality, numbers in parts.items():
        columns = [name for name in shard_schema(modality, store.info).names if name in HIT_COLUMNS]
        for batch in store.batches(modality, columns, split=split, parts=numbers):
            known = {name: batch.column(name) for name in columns}
            known["modality"] = pa.array([modality] * len(batch), pa.string())
            missing = pa.nulls(len(batch), pa.string())
            tables.append(pa.table([known.get(name, missing) for name in HIT_COLUMNS], schema=schema))
    return pa.concat_tables(tables)


def shards_of(store: Store, modalities: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the checksums of the shards of a store, by modality and number."""
    known = (name for name in modalities if name in store.modalities)
    return {name: {str(part): store.shard_digest(name, part) for part in store.parts(name)} for name in known}


def _encode_images(images: Sequence[Any], encoder: Encoder) -> Matrix:
    """Return the embeddings (n, d) of images; files are read and decoded ahead of the model, as in an embedding."""
    if not all(isinstance(image, str | Path) for image in images):
        return encoder.encode_images(images)
    from ..embedding.shards import encode_files

    parts = []
    for _, embeddings, failures in encode_files({str(row): image for row, image in enumerate(images)}, encoder):
        if failures:
            image = images[int(failures[0].key)]
            raise EncoderError(f"{image} cannot be read as an image ({failures[0].message}).")
        parts.append(embeddings)
    return np.concatenate(parts) if parts else np.zeros((0, encoder.dim), np.float32)


def find_index(folder: str | Path | None = None) -> Path:
    """Return the folder that is given; for None ``c3-index``, or the store here if that alone has FAISS indexes."""
    if folder is not None:
        return location(folder)
    if not OWN.exists():
        place = location(os.environ.get("C3_STORE") or "c3-store")
        if kind_of(place / INFO_FILE) == "file" and has_indexes(Store.open(place)):
            return place
    return OWN
