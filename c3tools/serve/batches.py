"""Encode the queries of several clients together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Literal

from PIL import Image

from ..arrays import Matrix
from ..encoders import Encoder


@dataclass(frozen=True)
class _Query:
    content: str | Image.Image
    embedding: Future[Matrix] = field(default_factory=Future)

    @property
    def modality(self) -> Literal["text", "image"]:
        return "text" if isinstance(self.content, str) else "image"


class QueryEncoder:
    """Encode queries in one thread, which takes all that wait at a time.

    A model uses all cores by itself, so queries that are encoded side by side are not faster, but
    those of one batch are.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._waiting: SimpleQueue[_Query] = SimpleQueue()
        self._thread = ThreadPoolExecutor(1, "encode")

    def encode(self, content: str | Image.Image) -> Matrix:
        """Return the embedding, float32 (1, d), of a text or a photo.

        Raises:
            EncoderError: if the model does not take it.
        """
        query = _Query(content)
        self._waiting.put(query)
        self._thread.submit(self._encode_waiting)
        return query.embedding.result()

    def _encode_waiting(self) -> None:
        """Encode the queries that wait: none, if an earlier call has taken them."""
        queries = []
        try:
            while True:
                queries.append(self._waiting.get_nowait())
        except Empty:
            pass
        for modality in ("text", "image"):
            self._encode_batch([query for query in queries if query.modality == modality])

    def _encode_batch(self, queries: Sequence[_Query]) -> None:
        """Encode queries of one modality; one that fails does so alone."""
        if not queries:
            return
        contents: list[Any] = [query.content for query in queries]
        try:
            if queries[0].modality == "text":
                embeddings = self._encoder.encode_queries(contents)
            else:
                embeddings = self._encoder.encode_images(contents)
        except Exception as error:
            if len(queries) == 1:
                queries[0].embedding.set_exception(error)
                return
            for query in queries:
                self._encode_batch([query])
            return
        for row, query in enumerate(queries):
            query.embedding.set_result(embeddings[row : row + 1])
