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
# called with further inputs done, and how many of them the work counts apart, such as those that
# failed; may raise to end a task
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
    """The place where tasks are done: this machine, or that of a class made of it.

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
            with ThreadPoolExecutor(self._threads) as pool:  # an error cancels what has not begun
                for results in pool.map(
                    lambda at: list(work.run([tasks[at]], report)), range(len(tasks))
                ):
                    yield from results


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """End this process when the process that started it has ended; runs in a thread of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_processes(
    devices: Sequence[str], work: Work[Task, Result], tasks: Sequence[Task], report: Report
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
    running: dict[Connection, str] = {}
    processes = []
    # those that came before their turn, and whose turn it is
    results, position = dict[int, Result](), 0
    try:
        for number, device in enumerate(devices):
            own, other = context.Pipe(duplex=False)
            positions, share = (
                range(number, len(tasks), len(devices)),
                max(1, cores() // len(devices)),
            )
            processes.append(
                context.Process(target=_serve, args=(device, share, work, tasks, positions, other))
            )
            processes[-1].start()
            other.close()
            running[own] = device
        while running:
            for end in wait_for_any(list(running)):
                assert isinstance(end, Connection)
                try:
                    kind, value = end.recv()
                except (EOFError, ConnectionError):
                    raise C3Error(
                        f"The process for {running[end]} was killed.",
                        remedy="Finished work is kept. Run the same command again to continue.",
                    ) from None
                if kind == "progress":
                    report(*value)
                elif kind == "failed":
                    raise C3Error(f"{running[end]}: {value[0]}", remedy=value[1])
                elif kind == "result":
                    results[value[0]] = value[1]
                    while position in results:
                        yield results.pop(position)
                        position += 1
                else:
                    del running[end]
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
    end: Connection,
) -> None:
    """Do the tasks at these positions in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        work.load(device, threads)
        results = work.run(
            (tasks[at] for at in positions), lambda *counts: end.send(("progress", counts))
        )
        for at, result in zip(positions, results, strict=True):
            end.send(("result", (at, result)))
        end.send(("end", None))
    except C3Error as error:
        end.send(("failed", (error.message, error.remedy)))
    except Exception as error:
        lines = [OUT_OF_MEMORY] if is_out_of_memory(error) else traceback.format_exception(error)
        end.send(("failed", ("".join(lines), None)))
