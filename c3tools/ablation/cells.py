"""Cells of a table: a method with one sigma and one seed; how they are made, and where they are
kept.

    c3-ablation/              of captions; c3-image-ablation/ of images
      table.md, table.html    the table
      cells/DIGEST.json       a finished cell: its scores, what it made, and its command
      decoders/DIGEST/        a trained decoder (generators/ for images), which several cells share

The digest of a model is of its training and the data that it learns from; that of a cell is of its
model, its method and the data that it is scored with.

Small networks do not use several cores well: on two cores, two parallel trainings take about two
thirds of the time of two trainings one after the other.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from .. import devices
from ..devices import Compute
from ..errors import C3Error
from ..executors import Executor, Report, Work
from ..io.artifact import digest_of
from ..io.files import MALFORMED, write_json_atomically
from ..reporter import SILENT, Progress, Reporter, counted
from ..training.loop import CheckpointDir
from .methods import Method

_DIGITS = 16  # of a digest, in the names of files


@dataclass(frozen=True)
class Cell:
    """A method, a seed, and the standard deviation of the noise per dimension; 0 for none."""

    method: str
    seed: int
    sigma: float

    @property
    def label(self) -> str:
        """The cell in words."""
        return f"{self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Training:
    """A training that cells need and may share: what is learned, and from what.

    Attributes:
        preset: of the pipeline that training inputs go through.
        learns_from: see `Method`.
        sigma: standard deviation of the noise per dimension.
        seed: for all random numbers.
    """

    preset: str
    learns_from: str
    sigma: float
    seed: int

    @property
    def label(self) -> str:
        """The training in words."""
        return f"{self.preset}, from {self.learns_from}, seed {self.seed}"

    @property
    def start(self) -> Training | None:
        """The training of the language model that ESPER's mapper is put in front of."""
        return replace(self, learns_from="captions") if self.learns_from == "images" else None


@dataclass(frozen=True)
class Run:
    """A finished cell: the scores of what it made.

    Attributes:
        method: a key of `METHODS` or `IMAGE_METHODS`.
        seed: of the training.
        sigma: standard deviation of the noise per dimension; 0 if there is none.
        scores: by metric, in percent where metrics are.
        outputs: what was made, by image key: the captions, or the first images as ``data:`` URLs.
        images: how many captions or images were scored.
        values: by metric, a value per image whose mean is the score (`CaptionScores.image_values`,
            `photo_values`).
        sigma_from: ``given``, or the rule ``auto`` or ``pairs``.
        best_val_loss: that the checkpoint was chosen by; None if nothing was trained.
        parameters: number of weights; 0 where nothing was trained.
        training_seconds: of the training, that of a language model included where it has one.
        command: the commands that make the cell by themselves; empty if there are none.
    """

    method: str
    seed: int
    sigma: float
    scores: dict[str, float]
    outputs: dict[str, str] = field(default_factory=dict)
    images: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)
    sigma_from: str = "given"
    best_val_loss: float | None = None
    parameters: int = 0
    training_seconds: float = 0.0
    command: str = ""


class Bench(ABC):
    """The shared side of the cells of a table: the data, and how a model is trained and scored.

    Attributes:
        methods: by name.
        models_folder: the folder of the trained models, in that of the table.
        compute: device and precision of the trainings.
    """

    methods: ClassVar[Mapping[str, Method]]
    models_folder: ClassVar[str]
    compute: Compute

    @property
    @abstractmethod
    def learning_digest(self) -> str:
        """A digest of all that a trained model depends on, except its training."""

    @property
    @abstractmethod
    def scoring_digest(self) -> str:
        """A digest of all else that the scores of a cell depend on, except its method."""

    @abstractmethod
    def for_training(self) -> Self:
        """Return what a training in another process needs."""

    @abstractmethod
    def train(
        self, training: Training, start: Any, checkpoints: CheckpointDir, reporter: Reporter
    ) -> Any:
        """Return a trained model; ``start`` is that of ``training.start``."""

    @abstractmethod
    def load(self, folder: Path) -> Any:
        """Return a model that was saved."""

    @abstractmethod
    def score(self, cell: Cell, model: Any, reporter: Reporter) -> Run:
        """Return the scores of a cell; ``model`` is None if its method trains nothing."""

    def training_of(self, cell: Cell) -> Training | None:
        """Return the training that a cell needs, if it needs one."""
        method = self.methods[cell.method]
        if method.training is None:
            return None
        return Training(method.training, method.learns_from, cell.sigma, cell.seed)

    def model_digest(self, training: Training | None) -> str:
        """Return the digest of a trained model."""
        return digest_of(training, self.learning_digest)[:_DIGITS]

    def cell_digest(self, cell: Cell) -> str:
        """Return the digest of a finished cell."""
        model_digest = self.model_digest(self.training_of(cell))
        return digest_of(cell, model_digest, self.scoring_digest)[:_DIGITS]


