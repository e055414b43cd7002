"""Images decoded in worker processes, a bounded number of batches in advance.

If a worker hangs or dies, the pool is started again, and the images of the batches that were in
flight are decoded one at a time; an image that ends its worker again is recorded as failed.
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..arrays import Pixels
from ..corpus.image_reader import ImageReader
from ..corpus.items import Failure, ImageItem
from ..devices import Compute
from ..encoders import ImagePreprocessor
from ..errors import C3Error, UnreachableError, reason_of
from ..executors import cores, default_context, end_with_parent, start_undisturbed
from ..io.images import UNREADABLE
from ..io.limits import LARGEST_DECODED
from .finder import PhotoFinder

IMAGE_SECONDS = 60.0  # that decoding one image may take where no option says otherwise
_PARTS_AHEAD = 3  # of each worker
_PART = 32  # images of a batch that a worker decodes at a time, into shared memory
_PHOTOS = 32  # of a store, that a worker decodes at a time
_ON_CPU = Compute("cpu", "fp32")
_SPARE = 64 << 20  # bytes for all but decoding
_STACK = 8 << 20  # bytes for the stack of a thread

Shards = Iterable[tuple[int, Sequence[Any]]]  # numbers of shards and their inputs


@dataclass(frozen=True)
class Batch:
    """Inputs of a shard that are encoded together.

    Attributes:
        shard: its number.
        rows: the store's columns, without embeddings, of the inputs that could be decoded.
        failures: the inputs that could not.
        waited: seconds, for inputs to be read and decoded.
        truncated: texts that were cut.
    """

    shard: int
    rows: list[dict[str, Any]]
    failures: list[Failure]
    waited: float = 0.0
    truncated: int = 0


@dataclass
class _Decoded:
    """The images of a batch after decoding.

    Attributes:
        rows: of the images that could be decoded.
        failures: the others.
        pixels: of the rows, where they are not in a slot of shared memory.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)


def decoded_batches(
    shards: Shards,
    preprocess: ImagePreprocessor,
    *,
    batch_size: int,
    workers: int,
    time_limit: float | None = None,
    compute: Compute = _ON_CPU,
) -> Generator[tuple[Batch, Pixels | list[Pixels]], None, None]:
    """Decode the images of all shards, batch by batch, in order.

    The contents of a batch depend on its shard alone.

    Args:
        shards: number and images of each.
        preprocess: of the encoder.
        batch_size: images in a batch.
        workers: number of decoding processes; 0 decodes in this one.
        time_limit: seconds that decoding one image may take; one that takes longer is a failure. It
            ends its process, so the limit needs ``workers``.
        compute: of the model that gets the pixels.

    Yields:
        batches with their pixels, uint8 (n, height, width, 3); a list of n images if these keep
        their own sizes.

    Raises:
        C3Error: if no worker process can be started.
        UnreachableError: if the server of the images does not answer, or refuses access.
    """
    # Batches: the number of a shard, and images of it
    batches = (
        (number, items[start : start + batch_size])
        for number, items in shards
        for start in range(0, len(items), batch_size)
    )
    if not workers:
        # In this process, without a limit of time
        with ImageReader() as reader:
            for shard, items in batches:
                start = time.perf_counter()
                pixels: Pixels | None = None
                if preprocess.fixed:
                    pixels = compute.empty_pixels((len(items), *preprocess.size, 3))
                here = _decode(reader, preprocess, None, items, pixels)
                waited = time.perf_counter() - start
                batch = Batch(shard, here.rows, here.failures, waited)
                yield batch, here.pixels if pixels is None else pixels[: len(here.rows)]
        return

    # Parts of batches: the number of a shard, images of it, and how many come after them in their
    # batch
    part_size = min(batch_size, _PART)
    parts = (
        (number, items[start : start + part_size], max(0, len(items) - start - part_size))
        for number, items in batches
        for start in range(0, len(items), part_size)
    )
    with _Pool(preprocess, part_size, workers, time_limit, slots=workers * _PARTS_AHEAD) as pool:
        jobs: deque[tuple[_Job, int]] = deque()  # with the images of the batch that come after
        slots = cycle(range(pool.slots))
        while True:
            start = time.perf_counter()
            rows: list[dict[str, Any]] = []
            failures: list[Failure] = []
            images: list[Pixels] = []
            pixels = None
            images_left = 1
            while images_left:
                for shard, items, images_after in islice(parts, pool.slots - len(jobs)):
                    jobs.append((pool.submit(shard, items, next(slots)), images_after))
                if not jobs:
                    return
                job, images_left = jobs.popleft()
                decoded = pool.wait(job)
                if decoded is None:
                    decoded = _decoded_one_by_one(job.items, preprocess, time_limit)
                    pool.store(job.slot, decoded)
                if not preprocess.fixed:
                    images += decoded.pixels
                elif pixels is None:
                    shape = (len(job.items) + images_left, *preprocess.size, 3)
                    pixels = compute.empty_pixels(shape)
                if pixels is not None:
                    end = len(rows) + len(decoded.rows)
                    pixels[len(rows) : end] = pool.pixels_of(job.slot, decoded)
                rows += decoded.rows
                failures += decoded.failures
            waited = time.perf_counter() - start
            batch = Batch(job.shard, rows, failures, waited)
            yield batch, images if pixels is None else pixels[: len(rows)]


