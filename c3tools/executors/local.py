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
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import Any, Generic, TypeVar

from ..errors import OUT_OF_MEMORY, C3Error, is_out_of_memory

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
        """Do tasks one after another, and yield the result of each, in their order."""

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
        """Do all tasks, and yield their results in their order; nothing is done before the first is
        asked for.

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
    """Do tasks in a process for each device, and yield their results in order.

    Raises:
        C3Error: if a task fails, or a process is killed.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
    cores_of_process = max(1, cores() // len(devices))
    device_of: dict[Connection, str] = {}  # of the processes that run
    processes = []
    early_results: dict[int, Result] = {}  # of tasks before their turn
    next_position = 0
    try:
        for number, device in enumerate(devices):
            receiver, sender = context.Pipe(duplex=False)
            positions = range(number, len(tasks), len(devices))
            process = context.Process(
                target=_serve, args=(device, cores_of_process, work, tasks, positions, sender)
            )
            processes.append(process)
            process.start()
            sender.close()
            device_of[receiver] = device
        while device_of:
            for ready in wait_for_any(list(device_of)):
                assert isinstance(ready, Connection)
                try:
                    kind, value = ready.recv()
                except (EOFError, ConnectionError):
                    raise C3Error(
                        f"The process for {device_of[ready]} was killed.",
                        remedy="Finished work is kept. Run the same command again to continue.",
                    ) from None
                if kind == "progress":
                    finished, failed = value
                    report(finished, failed)
                elif kind == "failed":
                    message, remedy = value
                    raise C3Error(f"{device_of[ready]}: {message}", remedy=remedy)
                elif kind == "result":
                    position, result = value
                    early_results[position] = result
                    while next_position in early_results:
                        yield early_results.pop(next_position)
                        next_position += 1
                else:
                    del device_of[ready]
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()


def _serve(
    device: str,
    threads: int,
    work: Work[Any, Any],
    tasks: Sequence[Any],
    positions: range,
    sender: Connection,
) -> None:
    """Do the tasks at these positions in a process of its own.

    Messages to the main process are pairs: ("progress", counts), ("result", (position, result)),
    ("failed", (message, remedy)), ("end", None).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()

    def report(finished: int, failed: int) -> None:
        sender.send(("progress", (finished, failed)))

    try:
        work.load(device, threads)
        results = work.run((tasks[position] for position in positions), report)
        for position, result in zip(positions, results, strict=True):
            sender.send(("result", (position, result)))
        sender.send(("end", None))
    except C3Error as error:
        sender.send(("failed", (error.message, error.remedy)))
    except Exception as error:
        lines = [OUT_OF_MEMORY] if is_out_of_memory(error) else traceback.format_exception(error)
        sender.send(("failed", ("".join(lines), None)))
