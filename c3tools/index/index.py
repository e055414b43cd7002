"""An index of a store on disk: build it, add to it, open it, and search it by text, image, vector
or key.

    c3-index/
      index.json                    factory, dimension, rows, nprobe, measured recall, shards of
                                    the store, settings
      part-00000.faiss              up to `shard_rows` vectors of one modality
      rows.parquet                  key, modality, caption, path of each row, in the order of the
                                    vectors
      transform.json, .safetensors  the pipeline that rows and queries are transformed with
      moments.safetensors           the moments of transformed rows, by modality, which scores are
                                    calibrated with

An index that grows keeps its cells and its pipeline, and so the means of the rows that it was built
from. After any other change of the store or the settings it is made again. The parts are copies of
one trained FAISS index; scores are inner products of unit vectors, so cosines.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..arrays import Indices, Matrix
from ..corpus.items import is_sound
from ..embedding.sounds import encode_sounds
from ..errors import C3Error, StoreError, TransformError, note_on_interrupt, reason_of
from ..identity import ModelIdentity
from ..io.artifact import ArtifactType, digest_of, reading, reserve_output, writing
from ..io.files import recorded_file
from ..io.locations import is_url, kind_of, location
from ..moments import Moments, load_moments, save_moments
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator
from ..store import Store, embedding_matrix
from ..store.import_embeddings import read_rows
from ..store.rows import ITEM_COLUMNS, keys_of, one_array, row_splits
from ..store.shard_indexes import last_line, load_faiss, read_index, save_index
from ..store.shards import INFO_FILE, shard_schema
from ..tables import Table
from ..transforms import Pipeline, open_pipeline, preset
from ..transforms.calibration import Calibration
from ..transforms.fitting import first_pairs, first_rows, load_command, moment_sources

if TYPE_CHECKING:
    from ..encoders import Encoder

_KIND = ArtifactType(
    "index",
    "index.json",
    StoreError,
    "c3 index",
    "--index",
    others=("part-00000.faiss",),
    again="--rebuild",
)
_ROWS_FILE = "rows.parquet"
_MOMENTS_FILE = "moments.safetensors"
_OWN = Path("c3-index")  # where c3 index writes to
_ROW_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "modality", "caption", "path", "image_key", "split")]
)
_TEMPLATE = Path(__file__).parent / "templates" / "contact_sheet.html"
_THUMBNAIL = 480  # pixels of the longer side, for screens with two pixels to the point
_PROVENANCE = ("format_version", "files", "model", "store", "store_shards", "settings")
_BIAS_ROWS = 2_000
_CURVE_PAIRS, _LEAST_PAIRS = 400, 20
_RECALL_QUERIES = 200
_FLAT_ROWS = 20_000
_QUANTISED_ROWS = 2_000_000
_TRAINING_ROWS_PER_CELL = 64
_LEAST_ROWS_PER_CELL = 39  # below it, FAISS warns that its k-means has too few points
_GROWTH = 2  # times the rows it was built from, beyond which means and cells are computed again


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        score: how unusual the cosine is among rows of the same modality, in standard deviations
            (`Calibration.z`); the cosine itself if the store had too few rows to tell.
        cosine: of the row with the query after the transform (with the preset fair, times a number
            of the modality).
        row: its number in the index.
        key: of the row.
        modality: of the row.
        caption: of a text.
        path: of an image, or of the image that a text belongs to, if the index has it.
        image_key: of the image that a text belongs to.
        split: of the row.
    """

    score: float
    cosine: float
    row: int
    key: str
    modality: str
    caption: str | None = None
    path: str | None = None
    image_key: str | None = None
    split: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as JSON values, without what it lacks."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SearchResult:
    """The rows found for one query.

    Attributes:
        query: the text, the path, the key, or the number of the vector.
        hits: the rows, best first; of a search for separate lists, one modality after the other.
    """

    query: str
    hits: list[Hit]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"query": self.query, "hits": [hit.to_dict() for hit in self.hits]}

    def _repr_html_(self) -> str:
        """Return a table of the hits, for notebooks."""
        rows = [
            (f"{hit.score:.2f}", hit.modality, hit.key, hit.caption or hit.path or "")
            for hit in self.hits
        ]
        return Table(
            ("score", "modality", "key", "caption or path"), rows, self.query
        )._repr_html_()


