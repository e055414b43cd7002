"""An index of a store on disk: open it, search it by text, image, vector or key; the hits, and a page of thumbnails.

c3-index/
index.json                    factory, dimension, rows, nprobe, measured recall, shards of the store, settings
part-00000.faiss              up to `shard_rows` vectors of one modality
rows.parquet                  key, modality, caption, path of each row, in the order of the vectors
transform.json, .safetensors  the pipeline that rows and queries are transformed with
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..arrays import Indices, Matrix
from ..corpus import ImageReader
from ..corpus.containers import PhotoFinder
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
from ..store.shard_indexes import load_faiss, read_index
from ..store.shards import shard_schema
from ..tables import Table
from ..transforms import Pipeline, preset

KIND = Kind("index", "index.json", StoreError, "c3 index", "--index", others=("part-00000.faiss",), again="--rebuild")
ROWS_FILE = "rows.parquet"
_ANY = "any"  # a modality to search in: all of them, in one ranking
_OWN = Path("c3-index")  # where c3 index writes to
_ROW_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "modality", "caption", "path", "image_key")])
_TEMPLATE = Path(__file__).parent / "templates" / "contact_sheet.html"
_THUMBNAIL = 480  # pixels of the longer side, for screens with two pixels to the point
_PROVENANCE = ("format_version", "files", "model", "store", "store_shards", "settings")


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        score: cosine with the query after the transform.
        key: of the row.
        modality: of the row.
        caption: of a text.
        path: of an image, or of the image that a text belongs to, if the index has it.
        image_key: of the image that a text belongs to.
    """

    score: float
    key: str
    modality: str
    caption: str | None = None
    path: str | None = None
    image_key: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as JSON values, without what it lacks."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SearchResult:
    """The rows found for one query.

    Attributes:
        query: the text, the path, the key, or the number of the vector.
        hits: the rows: the best of each modality that was searched, one modality after the other.
    """

    query: str
    hits: list[Hit]

    @property
    def groups(self) -> dict[str, list[Hit]]:
        """The hits by modality, in their order."""
        return {name: [hit for hit in self.hits if hit.modality == name] for name in {h.modality: 0 for h in self.hits}}

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"query": self.query, "hits": [hit.to_dict() for hit in self.hits]}

    def _repr_html_(self) -> str:
        """Return a table of the hits, for notebooks."""
        rows = [(f"{hit.score:.3f}", hit.modality, hit.key, hit.caption or hit.path or "") for hit in self.hits]
        return Table(("score", "modality", "key", "caption or path"), rows, self.query)._repr_html_()


@dataclass(repr=False)
class Index:
    """An index that is open for searching, with the pipeline that transformed its rows.

    Attributes:
        path: its folder.
        record: the content of index.json.
        shards: the FAISS indexes, each of rows of one modality.
        rows: the table of keys, one row per vector.
        pipeline: the fitted pipeline; it transforms queries too.
        bias: share of own-modality rows among the 10 nearest, per modality, before and after the transform, in a
            balanced sample (0.5 without bias); None for one modality, and for an index that was opened or extended.
    """

    path: Path
    record: dict[str, Any]
    shards: list[Any]
    rows: pa.Table
    pipeline: Pipeline
    bias: dict[str, dict[str, float]] | None = None

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
        having = store.indexed
        if not 0 < len(having) == len(store.shards):
            raise StoreError(
                f"{len(store.shards) - len(having):,} of {counted(len(store.shards), 'shard')} of the store "
                f"{store.path} have no FAISS index of their present rows.",
                remedy=f"Make those that are missing: c3 verify {store.path} --repair"
                if having
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
        own = zip(starts, self._searched, owners, strict=True)
        chosen = [(start, shard) for start, shard, owner in own if within in (None, _ANY, owner)]
        if not chosen:
            raise StoreError(
                f"The index {self.path} has no {within} rows. Its modalities are {', '.join(self._groups())}.",
                remedy=f"Choose one of them with --in, or {_ANY} for one ranking of all rows.",
            )
        scores, found = search_shards([shard for _, shard in chosen], queries, k, nprobe or self.record.get("nprobe"))
        numbers = np.concatenate([start + np.arange(shard.ntotal) for start, shard in chosen])
        return scores, np.where(found < 0, -1, numbers[found])

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


def search_shards(shards: Sequence[Any], queries: Matrix, k: int, nprobe: int | None) -> tuple[Matrix, Indices]:
    """Return the best scores and row numbers over FAISS indexes, both (q, k), best first.

    Where there are fewer than ``k`` rows, the row number is -1 and the score -inf.

    Args:
        shards: the indexes; rows are numbered through all of them.
        queries: (q, d), unit rows.
        k: number of rows.
        nprobe: number of inverted lists to search, in indexes that have them.
    """
    faiss = load_faiss()
    joined = faiss.IndexShards(queries.shape[1], False, True)  # one after the other, rows numbered through
    for shard in shards:
        inverted = faiss.try_extract_index_ivf(shard)
        if inverted and nprobe:
            inverted.nprobe = nprobe
        joined.add_shard(shard)
    scores, rows = joined.search(np.ascontiguousarray(queries, dtype=np.float32), k)
    return np.where(rows < 0, -np.inf, scores), rows


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
        if kind_of(place / INFO_FILE) == "file" and Store.open(place).indexed:
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


def contact_sheet(results: Sequence[SearchResult]) -> str:
    """Return a self-contained page of the results: images as thumbnails, texts beside the image they belong to.

    An image that cannot be read from here is shown as its key and the reason.
    """
    from ..pages import render_page

    pictures: dict[str, dict[str, str]] = {}
    finder = PhotoFinder()
    with ImageReader() as reader:
        for result in results:
            for path in [result.query, *(hit.path for hit in result.hits)]:
                if path and path not in pictures:
                    pictures[path] = _picture(reader, path, finder)
    title = results[0].query if len(results) == 1 else counted(len(results), "query", "queries")
    return render_page(_TEMPLATE, title=title, results=results, pictures=pictures)


def _picture(reader: ImageReader, path: str, finder: PhotoFinder) -> dict[str, str]:
    """Return the thumbnail of an image as a ``data:`` URL, or why there is none."""
    from PIL import Image

    from ..encoders import open_image
    from ..pages import inline_image

    try:
        if is_url(path):
            return {"problem": "not fetched"}
        image, _, _ = open_image(io.BytesIO(reader.read(finder.find(path, path))))
        return {"source": inline_image(image, _THUMBNAIL)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return {"problem": getattr(error, "strerror", None) or str(error) or type(error).__name__}
