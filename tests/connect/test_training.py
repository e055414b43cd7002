from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from c3tools.connect.geometry import measure
from c3tools.connect.gradients import TwoTowers
from c3tools.connect.heads import HeadShape, new_heads
from c3tools.connect.losses import LogitScale
from c3tools.connect.run import COLLAPSED, DIVERGED, EARLY, FINISHED, TrainingSettings
from c3tools.connect.training import Trainer
from c3tools.devices import Compute
from c3tools.errors import ConnectError
from c3tools.reporter import SILENT, Progress, Reporter
from c3tools.training.checkpoints import CheckpointDir
from tests.conftest import Messages

from .worlds import some_pairs, views

CPU = Compute("cpu", "fp32")
QUICK = TrainingSettings(scale=LogitScale(20), batch_size=40, epochs=6, learning_rate=3e-3, patience=0)


def trainer(
    settings: TrainingSettings = QUICK, *, items: int = 100, cone: float = 0.0, reporter: Reporter = SILENT
) -> Trainer:
    first, second, index = views(items, 2)
    cut = 2 * (items * 4 // 5)
    train, val = (some_pairs(first, second, index, rows) for rows in (np.arange(cut), np.arange(cut, len(index))))
    shape = HeadShape(dim=16, hidden=32, dropout=0.1, cone=cone)
    return Trainer(TwoTowers(*new_heads(train, shape, settings.seed)), train, val, settings, CPU, reporter=reporter)


def weights(of: Trainer) -> list[npt.NDArray[np.float32]]:
    return [p.detach().numpy().copy() for p in [*of.towers.parameters(), *of.loss.parameters()]]


def test_training_connects_and_keeps_the_best_point() -> None:
    said = Messages()
    run = trainer(reporter=said)
    state = run.run()
    assert state.outcome == FINISHED
    assert state.step == run.total_steps == 6 * 4
    assert [point.step for point in state.log] == [0, 4, 8, 12, 16, 20, 24]
    recalls = [point.geometry.recall_at_1 for point in state.log]
    assert recalls[0] < 0.3
    assert max(recalls) > 0.6
    assert state.best == 1 + int(np.argmax(recalls[1:]))
    losses = [point.loss for point in state.log if point.loss is not None]
    assert losses[-1] < losses[0]
    # the towers hold the weights of that point
    items = run.val.item_rows
    first = run.towers.embed_rows(run.val.first, 0, items, CPU)
    second = run.towers.embed_rows(run.val.second, 1, run.val.second_rows, CPU)
    again = measure(first, second, np.searchsorted(items, run.val.first_rows))
    assert again == state.best_point.geometry
    # with two texts per image a batch of 40 of 160 nearly always has an image twice
    assert state.repeated == state.step
    assert any("an item occurred more than once" in line for line in said.texts)


def test_the_gap_closes_when_its_terms_are_in_the_loss() -> None:
    settings = replace(QUICK, scale=LogitScale(50), epochs=40, learning_rate=1e-2)
    open_, closed = (trainer(replace(settings, close_gap=weight), cone=1.33).run() for weight in (0.0, 1.0))
    assert open_.log[0].geometry.gap == closed.log[0].geometry.gap > 0.8
    assert closed.log[-1].geometry.gap < 0.5 * open_.log[-1].geometry.gap
    # the log has the contrastive loss alone, so that its points compare
    assert closed.log[1].loss == pytest.approx(open_.log[1].loss, rel=0.5)
    with pytest.raises(ConnectError, match="must be at least 0"):
        replace(settings, close_gap=-1.0)


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, scale=LogitScale(20, learned=True), loss="sigmoid", log_every=3)
    whole = trainer(settings, cone=1.0)
    whole.run()

    class KilledError(Exception):
        pass

    class KillAt(Progress):
        steps = 0

        def advance(self, count: int = 1, note: str | None = None) -> None:
            self.steps += count
            if self.steps == 11:
                raise KilledError

    class Killing(Reporter):
        @contextmanager
        def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
            yield KillAt()

    folder = CheckpointDir(tmp_path / "run")
    first = trainer(settings, cone=1.0, reporter=Killing())
    with pytest.raises(KilledError):
        first.run(folder, "same")
    first._save(folder, "same")
    said = Messages()
    second = trainer(settings, cone=1.0, reporter=said)
    state = second.run(folder, "same")
    assert any("at step 11 of" in line for line in said.texts)
    for expected, got in zip(weights(whole), weights(second), strict=True):
        np.testing.assert_array_equal(got, expected)
    plain = [[dataclasses.replace(p, seconds=0) for p in run.log] for run in (whole.state, state)]
    assert plain[0] == plain[1]
    assert (state.repeated, state.false_negatives) == (whole.state.repeated, whole.state.false_negatives)
    # a run of other settings starts anew
    other = trainer(settings, reporter=said)
    other.run(folder, "another")
    assert any("other settings or data" in line for line in said.texts)


