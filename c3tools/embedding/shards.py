"""Shards on one device: encode and write one after another, as work for an executor."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..arrays import Matrix
from ..corpus import ImageItem, TextItem
from ..corpus.videos import read_frames
from ..devices import limit_threads
from ..encoders import Encoder, resolve_encoder
from ..encoders.encoder import Pending
from ..errors import StoreError, UnreachableError
from ..executors import Report, Work, WorkerResources, cores
from ..store import Failure, Shard, Store, StoreWriter, write_shard
from ..store.manifest import REWRITING
from ..store.rows import keys_of
from ..store.shards import part_name, shard_schema, shard_table, write_rows
from .decoding import PixelBatch, failure_of, pixel_batches
from .plan import ShardTask
from .summary import ModalitySummary, no_seconds

_MOST_WORKERS = 16
_FEW = 4  # images that are decoded before a worker process has started


class EmbedOptions(NamedTuple):
    """The options of `c3tools.embed` that are not about its inputs or its model, described there."""

    dtype: str = "float16"
    shard_size: int = 4096
    workers: int | None = None
    batch_size: int | None = None
    image_timeout: float = 60.0
    fps: float = 1.0
    retry_failed: bool = False
    update: bool = False
    prune: bool = False


class EmbedWork(Work[ShardTask, ModalitySummary]):
    """The embedding of one modality; a task is one shard, whose bytes are the same wherever it is made.

    Args:
        store: the store to write to, which already exists.
        modality: ``image``, ``video`` or ``text``.
        encoder: is used in this process; others load the same model, once each.
        options: see there.
        writer: keeps records and moments of the shards that are written in this process.

    Attributes:
        dropped: the shards that exist and whose rows are replaced, with the keys of the rows that are left out.
    """

    def __init__(
        self, store: Store, modality: str, encoder: Encoder, options: EmbedOptions, writer: StoreWriter | None = None
    ) -> None:
        self.modality, self.store = modality, store
        self._writer = writer
        self.dropped: dict[int, frozenset[str]] = {}
        self._encoder: Encoder | None = encoder
        self._options = options
        self._cores: int | None = None
        self._model = (
            json.dumps(encoder.identity),
            encoder.backend.name,
            encoder.compute.precision,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the encoder and the writer."""
        return {**self.__dict__, "_encoder": None, "_writer": None}

    def load(self, resources: WorkerResources) -> None:
        """Load the encoder in a worker process, and note how many cores it may use.

        Raises:
            EncoderError: if it cannot be loaded, or its weights are other ones here.
            StoreError: if the store is not to be seen from here.
        """
        here = Store.open(self.store.path, incomplete=True)
        if here.info != self.store.info:
            raise StoreError(
                f"{here.path} on this machine is a different store.",
                remedy="Use storage that all machines share, or a URL.",
            )
        limit_threads(resources.threads)
        self._encoder = _load_once(*self._model, resources.device)
        self._cores = resources.threads

    def name(self, task: ShardTask) -> str:
        """Return a name such as ``text shard 3``."""
        return f"{self.modality} shard {task[0]}"

    def run(self, tasks: Iterable[ShardTask], report: Report) -> Iterator[ModalitySummary]:
        """Embed the inputs of these shards and write them; images are decoded ahead, across shards.

        Raises:
            StoreError: if a shard cannot be written.
        """
        assert self._encoder is not None, "load comes first"
        embed = {"image": self._images, "video": self._videos, "text": self._texts}[self.modality]
        for shard, summary in embed(self._encoder, tasks, report):
            began = time.perf_counter()
            try:
                if shard.index in self.dropped:
                    rows, failures = rewritten_shard(
                        self.store, self.modality, shard.index, self.dropped[shard.index], shard
                    )
                    path = self.store.path / REWRITING / part_name(self.modality, shard.index)
                    write_rows(path, self.store.info, rows, failures)
                elif self._writer is not None:
                    self._writer.write_shard(shard)
                else:
                    write_shard(self.store.path, self.store.info, shard)
            except UnreachableError:
                raise
            except OSError as error:
                raise StoreError(
                    f"The {shard.modality} shard {shard.index} could not be written to {self.store.path} "
                    f"({error.strerror or error}).",
                    remedy="Finished work is kept. Free some disk space, then run the same command again to continue.",
                ) from error
            summary.seconds["writing"] += time.perf_counter() - began
            summary.embedded, summary.failed = len(shard.embeddings), len(shard.failures)
            yield summary

    def _images(
        self, encoder: Encoder, shards: Iterable[ShardTask], report: Report
    ) -> Iterator[tuple[Shard, ModalitySummary]]:
        workers = self._options.workers
        device_type = encoder.compute.device_type
        batches = pixel_batches(
            shards,
            encoder.preprocess,
            batch_size=self._options.batch_size or encoder.batch_size("image"),
            workers=_decoding_processes(device_type, self._cores or cores()) if workers is None else workers,
            pin_memory=device_type == "cuda",
            time_limit=self._options.image_timeout or None,
        )
        rows: list[dict[str, Any]] = []
        embeddings: list[Matrix] = []
        failures: list[Failure] = []
        seconds = no_seconds()
        for batch, features in _encode_ahead(batches, encoder, seconds):
            start = time.perf_counter()
            if features is not None:
                embeddings.append(features.result())
            seconds["encoding"] += time.perf_counter() - start
            seconds["reading"] += batch.reading
            seconds["decoding"] += batch.decoding
            rows += batch.rows
            failures += batch.failures
            report(len(batch.rows) + len(batch.failures), len(batch.failures))
            if batch.last:
                shard = _shard("image", batch.shard, rows, embeddings, failures, encoder.dim)
                yield shard, ModalitySummary(seconds=dict(seconds))
                seconds.update(no_seconds())
                rows, embeddings, failures = [], [], []

    def _videos(
        self, encoder: Encoder, shards: Iterable[ShardTask], report: Report
    ) -> Iterator[tuple[Shard, ModalitySummary]]:
        for number, items in shards:
            summary = ModalitySummary()
            rows: list[dict[str, Any]] = []
            means: list[Matrix] = []
            failures: list[Failure] = []
            for item in items:
                try:
                    mean, row = _embed_video(item, encoder, self._options, summary.seconds)
                    means.append(mean[None])
                    rows.append(row)
                    report(1, 0)
                except Exception as error:  # a decoder may raise anything on a damaged file, as for images
                    failures.append(failure_of(item, "decode", error))
                    report(1, 1)
            yield _shard("video", number, rows, means, failures, encoder.dim), summary

    def _texts(
        self, encoder: Encoder, shards: Iterable[ShardTask], report: Report
    ) -> Iterator[tuple[Shard, ModalitySummary]]:
        for number, items in shards:
            start = time.perf_counter()
            captions = [item.caption for item in items]
            tokens = encoder.tokenise(captions)
            summary = ModalitySummary(truncated=encoder.truncated(captions, tokens))
            tokenised = time.perf_counter()
            embeddings = np.zeros((len(items), encoder.dim), np.float32)
            for rows, part in encoder.encode_token_batches(tokens, batch_size=self._options.batch_size):
                embeddings[rows] = part
                report(len(rows), 0)
            summary.seconds |= {"tokenising": tokenised - start, "encoding": time.perf_counter() - tokenised}
            columns = {name: [getattr(item, name) for item in items] for name in TextItem._fields}
            yield Shard("text", number, embeddings, columns), summary


