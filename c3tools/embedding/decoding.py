"""Decode images into batches of pixels, in worker processes, a bounded number of batches in advance.

If a worker hangs or dies, the pool is made anew and the images in flight are decoded one by one; the image that does it
again is a failure.
"""

from __future__ import annotations

import faulthandler
import io
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Pixels
from ..corpus import ImageItem, ImageReader
from ..encoders import ImagePreprocessor
from ..errors import C3Error, UnreachableError
from ..executors import end_with_parent
from ..io.limits import LARGEST_DECODED
from ..store import Failure

_BATCHES_AHEAD = 3  # of each worker
_SPARE, _STACK = 64 << 20, 8 << 20  # bytes for all but decoding, and for the stack of a thread


class PixelBatch(NamedTuple):
    """Part of a shard, decoded.

    Attributes:
        shard: the shard's number.
        rows: the store's columns of the n images that could be decoded: key, path, split, and as they were read
            width and height in pixels, and size in bytes.
        pixels: uint8 (n, height, width, 3).
        failures: the inputs that could not be decoded.
        last: whether this is the last batch of its shard.
        reading, decoding: seconds spent in the worker.
    """

    shard: int
    rows: list[dict[str, Any]]
    pixels: Pixels
    failures: list[Failure]
    last: bool
    reading: float
    decoding: float


class DecodingError(ValueError):
    """The process that decodes an image ends, each time."""


class DecodingTimeoutError(TimeoutError):
    """An image took longer to decode than it may."""


_Decoded = tuple[list[dict[str, Any]], list[Failure], float, float]  # rows, failures, seconds of reading and decoding


class _Decoder:
    """Decoding of images, in this process or in a worker.

    Args:
        preprocess: of the encoder.
        time_limit: seconds for one image, after which the process ends: a decoder is C code that may not return for
            hours, and signal handlers and threads of Python wait for it.
    """

    def __init__(self, preprocess: ImagePreprocessor, time_limit: float | None) -> None:
        self._preprocess, self._time_limit = preprocess, time_limit
        self.reader = ImageReader()

    def decode(self, items: Sequence[ImageItem], pixels: Pixels) -> _Decoded:
        """Decode images into the first places of ``pixels``; those that cannot be read or decoded are failures.

        Raises:
            UnreachableError: if a server does not answer, or refuses access: no image of it can be read.
        """
        rows: list[dict[str, Any]] = []
        failures: list[Failure] = []
        reading, start = 0.0, time.perf_counter()
        for item in items:
            stage, content = "read", b""
            try:
                opened = time.perf_counter()
                content = self.reader.read(item)
                reading += time.perf_counter() - opened
                stage = "decode"
                if self._time_limit:
                    faulthandler.dump_traceback_later(self._time_limit, exit=True, file=2)
                pixels[len(rows)], width, height = self._preprocess.load(io.BytesIO(content))
            except UnreachableError:
                raise
            except Exception as error:  # a decoder may raise anything on a damaged file; no file may stop the others
                failures.append(failure_of(item, stage, error, empty=stage == "decode" and not content))
                continue
            finally:
                if self._time_limit:
                    faulthandler.cancel_dump_traceback_later()
            size = {"width": width, "height": height, "size": len(content)}
            rows.append({"key": item.key, "path": item.path, **size, "split": item.split})
        return rows, failures, reading, time.perf_counter() - start - reading


_decoder: _Decoder | None = None  # of a worker process
_places: Pixels | None = None  # what it shares with the process that started it


def _start_worker(preprocess: ImagePreprocessor, time_limit: float | None, memory: Any, shape: tuple[int, ...]) -> None:
    global _decoder, _places
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and libjpeg write a line for every tag they find odd
    _decoder, _places = _Decoder(preprocess, time_limit), np.frombuffer(memory, np.uint8).reshape(shape)
    with suppress(ImportError, OSError, ValueError, StopIteration):  # a limit of memory, where the system has one
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData:"))
        allowed = used + LARGEST_DECODED + _SPARE + _STACK * (os.cpu_count() or 1)  # some decoders start threads
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _decode_in_worker(items: Sequence[ImageItem], place: int) -> _Decoded:
    assert _decoder is not None
    assert _places is not None
    return _decoder.decode(items, _places[place])