def decode_photos(
    finder: PhotoFinder,
    paths: Sequence[str | None],
    preprocess: ImagePreprocessor,
    *,
    workers: int | None = None,
    time_limit: float | None,
) -> Iterator[tuple[int, Pixels | str]]:
    """Decode the photos of rows of a store, by their paths.

    Args:
        finder: of the store.
        paths: of the photos.
        preprocess: brings them to the size that is needed.
        workers: see `decoded_batches`; by default as many as there are cores.
        time_limit: see `decoded_batches`.

    Yields:
        the position of each path, and its pixels, or in words why there are none: first those that
        are not found, then the others in their order, batch by batch.

    Raises:
        C3Error, UnreachableError: as `decoded_batches`.
    """
    items: list[ImageItem] = []
    for position, path in enumerate(paths):
        try:
            items.append(finder.find(path)._replace(key=str(position)))
        except UNREADABLE as error:
            yield position, reason_of(error)
    for batch, pixels in decoded_batches(
        [(0, items)],
        preprocess,
        batch_size=_PHOTOS,
        workers=cores() if workers is None else workers,
        time_limit=time_limit,
    ):
        for row, photo in zip(batch.rows, pixels, strict=True):
            yield int(row["key"]), photo
        for failure in batch.failures:
            yield int(failure.key), failure.message


def _decoded_one_by_one(
    items: Sequence[ImageItem], preprocess: ImagePreprocessor, time_limit: float | None
) -> _Decoded:
    """Decode images by a worker that has one at a time; one that ends it is a failure."""
    all_decoded = _Decoded()
    with _Pool(preprocess, part_size=1, workers=1, time_limit=time_limit, slots=1) as pool:
        for item in items:
            job = pool.submit(0, [item], slot=0)
            start = time.perf_counter()
            decoded = pool.wait(job)
            if decoded is None:
                error: Exception = ValueError("the decoding process crashes on it every time")
                if time_limit and time.perf_counter() - start >= time_limit:
                    error = TimeoutError(
                        f"took longer than {time_limit:g} s to decode; c3 embed and c3 duplicates "
                        f"allow more time with --image-timeout"
                    )
                all_decoded.failures.append(failure_of(item, "decode", error))
                continue
            all_decoded.rows.extend(decoded.rows)
            all_decoded.failures.extend(decoded.failures)
            all_decoded.pixels += [image.copy() for image in pool.pixels_of(0, decoded)]
    return all_decoded


@dataclass(frozen=True)
class _Job:
    """A part of a batch that a worker decodes into a slot of the shared memory."""

    shard: int
    items: Sequence[ImageItem]
    slot: int
    executor: ProcessPoolExecutor
    future: Future[_Decoded]


class _Pool:
    """Worker processes that decode images into shared memory, and are replaced if one dies.

    Args:
        preprocess: of the encoder.
        part_size: images that a worker decodes at a time, at most.
        workers: number of processes.
        time_limit: seconds that decoding one image may take; None for no limit.
        slots: parts for which there is shared memory.
    """

    def __init__(
        self,
        preprocess: ImagePreprocessor,
        part_size: int,
        workers: int,
        time_limit: float | None,
        slots: int,
    ) -> None:
        self.slots = slots
        self._workers = workers
        shape = (slots, part_size, *preprocess.size, 3)
        self._context = default_context(preprocess)
        memory = self._context.RawArray("B", math.prod(shape) if preprocess.fixed else 0)
        self._pixels = _as_pixels(memory, shape) if preprocess.fixed else None
        self._worker_arguments = (preprocess, time_limit, memory, shape)
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Return the pool; the first batch starts its processes."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Kill the processes: they have nothing to tidy up, and may hang in a decoder."""
        if self._executor is not None:
            for process in list((self._executor._processes or {}).values()):
                process.kill()
            self._executor.shutdown(cancel_futures=True)

    def submit(self, shard: int, items: Sequence[ImageItem], slot: int) -> _Job:
        """Have a part of a batch decoded into a slot.

        Raises:
            C3Error: if no worker process can be started.
        """
        try:
            while True:
                if self._executor is None:
                    self._executor = ProcessPoolExecutor(
                        self._workers,
                        mp_context=self._context,
                        initializer=_start_worker,
                        initargs=self._worker_arguments,
                    )
                try:
                    # A process that is not noted in the executor would never be killed, and Python
                    # would wait for it at its end
                    future = start_undisturbed(
                        partial(self._executor.submit, _decode_in_worker, slot, items)
                    )
                    return _Job(shard, items, slot, self._executor, future)
                except BrokenProcessPool:
                    self._executor = None
        except OSError as error:
            raise C3Error(
                f"The {self._workers:,} image-decoding processes could not be started "
                f"({error.strerror or error}).",
                remedy="Use fewer --workers.",
            ) from error

    def wait(self, job: _Job) -> _Decoded | None:
        """Return the images of a job; None if a worker died before they were decoded.

        Raises:
            UnreachableError: see `_decode`.
        """
        try:
            return job.future.result()
        except BrokenProcessPool:
            job.executor.shutdown()  # no process of it writes to the slot any more
            return None

    def store(self, slot: int, decoded: _Decoded) -> None:
        """Write pixels that were decoded by another pool into a slot."""
        if self._pixels is not None and decoded.pixels:
            self._pixels[slot, : len(decoded.pixels)] = decoded.pixels

    def pixels_of(self, slot: int, decoded: _Decoded) -> Pixels | list[Pixels]:
        """Return the pixels in a slot, until it is used again, or the list of images of their own
        sizes.
        """
        if self._pixels is None:
            return decoded.pixels
        pixels: Pixels = self._pixels[slot, : len(decoded.rows)]
        return pixels


