"""The interface: work is told apart from where it is done."""

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
Report = Callable[[int, int], None]  # so many more inputs are done, so many of them failed; may raise to end a task


class Tasks(Protocol[Task_co]):
    """Tasks by their position, such as a list; one that is large may be made when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Task_co: ...


@dataclass(frozen=True)
class WorkerResources:
    """What a worker process may use.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``.
        threads: cores that are its own.
    """

    device: str
    threads: int


class Work(ABC, Generic[Task, Result]):
    """What is done with each task, wherever it is done: it can be pickled, and so can tasks and results.

    A task writes what it makes to storage that all workers share, and returns a few numbers about it. It may be run
    twice, even at the same time: what it writes appears whole, and is the same each time.
    """

    def load(self, place: WorkerResources) -> None:
        """In a worker process, before any task: load what tasks need. Called for each task, so it has to remember."""

    @abstractmethod
    def run(self, tasks: Iterable[Task], report: Report) -> Iterator[Result]:
        """Do tasks, one after another; a result for each, in their order.

        Raises:
            C3Error: if one cannot be done anywhere.
        """

    def finished(self, task: Task, report: Report) -> Result | None:
        """The result of a task that an earlier attempt has finished, or None if it is to be run again."""
        return None

    @abstractmethod
    def name(self, task: Task) -> str:
        """A task in words, for error messages: ``text shard 3``."""


class Executor(Protocol):
    """Has tasks done."""

    def run(self, work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
        """Do all tasks; their results, in their order.

        Args:
            work: what is done with each.
            tasks: what it is done with; an item is asked for when there is room for it, and again for another attempt.
            report: is told, in this process, how many inputs are done and how many of them failed.

        Raises:
            C3Error: if a task cannot be done; the others are ended, what was finished is kept.
        """


@dataclass(frozen=True)
class Message:
    """What a worker process says: inputs done, the result of a task, or why there is none."""

    kind: Literal["progress", "result", "end", "refused", "crashed"]
    position: int = -1
    count: int = 0
    failed: int = 0
    result: Any = None
    text: str = ""
    remedy: str | None = None


def failure(error: Exception) -> Message:
    """What a worker process says of an exception: an expected one in its own words, another with its traceback."""
    if isinstance(error, C3Error):
        return Message("refused", text=error.message, remedy=error.remedy)
    return Message("crashed", text="".join(traceback.format_exception(error)))


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