class _Pool:
    """Worker processes that decode, made when they are first needed, and anew after `end`.

    Args:
        workers: their number.
        preprocess, time_limit: see `pixel_batches`.
        places: number of batches that fit into the memory that the workers share with this process.
        batch_size: images in a batch.

    Attributes:
        pixels: uint8 (places, batch_size, height, width, 3), where they put what they decode.
    """

    def __init__(
        self, workers: int, preprocess: ImagePreprocessor, time_limit: float | None, places: int, batch_size: int
    ) -> None:
        shape = (places, batch_size, *preprocess.size, 3)
        memory = multiprocessing.RawArray("B", math.prod(shape))
        self.pixels = np.frombuffer(memory, np.uint8).reshape(shape)
        self._workers, self._arguments = workers, (preprocess, time_limit, memory, shape)
        self._executor: ProcessPoolExecutor | None = None
        self._others: set[Any] = set()  # processes that are not of the pool

    def submit(self, items: Sequence[ImageItem], place: int) -> Future[_Decoded]:
        """Let a worker decode images into a place.

        Raises:
            C3Error: if no process can be started.
        """
        try:
            if self._executor is None:
                self._others = set(multiprocessing.active_children())
                self._executor = ProcessPoolExecutor(self._workers, initializer=_start_worker, initargs=self._arguments)
            return self._executor.submit(_decode_in_worker, items, place)
        except BrokenProcessPool as error:
            broken: Future[_Decoded] = Future()
            broken.set_exception(error)
            return broken
        except OSError as error:
            raise C3Error(
                f"The {self._workers:,} processes for decoding images could not be started "
                f"({error.strerror or error}).",
                remedy="Use fewer --workers.",
            ) from error

    def end(self) -> None:
        """End the workers; they have nothing to tidy up, and may be in a decoder that does not come back."""
        if self._executor is not None:
            for worker in set(multiprocessing.active_children()) - self._others:
                worker.kill()
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


def pixel_batches(
    shards: Iterable[tuple[int, Sequence[ImageItem]]],
    preprocess: ImagePreprocessor,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    time_limit: float | None = None,
) -> Generator[PixelBatch, None, None]:
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
        (number, items[start : start + batch_size], start + batch_size >= len(items))
        for number, items in shards
        for start in range(0, len(items), batch_size)
    )
    if not workers:
        here = _Decoder(preprocess, None)
        with here.reader:
            for shard, items, last in jobs:
                pixels = np.empty((len(items), *preprocess.size, 3), np.uint8)
                yield _batch(shard, last, here.decode(items, pixels), pixels, pin_memory)
        return
    places = workers * _BATCHES_AHEAD
    pool = _Pool(workers, preprocess, time_limit, places, batch_size)
    ahead: deque[tuple[int, Sequence[ImageItem], bool, int, Future[_Decoded]]] = deque()
    try:
        for place in cycle(range(places)):
            for job in islice(jobs, places - len(ahead)):
                free = (place + len(ahead)) % places
                ahead.append((*job, free, pool.submit(job[1], free)))
            if not ahead:
                return
            shard, items, last, _, future = ahead.popleft()
            try:
                decoded = future.result()
            except BrokenProcessPool:
                pool.end()
                decoded = _one_by_one(items, pool.pixels[place], preprocess, time_limit)
                for number, (own, images, ends, at, waiting) in enumerate(ahead):
                    if waiting.cancelled() or isinstance(waiting.exception(), BrokenProcessPool):
                        done: Future[_Decoded] = Future()
                        done.set_result(_one_by_one(images, pool.pixels[at], preprocess, time_limit))
                        ahead[number] = (own, images, ends, at, done)
            yield _batch(shard, last, decoded, pool.pixels[place].copy(), pin_memory)
    finally:
        pool.end()


def _one_by_one(
    items: Sequence[ImageItem], pixels: Pixels, preprocess: ImagePreprocessor, time_limit: float | None
) -> _Decoded:
    """Decode images each by itself; one that ends its process, or takes too long, is a failure."""
    pool = _Pool(1, preprocess, time_limit, 1, 1)
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    seconds = np.zeros(2)
    try:
        for item in items:
            began = time.monotonic()
            try:
                row, failure, *own = pool.submit([item], 0).result()
            except BrokenProcessPool:
                pool.end()
                error: Exception = DecodingError("the process that decodes it ends each time")
                if time_limit and time.monotonic() - began >= time_limit:
                    limit = f"{time_limit:g} s; raise the limit with --image-timeout"
                    error = DecodingTimeoutError(f"decoding took longer than {limit}")
                failures.append(failure_of(item, "decode", error))
                continue
            pixels[len(rows) : len(rows) + len(row)] = pool.pixels[0, : len(row)]
            rows += row
            failures += failure
            seconds += own
    finally:
        pool.end()
    return rows, failures, float(seconds[0]), float(seconds[1])


def _batch(shard: int, last: bool, decoded: _Decoded, pixels: Pixels, pin_memory: bool) -> PixelBatch:
    rows, failures, reading, decoding = decoded
    pixels = pixels[: len(rows)]
    if pin_memory:
        import torch

        pixels = torch.from_numpy(pixels).pin_memory().numpy()  # copies to a GPU then run in the background
    return PixelBatch(shard, rows, pixels, failures, last, reading, decoding)


def failure_of(item: ImageItem, stage: str, error: Exception, *, empty: bool = False) -> Failure:
    """Return the record of an image, or a video, that could not be read or decoded."""
    if empty:
        message = "empty file"
    elif isinstance(error, MemoryError):
        message = f"takes more than {LARGEST_DECODED:,} bytes of memory to decode"
    else:
        message = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    message = "; ".join([message, *getattr(error, "__notes__", [])])
    return Failure(item.key, item.path, stage, type(error).__name__, message[:500])
