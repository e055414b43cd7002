"""Images → batches of pixels, in worker processes, a bounded number ahead.

An image that takes too long to decode ends its process, and the others go on without it.
"""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..corpus import ImageItem, ImageReader
from ..encoders import ImagePreprocessor
from ..errors import C3Error
from ..store import Failure

_BATCHES_AHEAD = 3
_IDLE = -1.0
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
    pixels: Tensor
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
) -> Iterator[PixelBatch]:
    """Decode the images of all shards, batch by batch, in order; the contents of a batch depend on its shard alone.

    Args:
        workers: number of decoding processes; 0 decodes in this one.
        pin_memory: hand pixels over in page-locked memory, for copies to a GPU.
        time_limit: seconds that decoding one image may take; one that takes longer is a failure. It ends its process,
            so the limit needs ``workers``.

    Raises:
        C3Error: if a worker process is killed.
    """
    jobs: list[_Job] = [
        (number, start, items[start : start + batch_size], start + batch_size >= len(items))
        for number, items in shards.items()
        for start in range(0, len(items), batch_size)
    ]
    watch = DecodingWatch(workers, time_limit) if workers and jobs and time_limit else None
    done = 0
    while done < len(jobs):
        count = min(workers, len(jobs) - done)
        try:
            with closing(_Batches(jobs[done:], preprocess, watch)) as batches:
                for batch in _loader(batches, count, pin_memory):
                    done += 1
                    yield batch
        except RuntimeError as error:
            if "worker" not in str(error).lower():
                raise
            if watch is None or not watch.find_stuck():
                raise C3Error(
                    f"A process that decodes images was killed ({str(error).splitlines()[0]}).",
                    remedy="What was finished is kept. "
                    "Run the same command again, with fewer --workers if memory was short.",
                ) from error


def _loader(batches: Dataset[PixelBatch], workers: int, pin_memory: bool) -> Iterator[PixelBatch]:
    with warnings.catch_warnings():
        # more workers than cores is for the user to decide
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader: DataLoader[PixelBatch] = DataLoader(
            batches,
            batch_size=None,
            shuffle=False,
            num_workers=workers,
            prefetch_factor=_BATCHES_AHEAD if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_interrupts,
        )
    handler = signal.getsignal(signal.SIGCHLD)
    running = iter(loader)
    if handler is not None and threading.current_thread() is threading.main_thread():
        # PyTorch's own handler raises wherever this process is when a worker ends, even while it writes a shard;
        # without that handler, the loader itself raises where the next batch is waited for
        signal.signal(signal.SIGCHLD, handler)
    yield from running


class _Batches(Dataset[PixelBatch]):
    def __init__(self, jobs: Sequence[_Job], preprocess: ImagePreprocessor, watch: DecodingWatch | None) -> None:
        self._jobs = jobs
        self._preprocess = preprocess
        self._watch = watch
        self._reader = ImageReader()  # opens nothing before it reads: workers share no files

    def __len__(self) -> int:
        return len(self._jobs)

    def close(self) -> None:
        """Close the files that decoding in this process has opened."""
        self._reader.close()

    def __getitem__(self, index: int) -> PixelBatch:
        shard, first, items, last = self._jobs[index]
        rows: list[dict[str, Any]] = []
        failures: list[Failure] = []
        height, width = self._preprocess.size
        pixels = torch.empty((len(items), height, width, 3), dtype=torch.uint8)
        reading, start = 0.0, time.perf_counter()
        for position, item in enumerate(items, start=first):
            stage = "read"
            try:
                opened = time.perf_counter()
                content = self._reader.read(item)
                reading += time.perf_counter() - opened
                stage = "decode"
                with nullcontext() if self._watch is None else self._watch.decoding(shard, position):
                    array, own_width, own_height = self._preprocess.load(io.BytesIO(content))
                pixels[len(rows)] = torch.from_numpy(np.ascontiguousarray(array))
            except Exception as error:  # a decoder may raise anything on a damaged file; no file may stop the others
                failures.append(_failure(item, stage, error, empty=stage == "decode" and not content))
                continue
            size = {"width": own_width, "height": own_height, "size": len(content)}
            rows.append({"key": item.key, "path": item.path, **size, "split": item.split})
        decoding = time.perf_counter() - start - reading
        return PixelBatch(shard, rows, pixels[: len(rows)], failures, last, reading, decoding)


def _failure(item: ImageItem, stage: str, error: Exception, *, empty: bool) -> Failure:
    if isinstance(error, UnidentifiedImageError):
        message = "empty file" if empty else "not an image that Pillow knows"
    else:
        message = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return Failure(item.key, item.path, stage, type(error).__name__, message[:500])


def _ignore_interrupts(_: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        # torch's workers are forked or spawned with this as part of their data set
        self._now = multiprocessing.get_context().Array("d", [_IDLE, 0, 0] * workers, lock=False)
        self._too_slow: set[tuple[int, int]] = set()
        self._null: int | None = None

    @contextmanager
    def decoding(self, shard: int, position: int) -> Iterator[None]:
        """Watch a worker while it decodes an image in this block.

        Raises:
            DecodingTimeoutError: if it took too long before.
        """
        if (shard, position) in self._too_slow:
            raise DecodingTimeoutError(f"took longer than {self._limit:g} s to decode; --image-timeout allows more")
        info = get_worker_info()
        if info is None:
            yield
            return
        if self._null is None:
            self._null = os.open(os.devnull, os.O_WRONLY)
        start = info.id * _FIELDS
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
