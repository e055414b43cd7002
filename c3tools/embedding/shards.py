"""Shards on one device: decode, encode and write one after another, as work for an executor.

Images are decoded in worker processes, a bounded number of batches in advance. If a worker hangs or dies, the pool is
made anew and the images in flight are decoded one by one; the image that does it again is a failure.
"""

from __future__ import annotations

import faulthandler
import io
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from functools import lru_cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..arrays import Matrix, Pixels
from ..corpus import ImageItem, ImageReader
from ..corpus.images import read_frames
from ..devices import limit_threads
from ..encoders import Encoder, ImagePreprocessor, resolve_encoder
from ..errors import C3Error, StoreError, UnreachableError
from ..executors import Report, Work, cores, end_with_parent
from ..io.limits import LARGEST_DECODED
from ..store import Failure, Store
from ..store.manifest import REWRITING
from ..store.rows import keys_of
from ..store.shards import part_name, shard_schema, shard_table, write_rows
from .plan import ShardTask
from .summary import ModalitySummary

_MOST_WORKERS = 16
_FEW = 4  # images that are decoded before a worker process has started
_BATCHES_AHEAD = 3  # of each worker
_SPARE, _STACK = 64 << 20, 8 << 20  # bytes for all but decoding, and for the stack of a thread

# of a shard: its number, the columns of its rows but for embeddings, these in pieces (n, d), failures, counts and times
_Made = tuple[int, list[dict[str, Any]], list[Matrix], list[Failure], ModalitySummary]


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
        dropped: the shards that exist and whose rows are replaced, with the keys of the rows that are left out.
    """

    def __init__(
        self,
        store: Store,
        modality: str,
        encoder: Encoder,
        options: EmbedOptions,
        dropped: Mapping[int, Collection[str]],
    ) -> None:
        self.modality, self.store, self.dropped = modality, store, dropped
        self._options, self._cores = options, cores()
        self._encoder: Encoder | None = encoder
        self._model = json.dumps(encoder.identity), encoder.backend.name, encoder.compute.precision

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the encoder."""
        return {**self.__dict__, "_encoder": None}

    def load(self, device: str, threads: int) -> None:
        """Load the encoder in a worker process, and note how many cores it may use.

        Raises:
            EncoderError: if it cannot be loaded, or its weights are other ones here.
            StoreError: if the store is not to be seen from here.
        """
        Store.open(self.store.path, incomplete=True)
        limit_threads(threads)
        self._encoder = _load_once(*self._model, device)
        self._cores = threads

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
        start = time.perf_counter()
        for number, rows, embeddings, failures, summary in embed(self._encoder, tasks, report):
            matrix = np.concatenate([np.zeros((0, self._encoder.dim), np.float32), *embeddings])
            columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ("key",))}
            table = shard_table(self.store.info, self.modality, matrix, columns)
            made, path, content = time.perf_counter(), self.store.path, (table, failures)
            with writing_to(path):
                if number in self.dropped:
                    path /= REWRITING
                    content = rewritten_shard(self.store, self.modality, number, self.dropped[number], *content)
                write_rows(path / part_name(self.modality, number), self.store.info, *content)
            summary.seconds["encoding"] = made - start - summary.seconds["waiting"]
            start = time.perf_counter()
            summary.seconds["writing"] = start - made
            summary.embedded, summary.failed = len(rows), len(failures)
            yield summary

    def _images(self, encoder: Encoder, shards: Iterable[ShardTask], report: Report) -> Iterator[_Made]:
        rows: list[dict[str, Any]] = []
        embeddings: list[Matrix] = []
        failures: list[Failure] = []
        summary = ModalitySummary()
        for batch, features in _encoded_batches(encoder, shards, self._options, self._cores):
            embeddings.append(features)
            rows += batch.rows
            failures += batch.failures
            summary.seconds["waiting"] += batch.waited
            report(len(batch.rows) + len(batch.failures), len(batch.failures))
            if batch.last:
                yield batch.shard, rows, embeddings, failures, summary
                rows, embeddings, failures, summary = [], [], [], ModalitySummary()

    def _videos(self, encoder: Encoder, shards: Iterable[ShardTask], report: Report) -> Iterator[_Made]:
        for number, items in shards:
            summary = ModalitySummary()
            rows: list[dict[str, Any]] = []
            means: list[Matrix] = []
            failures: list[Failure] = []
            for item in items:
                try:
                    mean, row = self._video(item, encoder, summary.seconds)
                    means.append(mean)
                    rows.append(row)
                    report(1, 0)
                except Exception as error:  # a decoder may raise anything on a damaged file, as for images
                    failures.append(_failure_of(item, "decode", error))
                    report(1, 1)
            yield number, rows, means, failures, summary

    def _video(self, item: ImageItem, encoder: Encoder, seconds: dict[str, float]) -> tuple[Matrix, dict[str, Any]]:
        """Return the mean of the embeddings of a video's frames, at unit length (1, d), and its other columns."""
        frames = read_frames(item.path, self._options.fps, self._options.image_timeout or None)
        total = np.zeros(encoder.dim)
        row: dict[str, Any] = {"key": item.key, "path": item.path, "size": item.size, "split": item.split, "frames": 0}
        size, start = self._options.batch_size or encoder.batch_size("image"), time.perf_counter()
        while some := list(islice(frames, size)):
            seconds["waiting"] += time.perf_counter() - start
            at, image = some[-1]
            row |= {"width": image.width, "height": image.height, "duration": at, "frames": row["frames"] + len(some)}
            total += encoder.encode_images([image for _, image in some], batch_size=size).sum(axis=0, dtype=np.float64)
            start = time.perf_counter()
        norm = np.linalg.norm(total)
        if not norm > 0:
            raise ValueError("the embeddings of its frames cancel out")
        return (total / norm).astype(np.float32)[None], row

    def _texts(self, encoder: Encoder, shards: Iterable[ShardTask], report: Report) -> Iterator[_Made]:
        for number, items in shards:
            captions = [item.caption for item in items]
            tokens = encoder.tokenise(captions)
            embeddings = np.zeros((len(items), encoder.dim), np.float32)
            batches = encoder.token_batches(tokens, self._options.batch_size)
            for rows, part in encoder.encode_batches("text", batches):
                embeddings[rows] = part
                report(len(rows), 0)
            summary = ModalitySummary(truncated=encoder.truncated(captions, tokens))
            yield number, [item._asdict() for item in items], [embeddings], [], summary