def _shard(
    modality: str,
    number: int,
    rows: Sequence[Mapping[str, Any]],
    embeddings: Sequence[Matrix],
    failures: Sequence[Failure],
    dim: int,
) -> Shard:
    """Return a shard of rows, each with the same columns."""
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ("key",))}
    matrix = np.concatenate([np.zeros((0, dim), np.float32), *embeddings])
    return Shard(modality, number, matrix, columns, failures)


def _embed_video(
    item: ImageItem, encoder: Encoder, options: EmbedOptions, seconds: dict[str, float]
) -> tuple[Matrix, dict[str, Any]]:
    """Return the mean of the embeddings of a video's frames, at unit length (d,), and its other columns."""
    frames = read_frames(item.path, options.fps, options.image_timeout or None)
    total, count, last = np.zeros(encoder.dim), 0, 0.0
    width = height = 0
    while True:
        start = time.perf_counter()
        pixels = []
        for at, image in islice(frames, options.batch_size or encoder.batch_size("image")):
            last, (width, height) = at, image.size
            pixels.append(encoder.pixels(image))
        decoded = time.perf_counter()
        seconds["decoding"] += decoded - start
        if not pixels:
            break
        total += encoder.start_pixels(np.stack(pixels)).result().sum(axis=0, dtype=np.float64)
        count += len(pixels)
        seconds["encoding"] += time.perf_counter() - decoded
    norm = np.linalg.norm(total)
    if not norm > 0:
        raise ValueError("the embeddings of its frames cancel out")
    columns = {"key": item.key, "path": item.path, "width": width, "height": height, "size": item.size}
    return (total / norm).astype(np.float32), {**columns, "frames": count, "duration": last, "split": item.split}


