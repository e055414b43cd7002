"""Embedding whose worker process is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from c3tools.executors import Report
from c3tools.jobs.embedding.summary import ModalitySummary
from c3tools.jobs.embedding.work import EmbedWork, ShardTask


class KilledOnce(EmbedWork):
    """Embedding whose process is killed once, in the middle of shard 1 of each modality, or ``after`` it."""

    folder = Path()
    after = False

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.folder, self.after = KilledOnce.folder, KilledOnce.after  # of the class, in the main process

    def run(self, tasks: Iterable[ShardTask], report: Report) -> Iterator[ModalitySummary]:
        tasks = list(tasks)
        wanted = tasks[0][0] == 1 and not self._flag("killed").exists()

        def report_or_die(done: int, failed: int) -> None:
            if wanted and not self.after:
                self._die()
            report(done, failed)

        for task in tasks:
            with self._flag(f"ran-{task[0]}").open("a") as file:
                file.write("x")
            yield from super().run([task], report_or_die)
            if wanted:
                self._die()

    def _flag(self, name: str) -> Path:
        return self.folder / f"{self._modality}-{name}"

    def _die(self) -> None:
        self._flag("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