@contextmanager
def writing_to(store: Path) -> Iterator[None]:
    """Turn an error of the operating system in the block into one that says what is kept, and what to do.

    Raises:
        StoreError: if the store cannot be written.
    """
    try:
        yield
    except UnreachableError:  # has a remedy of its own
        raise
    except OSError as error:
        raise StoreError(
            f"The store {store} cannot be written ({error.strerror or error}).",
            remedy="Finished work is kept. Free some disk space, or check the disk, then run the same command again.",
        ) from error


def rewritten_shard(
    store: Store,
    modality: str,
    part: int,
    drop: Collection[str],
    new: pa.Table | None = None,
    failed: Sequence[Failure] = (),
) -> tuple[pa.Table, list[Failure]]:
    """Return the rows and failures of a shard without some of them, and with others in their places.

    Args:
        store: the store.
        modality: of the shard.
        part: its number.
        drop: keys of the rows, and of the failures, to leave out.
        new: rows that take the places of those with their keys.
        failed: inputs whose rows stay as they were.

    Raises:
        StoreError: if the shard cannot be read.
    """
    schema = shard_schema(modality, store.info)
    rows = pa.Table.from_batches(list(store.batches(modality, parts=[part])), schema)
    keys = keys_of(rows)
    chosen = [row for row, key in enumerate(keys) if key not in drop]
    failures = [*store.shard_failures(modality, part), *failed]
    left = {keys[row] for row in chosen}
    if new is not None:
        places = {key: len(keys) + row for row, key in enumerate(keys_of(new))}
        chosen = [places.get(keys[row], row) for row in chosen]
        rows = pa.concat_tables([rows, new])
    failures = [failure for failure in failures if failure.key not in drop and failure.key not in left]
    return rows.take(pa.array(chosen, pa.int64())).combine_chunks(), failures


@lru_cache(maxsize=1)
def _load_once(identity: str, backend: str, precision: str, device: str) -> Encoder:
    return resolve_encoder(recorded=json.loads(identity), device=device, backend=backend, precision=precision)


class _Batch(NamedTuple):
    """Part of a shard, decoded.

    Attributes:
        shard: the shard's number.
        last: whether this is the last batch of its shard.
        pixels: uint8 (n, height, width, 3).
        rows: the store's columns of the n images that could be decoded: key, path, split, and as they were read
            width and height in pixels, and size in bytes.
        failures: the inputs that could not be decoded.
        waited: seconds.
    """

    shard: int
    last: bool
    pixels: Pixels
    rows: list[dict[str, Any]]
    failures: list[Failure]
    waited: float