def _as_pixels(memory: Any, shape: tuple[int, ...]) -> Pixels:
    """Return shared memory as pixels: uint8 (slots, part size, height, width, 3)."""
    return np.frombuffer(memory, np.uint8).reshape(shape)


# what a worker process does with the number of a slot and images
_worker: list[Callable[[int, Sequence[ImageItem]], _Decoded]] = []


def _start_worker(
    preprocess: ImagePreprocessor, time_limit: float | None, memory: Any, shape: tuple[int, ...]
) -> None:
    """Prepare a worker process: signals, messages, shared memory, and a limit of its memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    # libtiff and libjpeg write a line for every tag they find odd
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    reader = ImageReader()
    pixels = _as_pixels(memory, shape) if preprocess.fixed else None

    def decode_into_slot(slot: int, items: Sequence[ImageItem]) -> _Decoded:
        slot_pixels = None if pixels is None else pixels[slot]
        return _decode(reader, preprocess, time_limit, items, slot_pixels)

    _worker.append(decode_into_slot)
    # Only so much memory as decoding the largest image needs; where the system has no such limit,
    # the worker goes without
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
        used = int(status.partition("VmData:")[2].split()[0]) << 10
        # some decoders start threads
        allowed = used + LARGEST_DECODED + _SPARE + _STACK * (os.cpu_count() or 1)
        _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard_limit))


def _decode_in_worker(slot: int, items: Sequence[ImageItem]) -> _Decoded:
    return _worker[0](slot, items)


def _decode(
    reader: ImageReader,
    preprocess: ImagePreprocessor,
    time_limit: float | None,
    items: Sequence[ImageItem],
    pixels: Pixels | None,
) -> _Decoded:
    """Read and decode images into the first places of ``pixels``; others are failures.

    Without ``pixels`` the result has the decoded images.

    Where an image takes longer than ``time_limit``, this process ends: a decoder is C code that may
    not return for hours, and signal handlers and threads of Python wait for it.

    Raises:
        UnreachableError: if a server does not answer, or refuses access: no image of it can be
            read.
    """
    decoded = _Decoded()
    for item in items:
        stage = "read"
        try:
            content = reader.read(item)
            stage = "decode"
            if not content:
                raise ValueError("empty file")
            if time_limit:
                faulthandler.dump_traceback_later(time_limit, exit=True, file=2)
            image, width, height = preprocess.load(io.BytesIO(content))
        except UnreachableError:
            raise
        except Exception as error:
            # a decoder may raise anything on a damaged file; no file may stop the others
            decoded.failures.append(failure_of(item, stage, error))
            continue
        finally:
            if time_limit:
                faulthandler.cancel_dump_traceback_later()
        if pixels is None:
            decoded.pixels.append(image)
        else:
            pixels[len(decoded.rows)] = image
        decoded.rows.append(
            {
                "key": item.key,
                "path": item.path,
                "width": width,
                "height": height,
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "split": item.split,
                "settled": item.settled,
                "columns": item.columns,
            }
        )
    return decoded


def failure_of(item: ImageItem, stage: str, error: Exception) -> Failure:
    """Return the record of an image, a video or a sound that could not be read or decoded."""
    message = reason_of(error)
    if isinstance(error, MemoryError):
        message = f"takes more than {LARGEST_DECODED:,} bytes of memory to decode"
    return Failure(item.key, item.path, stage, type(error).__name__, message)
