"""Shards on one device: decode, encode and write one after another, as work for an executor.

Images are decoded in worker processes, a bounded number of batches in advance. If a worker hangs or
dies, the pool is made anew and the images in flight are decoded one by one; the image that does it
again is a failure.
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..arrays import Indices, Matrix, Pixels
from ..corpus.images import ImageReader, read_frames, read_sound
from ..corpus.items import ImageItem, ItemTable
from ..devices import limit_threads
from ..encoders import Encoder, ImagePreprocessor, resolve_encoder
from ..errors import C3Error, StoreError, UnreachableError, reason_of, remedy_of
from ..executors import Report, Work, cores, end_with_parent
from ..io.files import sha256_of
from ..io.limits import LARGEST_DECODED
from ..io.locations import location
from ..store import Failure, Store
from ..store.dataset import with_column
from ..store.manifest import REWRITING
from ..store.rows import keys_of
from ..store.shards import part_name, shard_table, write_rows
from .summary import ModalitySummary

_MOST_WORKERS = 16
_BATCHES_AHEAD = 3  # of each worker
_SPARE, _STACK = 64 << 20, 8 << 20  # bytes for all but decoding, and for the stack of a thread


ShardTask = tuple[int, Indices]  # a shard's number, and the positions of its inputs in the corpus
# numbers of shards and their inputs, `ImageItem` or `TextItem`
_Shards = Iterable[tuple[int, Sequence[Any]]]


@dataclass(frozen=True)
class EmbedOptions:
    """The options of `c3tools.embed` about its work and its shards, which are described there."""

    dtype: str = "float16"
    shard_size: int = 4096
    workers: int | None = None
    batch_size: int | None = None
    image_timeout: float = 60.0
    fps: float = 1.0
    retry_failed: bool = False
    update: bool = False
    prune: bool = False
    faiss: bool = False
    long_texts: str = "cut"


@dataclass(frozen=True)
class ShardEdit:
    """What is changed in a shard that exists, without the encoder.

    Attributes:
        removed: keys of rows and failures to leave out.
        paths: new paths of rows and failures, by their keys.
    """

    removed: set[str] = field(default_factory=set)
    paths: dict[str, str] = field(default_factory=dict)


class EmbedWork(Work[ShardTask, ModalitySummary]):
    """The embedding of one modality; a task is one shard, whose bytes are the same wherever it is
    made.

    Args:
        store: the store to write to, which already exists.
        modality: ``image``, ``video`` or ``text``.
        items: the inputs that the positions in tasks are of.
        encoder: is used in this process; others load the same model, once each.
        options: see there.
        edits: of the shards that exist and whose rows are replaced.
    """

    def __init__(
        self,
        store: Store,
        modality: str,
        items: ItemTable[Any],
        encoder: Encoder,
        options: EmbedOptions,
        edits: Mapping[int, ShardEdit],
    ) -> None:
        self.modality, self.store, self.edits = modality, store, edits
        self._items = items
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
        embed = {"image": self._images, "text": self._texts}.get(self.modality, self._singly)
        shards = ((number, self._items.take(positions)) for number, positions in tasks)
        nothing, start = np.zeros((0, self._encoder.dim), np.float32), time.perf_counter()
        for number, shard in groupby(
            embed(self._encoder, shards, report), key=lambda embedded: embedded[0].shard
        ):
            batches, features = zip(*shard, strict=True)
            rows = [row for batch in batches for row in batch.rows]
            failures = [failure for batch in batches for failure in batch.failures]
            columns = {
                name: [row[name] for row in rows] for name in (rows[0] if rows else ("key",))
            }
            table = shard_table(
                self.store.info, self.modality, np.concatenate([nothing, *features]), columns
            )
            encoded, path, content = time.perf_counter(), self.store.path, (table, failures)
            with writing_to(path):
                if number in self.edits:
                    path /= REWRITING
                    content = rewritten_shard(
                        self.store, self.modality, number, self.edits[number], *content
                    )
                write_rows(
                    path / part_name(self.modality, number),
                    self.store.info,
                    self.modality,
                    *content,
                )
            waited, end = sum(batch.waited for batch in batches), time.perf_counter()
            seconds = {
                "waiting": waited,
                "encoding": encoded - start - waited,
                "writing": end - encoded,
            }
            names = ("updated", "not_updated") if number in self.edits else ("embedded", "failed")
            counts: Any = dict(zip(names, (len(rows), len(failures)), strict=True))
            yield ModalitySummary(
                truncated=sum(batch.truncated for batch in batches), seconds=seconds, **counts
            )
            start = end

    def _images(
        self, encoder: Encoder, shards: _Shards, report: Report
    ) -> Iterator[tuple[_Batch, Matrix]]:
        for batch, features in encoded_images(encoder, shards, self._options, self._cores):
            report(len(batch.rows) + len(batch.failures), len(batch.failures))
            yield batch, features

    def _singly(
        self, encoder: Encoder, shards: _Shards, report: Report
    ) -> Iterator[tuple[_Batch, Matrix]]:
        """Yield the embedding (1, d) of each video or sound."""
        embed = self._video if self.modality == "video" else self._sound
        for number, item in ((number, item) for number, items in shards for item in items):
            batch, features = _Batch(number, [], []), np.zeros((0, encoder.dim), np.float32)
            row: dict[str, Any] = {
                name: getattr(item, name) for name in ("key", "path", "size", "split")
            }
            try:
                features, waited = embed(encoder, item, row)
                row["sha256"] = sha256_of(location(item.path))
                batch = batch._replace(rows=[row], waited=waited)
            except Exception as error:
                # a decoder may raise anything on a damaged file, as for images
                batch.failures.append(_failure_of(item, "decode", error))
            report(1, len(batch.failures))
            yield batch, features

    def _video(
        self, encoder: Encoder, item: ImageItem, row: dict[str, Any]
    ) -> tuple[Matrix, float]:
        """Return the mean of the embeddings of a video's frames, at unit length, and seconds of
        waiting.
        """
        size, waited, start = (
            self._options.batch_size or encoder.batch_size("image"),
            0.0,
            time.perf_counter(),
        )
        total, row["frames"] = np.zeros((1, encoder.dim)), 0
        frames = read_frames(item.path, self._options.fps, self._options.image_timeout or None)
        while some := list(islice(frames, size)):
            waited += time.perf_counter() - start
            at, image = some[-1]
            row |= {"width": image.width, "height": image.height, "duration": at}
            row["frames"] += len(some)
            features = encoder.encode_images([image for _, image in some], batch_size=size)
            total += features.sum(axis=0, dtype=np.float64)
            start = time.perf_counter()
        norm = np.linalg.norm(total)
        if not norm > 0:
            raise ValueError("the embeddings of its frames cancel out")
        return (total / norm).astype(np.float32), waited

    def _sound(
        self, encoder: Encoder, item: ImageItem, row: dict[str, Any]
    ) -> tuple[Matrix, float]:
        start = time.perf_counter()
        sound, row["duration"] = read_sound(item.path, encoder.sampling_rate)
        waited = time.perf_counter() - start
        return encoder.encode_audio(sound), waited

    def _texts(
        self, encoder: Encoder, shards: _Shards, report: Report
    ) -> Iterator[tuple[_Batch, Matrix]]:
        for number, items in shards:
            captions = [item.caption for item in items]
            parts = (
                encoder.chunks(captions)
                if self._options.long_texts == "mean"
                else [[text] for text in captions]
            )
            pieces, starts = (
                [piece for own in parts for piece in own],
                np.cumsum([0, *map(len, parts)])[:-1],
            )
            tokens, is_first = encoder.tokenise(pieces), np.isin(np.arange(len(pieces)), starts)
            embeddings = np.zeros((len(pieces), encoder.dim), np.float32)
            batches = encoder.token_batches(tokens, self._options.batch_size)
            for rows, features in encoder.encode_batches("text", batches):
                embeddings[rows] = features
                report(int(is_first[rows].sum()), 0)
            truncated = int(encoder.truncated(pieces, tokens).sum())
            if len(pieces) > len(items):
                means = np.add.reduceat(embeddings.astype(np.float64), starts) / [
                    [len(own)] for own in parts
                ]
                norms = np.linalg.norm(means, axis=1, keepdims=True) if encoder.normalised else 1.0
                embeddings = (means / norms).astype(np.float32)
            yield (
                _Batch(number, [item._asdict() for item in items], [], truncated=truncated),
                embeddings,
            )


@contextmanager
def writing_to(store: Path) -> Iterator[None]:
    """Turn an error of the operating system in the block into one that says what is kept, and what
    to do.

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
            remedy=f"Finished work is kept. {remedy_of(error)}",
        ) from error