def _encoded_batches(
    encoder: Encoder, shards: Iterable[ShardTask], options: EmbedOptions, cores: int
) -> Iterator[tuple[_Batch, Matrix]]:
    """Yield batches of images with their features (n, d); the next are decoded and encoded while one is used."""
    device = encoder.compute.device_type
    most = max(1, cores - 1) if device == "cpu" else min(cores, _MOST_WORKERS)  # on a CPU one core is for the model
    batches = pixel_batches(
        shards,
        encoder.preprocess,
        batch_size=options.batch_size or encoder.batch_size("image"),
        workers=most if options.workers is None else options.workers,
        pin_memory=device == "cuda",
        time_limit=options.image_timeout or None,
    )
    return encoder.encode_batches("image", ((batch, batch.pixels) for batch in batches))


def encode_files(
    paths: Mapping[str, str | Path], encoder: Encoder
) -> Iterator[tuple[list[str], Matrix, list[Failure]]]:
    """Yield keys, embeddings (n, d) and failures of batches of image files, in order; decoded ahead as in an embedding.

    Args:
        paths: image files by key.
        encoder: the contrastive model.

    Raises:
        C3Error: if no worker process can be started.
    """
    items = [ImageItem(key, str(path), None, None) for key, path in paths.items()]
    options = EmbedOptions(workers=None if len(items) > _FEW else 0)
    for batch, embeddings in _encoded_batches(encoder, [(0, items)], options, cores()):
        yield [row["key"] for row in batch.rows], embeddings, batch.failures


_Decoded = tuple[list[dict[str, Any]], list[Failure]]  # rows and failures


def _decode(
    reader: ImageReader,
    preprocess: ImagePreprocessor,
    time_limit: float | None,
    items: Sequence[ImageItem],
    pixels: Pixels,
) -> _Decoded:
    """Decode images into the first places of ``pixels``; those that cannot be read or decoded are failures.

    Where an image takes longer than ``time_limit``, this process ends: a decoder is C code that may not return for
    hours, and signal handlers and threads of Python wait for it.

    Raises:
        UnreachableError: if a server does not answer, or refuses access: no image of it can be read.
    """
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for item in items:
        stage = "read"
        try:
            content = reader.read(item)
            stage = "decode"
            if not content:
                raise ValueError("empty file")
            if time_limit:
                faulthandler.dump_traceback_later(time_limit, exit=True, file=2)
            pixels[len(rows)], width, height = preprocess.load(io.BytesIO(content))
        except UnreachableError:
            raise
        except Exception as error:  # a decoder may raise anything on a damaged file; no file may stop the others
            failures.append(_failure_of(item, stage, error))
            continue
        finally:
            if time_limit:
                faulthandler.cancel_dump_traceback_later()
        size = {"width": width, "height": height, "size": len(content)}
        rows.append({"key": item.key, "path": item.path, **size, "split": item.split})
    return rows, failures


def _failure_of(item: ImageItem, stage: str, error: Exception) -> Failure:
    """Return the record of an image, or a video, that could not be read or decoded."""
    message = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        message = f"takes more than {LARGEST_DECODED:,} bytes of memory to decode"
    return Failure(item.key, item.path, stage, type(error).__name__, message[:500])


# of a worker process: how it decodes, and the memory that it shares with the process that started it
_worker: list[tuple[ImageReader, ImagePreprocessor, float | None, Pixels]] = []


