"""Decode images into batches of pixels, in worker processes, a bounded number of batches in advance.

Each worker decodes its share of the batches, in order, into a few places of memory that it shares with this process,
and waits while all of them are full. Everything else goes through a pipe of its own, so a worker that is killed leaves
no lock behind. An image that takes too long to decode ends its process, and the others go on without it.
"""

from __future__ import annotations

import faulthandler
import io
import math
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Pixels
from ..corpus import ImageItem, ImageReader
from ..encoders import ImagePreprocessor
from ..errors import C3Error, UnreachableError
from ..io.limits import LARGEST_DECODED
from ..store import Failure

_BATCHES_AHEAD = 3  # of each worker
_PATIENCE = 5.0  # seconds for a worker to end
_IDLE = -1.0
_SPARE, _STACK = 64 << 20, 8 << 20  # bytes for all but decoding, and for the stack of a thread
_FIELDS = 3  # when decoding began, number of the shard, position in it

# a batch before it is decoded: shard, position of its first item in the shard, items, whether it is the shard's last
_Job = tuple[int, int, Sequence[ImageItem], bool]


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


def pixel_batches(
    shards: Mapping[int, Sequence[ImageItem]],
    preprocess: ImagePreprocessor,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    time_limit: float | None = None,
) -> Generator[PixelBatch, None, None]:
    """Decode the images of all shards, batch by batch, in order; the contents of a batch depend on its shard alone.

    Args:
        workers: number of decoding processes; 0 decodes in this one.
        pin_memory: hand pixels over in page-locked memory, for copies to a GPU.
        time_limit: seconds that decoding one image may take; one that takes longer is a failure. It ends its process,
            so the limit needs ``workers``.

    Raises:
        C3Error: if a worker process is killed.
        UnreachableError: if the server of the images does not answer, or refuses access.
    """
    jobs: list[_Job] = [
        (number, start, items[start : start + batch_size], start + batch_size >= len(items))
        for number, items in shards.items()
        for start in range(0, len(items), batch_size)
    ]
    watch = DecodingWatch(workers, time_limit) if workers and jobs and time_limit else None
    if not workers:
        yield from _decoded_here(jobs, preprocess)
        return
    done = 0
    while done < len(jobs):
        try:
            with closing(_decoded_by_workers(jobs[done:], preprocess, workers, watch, pin_memory)) as batches:
                for batch in batches:
                    done += 1
                    yield batch
        except _WorkerEndedError as error:
            if watch is None or not watch.find_stuck():
                raise C3Error(
                    f"A process that decodes images was killed ({error}).",
                    remedy="Finished work is kept. Run the same command again, with fewer --workers if memory was "
                    "short.",
                ) from None


def _decoded_here(jobs: Sequence[_Job], preprocess: ImagePreprocessor) -> Iterator[PixelBatch]:
    with closing(ImageReader()) as reader:
        for job in jobs:
            pixels = np.empty((len(job[2]), *preprocess.size, 3), np.uint8)
            batch = _decode(job, preprocess, reader, pixels, lambda *_: nullcontext())
            yield batch._replace(pixels=pixels[: len(batch.rows)])


class _WorkerEndedError(Exception):
    """A worker process ended before its work was done."""


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection
    places: Pixels  # uint8 (places, images, height, width, 3)


def _decoded_by_workers(
    jobs: Sequence[_Job],
    preprocess: ImagePreprocessor,
    count: int,
    watch: DecodingWatch | None,
    pin_memory: bool,
) -> Generator[PixelBatch, None, None]:
    """Yield the batches of all jobs; of n workers the first decodes every n-th job from the first, and so on.

    Raises:
        _WorkerEndedError: if one ends before its work is done.
        C3Error: if one cannot be started.
    """
    count = min(count, len(jobs))
    places = min(_BATCHES_AHEAD, math.ceil(len(jobs) / count))
    shape = (places, max(len(items) for _, _, items, _ in jobs), *preprocess.size, 3)
    context = multiprocessing.get_context()
    workers: list[_Worker] = []
    try:
        for number in range(count):
            try:
                memory = context.RawArray("B", math.prod(shape))
                pipe, its_pipe = context.Pipe()
                with its_pipe:
                    # a worker must not hold the others' pipes open: it could not see that this process has died
                    held = [*(worker.pipe for worker in workers), pipe]
                    arguments = (its_pipe, held, memory, shape, jobs[number::count], preprocess, watch, number)
                    process = context.Process(target=_work, args=arguments, daemon=True)
                    process.start()
            except OSError as error:
                raise C3Error(
                    f"Process {number + 1} of {count} for decoding images could not be started "
                    f"({error.strerror or error}).",
                    remedy="Use fewer --workers, or a smaller --batch-size.",
                ) from error
            workers.append(_Worker(process, pipe, np.frombuffer(memory, np.uint8).reshape(shape)))
        for number in range(len(jobs)):
            yield _receive(workers[number % count], pin_memory)
    finally:
        for worker in workers:
            worker.pipe.close()
            worker.process.kill()  # has nothing to tidy up, and may be in a decoder that does not come back
        for worker in workers:
            worker.process.join(_PATIENCE)


