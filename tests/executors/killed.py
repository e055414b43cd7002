"""Embedding whose worker process is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from c3tools.embedding import ModalitySummary
from c3tools.embedding.shards import EmbedWork, ShardTask
from c3tools.executors import Report


class KilledOnce(EmbedWork):
    """Embedding whose process is killed once: in the middle of the images of shard 1, or after its texts.

    Attributes:
        folder: where it notes what happened; set on the class, in the main process.
    """

    folder = Path()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.folder = KilledOnce.folder

    def run(self, tasks: Iterable[ShardTask], report: Report) -> Iterator[ModalitySummary]:
        tasks = list(tasks)
        wanted = tasks[0][0] == 1 and not self._flag("killed").exists()

        def report_or_die(done: int, failed: int) -> None:
            if wanted and self.modality == "image":
                self._die()
            report(done, failed)

        for task in tasks:
            with self._flag(f"ran-{task[0]}").open("a") as file:
                file.write("x")
            yield from super().run([task], report_or_die)
            if wanted:
                self._die()

    def _flag(self, name: str) -> Path:
        return self.folder / f"{self.modality}-{name}"

    def _die(self) -> None:
        self._flag("killed").touch()
        (
            self.store.path / self.modality / ".part-00001.parquet.0123456789abcdef.tmp"
        ).touch()  # as one that is killed in a write
        os.kill(os.getpid(), signal.SIGKILL)