def rewritten_shard(
    store: Store, modality: str, part: int, drop: Collection[str], new: Shard | None = None
) -> tuple[pa.Table, list[Failure]]:
    """Return the rows and failures of a shard without some of them, and with others in their places.

    Args:
        store: the store.
        modality: of the shard.
        part: its number.
        drop: keys of the rows, and of the failures, to leave out.
        new: rows that take the places of those with their keys. Those it lists as failed stay as they were.

    Raises:
        StoreError: if the shard cannot be read.
    """
    schema = shard_schema(modality, store.info)
    rows = pa.Table.from_batches(list(store.batches(modality, parts=[part])), schema)
    keys = keys_of(rows)
    chosen = [row for row, key in enumerate(keys) if key not in drop]
    failures = store.shard_failures(modality, part)
    left = {keys[row] for row in chosen}
    if new is not None:
        places = {key: len(keys) + row for row, key in enumerate(new.columns["key"])}
        chosen = [places.get(keys[row], row) for row in chosen]
        rows = pa.concat_tables([rows, shard_table(store.info, new).cast(schema)])
        failures += new.failures
    failures = [failure for failure in failures if failure.key not in drop and failure.key not in left]
    return rows.take(pa.array(chosen, pa.int64())).combine_chunks(), failures


def _encode_ahead(
    batches: Iterable[PixelBatch], encoder: Encoder, seconds: dict[str, float]
) -> Iterator[tuple[PixelBatch, Pending | None]]:
    """Yield each batch with its features (n, d); the next batches are already computed while the caller uses one."""
    running: deque[tuple[PixelBatch, Pending | None]] = deque()
    source = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(source, None)
        arrived = time.perf_counter()
        seconds["waiting"] += arrived - start
        if batch is None:
            break
        running.append((batch, encoder.start_pixels(batch.pixels) if batch.rows else None))
        seconds["encoding"] += time.perf_counter() - arrived
        if len(running) > encoder.backend.ahead:
            yield running.popleft()
    yield from running


def encode_files(
    paths: Mapping[str, str | Path], encoder: Encoder, *, time_limit: float = 60.0
) -> Iterator[tuple[list[str], Matrix, list[Failure]]]:
    """Yield keys, embeddings (n, d) and failures of batches of image files, in order; decoded ahead as in an embedding.

    Args:
        paths: image files by key.
        encoder: the contrastive model.
        time_limit: seconds that decoding one image may take, if there are so many that worker processes decode.

    Raises:
        C3Error: if no worker process can be started.
    """
    items = [ImageItem(key, str(path), None, None) for key, path in paths.items()]
    device_type = encoder.compute.device_type
    batches = pixel_batches(
        [(0, items)],
        encoder.preprocess,
        batch_size=encoder.batch_size("image"),
        workers=_decoding_processes(device_type, cores()) if len(items) > _FEW else 0,
        pin_memory=device_type == "cuda",
        time_limit=time_limit,
    )
    for batch, features in _encode_ahead(batches, encoder, no_seconds()):
        embeddings = np.zeros((0, encoder.dim), np.float32) if features is None else features.result()
        yield [row["key"] for row in batch.rows], embeddings, batch.failures


def _decoding_processes(device_type: str, available: int) -> int:
    """Return the number of decoding processes beside one encoder: on a CPU one core is left to the model."""
    return max(1, available - 1) if device_type == "cpu" else min(available, _MOST_WORKERS)


@lru_cache(maxsize=1)
def _load_once(identity: str, backend: str, precision: str, device: str) -> Encoder:
    return resolve_encoder(
        recorded=json.loads(identity),
        device=device,
        backend=backend,
        precision=precision,
    )
