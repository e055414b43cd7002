from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from c3tools.errors import ConnectError, OutputError
from c3tools.reporter import Progress
from c3tools.training import loop
from c3tools.training.loop import (
    DIVERGED,
    EARLY,
    FINISHED,
    NOTHING_KEPT,
    CheckpointDir,
    Task,
    TrainingPlan,
    TrainingRun,
    adamw,
    train,
)
from tests.conftest import Messages

STEPS = 12


class Line(Task):
    """A linear map with dropout that learns 3 x from noisy pairs; batches have different sizes."""

    unit, error = "pairs", ConnectError

    def __init__(self, losses: Any = None, identity: str = "mine", **plan: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.module = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.module[0].bias.requires_grad_(False)
        self.plan = TrainingPlan(
            **{"steps": STEPS, "learning_rate": 0.02, "validate_every": 4, "rise": 2} | plan
        )
        self.optimizer = adamw(self.module.parameters(), weight_decay=0.1, betas=(0.9, 0.98))
        self.identity = identity
        self.losses, self.reported, self.raw, self.validated = (
            losses,
            list[Any](),
            list[Any](),
            list[Any](),
        )

    def step(self, number: int, update: Any) -> Any:
        torch.manual_seed(number)
        n = 3 + number % 4
        loss = self.loss(torch.randn(n, 2))
        if self.losses and number >= len(self.losses) * self.plan.validate_every:
            loss = loss * math.nan
        self.reported.append((update(loss), n))
        self.raw.append(self.weight.detach().clone())
        return self.reported[-1]

    def validate(self) -> Any:
        assert not self.module.training
        self.validated.append(self.weight.detach().clone())
        if self.losses is not None:
            return self.losses[len(self.validated) - 1], {"point": len(self.validated)}
        return float(self.loss(torch.linspace(-1, 1, 20).reshape(10, 2))), {}

    def loss(self, x: Tensor) -> Any:
        return ((self.module(x)[:, 0] - 3 * x[:, 0]) ** 2).mean()

    @property
    def weight(self) -> Tensor:
        return next(iter(self.module.parameters()))

    def digest(self, run: TrainingRun) -> Any:
        history = [replace(point, seconds=0) for point in run.history]
        return *(p.tolist() for p in self.module.parameters()), history, run.trace, run.outcome


class KilledError(Exception):
    pass


class Watcher(Messages, Progress):
    """Ends the run after some step, and keeps what it is told."""

    def __init__(self, at: int | None = None, interrupts: bool = False) -> None:
        super().__init__()
        self.at, self.interrupts, self.done = at, interrupts, 0
        self.scalars: dict[str, list[Any]] = {}
        self.notes: list[str] = []

    def scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, value))

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        assert total in (STEPS, 60)
        yield self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done += count
        if note is not None:
            self.notes.append(note)
        if self.done == self.at:
            if not self.interrupts:
                raise KilledError
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("interrupts", "ema", "every_step"),
    [(False, 0.0, False), (False, 0.9, True), (True, 0.9, False)],
)
def test_a_run_that_was_ended_anywhere_is_continued_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupts: bool, ema: float, every_step: bool
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1e9 if every_step else 1e9)
    whole = Line(ema=ema)
    expected = whole.digest(train(whole))
    for step in range(1, STEPS + 1):
        folder = tmp_path / str(step)
        with pytest.raises(KeyboardInterrupt if interrupts else KilledError) as ended:
            train(
                Line(ema=ema), checkpoints=CheckpointDir(folder), reporter=Watcher(step, interrupts)
            )
        if interrupts:
            saved = (
                f"The training is saved at step {step} of {STEPS}; run the same command again "
                f"to continue."
            )
            assert ended.value.__notes__ == [saved]
        task, watcher = Line(ema=ema), Watcher()
        assert (
            task.digest(train(task, checkpoints=CheckpointDir(folder), reporter=watcher))
            == expected
        )
        kept = step if interrupts else step - 1 if every_step else (step - 1) // 4 * 4
        assert [f"step {kept} of {STEPS}" in message for message in watcher.texts] == [True] * bool(
            kept
        )
        assert len(list(folder.glob("state-*.safetensors"))) <= 2
        assert (len(task.reported), watcher.done) == (STEPS - kept, STEPS)
        assert all(note.startswith("loss") for note in watcher.notes)  # no epochs here


