"""Work that goes wrong in worker processes; it is pickled, so it lives in a module of its own,
without torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from c3tools.errors import StoreError
from c3tools.executors import Report, Work


@dataclass
class Squares(Work[int, int]):
    """Squares of numbers; the number 3 brings trouble, as often as ``times``: ``crash``, ``refuse``
    or ``kill``.

    The first task waits for another process. Each attempt leaves a file in ``folder``.
    """

    folder: Path
    trouble: str = ""
    times: int = 1000

    def load(self, device: str, threads: int) -> None:
        (self.folder / f"{device}-{threads}").touch()

    def run(self, tasks: Iterable[int], report: Report) -> Iterator[int]:
        for task in tasks:
            attempt = len(list(self.folder.glob(f"{task}-*")))
            (self.folder / f"{task}-{attempt}-{os.getpid()}").touch()
            end = time.monotonic() + 60
            while task == 0 and len(self.processes()) < 2 and time.monotonic() < end:
                time.sleep(0.05)
            if task == 3 and self.trouble and attempt < self.times:
                if self.trouble == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                full = StoreError("the disk is full", remedy="Make room.")
                raise full if self.trouble == "refuse" else ZeroDivisionError("of this number")
            report(10, 1)
            yield task * task

    def processes(self) -> set[str]:
        """The processes that have done tasks."""
        return {path.name.split("-")[2] for path in self.folder.glob("[0-9]*")}

    def name(self, task: int) -> str:
        return f"square {task}"
