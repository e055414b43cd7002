"""An index of a store on disk: build it, open it, search it by text, image, vector or key.

c3-index/
index.json                    factory, dimension, rows, nprobe, measured recall, provenance
part-00000.faiss              up to `shard_rows` vectors
rows.parquet                  key, modality, caption, path of each row, in the order of the vectors
transform.json, .safetensors  the pipeline that index and queries went through
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError
from ..io.float16 import to_float32
from ..reporter import SILENT, Reporter
from ..store import Store, embedding_matrix
from ..store.importers import read_vectors
from ..store.rows import keys_of
from ..tables import Table
from ..transforms import Pipeline
from . import faiss_shards
from .faiss_shards import Indices, Matrix

INDEX_FILE = "index.json"
ROWS_FILE = "rows.parquet"
_PROVENANCE = ("modalities", "split", "model", "transform")
HIT_COLUMNS = ("key", "modality", "caption", "path")


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        score: cosine with the query after the transform.
        key: of the row.
        modality: of the row.
        caption: of a text.
        path: of an image.
    """

    score: float
    key: str
    modality: str
    caption: str | None = None
    path: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as JSON values, without what it lacks."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SearchResult:
    """The rows found for one query, best first.

    Attributes:
        query: the text, the path, the key, or the number of the vector.
        hits: the rows.
    """

    query: str
    hits: list[Hit]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"query": self.query, "hits": [hit.to_dict() for hit in self.hits]}

    def _repr_html_(self) -> str:
        """Return a table of the hits, for notebooks."""
        rows = [(f"{hit.score:.3f}", hit.modality, hit.key, hit.caption or hit.path or "") for hit in self.hits]
        return Table(("score", "modality", "key", "caption or path"), rows, self.query)._repr_html_()


