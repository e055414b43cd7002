"""The interface of executors: `Work` describes what is done, and an `Executor` decides where."""

from __future__ import annotations

import os
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from ..errors import C3Error

Task = TypeVar("Task")
Task_co = TypeVar("Task_co", covariant=True)
Result = TypeVar("Result")
# called with further inputs done, and how many of them the work counts apart, such as those that failed; may raise to
# end a task
Report = Callable[[int, int], None]


class Tasks(Protocol[Task_co]):
    """Tasks by their position: a list, or an object that makes large tasks on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Task_co: ...


@dataclass(frozen=True)
class WorkerResources:
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

    def finished(self, task: Task, report: Report) -> Result | None:
        """Return the result of a task that an earlier attempt has finished, or None to run it again."""
        return None

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


@dataclass(frozen=True)
class Message:
    """A message of a worker process: it is free for a task, inputs done, the result of a task, or why there is none."""

    kind: Literal["free", "progress", "result", "end", "refused", "crashed"]
    position: int = -1
    count: int = 0
    failed: int = 0
    result: Any = None
    text: str = ""
    remedy: str | None = None


def failure_message(error: Exception) -> Message:
    """Return the message about an exception: its own text if it is a `C3Error`, else its traceback."""
    if isinstance(error, C3Error):
        return Message("refused", text=error.message, remedy=error.remedy)
    return Message("crashed", text="".join(traceback.format_exception(error)))


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