def run_cells(
    bench: Bench,
    cells: Iterable[Cell],
    folder: Path,
    *,
    jobs: int = 1,
    reporter: Reporter = SILENT,
) -> Iterator[Run]:
    """Yield the cells of a table in their order: those that are finished are read, the others made
    and written.

    Args:
        bench: how cells are made.
        cells: their sigma does not matter where a method has no noise.
        folder: of the finished cells and the trained models.
        jobs: how many trainings run at a time, each in its process.
        reporter: shows messages and progress.

    Raises:
        C3Error: if a training fails; those that are finished are kept, and the others saved at
            their last step.
    """
    cells = [
        cell if bench.methods[cell.method].noisy else replace(cell, sigma=0.0) for cell in cells
    ]
    paths = {cell: folder / "cells" / f"{bench.cell_digest(cell)}.json" for cell in cells}
    finished: dict[Cell, Run] = {}
    for cell, path in paths.items():
        with suppress(OSError, *MALFORMED):
            finished[cell] = Run(**json.loads(path.read_text(encoding="utf-8")))

    # With several jobs, all trainings are done first, side by side
    unfinished = [cell for cell in cells if cell not in finished]
    if jobs > 1:
        _train_side_by_side(bench, unfinished, folder, jobs, reporter)

    for cell in cells:
        if cell in finished:
            reporter.message(f"{cell.label}: already finished")
        else:
            training = bench.training_of(cell)
            model = None
            if training is not None:
                model = _load_or_train(bench, training, folder, reporter)
            finished[cell] = bench.score(cell, model, reporter)
            write_json_atomically(paths[cell], asdict(finished[cell]))
        yield finished[cell]


def _train_side_by_side(
    bench: Bench, cells: Sequence[Cell], folder: Path, jobs: int, reporter: Reporter
) -> None:
    """Train what the cells need and has not been trained, several models at a time."""
    missing: dict[Training, None] = {}
    for cell in cells:
        training = bench.training_of(cell)
        if training is None:
            continue
        first = training.start or training
        if not _model_folder(bench, first, folder).exists():
            missing[first] = None
    if len(missing) < 2:
        return
    count = min(jobs, len(missing))
    device = str(bench.compute.device)
    names = devices.pick_devices() if device == "cuda" else [device]
    executor = Executor([names[number % len(names)] for number in range(count)])
    work = _Trainings(bench.for_training(), folder)
    label = f"Percent of {counted(len(missing), 'training')}, {count} at a time"
    with reporter.progress(label, 100 * len(missing)) as progress:
        for _ in executor.run(work, list(missing), lambda done, _: progress.advance(done)):
            pass


def _model_folder(bench: Bench, training: Training, folder: Path) -> Path:
    return folder / bench.models_folder / bench.model_digest(training)


def _load_or_train(bench: Bench, training: Training, folder: Path, reporter: Reporter) -> Any:
    """Return the model of a training; if there is none, train it."""
    path = _model_folder(bench, training, folder)
    with suppress(C3Error):  # missing, or cut short: trained (again)
        return bench.load(path)
    start = None
    if training.start is not None:
        start = _load_or_train(bench, training.start, folder, reporter)
    checkpoints = CheckpointDir(path.with_name(f"{path.name}.training"))
    model = bench.train(training, start, checkpoints, reporter)
    model.save(path)
    checkpoints.clear()
    return model


class _Percent(Reporter, Progress):
    """A reporter of one training that tells another process of each percent that is done."""

    def __init__(self, report: Report) -> None:
        self._report = report

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        self._steps = 0
        self._total = total or 1
        yield self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        before = 100 * self._steps // self._total
        self._steps += count
        self._report(100 * self._steps // self._total - before, 0)


class _Trainings(Work[Training, None]):
    """Trainings in other processes, the results of which are in the folder."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench = bench
        self._folder = folder

    def load(self, device: str, threads: int) -> None:
        """Use the device and the cores of this worker."""
        devices.limit_threads(threads)
        self._bench.compute = devices.pick(device, self._bench.compute.precision)

    def run(self, tasks: Iterable[Training], report: Report) -> Iterator[None]:
        """Do trainings one after the other."""
        for training in tasks:
            _load_or_train(self._bench, training, self._folder, _Percent(report))
            yield None

    def name(self, task: Training) -> str:
        """Return the name of a training for messages."""
        return task.label
