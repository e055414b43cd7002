"""Images → batches of pixels, in worker processes, a bounded number ahead."""

from __future__ import annotations

import io
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..corpus import ImageItem, ImageReader
from ..encoders import ImagePreprocessor
from ..errors import C3Error
from ..store import Failure
from .watch import DecodingWatch

_BATCHES_AHEAD = 3


class Original(NamedTuple):
    """An image as it was when it was read: width and height in pixels, size in bytes."""

    width: int
    height: int
    size: int


class PixelBatch(NamedTuple):
    """Part of a shard, decoded.

    Attributes:
        shard: the shard's number.
        items: the inputs that could be decoded, n.
        pixels: uint8 (n, height, width, 3).
        originals: what was read of the n files.
        failures: the inputs that could not.
        last: whether this is the last batch of its shard.
        reading, decoding: seconds spent in the worker.
    """

    shard: int
    items: list[ImageItem]
    pixels: Tensor
    originals: list[Original]
    failures: list[Failure]
    last: bool
    reading: float
    decoding: float


@dataclass(frozen=True)
class _Job:
    shard: int
    first: int  # position of its first item in the shard
    items: Sequence[ImageItem]
    last: bool


def pixel_batches(
    shards: Mapping[int, Sequence[ImageItem]],
    preprocess: ImagePreprocessor,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    time_limit: float | None = None,
) -> Iterator[PixelBatch]:
    """Decode the images of all shards, batch by batch, in order; what is in a batch depends on its shard alone.

    Args:
        workers: number of decoding processes; 0 decodes in this one.
        pin_memory: hand pixels over in page-locked memory, for copies to a GPU.
        time_limit: seconds one image may take to be decoded; one that takes longer is a failure. Its process is ended
            for that, so the limit needs ``workers``.

    Raises:
        C3Error: if a worker process is killed.
    """
    jobs = [
        _Job(number, start, items[start : start + batch_size], start + batch_size >= len(items))
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
            worker_init_fn=_leave_interrupts_to_the_main_process,
        )
    handler = signal.getsignal(signal.SIGCHLD)
    running = iter(loader)
    if handler is not None and threading.current_thread() is threading.main_thread():
        # PyTorch's own handler raises wherever this process happens to be when a worker ends, in the middle of a shard
        # too; without it the loader notices by itself, where it is waited for
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
        """Let go of the files that decoding in this process has opened."""
        self._reader.close()

    def __getitem__(self, index: int) -> PixelBatch:
        job = self._jobs[index]
        good: list[ImageItem] = []
        originals: list[Original] = []
        failures: list[Failure] = []
        height, width = self._preprocess.size
        pixels = torch.empty((len(job.items), height, width, 3), dtype=torch.uint8)
        reading, start = 0.0, time.perf_counter()
        for position, item in enumerate(job.items):
            stage = "read"
            try:
                opened = time.perf_counter()
                content = self._reader.read(item)
                reading += time.perf_counter() - opened
                stage = "decode"
                with nullcontext() if self._watch is None else self._watch.decoding((job.shard, job.first + position)):
                    array, original_width, original_height = self._preprocess.load(io.BytesIO(content))
                pixels[len(good)] = torch.from_numpy(np.ascontiguousarray(array))
            except Exception as error:  # a decoder may raise anything on a damaged file; no file may stop the others
                failures.append(_failure(item, stage, error, empty=stage == "decode" and not content))
                continue
            good.append(item)
            originals.append(Original(original_width, original_height, len(content)))
        decoding = time.perf_counter() - start - reading
        return PixelBatch(job.shard, good, pixels[: len(good)], originals, failures, job.last, reading, decoding)


def _failure(item: ImageItem, stage: str, error: Exception, *, empty: bool) -> Failure:
    if isinstance(error, UnidentifiedImageError):
        message = "empty file" if empty else "not an image that Pillow knows"
    else:
        message = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return Failure(item.key, item.path, stage, type(error).__name__, message[:500])


def _leave_interrupts_to_the_main_process(_: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
