"""The work on one device: shard after shard, encode and write."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..corpus import ImageItem, TextItem
from ..encoders import Encoder, to_numpy
from ..errors import StoreError
from ..executors import Report
from ..store import Failure, Shard, Store, write_shard
from .loader import PixelBatch, pixel_batches
from .options import EmbedOptions
from .summary import ModalitySummary, no_seconds

Shards = Mapping[int, Sequence[Any]]


def embed_shards(
    store: Store, modality: str, shards: Shards, encoder: Encoder, options: EmbedOptions, report: Report
) -> Iterator[ModalitySummary]:
    """Embed the inputs of these shards and write them; the same bytes wherever and beside whatever it runs.

    Args:
        shards: shard number → its inputs, `ImageItem` or `TextItem`.
        report: is told of each batch how many inputs are done and how many of them failed.

    Yields:
        What was done, for each shard in turn.

    Raises:
        StoreError: if a shard cannot be written.
    """
    embed = _embed_images if modality == "image" else _embed_texts
    return embed(store, shards, encoder, options, report)


def _embed_images(
    store: Store, shards: Mapping[int, Sequence[ImageItem]], encoder: Encoder, options: EmbedOptions, report: Report
) -> Iterator[ModalitySummary]:
    seconds = no_seconds()
    rows, failures = _Rows(), list[Failure]()
    decoding, began = 0.0, time.perf_counter()
    batches = pixel_batches(
        shards,
        encoder.preprocess,
        batch_size=options.batch_size or encoder.batch_size("image"),
        workers=options.worker_count(encoder.compute.device),
        pin_memory=encoder.compute.device.type == "cuda",
        time_limit=options.image_timeout or None,
    )
    for batch, features in _encoded(batches, encoder, seconds):
        start = time.perf_counter()
        if features is not None:
            rows.add(
                to_numpy(features),
                [
                    {
                        "key": i.key,
                        "path": i.path,
                        "width": o.width,
                        "height": o.height,
                        "size": o.size,
                        "split": i.split,
                    }
                    for i, o in zip(batch.items, batch.originals, strict=True)
                ],
            )
        failures += batch.failures
        seconds["reading"] += batch.reading
        seconds["decoding"] += batch.decoding
        decoding += batch.reading + batch.decoding
        fetched = time.perf_counter()
        seconds["encoding"] += fetched - start
        summary = None
        if batch.last:
            timings = {"decoding": decoding, "total": fetched - began}
            _write(store, Shard("image", batch.shard, rows.embeddings(), rows.columns(), failures, timings))
            seconds["writing"] += time.perf_counter() - fetched
            summary = ModalitySummary(embedded=len(rows), failed=len(failures), seconds=dict(seconds))
            seconds.update(no_seconds())
            rows, failures, decoding, began = _Rows(), [], 0.0, time.perf_counter()
        report(len(batch.items) + len(batch.failures), len(batch.failures))
        if summary is not None:
            yield summary


def _encoded(
    batches: Iterable[PixelBatch], encoder: Encoder, seconds: dict[str, float]
) -> Iterator[tuple[PixelBatch, Tensor | None]]:
    """Each batch with its features; a GPU already has the next batch when the result of one is waited for."""
    ahead = 0 if encoder.compute.device.type == "cpu" else 1
    running: deque[tuple[PixelBatch, Tensor | None]] = deque()
    source = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(source, None)
        arrived = time.perf_counter()
        seconds["waiting"] += arrived - start
        if batch is None:
            break
        running.append((batch, encoder.start_pixels(batch.pixels) if batch.items else None))
        seconds["encoding"] += time.perf_counter() - arrived
        if len(running) > ahead:
            yield running.popleft()
    yield from running


def _embed_texts(
    store: Store, shards: Mapping[int, Sequence[TextItem]], encoder: Encoder, options: EmbedOptions, report: Report
) -> Iterator[ModalitySummary]:
    for number, items in shards.items():
        start = time.perf_counter()
        captions = [item.caption for item in items]
        tokens = encoder.tokenise(captions)
        truncated = encoder.truncated(captions, tokens)
        tokenised = time.perf_counter()
        embeddings = np.zeros((len(items), encoder.dim), np.float32)
        for rows, part in encoder.encode_token_batches(tokens, batch_size=options.batch_size):
            embeddings[rows] = part
            report(len(rows), 0)
        encoded = time.perf_counter()
        columns = {name: [getattr(item, name) for item in items] for name in TextItem._fields}
        timings = {"tokenising": tokenised - start, "encoding": encoded - tokenised}
        _write(store, Shard("text", number, embeddings, columns, [], timings))
        seconds = no_seconds()
        seconds |= {**timings, "writing": time.perf_counter() - encoded}
        yield ModalitySummary(embedded=len(items), truncated=truncated, seconds=seconds)


class _Rows:
    """Rows of a shard while they come in."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray[Any, Any]] = []
        self._records: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._records)

    def add(self, embeddings: np.ndarray[Any, Any], records: list[dict[str, Any]]) -> None:
        self._parts.append(embeddings)
        self._records += records

    def embeddings(self) -> np.ndarray[Any, Any]:
        return np.concatenate(self._parts) if self._parts else np.zeros((0, 1), np.float32)

    def columns(self) -> dict[str, list[Any]]:
        names = self._records[0] if self._records else {"key": None}
        return {name: [record[name] for record in self._records] for name in names}


def _write(store: Store, shard: Shard) -> None:
    try:
        write_shard(store.path, store.info, shard)
    except OSError as error:
        raise StoreError(
            f"The {shard.modality} shard {shard.index} could not be written to {store.path} "
            f"({error.strerror or error}).",
            remedy="What was finished is kept. Make room, then run the same command again: it continues there.",
        ) from error
