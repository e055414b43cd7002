"""Image files → batches of pixels, in worker processes, a bounded number ahead."""

from __future__ import annotations

import io
import signal
import stat
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...corpus import ImageItem
from ...encoders import ImagePreprocessor
from ...errors import C3Error
from ...store import Failure

_BATCHES_AHEAD = 3
_LARGEST_FILE = 2**31 - 1


class Original(NamedTuple):
    """An image file as it was when it was read: width and height in pixels, size in bytes."""

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
    items: Sequence[ImageItem]
    last: bool


def pixel_batches(
    shards: Mapping[int, Sequence[ImageItem]],
    preprocess: ImagePreprocessor,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[PixelBatch]:
    """Decode the images of all shards, batch by batch, in order; what is in a batch depends on its shard alone.

    Args:
        workers: number of decoding processes; 0 decodes in this one.
        pin_memory: hand pixels over in page-locked memory, for copies to a GPU.

    Raises:
        C3Error: if a worker process is killed.
    """
    jobs = [
        _Job(number, items[start : start + batch_size], start + batch_size >= len(items))
        for number, items in shards.items()
        for start in range(0, len(items), batch_size)
    ]
    with warnings.catch_warnings():
        # more workers than cores is for the user to decide
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader: DataLoader[PixelBatch] = DataLoader(
            _Batches(jobs, preprocess),
            batch_size=None,
            shuffle=False,
            num_workers=min(workers, len(jobs)),
            prefetch_factor=_BATCHES_AHEAD if workers and jobs else None,
            pin_memory=pin_memory,
            worker_init_fn=_leave_interrupts_to_the_main_process,
        )
    try:
        yield from loader
    except RuntimeError as error:
        if "worker" not in str(error).lower():
            raise
        raise C3Error(
            f"A process that decodes images was killed ({str(error).splitlines()[0]}).",
            remedy="What was finished is kept. Run the same command again, with fewer --workers if memory was short.",
        ) from error


class _Batches(Dataset[PixelBatch]):
    def __init__(self, jobs: Sequence[_Job], preprocess: ImagePreprocessor) -> None:
        self._jobs = jobs
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, index: int) -> PixelBatch:
        job = self._jobs[index]
        good: list[ImageItem] = []
        originals: list[Original] = []
        failures: list[Failure] = []
        height, width = self._preprocess.size
        pixels = torch.empty((len(job.items), height, width, 3), dtype=torch.uint8)
        reading, start = 0.0, time.perf_counter()
        for item in job.items:
            try:
                opened = time.perf_counter()
                content = _read(Path(item.path))
                reading += time.perf_counter() - opened
                array, original_width, original_height = self._preprocess.load(io.BytesIO(content))
                pixels[len(good)] = torch.from_numpy(np.ascontiguousarray(array))
            except Exception as error:  # a decoder may raise anything on a damaged file; no file may stop the others
                failures.append(_failure(item, error))
                continue
            good.append(item)
            originals.append(Original(original_width, original_height, len(content)))
        decoding = time.perf_counter() - start - reading
        return PixelBatch(job.shard, good, pixels[: len(good)], originals, failures, job.last, reading, decoding)


def _read(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "not a regular file")  # a pipe would never end
    if status.st_size > _LARGEST_FILE:
        raise OSError(0, f"{status.st_size:,} bytes are more than an image can have")
    return path.read_bytes()


def _failure(item: ImageItem, error: Exception) -> Failure:
    unreadable = isinstance(error, OSError) and error.errno is not None
    if isinstance(error, UnidentifiedImageError):
        message = "empty file" if item.size == 0 else "not an image that Pillow knows"
    else:
        message = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return Failure(item.key, item.path, "read" if unreadable else "decode", type(error).__name__, message[:500])


def _leave_interrupts_to_the_main_process(_: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