@dataclass(repr=False)
class Index:
    """An index that is open for searching, with the pipeline that transformed its rows.

    Attributes:
        path: its folder.
        record: the content of index.json.
        shards: the FAISS indexes, each of rows of one modality.
        rows: the table of keys, one row per vector.
        calibration: compares scores of different modalities.
        bias: share of own-modality rows among the 10 nearest, per modality, before and after the
            transform, in a balanced sample (0.5 without bias); None for one modality, and for an
            index that was opened or extended.
    """

    path: Path
    record: dict[str, Any]
    shards: list[Any]
    rows: pa.Table
    calibration: Calibration
    bias: dict[str, dict[str, float]] | None = None

    @property
    def pipeline(self) -> Pipeline:
        """The fitted pipeline; it transforms queries too."""
        return self.calibration.pipeline

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Open the index in the folder ``path``; it is searched on GPUs where faiss finds any.

        A store whose shards have FAISS indexes (`c3 embed --faiss`) is opened as one exact index of
        its embeddings as they are: nothing is centred.

        Raises:
            StoreError: if there is no index, it is damaged, or shards of a store have no index.
            TransformError: if its pipeline is damaged.
            MissingExtraError: if faiss is not installed.
        """
        faiss = load_faiss()
        if kind_of(location(path) / INFO_FILE) == "file":
            return cls._of_store(Store.open(path))
        with reading(path, _KIND) as (folder, record):
            try:
                shards = [
                    faiss.read_index(str(recorded_file(folder, name))) for name in record["shards"]
                ]
                with pq.ParquetFile(folder / _ROWS_FILE) as file:  # read_table imports pandas
                    rows = file.read(_ROW_SCHEMA.names)
                calibration = Calibration(
                    load_moments(folder / _MOMENTS_FILE)[0], Pipeline.load(folder)
                )
            except (OSError, pa.ArrowException) as error:
                raise ValueError(error) from error
            if (vectors := sum(shard.ntotal for shard in shards)) != rows.num_rows:
                raise ValueError(
                    f"it has {counted(vectors, 'vector')}, but {counted(rows.num_rows, 'key')}"
                )
            return cls(folder, record, shards, rows, calibration)

    @classmethod
    def _of_store(cls, store: Store) -> Index:
        """Return the indexes of the shards of a store as one."""
        having = store.indexed
        if not 0 < len(having) == len(store.shards):
            raise StoreError(
                f"{len(store.shards) - len(having):,} of {counted(len(store.shards), 'shard')} of "
                f"the store "
                f"{store.path} have no FAISS index of their present rows.",
                remedy=f"Make those that are missing: c3 verify {store.path} --repair"
                if having
                else "Run the `c3 embed` that made it with --faiss, or make an index: c3 index",
            )
        rows = _row_table(
            store,
            {name: [part for own, part in having if own == name] for name in store.modalities},
        )
        record = {
            "model": store.info.model,
            "factory": "Flat",
            "dim": store.info.dim,
            "rows": rows.num_rows,
            "metric": "cosine",
            "store": "." if isinstance(store.path, Path) else str(store.path),
            "store_shards": _shards_of(store, store.modalities),
        }
        calibration = Calibration.fit(store, pipeline=preset("c1"))
        return cls(
            store.path,
            record,
            [read_index(store, *shard) for shard in having if store.shards[shard].rows],
            rows,
            calibration,
        )

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}: {self.rows.num_rows:,} rows, {self.record['factory']})"

    def to_dict(self) -> dict[str, Any]:
        """Return how the index was built, and its recall, as JSON values; index.json has the
        provenance too.
        """
        measured = {name: value for name, value in self.record.items() if name not in _PROVENANCE}
        return {"output": str(self.path), **measured, "bias@10": self.bias}

    @property
    def store_path(self) -> Path:
        """The store that the index was built from: its folder, or a path-like object for a URL."""
        recorded = self.record["store"]
        return (
            location(recorded) if is_url(recorded) else Path(os.path.normpath(self.path / recorded))
        )

    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: Any = None,
        audio: str | Path | Sequence[str | Path] | None = None,
        vector: npt.ArrayLike | str | Path | None = None,
        key: str | None = None,
        modality: str = "text",
        within: str | None = None,
        split: str | None = None,
        separate: bool = False,
        k: int = 10,
        nprobe: int | None = None,
        store: Store | str | Path | None = None,
        pairs: Store | str | Path | None = None,
        query_prompt: str | None = None,
        device: str | None = None,
        backend: str = "auto",
        reporter: Reporter = SILENT,
    ) -> list[SearchResult]:
        """Find the rows nearest to one or several queries of the same kind; return one result per
        query.

        Images and texts are in one list, ranked by how unusual their cosine is among rows of their
        own modality (see `Calibration`). By the cosine itself, the modality gap would put rows of
        the query's own modality first.

        Args:
            text: Texts to search for.
            image: Search with these images.
            audio: Search with these sound files.
            vector: Search with the vectors in this file (npy, npz, ...).
            key: Search with the row of the store that has this key.
            modality: Modality of the vectors in ``vector``: image, text, ...
            within: Return only rows of this modality (image, text, ...).
            split: Return only rows of this split: train, val, test or all.
            separate: Return the best rows of each modality, one modality after the other, instead
                of one list.
            k: Number of results; with ``separate``, per modality.
            nprobe: Number of inverted lists to search. More are slower and find more. By default
                the tuned value of the index.
            store: The store to read the row of ``key`` from. By default the store of the index.
            pairs: Score by the log odds that a row is the right one, learned from images with
                captions in this store (not its test rows). That ranks better where images are asked
                with, and takes some seconds.
            query_prompt: What the model is given before each text. By default the prompt that the
                store records.
            device: cpu, cuda, cuda:1 or mps. By default the fastest available.
            backend: See `embed`.
            reporter: Gets the messages of the encoder, and a message if the index is out of date.

        Raises:
            StoreError: if there is not exactly one kind of query, a text is empty, the index has no
                rows of ``within``, the key is unknown, or vectors or the store are of another
                model.
            TransformError: if the pipeline is not fitted for the modality, or dimensions differ.
            EncoderError: if the recorded model cannot be loaded or does not take this kind of
                query, or an image or a sound cannot be read.
        """
        given = {"text": text, "image": image, "audio": audio, "vector": vector, "key": key}
        kinds = [name for name, value in given.items() if value is not None]
        texts = [text] if isinstance(text, str) else list(text or ())
        images = list(image) if isinstance(image, list | tuple) else [image]
        is_empty = not images or (text is not None and not texts)
        if len(kinds) != 1 or is_empty or not all(query.strip() for query in texts):
            raise StoreError(
                f"One kind of query is needed, with content, but these were given: "
                f"{', '.join(kinds) or 'none'}.",
                remedy='For example: c3 search "a dog on a beach"',
            )
        self._warn_if_stale(reporter)

        @cache
        def encoder() -> Encoder:
            from ..encoders import resolve_encoder

            model = self.record["model"]
            return resolve_encoder(
                recorded=model,
                device=device,
                backend=backend,
                query_prompt=query_prompt,
                reporter=reporter,
            )

        # models that have to be that of the index, and whose they are
        others: list[tuple[ModelIdentity, str]] = []
        if key is not None:
            opened = Store.open(self.store_path if store is None else store)
            others.append((opened.info.model, f"the store {opened.path}"))
            labels, (embeddings, modality) = [key], _vector_of_key(opened, key)
        elif isinstance(vector, str | Path):
            rows, model = read_rows(vector, modality)
            others.append((model, str(vector)))
            embeddings, labels = (
                rows.embeddings,
                [f"{vector} row {row}" for row in range(len(rows))],
            )
        elif vector is not None:
            embeddings = np.atleast_2d(np.asarray(vector))
            labels = [f"vector row {row}" for row in range(len(embeddings))]
        elif text is not None:
            labels, embeddings, modality = texts, encoder().encode_queries(texts), "text"
        elif audio is not None:
            sounds = [audio] if isinstance(audio, str | Path) else list(audio)
            labels = [str(sound) for sound in sounds]
            embeddings, modality = encode_sounds(encoder(), sounds), "audio"
        else:
            labels = [str(one) if isinstance(one, str | Path) else "image" for one in images]
            embeddings, modality = encoder().encode_images(images), "image"
        index = self
        if pairs is not None:
            known = Store.open(pairs)
            others.append((known.info.model, f"the store {known.path}"))
            index = replace(
                self, calibration=_fit_on_pairs(self.calibration, known, modality, encoder)
            )
        for model, theirs in others:
            remedy, own = (
                "Use embeddings of the model that the index was built from.",
                f"The index {self.path}",
            )
            recorded = ModelIdentity(self.record["model"])
            recorded.require_same(model, own=own, theirs=theirs, error=StoreError, remedy=remedy)
        lists = index.rank(
            embeddings, modality, k, within=within, split=split, separate=separate, nprobe=nprobe
        )
        return [SearchResult(label, hits) for label, hits in zip(labels, lists, strict=True)]

    def rank(
        self,
        embeddings: npt.ArrayLike,
        modality: str,
        k: int = 10,
        *,
        within: str | None = None,
        split: str | None = None,
        separate: bool = False,
        nprobe: int | None = None,
    ) -> list[list[Hit]]:
        """Return the hits of raw embeddings (q, d), a list for each; arguments and errors are those
        of `search`.
        """
        if k < 1:
            raise StoreError(f"k must be at least 1, not {k}.")
        queries = self.pipeline.transform(embeddings, modality=modality)
        if queries.shape[1] != self.record["dim"]:
            raise StoreError(
                f"The index has vectors of {self.record['dim']} dimensions, but the queries have "
                f"{queries.shape[1]}.",
                remedy="Embed the queries with the model of the index.",
            )
        starts = np.cumsum([0, *(shard.ntotal for shard in self.shards)]).tolist()
        owners = [str(self.rows.column("modality")[start]) for start in starts[:-1]]
        groups = sorted({*owners}, key=lambda name: (name == "text", name != "image", name))
        if within not in (None, *groups):
            raise StoreError(
                f"The index {self.path} has no {within} rows. Its modalities are "
                f"{', '.join(groups)}.",
                remedy="Choose one of them with --in, or leave it out for all.",
            )
        lists: list[list[Hit]] = [[] for _ in queries]
        for group in [within] if within else groups:
            own = [number for number, owner in enumerate(owners) if owner == group]
            numbers = np.concatenate(
                [np.arange(starts[number], starts[number + 1]) for number in own]
            )
            shards = [self._searched[number] for number in own]
            products, found = self._nearest(
                shards, numbers, queries, k, split, nprobe or self.record.get("nprobe")
            )
            # some pipelines leave other norms
            cosines = products / np.linalg.norm(queries, axis=1, keepdims=True)
            scores = self.calibration.z(queries, cosines, group, modality)
            for hits, z, cosine, rows in zip(lists, scores, cosines, found, strict=True):
                for score, own_cosine, row in zip(
                    z.tolist(), cosine.tolist(), rows.tolist(), strict=True
                ):
                    if row >= 0:
                        about = self.rows.slice(row, 1).to_pylist()[0]  # `take` imports pandas
                        hits.append(Hit(round(score, 6), round(own_cosine, 6), row, **about))
        return (
            lists if separate else [sorted(hits, key=lambda hit: -hit.score)[:k] for hits in lists]
        )

    def _nearest(
        self,
        shards: Sequence[Any],
        numbers: Indices,
        queries: Matrix,
        k: int,
        split: str | None,
        nprobe: int | None,
    ) -> tuple[Matrix, Indices]:
        """Return scores and row numbers, both (q, k), of the rows in shards that are nearest to
        transformed queries.

        If there are fewer than ``k`` rows in the split, the row number is -1 and the score -inf.
        """
        wanted: Any = None  # bool (n,), the rows in the split
        if split not in (None, "all"):
            wanted = np.asarray(
                pc.equal(self.rows.column("split"), pa.scalar(split)).fill_null(False)
            )
        ask = k
        while True:
            scores, found = _search_shards(shards, queries, ask, nprobe)
            rows = np.where(found < 0, -1, numbers[found])
            if wanted is None:
                return scores, rows
            fits = (rows >= 0) & wanted[rows]
            if ask >= len(numbers) or (fits.sum(axis=1) >= k).all():
                best = np.argsort(~fits, axis=1, kind="stable")[:, :k]
                fits, scores, rows = (
                    np.take_along_axis(values, best, 1) for values in (fits, scores, rows)
                )
                return np.where(fits, scores, -np.inf), np.where(fits, rows, -1)
            ask = min(4 * ask, len(numbers))

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

    def _warn_if_stale(self, reporter: Reporter) -> None:
        """Say so if the store has changed since it was indexed; an index can be searched without
        its store.
        """
        if kind_of(self.store_path / INFO_FILE) != "file":
            return
        try:
            store = Store.open(self.store_path)
            modalities = self.record.get("settings", {}).get("modality") or store.modalities
            changed = _shards_of(store, modalities) != self.record["store_shards"]
            text = (
                f"The store {store.path} has changed since it was indexed; `c3 index` brings "
                f"the index up to date."
            )
        except C3Error as error:
            changed, text = (
                True,
                f"The index {self.path} cannot be compared with its store: {error.message}",
            )
        if changed:
            reporter.message(text)


def _search_shards(
    shards: Sequence[Any], queries: Matrix, k: int, nprobe: int | None
) -> tuple[Matrix, Indices]:
    """Return the best scores and row numbers over FAISS indexes, both (q, k), best first.

    Rows are numbered through all of them. Where there are fewer than ``k``, the row number is -1
    and the score -inf.
    """
    faiss = load_faiss()
    # one after the other, rows numbered through
    joined = faiss.IndexShards(queries.shape[1], False, True)
    for shard in shards:
        inverted = faiss.try_extract_index_ivf(shard)
        if inverted and nprobe:
            inverted.nprobe = nprobe
        joined.add_shard(shard)
    scores, rows = joined.search(np.ascontiguousarray(queries, dtype=np.float32), k)
    return np.where(rows < 0, -np.inf, scores), rows


def _row_table(
    store: Store,
    parts: Mapping[str, Sequence[int]],
    split: str | None = None,
    before: pa.Table | None = None,
) -> pa.Table:
    """Return the columns of each row that a hit shows, of these shards by modality, in the order of
    the vectors.

    They come after the rows ``before`` them. A text has the path of its image, video or sound.
    """
    tables = [_ROW_SCHEMA.empty_table() if before is None else before]
    for modality, numbers in parts.items():
        wanted = {*_ROW_SCHEMA.names, *ITEM_COLUMNS}
        columns = [name for name in shard_schema(modality, store.info).names if name in wanted]
        for batch in store.batches(modality, columns, split=split, parts=numbers):
            own: dict[str, Any] = {name: batch.column(name) for name in columns}
            own["modality"] = pa.array([modality] * len(batch), pa.string())
            own["split"] = pa.array(row_splits(batch, store.kept_splits), pa.string())
            tables.append(pa.table(own))
    rows = pa.concat_tables(tables, promote_options="permissive").select(_ROW_SCHEMA.names)
    files = rows.filter(pc.not_equal(rows.column("modality"), pa.scalar("text")))
    places = pc.index_in(
        one_array(rows.column("image_key")), value_set=one_array(files.column("key"))
    )
    paths = pc.coalesce(
        one_array(rows.column("path")), one_array(files.column("path")).take(places)
    )
    return rows.set_column(_ROW_SCHEMA.get_field_index("path"), "path", paths)


def _shards_of(store: Store, modalities: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the checksums of the shards of a store, by modality and number."""
    known = (name for name in modalities if name in store.modalities)
    return {
        name: {str(part): store.shard_digest(name, part) for part in store.parts(name)}
        for name in known
    }


