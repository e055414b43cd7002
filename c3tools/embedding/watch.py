"""Images that take too long to decode: the process that is stuck ends itself, and the others go on without it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import get_worker_info

_FREE = -1.0
_FIELDS = 3  # when decoding began, number of the shard, position in it


class DecodingTimeoutError(TimeoutError):
    """An image took longer to decode than it may."""


class DecodingWatch:
    """Remembers what each worker process decodes, and ends a process that takes too long over one image.

    A decoder is C code that need not come back to Python for hours, and a signal handler or a thread of Python would
    wait for it. The watchdog of `faulthandler` is a thread in C that ends the process in any case.

    Args:
        workers: number of worker processes.
        limit: seconds for one image.
    """

    def __init__(self, workers: int, limit: float) -> None:
        self._limit = limit
        # torch's workers are forked or spawned with this as part of their data set
        self._now = multiprocessing.get_context().Array("d", [_FREE, 0, 0] * workers, lock=False)
        self._too_slow: set[tuple[int, int]] = set()
        self._nowhere: int | None = None

    @contextmanager
    def decoding(self, place: tuple[int, int]) -> Iterator[None]:
        """In a worker: the image at (shard, position) is decoded in this block.

        Raises:
            DecodingTimeoutError: if it took too long before.
        """
        if place in self._too_slow:
            raise DecodingTimeoutError(f"took longer than {self._limit:g} s to decode; --image-timeout allows more")
        info = get_worker_info()
        if info is None:
            yield
            return
        if self._nowhere is None:
            self._nowhere = os.open(os.devnull, os.O_WRONLY)
        start = info.id * _FIELDS
        self._now[start + 1], self._now[start + 2] = place
        self._now[start] = time.monotonic()
        faulthandler.dump_traceback_later(self._limit, exit=True, file=self._nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._now[start] = _FREE

    def find_stuck(self) -> bool:
        """In the main process, when a worker has ended: note the images that took too long; whether there are any."""
        found = False
        for start in range(0, len(self._now), _FIELDS):
            began, shard, position = self._now[start : start + _FIELDS]
            if began != _FREE and time.monotonic() - began >= self._limit:
                self._too_slow.add((int(shard), int(position)))
                found = True
            self._now[start] = _FREE
        return found
