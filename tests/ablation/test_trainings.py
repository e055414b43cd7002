from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from c3tools.ablation import trainings
from c3tools.ablation.trainings import Training, train_ahead
from c3tools.devices import Compute
from c3tools.executors import Report, Work, WorkerResources
from c3tools.reporter import Progress, Reporter


class Counts(Reporter, Progress):
    """A reporter that keeps what was counted."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.earlier: list[int] = []

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        yield self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done.append(count)

    def resume(self, count: int, note: str | None = None) -> None:
        self.earlier.append(count)


class InThisProcess:
    """An executor that needs no training that can be pickled."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = devices

    def run(self, work: Work[Training, None], tasks: Sequence[Training], report: Report) -> list[None]:
        work.load(WorkerResources(self.devices[0], 1))
        return list(work.run(tasks, report))


def test_steps_of_an_earlier_run_count_as_done_and_not_for_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(training: Training, compute: Compute, reporter: Reporter) -> None:
        with reporter.progress("Training", 60) as progress:
            if training.seed == 0:  # an earlier run got to the middle
                progress.resume(30)
            for _ in range(30 if training.seed == 0 else 60):
                progress.advance()

    pending = [Training.of("C3", "c3", "text", 0.1, seed, tmp_path) for seed in (0, 1)]
    monkeypatch.setattr(trainings, "LocalExecutor", InThisProcess)
    counts = Counts()
    train_ahead(train, pending, 1000, jobs=2, compute=Compute("cpu", "fp32"), reporter=counts)
    assert sum(counts.earlier) == pytest.approx(500, abs=1)
    assert sum(counts.earlier) + sum(counts.done) == 2000