def rewritten_shard(
    store: Store,
    modality: str,
    part: int,
    edit: ShardEdit,
    new: pa.Table | None = None,
    failed: Sequence[Failure] = (),
) -> tuple[pa.Table, list[Failure]]:
    """Return the rows and failures of a shard without some of them, and with others in their
    places.

    Args:
        store: the store.
        modality: of the shard.
        part: its number.
        edit: rows and failures to leave out, and new paths.
        new: rows that take the places of those with their keys.
        failed: inputs whose rows stay as they were.

    Raises:
        StoreError: if the shard cannot be read.
    """
    rows, failures = store.read_shard(modality, part)
    keys = keys_of(rows)
    if edit.paths:
        paths = zip(keys, rows["path"].to_pylist(), strict=True)
        new_paths = [edit.paths.get(key, path) for key, path in paths]
        rows = with_column(rows, "path", pa.array(new_paths, pa.string()))
    places = [place for place, key in enumerate(keys) if key not in edit.removed]
    settled_keys = {*edit.removed, *(keys[place] for place in places)}
    if new is not None:
        place_of_new = {key: len(keys) + row for row, key in enumerate(keys_of(new))}
        places = [place_of_new.get(keys[place], place) for place in places]
        rows = pa.concat_tables([rows, new])
    failures = [
        replace(failure, path=edit.paths.get(failure.key, failure.path))
        for failure in [*failures, *failed]
        if failure.key not in settled_keys
    ]
    return rows.take(pa.array(places, pa.int64())).combine_chunks(), failures