def test_a_state_that_takes_long_to_save_is_saved_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    saved: list[int] = []

    class TimedLine(Line):
        def step(self, number: int, update: Any) -> Any:
            nonlocal clock
            clock += 1.0
            return super().step(number, update)

    def save(self: CheckpointDir, identity: str, position: Any, *state: Any) -> None:
        nonlocal clock
        clock += 0.25  # of 20 times this, 5 steps
        saved.append(position["step"])

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    timer = SimpleNamespace(monotonic=lambda: clock, perf_counter=time.perf_counter)
    monkeypatch.setattr(loop, "time", timer)
    monkeypatch.setattr(CheckpointDir, "save", save)
    train(TimedLine(validate_every=STEPS), checkpoints=CheckpointDir(tmp_path))
    assert saved == [1, 7, 12]


@pytest.mark.parametrize(
    ("losses", "changes", "outcome", "kept", "point"),
    [
        ([3.0, 2.0, 2.5, 2.4], {"patience": 2, "validate_every": 2}, EARLY, 4, 2),
        ([1.0, 3.0, 2.0, 2.5], {"start": "keep"}, FINISHED, 0, 1),
        ([1.0, 3.0, 2.0, 2.5], {"start": "report"}, FINISHED, 8, 3),
        ([3.0, 2.0, 2.5], {}, FINISHED, 8, 2),
        ([1.0, math.nan], {}, DIVERGED, 4, 1),
        ([1.0, 2.0], {}, DIVERGED, 4, 1),
    ],
)
def test_the_best_weights_are_kept(
    tmp_path: Path, losses: list[float], changes: Any, outcome: str, kept: int, point: int
) -> None:
    task, again, watcher = Line(losses, **changes), Line(losses, **changes), Watcher()
    run = train(task, checkpoints=CheckpointDir(tmp_path), reporter=watcher)
    assert train(again, checkpoints=CheckpointDir(tmp_path)).history == run.history
    assert run.kept
    assert (run.outcome, run.kept.step, run.kept.facts) == (outcome, kept, {"point": point})
    validations = [one.val_loss for one in (run.start, *run.history) if one]
    assert (validations, run.start is None) == (
        [loss for loss in losses if loss > 0],
        "start" not in changes,
    )
    told = [f"weights of step {kept}" in text for text in watcher.texts]
    assert (again.reported, task.module.training, told) == (
        [],
        False,
        [True] * (outcome == DIVERGED),
    )
    assert torch.equal(task.weight, task.validated[point - 1])


def test_a_loss_that_is_not_finite_is_an_error_as_long_as_no_weights_are_kept() -> None:
    for start, where in (("report", "before the first step"), ("skip", "at step 4")):
        task = Line([math.nan], start=start)
        with pytest.raises(ConnectError, match=rf"nan {where}.\nLower"):
            train(task)
    task.weight.data[:] = math.nan
    with pytest.raises(ConnectError, match="nan in step 1"):
        train(task)


def test_averaged_weights_are_what_is_validated_and_kept() -> None:
    task, average, averages = Line(ema=0.5), torch.zeros(1), list[Tensor]()
    train(task)
    for number, weights in enumerate(task.raw):
        decay = min(0.5, number / (number + 9))
        average = decay * average + (1 - decay) * weights
        averages.append(average)
    found = [task.validated[0], task.validated[2], task.weight]
    torch.testing.assert_close(found, [averages[3], averages[-1], averages[-1]])