def _receive(worker: _Worker, pin_memory: bool) -> PixelBatch:
    """Wait for the next batch of a worker, and return it with a copy of its pixels."""
    wait([worker.pipe, worker.process.sentinel])
    try:
        if not worker.pipe.poll():
            raise EOFError
        place, batch = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(_PATIENCE)
        code = worker.process.exitcode or 0
        raise _WorkerEndedError(f"exit code {code}" if code >= 0 else f"signal {-code}") from None
    if isinstance(batch, UnreachableError):
        raise batch
    decoded = worker.places[place, : len(batch.rows)]
    pixels = _pinned(decoded.shape) if pin_memory else np.empty_like(decoded)
    np.copyto(pixels, decoded)
    with suppress(OSError):  # of a worker that has ended since, which is noticed when its next batch is waited for
        worker.pipe.send(place)
    whole: PixelBatch = batch._replace(pixels=pixels)
    return whole


def _pinned(shape: tuple[int, ...]) -> Pixels:
    """Return an array in page-locked memory, from which copies to a GPU run in the background."""
    import torch

    pixels: Pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return pixels


def _work(
    pipe: Connection,
    held: Sequence[Connection],
    memory: Any,
    shape: tuple[int, ...],
    jobs: Sequence[_Job],
    preprocess: ImagePreprocessor,
    watch: DecodingWatch | None,
    number: int,
) -> None:
    """Decode jobs in a worker process; ends when all are done, or when the process that waits for them has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in held:
        other.close()
    places = np.frombuffer(memory, np.uint8).reshape(shape)
    free = deque(range(len(places)))
    guard = (lambda *_: nullcontext()) if watch is None else partial(watch.decoding, number)
    reader = ImageReader()  # opens nothing before it reads: workers share no files
    _limit_memory()
    with suppress(EOFError, OSError):
        for job in jobs:
            while pipe.poll(None if not free else 0):
                free.append(pipe.recv())
            place = free.popleft()
            batch: PixelBatch | UnreachableError
            try:
                batch = _decode(job, preprocess, reader, places[place], guard)
            except UnreachableError as error:
                batch = error
            pipe.send((place, batch))
        while True:  # until the other end is closed
            pipe.recv()


def _limit_memory() -> None:
    """Limit the memory of this process to what it has plus what an image may need; decoders then fail (Linux only)."""
    with suppress(ImportError, OSError, ValueError, StopIteration):
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData:"))
        allowed = used + LARGEST_DECODED + _SPARE + _STACK * (os.cpu_count() or 1)  # some decoders start threads
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, most))


def _decode(
    job: _Job,
    preprocess: ImagePreprocessor,
    reader: ImageReader,
    pixels: Pixels,
    guard: Callable[..., AbstractContextManager[Any]],
) -> PixelBatch:
    """Return a batch without its pixels, which are written to ``pixels``, (at least n, height, width, 3).

    Args:
        guard: called with the number of the shard and the position in it, watches over one image.

    Raises:
        UnreachableError: if a server does not answer, or refuses access: no image of it can be read.
    """
    shard, first, items, last = job
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    reading, start = 0.0, time.perf_counter()
    for position, item in enumerate(items, start=first):
        stage = "read"
        try:
            opened = time.perf_counter()
            content = reader.read(item)
            reading += time.perf_counter() - opened
            stage = "decode"
            with guard(shard, position):
                array, own_width, own_height = preprocess.load(io.BytesIO(content))
            pixels[len(rows)] = array
        except UnreachableError:
            raise
        except Exception as error:  # a decoder may raise anything on a damaged file; no file may stop the others
            failures.append(failure_of(item, stage, error, empty=stage == "decode" and not content))
            continue
        size = {"width": own_width, "height": own_height, "size": len(content)}
        rows.append({"key": item.key, "path": item.path, **size, "split": item.split})
    decoding = time.perf_counter() - start - reading
    return PixelBatch(shard, rows, pixels[:0], failures, last, reading, decoding)


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


class DecodingTimeoutError(TimeoutError):
    """An image took longer to decode than it may."""


class DecodingWatch:
    """A record of the image that each worker process decodes, which ends a process that takes too long over one.

    A decoder is C code that may not return to Python for hours, and signal handlers and threads of Python wait for
    it. The watchdog of `faulthandler` is a thread in C that ends the process in any case.

    Args:
        workers: number of worker processes.
        limit: seconds for one image.
    """

    def __init__(self, workers: int, limit: float) -> None:
        self._limit = limit
        # workers are forked or spawned with this
        self._now = multiprocessing.get_context().Array("d", [_IDLE, 0, 0] * workers, lock=False)
        self._too_slow: set[tuple[int, int]] = set()
        self._null: int | None = None

    @contextmanager
    def decoding(self, worker: int, shard: int, position: int) -> Iterator[None]:
        """Watch a worker, by its number, while it decodes an image in this block.

        Raises:
            DecodingTimeoutError: if it took too long before.
        """
        if (shard, position) in self._too_slow:
            raise DecodingTimeoutError(
                f"decoding took longer than {self._limit:g} s; raise the limit with --image-timeout"
            )
        if self._null is None:
            self._null = os.open(os.devnull, os.O_WRONLY)
        start = worker * _FIELDS
        self._now[start + 1], self._now[start + 2] = shard, position
        self._now[start] = time.monotonic()
        faulthandler.dump_traceback_later(self._limit, exit=True, file=self._null)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._now[start] = _IDLE

    def find_stuck(self) -> bool:
        """Note the images that took too long; return whether there are any. Called when a worker has ended."""
        found = False
        for start in range(0, len(self._now), _FIELDS):
            began, shard, position = self._now[start : start + _FIELDS]
            if began != _IDLE and time.monotonic() - began >= self._limit:
                self._too_slow.add((int(shard), int(position)))
                found = True
            self._now[start] = _IDLE
        return found
