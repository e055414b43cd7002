"""The cells of a table: which are finished, the trainings that the others need, and their results.

    c3-ablation/
      cells/DIGEST.json       a finished cell; the digest is of its method, sigma, seed, and all that it depends on
      decoders/DIGEST/        a trained decoder (``generators/`` for images), which several cells may share

Small networks do not use several cores well: on two cores, two parallel trainings take about two thirds of the time of
two trainings one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import devices
from ..errors import C3Error
from ..executors import LocalExecutor, Report, Work, WorkerResources
from ..io.artifact import digest_of
from ..io.files import MALFORMED, write_json_atomically
from ..reporter import SILENT, Progress, Reporter, counted
from ..training.checkpoints import CheckpointDir
from .captions import CaptionTask
from .images import ImageTask
from .methods import Cell, Training
from .table import Run


def run_cells(
    task: CaptionTask | ImageTask,
    cells: Iterable[Cell],
    folder: Path,
    *,
    keep: bool = True,
    jobs: int = 1,
    reporter: Reporter = SILENT,
) -> Iterator[Run]:
    """Yield the cells of a table in their order: those that are finished are read, the others made and written.

    Args:
        task: how cells are made.
        cells: their sigma does not matter where a method has no noise.
        folder: of the finished cells and the trained models.
        keep: keep the trained models too.
        jobs: how many trainings run at a time, each in its process.
        reporter: shows messages and progress.
    """
    cells = [cell if task.methods[cell.method].noisy else cell._replace(sigma=0.0) for cell in cells]
    paths = {cell: folder / "cells" / f"{digest_of(cell, task.made_from(cell))[:16]}.json" for cell in cells}
    finished = {cell: _read(path) for cell, path in paths.items()}
    pending = [cell for cell, run in finished.items() if run is None or task.lacks(cell, run)]
    models = _Models(task, folder / task.kept_in if keep else None)
    if jobs > 1:
        needed = (training for cell in pending if (training := task.training(cell)) is not None)
        models.train_ahead([training.start or training for training in needed], jobs, reporter)
    for cell in cells:
        run = finished[cell]
        if run is None or cell in pending:
            training = task.training(cell)
            run = task.run(cell, None if training is None else models.get(training, reporter), reporter)
            write_json_atomically(paths[cell], asdict(run))
        else:
            reporter.message(f"{cell.label}: already finished")
        yield run


def _read(path: Path) -> Run | None:
    try:
        return Run(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, *MALFORMED):
        return None


class _Models(Work[Training, None]):
    """The trained models of a table: in memory those of the last seed, and all of them in a folder if they are kept.

    As the work of an executor it does trainings in other processes, and reports their steps.
    """

    def __init__(self, task: CaptionTask | ImageTask, folder: Path | None) -> None:
        self._task, self._folder = task, folder
        self._trained: dict[Training, Any] = {}

    def _path(self, training: Training) -> Path:
        assert self._folder is not None
        return self._folder / digest_of(self._task.learned, training[1:5])[:16]

    def get(self, training: Training, reporter: Reporter) -> Any:
        """Return the model of a training; if there is none, train it."""
        key = training._replace(label="")
        if key in self._trained:
            return self._trained[key]
        self._trained = {other: model for other, model in self._trained.items() if other.seed == training.seed}
        path = None if self._folder is None else self._path(training)
        if path is not None:
            with suppress(C3Error):  # missing, or cut short: trained (again)
                self._trained[key] = self._task.load(path)
                return self._trained[key]
        start = None if training.start is None else self.get(training.start, reporter)
        checkpoints = None if path is None else CheckpointDir(path.with_name(f"{path.name}.training"))
        self._trained[key] = self._task.train(training, start, checkpoints, reporter)
        if path is not None and checkpoints is not None:
            self._trained[key].save(path)
            checkpoints.clear()
        return self._trained[key]

    def train_ahead(self, trainings: Sequence[Training], jobs: int, reporter: Reporter) -> None:
        """Do the trainings that are not kept yet, several at a time; if there are fewer than two, leave it to `get`.

        Raises:
            C3Error: if one fails; those that are finished are kept, and the others saved at their last step.
        """
        pending = list({path: each for each in trainings if not (path := self._path(each)).exists()}.values())
        if len(pending) < 2:
            return
        compute, count = self._task.compute, min(jobs, len(pending))
        names = devices.pick_devices() if compute.device == "cuda" else [compute.device]
        label = f"{counted(len(pending), 'training')}, {count} at a time"
        with reporter.progress(label, self._task.steps() * len(pending)) as progress:

            def report(done: int, earlier: int) -> None:
                progress.resume(earlier)
                progress.advance(done - earlier)

            executor = LocalExecutor([names[number % len(names)] for number in range(count)])
            executor.run(_Models(self._task.learner(), self._folder), pending, report)

    def load(self, resources: WorkerResources) -> None:
        """Use the device and the cores of this worker."""
        devices.limit_threads(resources.threads)
        self._task = replace(self._task, compute=devices.pick(resources.device, self._task.compute.precision))

    def run(self, tasks: Iterable[Training], report: Report) -> Iterator[None]:
        """Do trainings one after the other."""
        for training in tasks:
            self.get(training, _Steps(report))
            self._trained.clear()
            yield None

    def name(self, task: Training) -> str:
        """Return the name of a training for messages."""
        return task.label


class _Steps(Reporter, Progress):
    """A reporter of one training that tells the process of the table about further steps."""

    def __init__(self, report: Report) -> None:
        self._report = report

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        yield self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self._report(count, 0)

    def resume(self, count: int, note: str | None = None) -> None:
        self._report(count, count)