def test_losses_and_rates_are_reported_and_the_generator_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(
        perf_counter=itertools.count(step=0.5).__next__, monotonic=time.monotonic
    )
    monkeypatch.setattr(loop, "time", clock)  # a step takes half a second
    task, watcher = Line(steps=60, validate_every=30, steps_per_epoch=20), Watcher()
    before, bias = torch.get_rng_state(), [*task.module.parameters()][1].clone()
    run = train(task, reporter=watcher)
    assert torch.equal(torch.get_rng_state(), before)
    # only weights that require a gradient move
    assert torch.equal([*task.module.parameters()][1], bias)

    losses, counts = np.transpose(task.reported)

    def mean(start: int, stop: int) -> Any:
        return pytest.approx(np.average(losses[start:stop], weights=counts[start:stop]))

    def count(start: int, stop: int) -> Any:
        return counts[start:stop].sum()

    assert run.trace == [(25, mean(0, 25)), (50, mean(25, 50)), (60, mean(50, 60))]
    assert watcher.scalars == {
        "loss/training": run.trace,
        "learning rate": [(step, task.plan.rate(step - 1)) for step in (25, 50, 60)],
        "pairs per second": [
            (25, count(0, 25) / 12.5),
            (50, count(30, 50) / 10),
            (60, count(30, 60) / 15),
        ],
        "loss/validation": [(point.step, point.val_loss) for point in run.history],
    }
    found = [(point.step, point.train_loss, point.count, point.seconds) for point in run.history]
    assert found == [(30, mean(0, 30), count(0, 30), 15), (60, mean(30, 60), count(30, 60), 15)]
    assert [note.partition(",")[0] for note in watcher.notes[19:21]] == ["epoch 1", "epoch 2"]
    loss, val, speed = (
        np.float64(mean(30, 35).expected),
        run.history[0].val_loss,
        count(30, 35) / 2.5,
    )
    assert watcher.notes[34] == f"epoch 2, loss {loss:.3f}, val {val:.3f}, {speed:,.0f} pairs/s"


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_the_steps_are_those_of_plain_pytorch(clip_norm: float) -> None:
    task, plain = Line(clip_norm=clip_norm), Line()
    train(task)
    first, _, last, bias = plain.module.parameters()
    groups: Any = [
        {"params": [first, last], "weight_decay": 0.1},
        {"params": [bias], "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))

    def update(loss: Any) -> float:
        for group in optimizer.param_groups:
            group["lr"] = plain.plan.rate(len(plain.reported))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([first, last, bias], clip_norm or math.inf)
        optimizer.step()
        return float(loss.detach())

    with torch.random.fork_rng():
        for number in range(STEPS):
            plain.step(number, update)
    torch.testing.assert_close([*task.raw, task.validated[-1]], [*plain.raw, plain.weight])


def test_a_state_cut_short_is_not_used_and_a_run_of_other_settings_dropped_only_if_asked(
    tmp_path: Path,
) -> None:
    whole, task, watcher = Line(), Line(), Watcher()
    with pytest.raises(KilledError):
        train(Line(), checkpoints=CheckpointDir(tmp_path), reporter=Watcher(11))
    with pytest.raises(OutputError, match="step 8 and has other"):
        train(Line(identity="other"), checkpoints=CheckpointDir(tmp_path, overwrite=False))
    newest = max(tmp_path.glob("state-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    found = train(task, checkpoints=CheckpointDir(tmp_path), reporter=watcher)
    assert task.digest(found) == whole.digest(train(whole))
    assert [newest.name in watcher.texts[0], "step 4 of 12" in watcher.texts[1]] == [True, True]
    # of a run that was killed
    (tmp_path / ".state-00000009.safetensors.0123456789abcdef.tmp").write_bytes(b"")
    other, watcher, checkpoints = (
        Line(identity="other"),
        Watcher(7),
        CheckpointDir(tmp_path, overwrite=True),
    )
    with pytest.raises(KilledError):
        train(other, checkpoints=checkpoints, reporter=watcher)
    assert (len(other.reported), str(tmp_path) in watcher.texts[0]) == (7, True)
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000004.safetensors"]
    checkpoints.clear()
    assert not tmp_path.exists()


def test_an_interrupted_run_without_a_folder_says_that_nothing_is_kept() -> None:
    with pytest.raises(KeyboardInterrupt) as interrupt:
        train(Line(), reporter=Watcher(3, interrupts=True))
    assert interrupt.value.__notes__ == [NOTHING_KEPT]


def test_the_learning_rate_rises_linearly_and_falls_to_zero() -> None:
    plan = TrainingPlan(steps=100, learning_rate=2.0, validate_every=10, rise=10)
    expected = [0.2, 1.0, 2.0, 1.0, 1 + math.cos(math.pi * 89 / 90)]
    assert [plan.rate(step) for step in (0, 4, 9, 55, 99)] == pytest.approx(expected)
    assert replace(plan, rise=50, decay="linear").rate(75) == pytest.approx(1.0)