@lru_cache(maxsize=1)
def _load_once(identity: str, backend: str, precision: str, device: str) -> Encoder:
    return resolve_encoder(
        recorded=json.loads(identity), device=device, backend=backend, precision=precision
    )


class _Batch(NamedTuple):
    """Part of a shard."""

    shard: int  # its number
    # the store's columns, without embeddings, of the inputs that could be decoded
    rows: list[dict[str, Any]]
    failures: list[Failure]  # the inputs that could not
    waited: float = 0.0  # seconds, for inputs to be read and decoded
    truncated: int = 0  # texts that were cut


def encoded_images(
    encoder: Encoder, shards: _Shards, options: EmbedOptions, cores: int
) -> Iterator[tuple[_Batch, Matrix]]:
    """Yield batches of images with their features (n, d); the next are decoded and encoded while
    one is used.

    Raises:
        C3Error: if no worker process can be started.
    """
    most = cores if encoder.compute.device_type == "cpu" else min(cores, _MOST_WORKERS)
    batches = _decoded_batches(
        shards,
        encoder.preprocess,
        batch_size=options.batch_size or encoder.batch_size("image"),
        workers=most if options.workers is None else options.workers,
        time_limit=options.image_timeout or None,
    )
    return encoder.encode_batches("image", batches)


# rows, failures, and the pixels of the rows where images keep their own sizes
_Decoded = tuple[list[dict[str, Any]], list[Failure], list[Pixels]]


def _decode(
    reader: ImageReader,
    preprocess: ImagePreprocessor,
    time_limit: float | None,
    pixels: Pixels | None,
    items: Sequence[ImageItem],
) -> _Decoded:
    """Decode images into the first places of ``pixels``, or return them if that is None; others are
    failures.

    Where an image takes longer than ``time_limit``, this process ends: a decoder is C code that may
    not return for hours, and signal handlers and threads of Python wait for it.

    Raises:
        UnreachableError: if a server does not answer, or refuses access: no image of it can be
            read.
    """
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    own: list[Pixels] = []
    for item in items:
        stage = "read"
        try:
            content = reader.read(item)
            stage = "decode"
            if not content:
                raise ValueError("empty file")
            if time_limit:
                faulthandler.dump_traceback_later(time_limit, exit=True, file=2)
            decoded, width, height = preprocess.load(io.BytesIO(content))
        except UnreachableError:
            raise
        except Exception as error:
            # a decoder may raise anything on a damaged file; no file may stop the others
            failures.append(_failure_of(item, stage, error))
            continue
        finally:
            if time_limit:
                faulthandler.cancel_dump_traceback_later()
        size = {"width": width, "height": height, "size": len(content)}
        digest = hashlib.sha256(content).hexdigest()
        if pixels is None:
            own.append(decoded)
        else:
            pixels[len(rows)] = decoded
        row = {"key": item.key, "path": item.path, **size, "sha256": digest, "split": item.split}
        rows.append(row)
    return rows, failures, own


def _failure_of(item: ImageItem, stage: str, error: Exception) -> Failure:
    """Return the record of an image, or a video, that could not be read or decoded."""
    too_large = f"takes more than {LARGEST_DECODED:,} bytes of memory to decode"
    message = too_large if isinstance(error, MemoryError) else reason_of(error)
    return Failure(item.key, item.path, stage, type(error).__name__, message)


# what a worker process does with a place and images
_worker: list[Callable[[int, Sequence[ImageItem]], _Decoded]] = []


