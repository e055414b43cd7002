"""Ctrl-C and SIGTERM at moments when nothing may be interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT (Ctrl-C) and SIGTERM back until what must not be interrupted is done.

    Yields a function that returns whether one has arrived. It acts when the block ends; a second
    one acts at once. Python delivers signals to the main thread; elsewhere this does nothing, and
    neither where a signal is ignored.
    """
    arrived: list[int] = []
    handlers: dict[int, Any] = {}  # those that are replaced during the block

    def restore() -> None:
        while handlers:
            number, handler = handlers.popitem()
            signal.signal(number, handler)

    def hold(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) > 1:
            restore()
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                handlers[number] = handler
                signal.signal(number, hold)
    try:
        yield lambda: bool(arrived)
    finally:
        restore()
    if arrived:
        signal.raise_signal(arrived[0])
        raise KeyboardInterrupt
