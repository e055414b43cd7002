"""An index of a store: open it, and search it by text, image, vector or key.

    c3-index/
      store.json                    what the rows are; `exported`: what was asked for, the fit,
                                    factory, nprobe, measured recall, the place of the store
      image/part-00000.parquet      key, caption, path, image_key, pair_key, sha256, split and code
                                    of the rows of a shard of the store
      trained.faiss                 the trained FAISS index without rows: cells, quantisers
      transform.json, .safetensors  the pipeline that rows and queries are transformed with
      calibration.safetensors       the moments of transformed rows, by modality, which scores are
                                    calibrated with
      manifest.json                 all files with their SHA-256

An index is an export (`c3tools.export`), and follows its store as one: it keeps its cells and its
pipeline, and so the means of the rows that it was built from. Opening adds the codes to the trained
index. Scores are inner products of unit vectors, so cosines.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..arrays import Indices, Mask, Matrix
from ..choices import HitKind, PositiveInt, checked
from ..corpus.splits import ALL
from ..embedding.sounds import encode_sounds
from ..errors import C3Error, StoreError, UnusedOptionError
from ..export.parts import Recipe
from ..export.record import ExportRecord
from ..identity import ModelIdentity
from ..inputs.import_embeddings import read_rows
from ..io.hub import local_folder
from ..io.locations import is_url, kind_of, location, read_all
from ..lists import as_list
from ..reporter import SILENT, Reporter, counted
from ..result_table import Table
from ..store import Store, embedding_matrix
from ..store.rows import integer_array, keys_of, one_array, text_scalar, true_mask
from ..store.shards import FUSED, INFO_FILE, ShardName, part_name, read_header, shard_schema
from ..transforms import Pipeline
from ..transforms.calibration import Calibration
from ..transforms.space import Space
from .codes import (
    HIT_COLUMNS,
    TRAINED_FILE,
    CodeFormat,
    cell_count,
    load_faiss,
    on_gpus,
    open_codes,
    search_parameters,
    set_nprobe,
)
from .conditions import Columns
from .items import Items
from .queries import Query, combined
from .ranking import Candidates, FoundRow, ItemRows, ScoredRows, among_first

if TYPE_CHECKING:
    from ..encoders import Encoder

LONGEST_CAPTION = 200  # characters of a hit that are printed
_MOST_ON_GPU = 2048  # rows that FAISS returns from a GPU, and lists that it visits there
_EXACT_ROWS = 20_000  # that a filter leaves, up to which all are compared
_OWN = Path("c3-index")  # where c3 index writes to
# nprobe is an attribute of a FAISS index, and an index on a GPU answers one thread at a time
_ONE_SEARCH = Lock()
_ROW_COLUMNS = ("modality", "key", "caption", "path", "image_key", "split", "sha256")
_ROW_SCHEMA = pa.schema([(name, pa.string()) for name in _ROW_COLUMNS])
_HIT_FIELDS = ("key", "modality", "caption", "path", "image_key", "split")  # those of `Hit`
_PROVENANCE = ("model", "store")

HitRows = list[FoundRow]
"""The rows of a hit, the best first."""


@dataclass(frozen=True)
class Hit:
    """A search result: an item, represented by its best row, or a row if rows are listed.

    Attributes:
        score: how unusual the cosine is among rows of the same modality, in standard deviations
            (`Calibration.z`); the cosine itself if the store had too few rows to tell.
        cosine: of the row with the query after the transform (with the preset fair, multiplied by a
            factor of the modality).
        row: its number in the index.
        key: of the row.
        modality: of the row.
        caption: of a text.
        path: of an image, or of the image that a text belongs to, if the index has it.
        image_key: of the image that a text or an audio file belongs to.
        split: of the row.
        columns: the values of the columns that the store keeps, by name.
        rows: the rows of the item and of its exact copies that the search may return, best first;
            none in a list by row.
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
    columns: dict[str, Any] = field(default_factory=dict)
    rows: list[Hit] = field(default_factory=list, repr=False)

    @property
    def item(self) -> str:
        """The key of the item: of the image that a row belongs to, else of the row."""
        return self.image_key or self.key

    @property
    def copies(self) -> int:
        """The number of exact copies, with this one: files of one SHA-256, or texts without an
        image that are equal.
        """
        return max(len({row.item for row in self.rows}), 1)

    @property
    def captions(self) -> list[str]:
        """The different texts of the item, the best first; in a list by row, the row's own."""
        captions = (row.caption for row in self.rows or [self])
        return list(dict.fromkeys(caption for caption in captions if caption))

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as JSON values, without what it lacks."""
        values: dict[str, Any] = {}
        for attribute in fields(self):
            value = getattr(self, attribute.name)
            if value not in (None, {}, []):
                values[attribute.name] = value
        if self.rows:
            values |= {"item": self.item, "copies": self.copies}
            values["rows"] = [row.to_dict() for row in self.rows]
        return values

    def line(self) -> str:
        """Return the score, the key, the beginning of the best caption and the path in one line,
        and how many captions and copies there are.
        """
        caption = " ".join("".join(self.captions[:1]).split())
        if len(caption) > LONGEST_CAPTION:
            caption = f"{caption[:LONGEST_CAPTION]}…"
        more = f"(and {len(self.captions) - 1} more)" if len(self.captions) > 1 else ""
        copies = f"×{self.copies}" if self.copies > 1 else ""
        label = "  ".join(part for part in (caption, more, self.path, copies) if part)
        return f"{self.score:7.2f}  {self.modality:5}  {self.key}  {label}"


@dataclass(frozen=True)
class SearchResult:
    """The hits of one query.

    Attributes:
        query: the text, the path, the key, or the number of the vector.
        hits: best first; of a search for separate lists, one modality after the other.
    """

    query: str
    hits: list[Hit]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"query": self.query, "hits": [hit.to_dict() for hit in self.hits]}

    def _repr_html_(self) -> str:
        """Return a table of the hits, for notebooks."""
        rows = [
            (f"{hit.score:.2f}", hit.modality, hit.key, "".join(hit.captions[:1]) or hit.path or "")
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
        record: how it was built: model, factory, dim, rows, nprobe, measured recall, store.
        rows: the table of keys, one row per vector.
        calibration: compares scores of different modalities.
        source: the files of the index as a store.
        coder: has the trained FAISS index.
        bias: share of own-modality rows among the 10 nearest, per modality, before and after the
            transform, in a balanced sample (0.5 without bias); None for one modality, and for an
            index that was opened or extended.
    """

    path: Path
    record: dict[str, Any]
    rows: pa.Table
    calibration: Calibration
    source: Store
    coder: CodeFormat
    bias: dict[str, dict[str, float]] | None = None
    _encoders: dict[tuple[str | None, ...], Encoder] = field(default_factory=dict, init=False)
    _on_gpus: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def pipeline(self) -> Pipeline:
        """The fitted pipeline; it transforms queries too."""
        return self.calibration.pipeline

    @cached_property
    def indexes(self) -> dict[str, Any]:
        """The FAISS index of the rows of each modality, in the order of ``rows``.

        Raises:
            StoreError: if a part is damaged, or not the one that the manifest lists.
        """
        source = self.source
        indexes = {name: open_codes(source, name, self.coder) for name in source.modalities}
        vectors = sum(index.ntotal for index in indexes.values())
        if vectors != self.rows.num_rows:
            raise StoreError(
                f"{self.path} has {counted(vectors, 'vector')}, but "
                f"{counted(self.rows.num_rows, 'key')}.",
                remedy=f"See `c3 verify --store {self.path}`.",
            )
        return indexes

    @cached_property
    def items(self) -> Items:
        """The items of ``rows``; rows of the same item form one hit."""
        return Items.of(self.rows)

    @cached_property
    def columns(self) -> Columns:
        """The columns that ``rows`` keep, which a search may be limited by."""
        return Columns.of(self.rows, sorted(self.source.info.columns))

    @cached_property
    def places(self) -> dict[str, range]:
        """The numbers of the rows of each modality."""
        places = {}
        first_row = 0
        for name, index in self.indexes.items():
            places[name] = range(first_row, first_row + index.ntotal)
            first_row += index.ntotal
        return places

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Open the index in the folder or at the URL ``path``; it is searched on GPUs where faiss
        finds any.

        Raises:
            StoreError: if there is no index, or it is damaged or unfinished.
            TransformError: if its pipeline is damaged.
            MissingExtraError: if faiss is not installed.
        """
        index = cls.describe(path)
        index.indexes  # noqa: B018 - read now, so that damage is found now
        return index

    @classmethod
    def describe(cls, path: str | Path) -> Index:
        """Open an index as `open` does, but read its codes with the first search."""
        load_faiss()
        folder = local_folder(path)
        if kind_of(folder / INFO_FILE) != "file":
            raise StoreError(
                f"There is no index at {folder} ({INFO_FILE} is missing).",
                remedy="Build one with `c3 index`, or choose another with --index.",
            )
        source = Store.open(folder, codes=True)
        if not source.info.code_size:
            raise StoreError(
                f"{folder} is {'an export' if source.info.exported else 'a store'}, not an index.",
                remedy=f"Build an index of it: c3 index --store {folder}",
            )
        record = ExportRecord.of(source.info)
        if source.manifest is None or record is None or "nprobe" not in record.index:
            raise StoreError(
                f"The index {folder} is unfinished, or was only partly restored.",
                remedy="Run the same `c3 index` command again.",
            )
        for name in source.manifest.files:
            if not source.require_listed(name):  # another run has just changed the index
                return cls.describe(folder)
        calibration = Calibration.load(folder)
        coder = CodeFormat(read_all(folder / TRAINED_FILE))

        # Read the columns of each row that a hit shows, in the order of the vectors
        tables = [pa.Table.from_batches([], _ROW_SCHEMA)]
        for modality in source.modalities:
            schema = shard_schema(modality, source.info)
            read_names = {*HIT_COLUMNS, *source.info.columns}
            columns = [name for name in schema.names if name in read_names]
            for batch in source.batches(modality, columns):
                shown: dict[str, Any] = {name: batch.column(name) for name in columns}
                if "pair_key" in shown:  # the item of a sound, as image_key is that of a text
                    shown["image_key"] = shown.pop("pair_key")
                shown["modality"] = pa.repeat(text_scalar(modality), len(batch))
                tables.append(pa.table(shown))
        names = [*_ROW_SCHEMA.names, *sorted(source.info.columns)]
        rows = pa.concat_tables(tables, promote_options="permissive").select(names)

        # Give texts the paths of the images, videos or sounds that their image_key names
        is_file = pc.not_equal(rows.column("modality"), text_scalar("text"))
        files = rows.filter(pc.and_(is_file, rows.column("path").is_valid()))
        file_rows = pc.index_in(
            one_array(rows.column("image_key")), value_set=one_array(files.column("key"))
        )
        paths_of_images = one_array(files.column("path")).take(file_rows)
        paths = pc.coalesce(one_array(rows.column("path")), paths_of_images)
        rows = rows.set_column(_ROW_SCHEMA.get_field_index("path"), "path", paths)

        measured = {name: value for name, value in record.index.items() if name != "factory"}
        content = {
            "model": source.info.model,
            "factory": record.index["factory"],
            "dim": source.info.dim,
            "metric": "cosine",
            **measured,
            "rows": rows.num_rows,
            "shards": [part_name(*shard) for shard, part in source.shards.items() if part.rows],
        }
        return cls(source.path, content, rows, calibration, source, coder)

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}: {self.rows.num_rows:,} rows, {self.record['factory']})"

    def to_dict(self) -> dict[str, Any]:
        """Return how the index was built, and its recall, as JSON values; store.json has the
        provenance too.
        """
        measured = {name: value for name, value in self.record.items() if name not in _PROVENANCE}
        return {"output": str(self.path), **measured, "bias@10": self.bias}

    def lines(self) -> list[str]:
        """Return what a run of `build_index` wrote, and how well the index finds rows, in
        sentences.
        """
        record = self.record
        rows = f"{counted(record['rows'], 'row')} as {record['factory']}"
        if record["added"] < record["rows"]:
            added = "There are no new rows for"
            if record["added"]:
                added = f"Added {counted(record['added'], 'row')} to"
            return [f"{added} {self.path}: {rows}."]
        recall_name = next((name for name in record if name.startswith("recall@")), None)
        recall = f"{recall_name} {record[recall_name]:.3f}" if recall_name else ""
        probes = f" with nprobe {record['nprobe']}" if record.get("nprobe") else ""
        queries = counted(record["recall_queries"], "query", "queries")
        lines = [
            f"Indexed {rows} in {self.path}.",
            f"{recall} against exact search{probes} ({queries}).",
        ]
        if not self.bias:
            return lines
        for name, before in self.bias["before"].items():
            lines.append(
                f"{name} queries: by cosine, the share of {name} rows among the 10 nearest is "
                f"{before:.2f} before centring and {self.bias['after'][name]:.2f} after (balanced "
                f"sample; 0.50 means no bias)."
            )
        if self.bias["before"]:
            lines.append("c3 search ranks by calibrated scores, which are less biased.")
        return lines

    @property
    def store_path(self) -> Path:
        """The store that the index was built from: its folder, or a path-like object for a URL.

        A relative path starts from the index, since both may have been moved or copied together.
        """
        recorded = self.record["store"]
        if is_url(recorded) or Path(recorded).is_absolute():
            return location(recorded)
        if isinstance(self.path, Path):
            return Path(os.path.normpath(self.path / recorded))
        folder = self.path
        for name in Path(recorded).parts:
            folder = folder.parent if name == ".." else folder / name
        return folder

    @checked
    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: Any = None,
        audio: str | Path | Sequence[str | Path] | None = None,
        vector: npt.ArrayLike | str | Path | None = None,
        key: str | None = None,
        modality: str = "text",
        only: str | None = None,
        split: str | None = None,
        where: Sequence[str] | None = None,
        separate: bool = False,
        by: HitKind = "item",
        k: PositiveInt = 10,
        weights: Sequence[float] | None = None,
        nprobe: PositiveInt | None = None,
        store: Store | str | Path | None = None,
        query_prompt: str | None = None,
        device: str | None = None,
        backend: str = "auto",
        encoder: Encoder | None = None,
        reporter: Reporter = SILENT,
    ) -> list[SearchResult]:
        """Find the items nearest to one or several queries of the same kind, or to one query of
        several parts; return one result per query.

        Images and texts are in one list, ranked by how unusual their cosine is among rows of their
        own modality (see `Calibration`). By the cosine itself, the modality gap would put rows of
        the query's own modality first. An image and its texts are one hit, ranked by its best row;
        so are exact copies of it.

        Queries of different kinds, such as a text and an image, are the parts of one query: the sum
        of their vectors, each at unit length after its mean is subtracted. With ``weights``,
        several texts (or images) are one query too. Such a query has the combined z of
        `Calibration` if its parts are of several modalities.

        Args:
            text: Texts to search for.
            image: Search with these images.
            audio: Search with these audio files.
            vector: Search with the vectors in this file (npy, npz, ...).
            key: Search with the row of the store that has this key.
            modality: Modality of the vectors in ``vector``: image, text, ...
            only: Return only rows of this modality (image, text, ...).
            split: Return only rows of this split: train, val, test or a name of your own. By
                default all.
            where: Return only rows whose kept columns fulfil this condition, such as "colour=red"
                or "price<20" (with =, <, <=, > or >=); of several conditions, all. A column of
                texts that are all numbers, as in a CSV, is compared as numbers.
            separate: Return the best hits of each modality separately, instead of one list.
            by: The kind of hit: item (an image with its texts and exact copies) or row (each image
                and each text).
            k: Number of hits; with ``separate``, per modality.
            weights: Combine the queries into one with these weights, in the order texts, images,
                audio, vectors, key. A negative weight finds rows unlike that part. When
                queries of different kinds are combined, each has weight 1 by default.
            nprobe: Number of inverted lists to search. More lists are slower and find more. By
                default the index's tuned value; more with ``split`` or ``where``, which leave few
                rows in a list, or if that gives fewer than ``k`` hits.
            store: The store that has the row of ``key``. By default the store of the index.
            query_prompt: Prompt to put before each text. By default the prompt that the store
                records.
            device: cpu, cuda, cuda:1 or mps. By default the fastest device.
            backend: See `embed`.
            encoder: Embeds the queries. By default the model of the index, which is loaded once
                and stays loaded.
            reporter: Gets the messages of the encoder, and a message if the index is out of date
                or cannot be searched on a GPU.

        Raises:
            StoreError: if there is no query, a text is empty, the index has no rows of ``only``,
                of ``split`` or with a value of ``where``, the key is unknown, or vectors or the
                store are of another model; see `combined` for queries of several parts.
            UnusedOptionError: if there is an ``nprobe``, and the index has no inverted lists; if
                there are ``weights`` and one part.
            TransformError: if the pipeline is not fitted for the modality, or dimensions differ.
            EncoderError: if the recorded model cannot be loaded or does not take this kind of
                query, or an image or an audio file cannot be read.

        Example:
            >>> index = c3tools.build_index("c3-store")
            >>> (result,) = index.search("a dog on the beach", k=3)
            >>> [hit.key for hit in result.hits]
            ['000000214753', '000000020247', '000000159269#2']
            >>> [hit.modality for hit in result.hits]
            ['image', 'image', 'text']
        """
        _check_queries(text=text, image=image, audio=audio, vector=vector, key=key)
        self._warn_if_stale(reporter)
        self._searched(reporter)  # so that the reporter hears of GPUs that cannot be used

        def load() -> Encoder:
            """Return the model of the index, which is loaded the first time."""
            from ..encoders import resolve_encoder

            if encoder is not None:
                return encoder
            options = (device, backend, query_prompt)
            if options not in self._encoders:
                self._encoders[options] = resolve_encoder(
                    recorded=self.record["model"],
                    device=device,
                    backend=backend,
                    query_prompt=query_prompt,
                    reporter=reporter,
                )
            return self._encoders[options]

        # The queries of each kind, in the order of their weights
        queries: list[Query] = []
        if text is not None:
            texts = as_list(text)
            queries.append(Query(texts, load().encode_queries(texts), "text"))
        if image is not None:
            images = as_list(image)
            labels = [str(photo) if isinstance(photo, str | Path) else "image" for photo in images]
            queries.append(Query(labels, load().encode_images(images), "image"))
        if audio is not None:
            sounds = as_list(audio)
            labels = [str(sound) for sound in sounds]
            queries.append(Query(labels, encode_sounds(load(), sounds), "audio"))
        if vector is not None:
            queries.append(self._vector_query(vector, modality))
        if key is not None:
            queries.append(self._stored_query(key, store))

        # Several kinds, or weights, make one query of all
        query = queries[0]
        if len(queries) > 1 or weights is not None:
            query = combined(self.pipeline, queries, weights)
        lists = self.rank(
            query.embeddings,
            query.modality,
            k,
            only=only,
            split=split,
            where=where,
            separate=separate,
            by=by,
            nprobe=nprobe,
            transformed=query.is_transformed,
        )
        return [SearchResult(label, hits) for label, hits in zip(query.labels, lists, strict=True)]

    def _vector_query(self, vector: npt.ArrayLike | str | Path, modality: str) -> Query:
        """Return vectors, or those in a file, as queries."""
        if isinstance(vector, str | Path):
            rows, model = read_rows(vector, modality)
            self._require_same_model(model, str(vector))
            embeddings = rows.embeddings
            origin = str(vector)
        else:
            embeddings = np.atleast_2d(np.asarray(vector))
            origin = "vector"
        labels = [f"{origin} row {row}" for row in range(len(embeddings))]
        return Query(labels, embeddings, modality)

    def _stored_query(self, key: str, store: Store | str | Path | None) -> Query:
        """Return the row of a store with this key as a query."""
        opened = Store.open(self.store_path if store is None else store)
        embeddings, modality = _vector_of_key(opened, key)
        # A fused row can only be compared with rows among which are fused ones
        compared = [] if modality == FUSED and FUSED in self.places else [modality]
        model = ModelIdentity(self.record["model"])
        space = Space.after(self.pipeline, f"the index {self.path}", model)
        path = space.path_from(Space.of(opened), compared)
        rows = path.transform(embeddings, modality=modality)
        return Query([key], rows, modality, is_transformed=True)

    def _require_same_model(self, model: ModelIdentity, theirs: str) -> None:
        """Refuse embeddings of another model than the one of the index."""
        ModelIdentity(self.record["model"]).require_same(
            model,
            own=f"The index {self.path}",
            theirs=theirs,
            error=StoreError,
            remedy="Use embeddings from the model that the index was built with.",
        )

    @checked
    def rank(
        self,
        embeddings: npt.ArrayLike,
        modality: str | None,
        k: int = 10,
        *,
        only: str | None = None,
        split: str | None = None,
        where: Sequence[str] | None = None,
        separate: bool = False,
        by: HitKind = "item",
        nprobe: int | None = None,
        transformed: bool = False,
    ) -> list[list[Hit]]:
        """Return the hits of embeddings (q, d), a list for each. See `search` for the arguments and
        errors.

        They are transformed first, unless ``transformed`` is true because they have already gone
        through the pipeline, like the rows of an export. A ``modality`` of None stands for
        transformed queries that were combined of several modalities (`combined`).
        """
        if k < 1:
            raise StoreError(f"k must be at least 1, not {k}.")
        if nprobe is not None and self.record.get("nprobe") is None:
            raise UnusedOptionError(
                "--nprobe", f"with an index of {self.record['factory']}: it has no inverted lists"
            )
        queries = np.asarray(embeddings, np.float32)
        if not transformed and modality is not None:
            queries = self.pipeline.transform(embeddings, modality=modality)
        if queries.shape[1] != self.record["dim"]:
            raise StoreError(
                f"The index has vectors of {self.record['dim']} dimensions, but the queries have "
                f"{queries.shape[1]}.",
                remedy="Embed the queries with the model of the index.",
            )
        names = sorted(self.indexes, key=lambda name: (name == "text", name != "image", name))
        if only not in (None, *names):
            raise StoreError(
                f"The index {self.path} has no {only} rows. Its modalities are {', '.join(names)}.",
                remedy="Choose one of them with --only, or leave it out for all.",
            )

        # Search each modality, and prepare the scores of its rows
        searched = [only] if only else names
        is_allowed = self._allowed(split, where)
        nearest = {
            name: self._nearest(name, queries, k, is_allowed, nprobe, by) for name in searched
        }
        norms = np.linalg.norm(queries, axis=1)  # some pipelines leave others than 1
        scales = {
            name: self.calibration.scale(queries, name, modality, combined=modality is None)
            for name in searched
        }

        def scored(name: str, candidates: Candidates) -> ScoredRows:
            """Score rows of one modality."""
            cosines = candidates.products / norms[candidates.queries]
            scores = scales[name].of_queries(candidates.queries).scores(cosines)
            return ScoredRows(candidates.queries, candidates.rows, scores, cosines)

        # Choose the rows of each hit, in one list of all modalities or in a list of each
        count = self.rows.num_rows
        hits_of_queries: list[list[HitRows]] = [[] for _ in queries]
        for listed in [[name] for name in searched] if separate else [searched]:
            best = ScoredRows.joined([scored(name, nearest[name]) for name in listed]).by_score()
            if by == "row":
                best = best.take(among_first(best.queries, k))
                for number, row in zip(best.queries.tolist(), best.rounded(), strict=True):
                    hits_of_queries[number].append([row])
                continue

            # Score the rows of the best items that are not among the nearest
            best_items = ItemRows.of_best(best, self.items, k)
            query_numbers, rows = best_items.without(best, count)
            parts = [best]
            for name in listed:
                place = self.places[name]
                is_wanted = (rows >= place.start) & (rows < place.stop) & is_allowed[rows]
                numbers = query_numbers[is_wanted]
                products = self._products(name, queries, numbers, rows[is_wanted])
                parts.append(scored(name, Candidates(numbers, rows[is_wanted], products)))

            # Rank the items of each query by their best row
            hits_of_list: list[list[HitRows]] = [[] for _ in queries]
            for number, item_rows in best_items.scored(ScoredRows.joined(parts), count):
                hits_of_list[number].append(item_rows)
            for hits, more in zip(hits_of_queries, hits_of_list, strict=True):
                hits.extend(sorted(more, key=lambda item_rows: -item_rows[0].score))
        return self._hits(hits_of_queries, by)

    def _allowed(self, split: str | None, where: Sequence[str] | None) -> Mask:
        """Return which rows a search may return, (n,)."""
        is_allowed = np.ones(self.rows.num_rows, bool)
        if split not in (None, ALL):
            is_allowed = true_mask(pc.equal(self.rows.column("split"), text_scalar(split)))
            if not is_allowed.any():
                splits = self.rows.column("split").drop_null().unique().to_pylist()
                raise StoreError(
                    f"The index {self.path} has no rows of the split {split!r}. Its splits are "
                    f"{', '.join(sorted(map(str, splits))) or 'unknown'}.",
                    remedy="Choose one of them with --split, or leave it out for all.",
                )
        conditions = as_list(where)
        if conditions:
            is_allowed = is_allowed & self.columns.matching(conditions)
        return is_allowed

    def _hits(self, hits_of_queries: list[list[HitRows]], by: HitKind) -> list[list[Hit]]:
        """Return the hits of each query, given the rows of each hit."""
        # Read what is shown of all rows at once
        numbers = sorted({row.row for hits in hits_of_queries for rows in hits for row in rows})
        table = self.rows.take(integer_array(np.array(numbers)))
        columns = table.select([*self.source.info.columns]).to_pylist()
        fields_of_row: dict[int, dict[str, Any]] = {}
        for number, shown, values in zip(
            numbers, table.select(_HIT_FIELDS).to_pylist(), columns, strict=True
        ):
            fields_of_row[number] = {**shown, "columns": values}

        # A hit is its best row, with all rows of its item
        lists = []
        for hits in hits_of_queries:
            made = []
            for rows in hits:
                of_rows = [Hit(**row._asdict(), **fields_of_row[row.row]) for row in rows]
                made.append(replace(of_rows[0], rows=of_rows if by == "item" else []))
            lists.append(made)
        return lists

    def _products(
        self, modality: str, queries: Matrix, query_numbers: Indices, rows: Indices
    ) -> Matrix:
        """Return the inner products of rows of one modality, each with its query: float32 (n,).

        Args:
            modality: of the rows.
            queries: (q, d).
            query_numbers: the number of each row's query, ascending: (n,).
            rows: the number of each row in the index: (n,).
        """
        products = np.empty(len(rows), np.float32)
        ends = np.searchsorted(query_numbers, np.arange(len(queries)), side="right").tolist()
        start = 0
        for query, end in zip(queries, ends, strict=True):
            if start < end:  # the vectors of one query at a time are in memory
                of_query = rows[start:end] - self.places[modality].start
                vectors = self.indexes[modality].reconstruct_batch(of_query)
                products[start:end] = vectors @ query
            start = end
        return products

    def _nearest(
        self,
        modality: str,
        queries: Matrix,
        k: int,
        is_allowed: Mask,
        nprobe: int | None,
        by: HitKind,
    ) -> Candidates:
        """Return the rows of one modality that are nearest to the transformed queries (q, d), of
        those that ``is_allowed`` (n,) marks: at least the rows of ``k`` hits a query, or all. Those
        of a query are in the order of FAISS.
        """
        place = self.places[modality]
        allowed = is_allowed[place.start : place.stop]
        allowed_count = int(allowed.sum())
        nothing = Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        if not allowed_count:
            return nothing

        # How many cells are visited at first
        share = allowed_count / len(allowed)
        cells = cell_count(self.indexes[modality]) if nprobe is None else 0
        visited_cells = nprobe or self.record.get("nprobe") or 0
        if nprobe is None and share < 1:
            # The nearest allowed rows lie in more cells; few are searched exactly
            wanted_cells = max(4 * visited_cells / share, cells * _EXACT_ROWS / allowed_count)
            visited_cells = min(math.ceil(wanted_cells), cells)

        # Search until each query has enough rows
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        wanted_rows = k if by == "row" else math.ceil(k * self.items.mean_rows)
        answers = [nothing]
        unanswered = np.arange(len(queries))
        while len(unanswered):
            fits_on_gpu = max(wanted_rows, visited_cells) <= _MOST_ON_GPU
            parameters = None
            if share < 1:
                parameters = search_parameters(self.indexes[modality], visited_cells, allowed)
            with _ONE_SEARCH:
                # On GPUs, FAISS does not pass over rows
                on_gpu = fits_on_gpu and parameters is None
                index = (self._searched() if on_gpu else self.indexes)[modality]
                set_nprobe(index, visited_cells)
                all_products, all_rows = index.search(
                    queries[unanswered], min(wanted_rows, index.ntotal), params=parameters
                )

            # FAISS fills up with -1, and without parameters it returns rows that are not allowed
            is_row = all_rows >= 0
            is_row[is_row] = allowed[all_rows[is_row]]
            query_places, _ = np.nonzero(is_row)  # among the unanswered
            rows = all_rows[is_row] + place.start

            # A query is answered by the rows of k hits, or if there are no more
            query_of_hit = query_places
            if by == "item":
                row_count = self.rows.num_rows
                query_and_item = query_places * row_count + self.items.numbers[rows]
                query_of_hit = np.unique(query_and_item) // row_count
            most_rows = len(allowed) if parameters is None else allowed_count
            is_last = wanted_rows >= most_rows and visited_cells >= cells
            is_answered = (np.bincount(query_of_hit, minlength=len(unanswered)) >= k) | is_last
            is_used = is_answered[query_places]
            numbers = unanswered[query_places[is_used]]
            answers.append(Candidates(numbers, rows[is_used], all_products[is_row][is_used]))

            # Look further for the other queries
            unanswered = unanswered[~is_answered]
            wanted_rows *= 4
            if nprobe is None:
                visited_cells *= 4
        return Candidates.joined(answers)

    def _searched(self, reporter: Reporter = SILENT) -> dict[str, Any]:
        """Return the FAISS index of each modality, on GPUs if there are any; see `on_gpus`."""
        for modality, index in self.indexes.items():
            if modality not in self._on_gpus:
                self._on_gpus[modality] = on_gpus(index, reporter)
        return self._on_gpus

    def _warn_if_stale(self, reporter: Reporter) -> None:
        """Say so if the store has changed since it was indexed; an index can be searched without
        its store.
        """
        if kind_of(self.store_path / INFO_FILE) != "file":
            return
        try:
            # What the parts would be made from if the index were brought up to date
            store = Store.open(self.store_path)
            record = ExportRecord.of(self.source.info)
            assert record is not None  # that of an index that was opened
            recipe = Recipe(store, self.pipeline, self.coder, record.settings)
            modalities = record.asked.options["modality"] or store.modalities
            wanted = {}
            for shard, shard_record in store.shards.items():
                if shard_record.rows and shard[0] in modalities:
                    wanted[shard] = recipe.made_from(shard)
            is_stale = wanted != self._parts
        except C3Error as error:
            reporter.message(
                f"The index {self.path} cannot be compared with its store: {error.message}"
            )
            return
        if is_stale:
            is_of_embed = str(self.path) == index_beside(self.store_path)
            command = "c3 embed --faiss" if is_of_embed else "c3 index"
            reporter.message(
                f"The store {self.store_path} has changed since it was indexed; `{command}` brings "
                f"the index up to date."
            )

    @cached_property
    def _parts(self) -> dict[ShardName, str]:
        """The digest of what each part of the index was made from."""
        return {
            shard: read_header(self.source.file(*shard)).made_from for shard in self.source.shards
        }


def _check_queries(**queries: Any) -> None:
    """Refuse no query, and queries without content.

    Raises:
        StoreError: with the kinds that were given.
    """
    kinds = [name for name, value in queries.items() if value is not None]
    is_empty = False
    for name in ("text", "image"):
        is_empty |= isinstance(queries[name], list | tuple) and not queries[name]
    texts = as_list(queries["text"]) or []
    if not all(isinstance(text, str) for text in texts):
        raise StoreError(
            f"The text to search for has type {type(queries['text']).__name__}.",
            remedy="Pass vectors as vector=..., and images as image=....",
        )
    example = 'For example: c3 search "a dog on a beach"'
    if not kinds or is_empty:
        raise StoreError(
            f"A search needs a query that is not empty, but these were given: "
            f"{', '.join(kinds) or 'none'}.",
            remedy=example,
        )
    if not all(text.strip() for text in texts):
        raise StoreError("A text to search for is empty.", remedy=example)


def find_index(folder: str | Path | None = None) -> Path:
    """Return the folder that is given; for None ``c3-index``, or if there is none, the index that
    `c3 embed --faiss` made beside the store.
    """
    if folder is not None:
        return location(folder)
    beside = location(index_beside(os.environ.get("C3_STORE") or "c3-store"))
    if not _OWN.exists() and kind_of(beside / INFO_FILE) == "file":
        return beside
    return _OWN


def index_beside(store: str | Path) -> str:
    """Return where `c3 embed --faiss` puts the index of a store."""
    return f"{str(store).rstrip('/')}-index"


def _vector_of_key(store: Store, key: str) -> tuple[Matrix, str]:
    """Return the embedding (1, d) of a row of the store, and its modality.

    Raises:
        StoreError: if no row has the key.
    """
    for modality in store.modalities:
        for part in store.parts(modality):
            # Look at keys before any embedding is read
            keys = []
            for batch in store.batches(modality, ["key"], parts=[part]):
                keys += keys_of(batch)
            if key in keys:
                batches = store.batches(modality, ["embedding"], parts=[part])
                rows = np.concatenate([embedding_matrix(batch) for batch in batches])
                return rows[keys.index(key)][None], modality
    raise StoreError(f"The store {store.path} has no row with the key {key!r}.")