def find_index(folder: str | Path | None = None) -> Path:
    """Return the folder that is given; for None ``c3-index``, or the store here if that alone has
    FAISS indexes.
    """
    if folder is not None:
        return location(folder)
    if not _OWN.exists():
        place = location(os.environ.get("C3_STORE") or "c3-store")
        if kind_of(place / INFO_FILE) == "file" and Store.open(place).indexed:
            return place
    return _OWN


def _fit_on_pairs(
    calibration: Calibration, store: Store, asked: str, encoder: Callable[[], Encoder]
) -> Calibration:
    """Return the calibration with curves for queries of a modality, from the first images with
    captions of a store.

    What asks for an image is its first caption, or another view of it (mirrored, the middle 80 %),
    and what asks for a caption is the next one of the image, or the image.
    """
    from PIL import ImageOps

    from ..corpus.containers import PhotoFinder
    from ..encoders import UNREADABLE, open_image

    transform = calibration.pipeline.transform
    found = first_pairs(store, None, _CURVE_PAIRS)
    of = found.item_index[found.rows]
    numbers, firsts = np.unique(of, return_index=True)
    photos = found.first.select(numbers)
    images = transform(photos.embeddings, modality="image")
    texts = transform(found.second.embeddings[found.rows], modality="text")
    if asked == "text":
        several = firsts[np.append(of[1:], -1)[firsts] == of[firsts]]
        pairs = {"image": (texts[firsts], images), "text": (texts[several + 1], texts[several])}
    else:
        views, seen = [], []
        with PhotoFinder(beside=store.path) as finder:
            for row, path in enumerate(photos.column("path")):
                with suppress(*UNREADABLE):
                    view = ImageOps.mirror(open_image(io.BytesIO(finder.read_again(path)))[0])
                    views.append(ImageOps.crop(view, min(view.size) // 10))
                    seen.append(row)
        asking = encoder().encode_images(views) if views else photos.embeddings[:0]
        pairs = {
            "text": (images, texts[firsts]),
            "image": (transform(asking, modality="image"), images[seen]),
        }
    for kind, (_, rows) in pairs.items():
        if len(rows) < _LEAST_PAIRS:
            raise StoreError(
                f"{_LEAST_PAIRS} pairs are needed to learn how {kind} rows score where {asked} is "
                f"asked with, but the "
                f"store {store.path} has {len(rows)}.",
                remedy="Give a store of images with two captions each, of which the files are "
                "still there.",
            )
    return calibration.fit_pairs({(asked, kind): both for kind, both in pairs.items()})


def _vector_of_key(store: Store, key: str) -> tuple[Matrix, str]:
    """Return the embedding (1, d) of a row of the store, and its modality.

    Raises:
        StoreError: if no row has the key.
    """
    for name in store.modalities:
        for part in store.parts(name):  # keys are looked at before any embedding is read
            keys = [
                own
                for batch in store.batches(name, ["key"], parts=[part])
                for own in keys_of(batch)
            ]
            if key in keys:
                blocks = [
                    embedding_matrix(batch)
                    for batch in store.batches(name, ["embedding"], parts=[part])
                ]
                return np.concatenate(blocks)[keys.index(key)][None], name
    raise StoreError(f"The store {store.path} has no row with the key {key!r}.")


def contact_sheet(results: Sequence[SearchResult], beside: Path | None = None) -> str:
    """Return a self-contained page of the results: images as thumbnails, texts beside the image
    they belong to.

    An image that cannot be read from here is shown as its key and the reason.

    Args:
        results: what a search has found.
        beside: a store: relative paths that lead nowhere from the current folder start from the
            folder it is in.
    """
    from ..corpus.containers import PhotoFinder
    from ..encoders import UNREADABLE, thumbnail
    from ..pages import render_page

    pictures: dict[str, dict[str, str]] = {}
    with PhotoFinder(beside) as photos:
        for path in {
            path
            for result in results
            for path in [result.query, *(hit.path for hit in result.hits)]
            if path
        }:
            file = Path(path)
            if isinstance(beside, Path) and not file.exists():
                file = beside.parent / path
            if is_sound(path) and file.is_file():  # played from where it is
                pictures[path] = {"sound": file.absolute().as_uri()}
                continue
            try:
                pictures[path] = {"source": thumbnail(photos.read_again(path), _THUMBNAIL)}
            except UNREADABLE as error:
                pictures[path] = {"problem": "not fetched" if is_url(path) else reason_of(error)}
    title = results[0].query if len(results) == 1 else counted(len(results), "query", "queries")
    return render_page(_TEMPLATE, title=title, results=results, pictures=pictures)


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

    If ``output`` has an index with the same settings, and the store has only grown since, the new
    rows are added; ``record["added"]`` is their number. Otherwise the index is rebuilt, and a
    message gives the reason.

    Args:
        store: See `embed`.
        output: The folder to write to.
        factory: auto (Flat for few rows, IVF,SQfp16 for more, OPQ,IVF,PQ for many), or a FAISS
            index string.
        modality: Index only these modalities. By default all, in one index.
        split: See `gap_report`.
        preset: The preset that transforms vectors and queries; c1 leaves them unchanged, as gr-clip
            does in a store of one modality.
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
        raise StoreError(
            f"A FAISS index cannot be written to {output}.",
            remedy="Choose a folder on this machine.",
        )
    folder = Path(output)
    store = Store.open(store, reporter=reporter)
    external = store.external_moments()[0]
    known = {*store.modalities, *external}
    centred = pipeline is not None or preset != "gr-clip" or ("text" in known and len(known) > 1)
    chosen = open_pipeline(pipeline, preset if centred else "c1")
    modalities = list(modality) if modality else store.modalities
    for name in modalities:
        store.require(name)
    split = split or "all"
    loaded = [moments.mean for _, moments in sorted(external.items())]
    settings = {
        "model": store.info.model,
        "factory": factory,
        "modality": list(modality) if modality else None,
        "split": split,
        "kept_splits": None
        if split == "all" or store.kept_splits is None
        else sorted(store.kept_splits),
        "pipeline": chosen.record()["checksum"] if chosen.fitted else chosen.config(),
        "moments": {
            "sources": moment_sources(store),
            "loaded": digest_of(*loaded) if loaded else None,
        },
        "shard_rows": shard_rows,
        "recall": recall,
        "seed": seed,
    }
    shards = _shards_of(store, modalities)
    local = isinstance(store.path, Path)  # relative, since both may move together
    source = {
        "store": os.path.relpath(store.path, folder) if local else str(store.path),
        "store_shards": shards,
    }
    kept = "The former index was kept; run the same command again to make the new one."
    with (
        reserve_output(folder, _KIND, settings, overwrite=True, reporter=reporter) as target,
        note_on_interrupt(lambda: kept),
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
        if not centred:
            others = "texts" if known == {"image"} else "images"
            reporter.message(
                f"Nothing is centred: the store has only {' and '.join(sorted(known))} rows. That "
                f"is fine unless you search with {others}; then load their moments: "
                f"{load_command(store)}."
            )
        return _build(store, folder, chosen, settings, source, reporter)


def _reason_to_rebuild(
    record: Mapping[str, Any],
    store: Store,
    settings: Mapping[str, Any],
    shards: Mapping[str, Mapping[str, str]],
) -> str | None:
    """Return why the rows that an index lacks cannot be added to it; None if they can."""
    former, known = record["settings"], record["store_shards"]
    if changed := [name for name, value in settings.items() if former.get(name) != value]:
        digest = changed[0] in ("model", "pipeline", "moments")
        values = (
            " changed"
            if digest
            else f" was {former.get(changed[0])} and is now {settings[changed[0]]}"
        )
        return f"its {changed[0]}{values}"
    if known.keys() != shards.keys() or any(
        not own.items() <= shards[name].items() for name, own in known.items()
    ):
        return "shards of the store changed or were removed"
    rows = sum(
        store.shards[name, int(part)].rows
        for name in shards
        for part in shards[name].keys() - known[name].keys()
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
    """Build the index as a whole, with the settings of `build_index`; ``source`` names the store
    and its shards.
    """
    faiss, split, dim = load_faiss(), settings["split"], store.info.dim
    if not chosen.fitted:
        chosen.fit(store)
        reporter.message(chosen.describe_fit(store))
    chosen.check_model(store.info.model)
    parts = {name: store.parts(name) for name in source["store_shards"]}
    rows = _row_table(store, parts, split)
    n = rows.num_rows
    if n == 0:
        raise StoreError(
            f"The store {store.path} has no rows in the split {split!r} to index. Its splits are "
            f"{store.list_splits()}."
        )
    queries = _sample_queries(store, chosen, list(parts), split)
    x, blocks = _vectors(store, chosen, parts, split, n, reporter)
    factory = _choose_factory(n, dim) if settings["factory"] == "auto" else settings["factory"]
    try:
        empty = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not empty.is_trained:
            wanted = min(n, max(_cells(empty) * _TRAINING_ROWS_PER_CELL, 65_536))
            sample = generator(settings["seed"], "index training").choice(
                n, size=wanted, replace=False
            )
            empty.train(x[np.sort(sample)])
        filled = _fill(empty, blocks, settings["shard_rows"])
    except RuntimeError as error:
        raise StoreError(
            f"FAISS cannot make the index {factory!r} from {counted(n, 'row')} of {dim} dimensions "
            f"({last_line(error)}).",
            remedy="Use --factory auto, Flat, or fewer cells.",
        ) from error
    made = {
        "model": store.info.model,
        "factory": factory,
        "dim": dim,
        "metric": "cosine",
        "built_from": n,
    }
    record = {
        **made,
        **_measure_recall(filled, queries, x, settings["recall"]),
        "settings": settings,
        **source,
    }
    try:
        calibration = Calibration.fit(store, pipeline=chosen)
    except TransformError:  # a memory, whose effect only rows show
        calibration = Calibration(
            dict(zip(parts, map(Moments.from_rows, blocks), strict=True)), chosen
        )
    index = Index(folder, record, filled, rows, calibration)
    if len(parts) > 1 and not calibration.moments:
        reporter.message("Searches of this index rank by the cosine, which is not calibrated.")
    _write(index)
    if len(parts) == 2:
        from ..geometry.spaces import modality_bias

        samples = {name: first_rows(store, name, None, _BIAS_ROWS).embeddings for name in parts}
        index.bias = {}
        for label, pipeline in (("before", preset("c1")), ("after", chosen)):
            x, y = (pipeline.transform(rows, modality=name) for name, rows in samples.items())
            shares = modality_bias(x, y, seed=settings["seed"])
            index.bias[label] = {
                name: round(share.value, 4) for name, share in zip(parts, shares, strict=True)
            }
    index.record["added"] = n
    return index


def _add_rows(index: Index, store: Store, source: Mapping[str, Any], reporter: Reporter) -> Index:
    """Add the rows of the shards that an index lacks, as parts of their own.

    Raises:
        RuntimeError: if FAISS cannot add rows to an index of this kind.
    """
    settings, known, before = (
        index.record["settings"],
        index.record["store_shards"],
        index.rows.num_rows,
    )
    parts = {
        n: sorted(map(int, own.keys() - known[n].keys()))
        for n, own in source["store_shards"].items()
    }
    index.rows = _row_table(store, parts, settings["split"], index.rows)
    added, kept = index.rows.num_rows - before, index.record["shards"]
    empty = load_faiss().clone_index(index.shards[-1])
    empty.reset()
    _, blocks = _vectors(store, index.pipeline, parts, settings["split"], added, reporter)
    index.shards += _fill(empty, blocks, settings["shard_rows"])
    index.record |= source
    _write(index, kept)
    index.record["added"] = added
    return index


def _write(index: Index, kept: Sequence[str] = ()) -> None:
    """Write an index; its first parts are the ``kept`` files of the one that is there."""
    names = [f"part-{part:05d}.faiss" for part in range(len(index.shards))]
    index.record |= {"rows": index.rows.num_rows, "shards": names}
    with writing(index.path, _KIND, index.record, keep=False) as new:
        for name, part in zip(names, index.shards, strict=True):
            if name in kept:
                try:
                    os.link(index.path / name, new / name)
                except OSError:  # not every file system has hard links
                    shutil.copyfile(index.path / name, new / name)
            else:
                save_index(part, new / name)
        pq.write_table(index.rows, new / _ROWS_FILE, compression="zstd")
        index.pipeline.save(new)
        save_moments(new / _MOMENTS_FILE, index.calibration.moments, {})


def _vectors(
    store: Store,
    pipeline: Pipeline,
    parts: Mapping[str, Sequence[int]],
    split: str,
    n: int,
    reporter: Reporter,
) -> tuple[Matrix, list[Matrix]]:
    """Return the n transformed rows of these shards (n, d), and the blocks of them that are of one
    modality.
    """
    x, blocks, end = np.empty((n, store.info.dim), np.float32), [], 0
    with reporter.progress("Indexing", n) as progress:
        for name, numbers in parts.items():
            first = end
            for batch in store.batches(name, split=split, parts=numbers):
                end += len(batch)
                x[end - len(batch) : end] = pipeline.transform(
                    embedding_matrix(batch), modality=name
                )
                progress.advance(len(batch))
            blocks.append(x[first:end])
    return x, blocks


def _fill(empty: Any, blocks: Sequence[Matrix], shard_rows: int) -> list[Any]:
    """Return copies of the trained index ``empty`` with up to ``shard_rows`` vectors of one
    modality each.
    """
    filled = []
    for block in blocks:
        for start in range(0, len(block), shard_rows):
            filled.append(load_faiss().clone_index(empty))
            filled[-1].add(block[start : start + shard_rows])
    return filled


def _measure_recall(
    shards: Sequence[Any], queries: Matrix, x: Matrix, target: float
) -> dict[str, Any]:
    """Return recall@10 against exact search in the vectors, and the nprobe that it takes."""
    faiss, k = load_faiss(), min(10, len(x))
    truth = faiss.knn(np.ascontiguousarray(queries), x, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
    cells = _cells(shards[0])
    probes: list[int | None] = (
        [1 << power for power in range(int(np.log2(cells)) + 1)] if cells else [None]
    )
    recall = 0.0
    for nprobe in probes:
        found = _search_shards(shards, queries, k, nprobe)[1]
        previous, recall = (
            recall,
            float((found[:, :, None] == truth[:, None, :]).any(axis=2).mean()),
        )
        # without inverted lists' misses, more probes change nothing: what is lost is lost by
        # quantisation
        if recall >= target or (nprobe and nprobe >= 64 and recall - previous < 1e-3):
            break
    return {"nprobe": nprobe, f"recall@{k}": round(recall, 4), "recall_queries": len(queries)}


def _cells(index: Any) -> int:
    """Return the number of inverted lists of an index, 0 if it has none."""
    inverted = load_faiss().try_extract_index_ivf(index)
    return int(inverted.nlist) if inverted else 0


def _sample_queries(
    store: Store, pipeline: Pipeline, modalities: Sequence[str], split: str
) -> Matrix:
    """Return queries for tuning the search, if possible rows of another modality that the pipeline
    is fitted for.

    Rows of the index itself would find themselves without effort.
    """
    for other in (name for name in store.modalities if name not in modalities):
        with suppress(TransformError):
            return pipeline.transform(
                first_rows(store, other, None, _RECALL_QUERIES).embeddings, modality=other
            )
    rows = first_rows(store, modalities[0], split, _RECALL_QUERIES)
    return pipeline.transform(rows.embeddings, modality=modalities[0])


def _choose_factory(n: int, dim: int) -> str:
    """Return the index string for ``n`` vectors of ``dim`` dimensions.

    It is exact up to 20,000 rows, has inverted lists of float16 vectors up to 2 million, and beyond
    that product quantisation after a rotation.
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
