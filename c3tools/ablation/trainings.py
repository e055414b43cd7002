"""Parallel trainings of a table: each runs in its own process, which writes the result to a folder.

Small networks do not use several cores well: on two cores, two parallel trainings take about two thirds of the time of
two trainings one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .. import devices
from ..devices import Compute
from ..errors import C3Error
from ..executors import LocalExecutor, Report, Work, WorkerResources
from ..reporter import SILENT, Progress, Reporter, counted


class Training(NamedTuple):
    """One training of a table.

    Attributes:
        label: the method and the seed, for people.
        preset: of the pipeline that training inputs go through.
        learns_from: see `c3tools.ablation.methods.Method`; ``image`` for generators.
        sigma: standard deviation of the noise per dimension.
        seed: for all random numbers.
        folder: where the result is kept.
    """

    label: str
    preset: str
    learns_from: str
    sigma: float
    seed: int
    folder: Path

    @classmethod
    def of(cls, label: str, preset: str, learns_from: str, sigma: float, seed: int, within: Path) -> Training:
        """Name the folder by all that tells the trainings of a table apart."""
        return cls(
            label, preset, learns_from, sigma, seed, within / f"{preset}-{learns_from}-sigma{sigma:g}-seed{seed}"
        )


Train = Callable[[Training, Compute, Reporter], object]


def check_jobs(jobs: int, *, kept: bool) -> None:
    """Refuse a number of trainings at a time that is not possible.

    Raises:
        C3Error: if it is below 1, or above 1 although the results of trainings are not kept.
    """
    if jobs < 1:
        raise C3Error(f"--jobs must be at least 1, not {jobs}.")
    if jobs > 1 and not kept:
        raise C3Error(
            "--jobs needs decoders to be kept, because parallel trainings return their results as files.",
            remedy="Leave out --no-keep-decoders, or --jobs.",
        )


def train_ahead(
    train: Train, trainings: Iterable[Training], steps: int, *, jobs: int, compute: Compute, reporter: Reporter = SILENT
) -> None:
    """Do those trainings of a table whose folder does not exist yet, if there are several and they may run at a time.

    What is left is done by the caller, one after the other.

    Args:
        train: does one training and keeps the result in its folder; is called in another process.
        trainings: of the table; those with the same folder are the same.
        steps: optimiser steps of each, for the progress.
        jobs: how many run at a time.
        compute: device and precision. On CUDA, the trainings are dealt out to all GPUs.
        reporter: shows the progress of all together.

    Raises:
        C3Error: if one fails; those that are finished are kept, and the others saved at their last step.
    """
    pending = list({training.folder: training for training in trainings if not training.folder.exists()}.values())
    if jobs < 2 or len(pending) < 2:
        return
    count = min(jobs, len(pending))
    label = f"{counted(len(pending), 'training')}, {count} at a time"
    with reporter.progress(label, steps * len(pending)) as progress:
        work = _Trainings(train, steps, compute.precision)

        def report(done: int, earlier: int) -> None:
            progress.resume(earlier)
            progress.advance(done - earlier)

        LocalExecutor(_devices(compute, count)).run(work, pending, report)


def _devices(compute: Compute, count: int) -> Sequence[str]:
    names = devices.pick_devices() if compute.device == "cuda" else [compute.device]
    return [names[number % len(names)] for number in range(count)]


class _Trainings(Work[Training, None]):
    """Trainings that report their steps, and how many of them an earlier run has done."""

    def __init__(self, train: Train, steps: int, precision: str) -> None:
        self._train, self._steps, self._precision = train, steps, precision
        self._compute: Compute | None = None

    def load(self, resources: WorkerResources) -> None:
        devices.limit_threads(resources.threads)
        self._compute = devices.pick(resources.device, self._precision)

    def run(self, tasks: Iterable[Training], report: Report) -> Iterator[None]:
        assert self._compute is not None, "load comes first"
        for training in tasks:
            listener = _Listener(self._steps, report)
            self._train(training, self._compute, listener)
            listener.finish()
            yield None

    def name(self, task: Training) -> str:
        return task.label


class _Listener(Reporter):
    """A reporter of one training that tells the process of the table how many of its steps are done."""

    def __init__(self, steps: int, report: Report) -> None:
        self._steps, self._report, self._told = steps, report, 0

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        yield _Steps(self, total or self._steps)

    def finish(self) -> None:
        self.tell(1.0)

    def tell(self, share: float, *, earlier: bool = False) -> None:
        steps = min(self._steps, int(share * self._steps))
        further = steps - self._told
        if further >= max(1, self._steps // 200) or earlier or share == 1:
            self._report(further, further if earlier else 0)
            self._told = steps


class _Steps(Progress):
    def __init__(self, listener: _Listener, total: int) -> None:
        self._listener, self._total, self._done = listener, total, 0

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self._count(count)

    def resume(self, count: int, note: str | None = None) -> None:
        self._count(count, earlier=True)

    def _count(self, count: int, *, earlier: bool = False) -> None:
        self._done += count
        self._listener.tell(min(1.0, self._done / self._total) * (1 - 1e-9), earlier=earlier)
