"""Work that goes wrong in worker processes; it is pickled, so it lives in a module of its own, without torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from c3tools.errors import StoreError
from c3tools.executors import Report, Work, WorkerResources


@dataclass
class Squares(Work[int, int]):
    """Squares of numbers; one of them brings trouble, as often as ``times``.

    Attributes:
        folder: where attempts leave a file each.
        trouble: ``crash``, ``refuse``, ``kill`` or ``sleep``; ``meet`` waits for another process.
        number: the number that brings it.
        times: how often.
    """

    folder: Path
    trouble: str = ""
    number: int = 3
    times: int = 1000
    resources: WorkerResources | None = None

    def load(self, resources: WorkerResources) -> None:
        self.resources = resources

    def run(self, tasks: Iterable[int], report: Report) -> Iterator[int]:
        for task in tasks:
            attempt = len(list(self.folder.glob(f"{task}-*")))
            (self.folder / f"{task}-{attempt}-{os.getpid()}").touch()
            if task == self.number and attempt < self.times:
                self.fail()
            report(10, 1)
            yield task * task

    def fail(self) -> None:
        if self.trouble == "crash":
            raise ZeroDivisionError("of this number")
        if self.trouble == "refuse":
            raise StoreError("the disk is full", remedy="Make room.")
        if self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "sleep":
            time.sleep(120)
        if self.trouble == "meet":
            end = time.monotonic() + 60
            while len({path.name.split("-")[2] for path in self.folder.iterdir()}) < 2 and time.monotonic() < end:
                time.sleep(0.05)

    def name(self, task: int) -> str:
        return f"square {task}"
