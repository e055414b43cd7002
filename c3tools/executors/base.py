"""The interface of executors: `Work` describes what is done, and an `Executor` decides where."""

from __future__ import annotations

import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

Task = TypeVar("Task")
Task_co = TypeVar("Task_co", covariant=True)
Result = TypeVar("Result")
# called with further inputs done, and how many of them the work counts apart, such as those that failed; may raise to
# end a task
Report = Callable[[int, int], None]


class Tasks(Protocol[Task_co]):
    """Tasks by their position: a list, or an object that makes large tasks on demand; it can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Task_co: ...


class WorkerResources(NamedTuple):
    """The resources of a worker process.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``.
        threads: number of cores reserved for it.
    """

    device: str
    threads: int


class Work(ABC, Generic[Task, Result]):
    """Work that is done with each task; it can be pickled, and so can tasks and results.

    A task writes to storage that all workers share, and returns a few numbers. It may be run twice, even at the same
    time: its files appear whole, and are the same each time.
    """

    def load(self, resources: WorkerResources) -> None:
        """Load what tasks need, in a worker process. It is called before each task, so it has to remember."""

    @abstractmethod
    def run(self, tasks: Iterable[Task], report: Report) -> Iterator[Result]:
        """Do tasks one after another, and yield the result of each, in their order.

        Raises:
            C3Error: if one cannot be done anywhere.
        """

    @abstractmethod
    def name(self, task: Task) -> str:
        """Return a name of a task for error messages, such as ``text shard 3``."""


class Executor(Protocol):
    """The place where tasks are done."""

    def run(self, work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
        """Do all tasks, and return their results in their order.

        Args:
            work: the work that is done with each task.
            tasks: the tasks; one is made when a worker is free for it, and again for another attempt.
            report: is called in this process with the number of inputs done, and of those that failed.

        Raises:
            C3Error: if a task cannot be done; the others are ended, what was finished is kept.
        """


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """End this process when the process that started it has ended; runs in a thread of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
