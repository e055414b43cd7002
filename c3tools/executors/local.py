"""Work and where it is done: in this process, in threads of it, or in a process for each device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

from ..errors import OUT_OF_MEMORY, C3Error, is_out_of_memory
from .starting import names_main, spawn_context, start_undisturbed

Task = TypeVar("Task")
Result = TypeVar("Result")
# progress callback: further inputs finished, of which failed; may raise to end a task
Report = Callable[[int, int], None]


class Work(ABC, Generic[Task, Result]):
    """Work that is done with each task; it can be pickled, and so can tasks and results.

    A task writes to storage that all workers share, and returns little. It may be run twice, even
    at the same time: its files appear whole, and are the same each time.
    """

    def load(self, device: str, threads: int) -> None:
        """Load what tasks need, in a worker process. It is called before each task, so it has to
        remember.

        Args:
            device: ``cpu``, ``cuda``, ``cuda:1``.
            threads: number of cores reserved for the process.
        """

    @abstractmethod
    def run(self, tasks: Iterable[Task], report: Report) -> Iterator[Result]:
        """Do tasks one after another, and yield the result of each."""

    @abstractmethod
    def name(self, task: Task) -> str:
        """Return a name of a task for error messages, such as ``text shard 3``."""


class Executor:
    """Runs tasks on this machine; subclasses run them elsewhere.

    Args:
        devices: with two or more, each has a process, and tasks are dealt out in turn.
        threads: number of tasks done at a time in this process, with fewer than two devices.
    """

    def __init__(self, devices: Sequence[str] = (), threads: int = 1) -> None:
        self._devices = tuple(devices)
        self._threads = threads

    def run(
        self, work: Work[Task, Result], tasks: Sequence[Task], report: Report
    ) -> Iterator[Result]:
        """Do all tasks, and yield their results in any order, as they come; nothing is done before
        the first is asked for.

        Args:
            work: the work that is done with each task.
            tasks: the tasks, or a sequence that makes large ones on demand: one is made when a
                worker is free for it, and again for another attempt. It can be pickled.
            report: is called in this process with the number of inputs done, and of those that
                failed.
        """
        if len(self._devices) > 1 and len(tasks):
            yield from _in_processes(self._devices[: len(tasks)], work, tasks, report)
        elif self._threads < 2:
            yield from work.run((tasks[position] for position in range(len(tasks))), report)
        else:

            def run_task(position: int) -> list[Result]:
                return list(work.run([tasks[position]], report))

            with ThreadPoolExecutor(self._threads) as pool:  # an error cancels what has not begun
                for results in pool.map(run_task, range(len(tasks))):
                    yield from results


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """End this process when the process that started it has ended; runs in a thread of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_processes(
    devices: Sequence[str], work: Work[Task, Result], tasks: Sequence[Task], report: Report
) -> Iterator[Result]:
    """Do tasks in a process for each device, and yield their results as they come.

    Raises:
        C3Error: if a task fails, or a process is killed.
    """
    # Work is sent when a process has said that it is there: what does not fit in the pipe of a
    # process that died while it started would be waited for without end
    pickled = ForkingPickler.dumps((work, tasks))
    context = spawn_context(pickled)  # a forked process could not use a GPU
    cores_of_process = max(1, cores() // len(devices))
    device_of: dict[Connection, str] = {}  # of the processes that run
    processes: list[BaseProcess] = []

    def start(number: int, device: str) -> None:
        ours, theirs = context.Pipe()
        positions = range(number, len(tasks), len(devices))
        process = context.Process(target=_serve, args=(device, cores_of_process, positions, theirs))
        process.start()
        processes.append(process)
        theirs.close()
        device_of[ours] = device

    try:
        for number, device in enumerate(devices):
            start_undisturbed(partial(start, number, device))
        starting = set(device_of)
        while device_of:
            for ready in wait_for_any(list(device_of)):
                assert isinstance(ready, Connection)
                try:
                    message = ready.recv()
                    if isinstance(message, _There):
                        ready.send_bytes(pickled)
                except (EOFError, OSError):
                    raise _killed(device_of[ready], pickled, at_start=ready in starting) from None
                starting.discard(ready)
                match message:
                    case _Progress(finished, failed):
                        report(finished, failed)
                    case _Failed(reason, remedy):
                        raise C3Error(f"{device_of[ready]}: {reason}", remedy=remedy)
                    case _Done(result):
                        yield result
                    case _Ended():
                        del device_of[ready]
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()


def _killed(device: str, pickled: memoryview, *, at_start: bool) -> C3Error:
    """Return the error for a process that ended without a message."""
    if at_start and names_main(pickled):
        return C3Error(
            f"The process for {device} ended while it started.",
            remedy="It imports your script, because the work uses something of it. Put the calls "
            'of the script below `if __name__ == "__main__":`.',
        )
    return C3Error(
        f"The process for {device} was killed.",
        remedy="Finished work is kept. Run the same command again to continue.",
    )


@dataclass(frozen=True)
class _There:
    """Message: the process has started, and waits for its work."""


@dataclass(frozen=True)
class _Progress:
    """Message: further inputs are finished, of which some failed."""

    finished: int
    failed: int


@dataclass(frozen=True)
class _Done:
    """Message: the result of a task."""

    result: Any


@dataclass(frozen=True)
class _Failed:
    """Message: why a task failed, and what to do."""

    reason: str
    remedy: str | None


@dataclass(frozen=True)
class _Ended:
    """Message: all tasks are done."""


def _serve(device: str, threads: int, positions: range, pipe: Connection) -> None:
    """Do the tasks at these positions in a process of its own; the pipe brings work and tasks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `start_undisturbed`
    threading.Thread(target=end_with_parent, daemon=True).start()

    def report(finished: int, failed: int) -> None:
        pipe.send(_Progress(finished, failed))

    try:
        pipe.send(_There())
        work, tasks = pipe.recv()
        work.load(device, threads)
        results = work.run((tasks[position] for position in positions), report)
        for result in results:
            pipe.send(_Done(result))
        pipe.send(_Ended())
    except C3Error as error:
        pipe.send(_Failed(error.message, error.remedy))
    except Exception as error:
        lines = [OUT_OF_MEMORY] if is_out_of_memory(error) else traceback.format_exception(error)
        pipe.send(_Failed("".join(lines), None))