def _start_worker(
    preprocess: ImagePreprocessor, time_limit: float | None, memory: Any, shape: tuple[int, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    # libtiff and libjpeg write a line for every tag they find odd
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    shared, reader = _shared(preprocess, memory, shape), ImageReader()
    _worker.append(
        lambda place, items: _decode(reader, preprocess, time_limit, shared[place], items)
    )
    # a limit of memory, where the system has one
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
        used = int(status.partition("VmData:")[2].split()[0]) << 10
        # some decoders start threads
        allowed = used + LARGEST_DECODED + _SPARE + _STACK * (os.cpu_count() or 1)
        resource.setrlimit(
            resource.RLIMIT_DATA, (allowed, resource.getrlimit(resource.RLIMIT_DATA)[1])
        )


def _shared(preprocess: ImagePreprocessor, memory: Any, shape: tuple[int, ...]) -> Any:
    """Return memory as places for pixels, uint8 of a shape; None for each place if images keep
    their own sizes.
    """
    return np.frombuffer(memory, np.uint8).reshape(shape) if preprocess.fixed else [None] * shape[0]


def _decode_in_worker(place: int, items: Sequence[ImageItem]) -> _Decoded:
    return _worker[0](place, items)


def _decoded_batches(
    shards: _Shards,
    preprocess: ImagePreprocessor,
    *,
    batch_size: int,
    workers: int,
    time_limit: float | None = None,
    ahead: int = _BATCHES_AHEAD,
) -> Generator[tuple[_Batch, Pixels | list[Pixels]], None, None]:
    """Decode the images of all shards, batch by batch, in order; the contents of a batch depend on
    its shard alone.

    If a worker hangs or dies, the pool is made anew. The batches that were in flight are decoded
    again by a worker that has one image at a time; an image that ends this one, too, is a failure.

    Args:
        shards: number and images of each.
        preprocess: of the encoder.
        batch_size: images in a batch.
        workers: number of decoding processes; 0 decodes in this one.
        time_limit: seconds that decoding one image may take; one that takes longer is a failure. It
            ends its process, so the limit needs ``workers``.
        ahead: batches in flight, for each worker.

    Yields:
        batches with their pixels, uint8 (n, height, width, 3); a list of n images if these keep
        their own sizes.

    Raises:
        C3Error: if no worker process can be started.
        UnreachableError: if the server of the images does not answer, or refuses access.
    """
    jobs = (
        (number, items[start : start + batch_size])
        for number, items in shards
        for start in range(0, len(items), batch_size)
    )
    places = max(1, workers * ahead)
    shape = (places, batch_size, *preprocess.size, 3)
    # shared with the workers
    memory = multiprocessing.RawArray("B", math.prod(shape) if preprocess.fixed else 0)
    shared = _shared(preprocess, memory, shape)
    pool: ProcessPoolExecutor | None = None
    # shard, place, and what waits for it
    in_flight: deque[tuple[int, int, Callable[[], _Decoded]]] = deque()
    free = cycle(range(places))

    def submit(place: int, items: Sequence[ImageItem]) -> Callable[[], _Decoded]:
        nonlocal pool
        if not workers:
            return partial(_decode, reader, preprocess, None, shared[place], items)
        try:
            arguments = preprocess, time_limit, memory, shape
            pool = pool or ProcessPoolExecutor(
                workers, initializer=_start_worker, initargs=arguments
            )
            return partial(wait, place, items, pool, pool.submit(_decode_in_worker, place, items))
        except BrokenProcessPool:
            pool = None
            return submit(place, items)
        except OSError as error:
            raise C3Error(
                f"The {workers:,} processes for decoding images could not be started "
                f"({error.strerror or error}).",
                remedy="Use fewer --workers.",
            ) from error

    def wait(
        place: int, items: Sequence[ImageItem], pool: ProcessPoolExecutor, future: Future[_Decoded]
    ) -> _Decoded:
        start = time.perf_counter()
        try:
            return future.result()
        except BrokenProcessPool:
            pool.shutdown()  # no process of it writes to the place any more
        if ahead == 1:
            error: Exception = ValueError("the process that decodes it ends each time")
            if time_limit and time.perf_counter() - start >= time_limit:
                error = TimeoutError(
                    f"took longer than {time_limit:g} s to decode; --image-timeout allows more"
                )
            return [], [_failure_of(items[0], "decode", error)], []
        again: Any = {"batch_size": 1, "workers": 1, "time_limit": time_limit, "ahead": 1}
        batches, images = zip(*_decoded_batches([(0, items)], preprocess, **again), strict=True)
        own = [image for one in images for image in one]
        if preprocess.fixed and own:
            shared[place, : len(own)] = own
        rows = [row for batch in batches for row in batch.rows]
        return rows, [failure for batch in batches for failure in batch.failures], own

    with ImageReader() as reader:
        try:
            while True:
                start = time.perf_counter()
                for shard, items in islice(jobs, places - len(in_flight)):
                    in_flight.append((shard, place := next(free), submit(place, items)))
                if not in_flight:
                    return
                shard, place, decode = in_flight.popleft()
                rows, failures, own = decode()
                batch = _Batch(shard, rows, failures, time.perf_counter() - start)
                yield batch, shared[place, : len(rows)].copy() if preprocess.fixed else own
        finally:
            if pool is not None:
                for worker in list((pool._processes or {}).values()):
                    # it has nothing to tidy up, and may be in a decoder that does not come back
                    worker.kill()
                pool.shutdown(cancel_futures=True)