class Index:
    """An index that is open for searching, with the pipeline that its rows went through.

    Attributes:
        path: its folder.
        record: the content of index.json.
        rows: the table of keys, one row per vector.
        pipeline: fitted; queries go through it too.
        bias: share of own-modality rows among the 10 nearest, per modality, before and after the transform, in a
            balanced sample (0.5 without bias); None for one modality, and where the index was not built just now.
    """

    def __init__(
        self, path: Path, record: dict[str, Any], shards: list[Any], rows: pa.Table, pipeline: Pipeline
    ) -> None:
        self.path = path
        self.record = record
        self.rows = rows
        self.pipeline = pipeline
        self.bias: dict[str, dict[str, float]] | None = None
        self._shards = shards

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Open the index in the folder ``path``; on GPUs where faiss sees some.

        Raises:
            StoreError: if there is none, or it is damaged.
            TransformError: if the pipeline beside it is damaged.
            MissingExtraError: if faiss is not installed.
        """
        folder = Path(path)
        faiss_shards.load_faiss()
        try:
            record = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            shards = faiss_shards.read_shards(folder / name for name in record["shards"])
            rows = pq.read_table(folder / ROWS_FILE)
        except FileNotFoundError:
            raise StoreError(
                f"There is no index at {folder}.", remedy="Make one with `c3 index`, or name another with --index."
            ) from None
        except (OSError, ValueError, KeyError, RuntimeError, pa.ArrowException) as error:
            raise StoreError(
                f"The index at {folder} is damaged ({error}).", remedy="Make it again: c3 index"
            ) from error
        if (vectors := sum(shard.ntotal for shard in shards)) != rows.num_rows:
            raise StoreError(
                f"The index at {folder} has {vectors:,} vectors and {rows.num_rows:,} keys.",
                remedy="Make it again: c3 index",
            )
        return cls(folder, record, shards, rows, Pipeline.load(folder))

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}: {self.rows.num_rows:,} rows, {self.record['factory']})"

    def to_dict(self) -> dict[str, Any]:
        """Return how the index was built and how well it finds, as JSON values; index.json has the provenance too."""
        measured = {name: value for name, value in self.record.items() if name not in _PROVENANCE}
        return {"output": str(self.path), **measured, "bias@10": self.bias}

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
        store: Store | str | Path = "c3-store",
        device: str | None = None,
        reporter: Reporter = SILENT,
    ) -> list[SearchResult]:
        """Find the nearest rows of one kind of query, of which there may be several; one result per query.

        Args:
            text: what to look for, in words.
            image: a path, a PIL image or an array (h, w, 3), or several of them.
            vector: embeddings (q, d) or (d,) as the model gives them, or a file that holds them.
            key: of a row of ``store``.
            modality: of ``vector``; decides which mean is subtracted.
            within: find rows of this modality only.
            k: rows per query.
            nprobe: inverted lists to visit; None for what the index was tuned to.
            store: where ``key`` is looked up.
            device: of the encoder of texts and images, which is the recorded one.
            reporter: is told what the encoder has to say.

        Raises:
            StoreError: if there is not one kind of query, the index has no rows of ``within``, or the key is unknown.
            TransformError: if the pipeline does not know the modality, or dimensions differ.
            EncoderError: if the recorded model cannot be loaded.
        """
        given = {"text": text, "image": image, "vector": vector, "key": key}
        kinds = [name for name, value in given.items() if value is not None]
        if len(kinds) != 1:
            raise StoreError(
                f"One kind of query is needed; given: {', '.join(kinds) or 'none'}.",
                remedy='For example: c3 search "a dog on a beach"',
            )
        if key is not None:
            labels = [key]
            embeddings, modality = _vector_of_key(Store.open(store), key)
        elif vector is not None:
            is_file = isinstance(vector, str | Path)
            embeddings = _read_queries(Path(str(vector))) if is_file else np.atleast_2d(np.asarray(vector))
            labels = [f"{vector if is_file else 'vector'} row {row}" for row in range(len(embeddings))]
        else:
            from ..encoders import resolve_encoder

            encoder = resolve_encoder(recorded=self.record["model"], device=device, reporter=reporter)
            if text is not None:
                labels = [text] if isinstance(text, str) else list(text)
                embeddings, modality = encoder.encode_texts(labels), "text"
            else:
                images = list(image) if isinstance(image, list | tuple) else [image]
                embeddings, modality = encoder.encode_images(images), "image"
                labels = [str(one) if isinstance(one, str | Path) else "image" for one in images]
        scores, rows = self.nearest(embeddings, modality, k, within=within, nprobe=nprobe)
        return [SearchResult(label, self._hits(*found)) for label, *found in zip(labels, scores, rows, strict=True)]

    def nearest(
        self, embeddings: npt.ArrayLike, modality: str, k: int, *, within: str | None = None, nprobe: int | None = None
    ) -> tuple[Matrix, Indices]:
        """Return scores and row numbers, both (q, k), of the rows nearest to raw embeddings (q, d), best first.

        Where there are fewer than ``k`` rows, the row number is -1 and the score -inf. Other arguments and errors are
        those of `search`.
        """
        if k < 1:
            raise StoreError(f"k is {k}; at least 1 row is found.")
        queries = self.pipeline.transform(embeddings, modality=modality)
        if queries.shape[1] != self.record["dim"]:
            raise StoreError(
                f"The index holds vectors of {self.record['dim']} dimensions; the queries have {queries.shape[1]}.",
                remedy="Embed the queries with the model of the index.",
            )
        return faiss_shards.search_shards(
            self._shards, queries, k, nprobe or self.record.get("nprobe"), self._rows_of(within)
        )

    def _rows_of(self, modality: str | None) -> tuple[int, int] | None:
        """Return the first row of a modality and the one after its last: its rows are contiguous."""
        if modality is None:
            return None
        names = [str(name) for name in self.rows.column("modality").to_pylist()]
        if modality not in names:
            known = ", ".join(sorted(set(names)))
            raise StoreError(f"The index {self.path} has no {modality} rows; it has {known}.")
        first = names.index(modality)
        return first, first + names.count(modality)

    def _hits(self, scores: Matrix, rows: Indices) -> list[Hit]:
        """Return the hits of one query from scores and row numbers, both (k,)."""
        found = rows >= 0
        columns = [self.rows.column(name).take(rows[found]).to_pylist() for name in HIT_COLUMNS]
        return [Hit(round(float(score), 6), *row) for score, *row in zip(scores[found], *columns, strict=True)]


def _read_queries(path: Path) -> Matrix:
    """Read query vectors (q, d) from a file; a single vector (d,) in a .npy file is one query."""
    if path.suffix.lower() == ".npy":
        with suppress(OSError, ValueError, EOFError):  # read_vectors says what is wrong
            array = np.load(path, allow_pickle=False)
            if array.ndim == 1:
                return to_float32(array[None])
    return to_float32(read_vectors(path).vectors[:])


def _vector_of_key(store: Store, key: str) -> tuple[Matrix, str]:
    """Return the embedding (1, d) of a row of the store, and its modality.

    Raises:
        StoreError: if no row has the key.
    """
    for name in store.modalities:
        for batch in store.batches(name, ["key", "embedding"]):
            keys = keys_of(batch)
            if key in keys:
                return embedding_matrix(batch.slice(keys.index(key), 1)), name
    raise StoreError(f"No row of the store {store.path} has the key {key!r}.")
