"""Queries of several clients: encoded together, each with its own answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c3tools.errors import EncoderError
from c3tools.serve.batches import QueryEncoder


class SlowEncoder:
    """Encode a text by its length and a photo by its width, once ``may_go`` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_busy = Event()
        self.may_go = Event()

    def encode_queries(self, texts: Sequence[str]) -> Any:
        if "bad" in texts:
            raise EncoderError("This text is bad.")
        return self._encode([len(text) for text in texts])

    def encode_images(self, images: Sequence[Image.Image]) -> Any:
        return self._encode([image.width for image in images])

    def _encode(self, sizes: list[int]) -> Any:
        self.is_busy.set()
        assert self.may_go.wait(60)
        self.batches.append(sizes)
        return np.array(sizes, np.float32)[:, None]


def encode_while_busy(encoder: SlowEncoder, contents: Sequence[Any]) -> list[Any]:
    """Encode ``contents`` while a text of one letter is encoded; return embeddings and errors."""
    queries = QueryEncoder(encoder)  # type: ignore[arg-type]
    with ThreadPoolExecutor(len(contents) + 1) as pool:
        pool.submit(queries.encode, "a")
        assert encoder.is_busy.wait(60)
        futures = [pool.submit(queries.encode, content) for content in contents]
        while queries._waiting.qsize() < len(contents):
            time.sleep(0.01)
        encoder.may_go.set()
        return [future.exception() or future.result().tolist() for future in futures]


def test_queries_that_wait_are_encoded_together() -> None:
    encoder = SlowEncoder()
    photo = Image.new("RGB", (9, 6))
    embeddings = encode_while_busy(encoder, ["bb", photo, "ccc", "dddd"])
    assert embeddings == [[[2]], [[9]], [[3]], [[4]]]
    first_text, other_texts, photos = encoder.batches
    assert first_text == [1]
    assert sorted(other_texts) == [2, 3, 4]
    assert photos == [9]


def test_a_query_that_fails_does_so_alone() -> None:
    good, bad = encode_while_busy(SlowEncoder(), ["bb", "bad"])
    assert good == [[2]]
    with pytest.raises(EncoderError, match="This text is bad"):
        raise bad