def _start_worker(preprocess: ImagePreprocessor, time_limit: float | None, memory: Any, shape: tuple[int, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and libjpeg write a line for every tag they find odd
    _worker.append((ImageReader(), preprocess, time_limit, np.frombuffer(memory, np.uint8).reshape(shape)))
    with suppress(ImportError, OSError, ValueError, StopIteration):  # a limit of memory, where the system has one
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData:"))
        allowed = used + LARGEST_DECODED + _SPARE + _STACK * (os.cpu_count() or 1)  # some decoders start threads
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _decode_in_worker(items: Sequence[ImageItem], place: int, start: int) -> _Decoded:
    reader, preprocess, time_limit, pixels = _worker[0]
    return _decode(reader, preprocess, time_limit, items, pixels[place, start:])


class _Pool:
    """Worker processes that decode, made when they are first needed, and anew after `close`.

    Args:
        workers: their number.
        arguments: of `_start_worker`.
    """

    def __init__(self, workers: int, *arguments: Any) -> None:
        self._workers, self._arguments = workers, arguments
        self._executor: ProcessPoolExecutor | None = None
        self._others: set[Any] = set()  # processes that are not of the pool

    def submit(self, items: Sequence[ImageItem], place: int, start: int = 0) -> Future[_Decoded]:
        """Let a worker decode images into a place, from its row ``start`` on.

        Raises:
            C3Error: if no process can be started.
        """
        try:
            if self._executor is None:
                self._others = set(multiprocessing.active_children())
                self._executor = ProcessPoolExecutor(self._workers, initializer=_start_worker, initargs=self._arguments)
            return self._executor.submit(_decode_in_worker, items, place, start)
        except BrokenProcessPool:  # since the last look
            self.close()
            return self.submit(items, place, start)
        except OSError as error:
            raise C3Error(
                f"The {self._workers:,} processes for decoding images could not be started "
                f"({error.strerror or error}).",
                remedy="Use fewer --workers.",
            ) from error

    def decode_one_by_one(self, items: Sequence[ImageItem], place: int, time_limit: float | None) -> _Decoded:
        """Decode images each by itself; one that ends its process, or takes too long, is a failure."""
        rows: list[dict[str, Any]] = []
        failures: list[Failure] = []
        for item in items:
            began = time.monotonic()
            try:
                row, failure = self.submit([item], place, len(rows)).result()
            except BrokenProcessPool:
                self.close()
                error: Exception = ValueError("the process that decodes it ends each time")
                if time_limit and time.monotonic() - began >= time_limit:
                    error = TimeoutError(f"took longer than {time_limit:g} s to decode; --image-timeout allows more")
                row, failure = [], [_failure_of(item, "decode", error)]
            rows += row
            failures += failure
        return rows, failures

    def close(self) -> None:
        """End the workers; they have nothing to tidy up, and may be in a decoder that does not come back."""
        if self._executor is not None:
            for worker in set(multiprocessing.active_children()) - self._others:
                worker.kill()
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


def _was_ended(waiting: Future[_Decoded] | _Decoded) -> bool:
    """Return whether the process that decodes has ended; waits for it."""
    if not isinstance(waiting, Future):
        return False
    return waiting.cancelled() or isinstance(waiting.exception(), BrokenProcessPool)


def pixel_batches(
    shards: Iterable[tuple[int, Sequence[ImageItem]]],
    preprocess: ImagePreprocessor,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    time_limit: float | None = None,
) -> Generator[_Batch, None, None]:
    """Decode the images of all shards, batch by batch, in order; the contents of a batch depend on its shard alone.

    Args:
        shards: number and images of each.
        preprocess: of the encoder.
        batch_size: images in a batch.
        workers: number of decoding processes; 0 decodes in this one.
        pin_memory: hand pixels over in page-locked memory, for copies to a GPU.
        time_limit: seconds that decoding one image may take; one that takes longer is a failure. It ends its process,
            so the limit needs ``workers``.

    Raises:
        C3Error: if no worker process can be started.
        UnreachableError: if the server of the images does not answer, or refuses access.
    """
    jobs = (
        (number, start + batch_size >= len(items), items[start : start + batch_size])
        for number, items in shards
        for start in range(0, len(items), batch_size)
    )
    places = max(1, workers * _BATCHES_AHEAD)
    shape = (places, batch_size, *preprocess.size, 3)
    size = math.prod(shape)
    memory: Any = multiprocessing.RawArray("B", size) if workers else bytearray(size)  # shared with the workers
    shared = np.frombuffer(memory, np.uint8).reshape(shape)
    pool = _Pool(workers, preprocess, time_limit, memory, shape)
    ahead: deque[tuple[int, bool, Sequence[ImageItem], int, Future[_Decoded] | _Decoded]] = deque()
    with ImageReader() as reader, closing(pool):
        here = partial(_decode, reader, preprocess, None)
        for place in cycle(range(places)):
            start = time.perf_counter()
            for shard, last, items in islice(jobs, places - len(ahead)):
                free = (place + len(ahead)) % places
                decoded = pool.submit(items, free) if workers else here(items, shared[free])
                ahead.append((shard, last, items, free, decoded))
            if not ahead:
                return
            if _was_ended(ahead[0][-1]):
                pool.close()
                for number, (shard, last, items, at, waiting) in enumerate(ahead):
                    if _was_ended(waiting):
                        ahead[number] = shard, last, items, at, pool.decode_one_by_one(items, at, time_limit)
            shard, last, _, _, decoded = ahead.popleft()
            rows, failures = decoded.result() if isinstance(decoded, Future) else decoded
            waited = time.perf_counter() - start
            pixels = shared[place, : len(rows)].copy()
            if pin_memory:
                import torch

                pixels = torch.from_numpy(pixels).pin_memory().numpy()  # copies to a GPU then run in the background
            yield _Batch(shard, last, pixels, rows, failures, waited)
