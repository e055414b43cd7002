"""Processes that start without the caller's main module, and undisturbed by Ctrl-C.

`multiprocessing` imports the main module of the caller in each new process. A script without ``if
__name__ == "__main__":`` would run again there, and one from standard input is not found.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import process, resource_tracker, spawn
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from ..interrupts import interrupts_held

T = TypeVar("T")
_starting = threading.local()  # has ``without_main`` while a thread starts such a process


class _Process(SpawnProcess):
    """A process that does not import the main module."""

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:  # noqa: N802 - of multiprocessing
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            # Its start unblocks SIGINT in this thread
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            # The tracker removes semaphores of processes that are ended, and would warn of them
            sys.warnoptions.append("ignore:resource_tracker")
            resource_tracker.ensure_running()
            sys.warnoptions.pop()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _starting.without_main = True
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            _starting.without_main = False


class _Context(SpawnContext):
    """The start method ``spawn``, with processes that do not import the main module."""

    Process = _Process


_get_preparation_data = spawn.get_preparation_data


def _preparation_data(name: str) -> dict[str, Any]:
    """Return what a new process begins with, without the main module if it starts so."""
    data = _get_preparation_data(name)
    if getattr(_starting, "without_main", False):
        data.pop("init_main_from_name", None)
        data.pop("init_main_from_path", None)
        # Arguments may be many; more than fits in the pipe would be waited for if the process died
        data["sys_argv"] = data["sys_argv"][:1]
    return data


spawn.get_preparation_data = _preparation_data


def names_main(pickled: memoryview) -> bool:
    """Return whether what was pickled may name something of the main module."""
    return re.search(b"__main__", pickled) is not None


def spawn_context(pickled: memoryview) -> SpawnContext:
    """Return the start method ``spawn`` for processes that get what was pickled.

    They import the main module only if that names it.
    """
    return SpawnContext() if names_main(pickled) else _Context()


def default_context(value: object) -> BaseContext:
    """Return the default start method if it is ``fork``, else `spawn_context`.

    Args:
        value: what the processes get.
    """
    if multiprocessing.get_start_method() == "fork":
        return multiprocessing.get_context()
    return spawn_context(ForkingPickler.dumps(value))


def start_undisturbed(start: Callable[[], T]) -> T:
    """Call what starts a process, and notes it, in a thread of its own.

    Ctrl-C and SIGTERM raise in the main thread. There they could come between the start of a
    process and its note, and nobody would end it. The process begins with SIGINT blocked, as the
    thread has it, so that Ctrl-C in a terminal does not end it with a traceback.
    """

    def start_in_thread() -> T:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return start()

    with ThreadPoolExecutor(1) as starter:
        with interrupts_held():  # the executor waits only for threads that it has noted
            started = starter.submit(start_in_thread)
        return started.result()