@pytest.mark.parametrize("at", [1, 5, 23])
def test_an_interrupted_run_is_saved_at_that_step_and_ends_as_if_it_had_not_been(tmp_path: Path, at: int) -> None:
    settings = dataclasses.replace(QUICK, scale=LogitScale(20, learned=True), log_every=3)
    whole = trainer(settings)
    whole.run()

    class Interrupting(Progress, Reporter):
        steps = 0

        @contextmanager
        def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
            yield self

        def advance(self, count: int = 1, note: str | None = None) -> None:
            self.steps += count
            if self.steps == at:
                os.kill(os.getpid(), signal.SIGINT)

    folder = CheckpointDir(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt) as interrupt:
        trainer(settings, reporter=Interrupting()).run(folder, "same")
    said = f"The training is saved at step {at} of {whole.total_steps}; run the same command again to continue."
    assert interrupt.value.__notes__ == [said]
    second = trainer(settings)
    second.run(folder, "same")
    for expected, got in zip(weights(whole), weights(second), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_damaged_state_is_passed_over(tmp_path: Path) -> None:
    run, folder = trainer(), CheckpointDir(tmp_path / "run")
    for step in (1, 2, 3):
        run.state.step = step
        run._save(folder, "same")
    states = sorted((tmp_path / "run").iterdir())
    assert len(states) == 2
    states[-1].write_bytes(states[-1].read_bytes()[:20])
    said = Messages()
    again = trainer(reporter=said)
    again._resume(folder, "same")
    assert again.state.step == 2
    assert "damaged" in said.texts[0]


def test_it_stops_early_and_says_so() -> None:
    said = Messages()
    state = trainer(dataclasses.replace(QUICK, epochs=60, patience=2), reporter=said).run()
    assert state.outcome == EARLY
    assert len(state.log) - 1 - state.best == 2
    assert "2 log entries without a better recall@1" in said.texts[-1]


def test_fewer_pairs_than_a_batch_make_one_batch_and_are_said() -> None:
    said = Messages()
    run = trainer(dataclasses.replace(QUICK, batch_size=512), reporter=said)
    assert said.texts == [
        "There are 160 training pairs, fewer than a batch of 512, so every batch contains all of them."
    ]
    assert run.steps_per_epoch == 1
    assert run.run().outcome == FINISHED


def test_too_few_pairs_are_refused() -> None:
    first, second, index = views(10)
    some, one, none = (some_pairs(first, second, index, np.arange(n)) for n in (10, 1, 0))
    towers = TwoTowers(*new_heads(some, HeadShape(dim=4, hidden=4), 0))
    for train, val, what in ((one, some, "1 training"), (some, none, "0 validation")):
        with pytest.raises(ConnectError, match=f"{what} pairs of image and text"):
            Trainer(towers, train, val, QUICK, CPU)
    same = dataclasses.replace(some, first_ids=np.zeros(10, dtype=np.int64))
    with pytest.raises(ConnectError, match=r"10 training pairs .* from 1 different items"):
        Trainer(towers, same, some, QUICK, CPU)


def test_diverging_loss_stops_and_keeps_the_best() -> None:
    said = Messages()
    run = trainer(dataclasses.replace(QUICK, epochs=20), reporter=said)
    original = run._step

    def poisoned() -> None:
        if run.state.step == 10:
            with torch.no_grad():
                next(iter(run.towers.parameters())).fill_(float("nan"))
        original()

    run._step = poisoned  # type: ignore[method-assign]
    state = run.run()
    assert state.outcome == DIVERGED
    assert state.step == 11
    assert all(np.isfinite(w).all() for w in weights(run))
    assert f"diverged at step 11; the weights of step {state.best_point.step} are kept" in said.texts[-1]


def test_a_loss_that_climbs_by_chance_above_its_lowest_has_diverged() -> None:
    run = trainer(dataclasses.replace(QUICK, epochs=20))
    original = run._step

    def climbing() -> None:
        original()
        if run.state.step > 8:
            run.state.loss_sum += 10

    run._step = climbing  # type: ignore[method-assign]
    state = run.run()
    assert (state.outcome, state.step) == (DIVERGED, 12)


def test_a_collapsed_run_is_found() -> None:
    run = trainer(dataclasses.replace(QUICK, epochs=20))
    for side in ("first", "second"):  # every row is the same vector, and no gradient can part them
        last = run.towers.get_parameter(f"{side}.layers.3.weight")
        torch.nn.init.zeros_(last).requires_grad_(False)
        run.towers.get_submodule(f"{side}.layers.0").requires_grad_(False)
    state = run.run()
    assert state.outcome == COLLAPSED
    assert state.step == 3 * run.steps_per_epoch
    assert state.log[-1].loss == pytest.approx(np.log(40), rel=0.05)


def test_unrelated_rows_are_said_to_be_near_chance() -> None:
    run = trainer(dataclasses.replace(QUICK, epochs=1, learning_rate=1e-6))
    said = Messages()
    run.reporter = said
    shuffled = np.random.default_rng(0).permutation(run.val.second_rows)
    run.val = dataclasses.replace(run.val, second_rows=shuffled)
    run.run()
    assert "near chance" in said.texts[-1]


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    run = trainer(dataclasses.replace(QUICK, epochs=25, warmup=0.1, learning_rate=1.0))
    rates = [run.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
