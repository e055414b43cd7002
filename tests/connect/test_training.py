"""Gradients of chunks and processes, and one contrastive training: its log, its end, and how it is continued."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from c3tools.connect.geometry import measure
from c3tools.connect.gradients import TwoTowers, contrastive_backward
from c3tools.connect.heads import HeadShape, new_heads
from c3tools.connect.losses import ContrastiveLoss, LogitScale, same_items
from c3tools.connect.training import COLLAPSED, PairTask, TrainingSettings
from c3tools.devices import Compute
from c3tools.errors import ConnectError
from c3tools.reporter import SILENT, Reporter
from c3tools.training.checkpoints import CheckpointDir
from c3tools.training.loop import DIVERGED, EARLY, FINISHED, Run, train
from tests.conftest import Messages

from ..conftest import unit_rows
from .worlds import some_pairs, views

CPU = Compute("cpu", "fp32")
QUICK = TrainingSettings(scale=LogitScale(20), batch_size=40, epochs=6, learning_rate=3e-3, patience=0)


def towers(dropout: float = 0.0) -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)),
    )


def batch(n: int = 12) -> tuple[tuple[Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 6, generator=generator), torch.randn(n, 5, generator=generator)
    return inputs, same_items(torch.arange(n) // 2, torch.arange(n))


def gradients(*modules: nn.Module) -> list[npt.NDArray[np.float32]]:
    return [p.grad.numpy().copy() for module in modules for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("chunk", [None, 12, 5, 1])
@pytest.mark.parametrize("close_gap", [0.0, 0.7])
def test_chunks_have_the_gradient_of_the_whole_batch(kind: str, chunk: int | None, close_gap: float) -> None:
    inputs, same = batch()
    plain, plain_loss = towers(), ContrastiveLoss(kind, LogitScale(20, learned=True), close_gap)
    rows = [plain.embed(x, side, CPU) for side, x in enumerate(inputs)]
    value = plain_loss(rows[0], rows[1], same)
    (value + plain_loss.gap_terms(rows[0], rows[1], same)).backward()
    cached, loss = towers(), ContrastiveLoss(kind, LogitScale(20, learned=True), close_gap)
    found = contrastive_backward(cached, loss, inputs, same, CPU, chunk=chunk)
    assert found == pytest.approx(float(value.detach()), rel=1e-6)
    for expected, got in zip(gradients(plain, plain_loss), gradients(cached, loss), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_dropout_is_the_same_in_both_passes() -> None:
    inputs, same = batch()
    trained, runs, loss = towers(dropout=0.5).train(), [], ContrastiveLoss()
    for _ in range(2):
        trained.zero_grad()
        torch.manual_seed(torch.seed())  # what was drawn before must not matter
        contrastive_backward(trained, loss, inputs, same, CPU, chunk=4, scope=(0, 3))
        runs.append(gradients(trained))
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)
    # finite differences of the loss with the same masks: another mask in the second pass would show
    values, nudge = [], 1e-3
    for sign in (1, -1):
        moved = copy.deepcopy(trained)
        moved.get_parameter("first.0.weight").data[0, 0] += sign * nudge
        values.append(contrastive_backward(moved, loss, inputs, same, CPU, chunk=4, scope=(0, 3)))
    assert runs[0][0][0, 0] == pytest.approx((values[0] - values[1]) / (2 * nudge), rel=0.05, abs=1e-4)


def test_a_frozen_tower_gets_no_gradient_and_batch_normalisation_stays_as_it_is() -> None:
    inputs, same = batch()
    trained = towers()
    trained.first.requires_grad_(False)
    contrastive_backward(trained, ContrastiveLoss(), inputs, same, CPU, chunk=5)
    assert all(p.grad is None for p in trained.first.parameters())
    assert all(p.grad is not None for p in trained.second.parameters())
    normalised = TwoTowers(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), nn.Linear(5, 8)).train()
    assert normalised.second.training
    assert not normalised.get_submodule("first.1").training


WORKER = """
import json, sys
from c3tools.connect import processes
from c3tools.connect.gradients import contrastive_backward
from c3tools.connect.losses import ContrastiveLoss, LogitScale
from tests.connect.test_training import CPU, batch, towers
with processes.joined("cpu", "fp32"):
    inputs, same = batch()
    size = len(same) // processes.world()
    mine = slice(processes.rank() * size, (processes.rank() + 1) * size)
    trained, loss = towers(), ContrastiveLoss("infonce", LogitScale(20, learned=True))
    value = contrastive_backward(trained, loss, tuple(x[mine] for x in inputs), same, CPU, chunk=2)
    found = [p.grad.flatten().tolist() for p in [*trained.parameters(), *loss.parameters()]]
    told = processes.from_main(processes.rank() == 0)
    if processes.rank() == 1:
        json.dump({"world": processes.world(), "loss": value, "gradients": found, "told": told}, open(sys.argv[1], "w"))
"""


@pytest.mark.timeout(600)
def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    inputs, same = batch()
    alone, loss = towers(), ContrastiveLoss("infonce", LogitScale(20, learned=True))
    value = contrastive_backward(alone, loss, inputs, same, CPU)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    plain = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent), "CUDA_VISIBLE_DEVICES": ""}
    shared = {**plain, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", WORKER, str(tmp_path / "out.json")]
    runs = [subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    try:
        assert [run.wait(500) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()  # one that failed leaves the other waiting
            run.wait()
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["world"], found["told"]) == (2, True)
    assert found["loss"] == pytest.approx(value, rel=1e-6)
    for expected, got in zip(gradients(alone, loss), found["gradients"], strict=True):
        np.testing.assert_allclose(np.array(got).reshape(expected.shape), expected, rtol=1e-4, atol=1e-7)


def test_the_log_has_the_measures_of_a_report() -> None:
    first, second, index = unit_rows(30, 6), unit_rows(60, 6, seed=1), np.repeat(np.arange(30), 2)
    geometry = measure(first, second, index)
    cosines = first.astype(np.float64) @ second.T
    own = index[None] == np.arange(30)[:, None]
    assert geometry.gap == pytest.approx(np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)), rel=1e-5)
    assert geometry.paired_cosine == pytest.approx(cosines[own].mean(), abs=1e-6)
    assert geometry.unpaired_cosine == pytest.approx(cosines[~own].mean(), abs=1e-6)
    best = cosines.argmax(axis=1)
    assert geometry.recall[0]["recall@1"] == pytest.approx(np.mean(index[best] == np.arange(30)))
    assert set(geometry.to_dict(("image", "text"))["recall"]) == {"image_to_text", "text_to_image"}


def pair_task(
    settings: TrainingSettings = QUICK, *, cone: float = 0.0, reporter: Reporter = SILENT, shuffle: bool = False
) -> PairTask:
    first, second, index = views(100, 2)
    training, val = (some_pairs(first, second, index, rows) for rows in (np.arange(160), np.arange(160, 200)))
    heads = new_heads(training, HeadShape(dim=16, hidden=32, dropout=0.1, cone=cone), settings.seed)
    if shuffle:
        val = replace(val, second_rows=np.random.default_rng(0).permutation(val.second_rows))
    return PairTask(TwoTowers(*heads), training, val, settings, CPU, reporter=reporter)


def weights(of: PairTask) -> list[npt.NDArray[np.float32]]:
    return [p.detach().numpy().copy() for p in of.module.parameters()]


def test_training_connects_and_keeps_the_best_point() -> None:
    task = pair_task()
    run = train(task)
    assert (run.outcome, run.step) == (FINISHED, 6 * 4)
    log = task.log(run)
    assert [point["step"] for point in log] == [0, 4, 8, 12, 16, 20, 24]
    recalls = [np.mean([way["recall@1"] for way in point["recall"].values()]) for point in log]
    assert recalls[0] < 0.3
    assert max(recalls) > 0.6
    assert run.kept is not None
    assert run.kept.step == log[1 + int(np.argmax(recalls[1:]))]["step"]
    assert log[-1]["loss"] < log[1]["loss"]
    assert log[0]["loss"] is None
    # the towers hold the weights of that point
    rows = task.val.embed(lambda inputs, side, numbers: task.towers.embed_rows(inputs, side, numbers, CPU))
    assert measure(*rows).to_dict(("image", "text")) == run.kept.facts["geometry"]
    # with two texts per image a batch of 40 of 160 nearly always has an image twice
    assert task.counters["repeated"] == task.counters["batches"] == run.step


def test_the_gap_closes_when_its_terms_are_in_the_loss() -> None:
    settings = replace(QUICK, scale=LogitScale(50), epochs=15, learning_rate=1e-2)
    tasks = [pair_task(replace(settings, close_gap=weight), cone=1.33) for weight in (0.0, 1.0)]
    open_, closed = (task.log(train(task)) for task in tasks)
    assert open_[0]["gap"] == closed[0]["gap"] > 0.8
    assert closed[-1]["gap"] < 0.5 * open_[-1]["gap"]
    # the log has the contrastive loss alone, so that its points compare
    assert closed[1]["loss"] == pytest.approx(open_[1]["loss"], rel=0.5)


class KilledError(Exception):
    pass


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = replace(QUICK, scale=LogitScale(20, learned=True), loss="sigmoid", log_every=3, epochs=4)
    whole = pair_task(settings, cone=1.0)
    expected = train(whole)
    first, steps = pair_task(settings, cone=1.0), []

    def killed(number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        if number == 11:
            raise KilledError
        steps.append(number)
        return PairTask.step(first, number, update)

    first.step = killed  # type: ignore[method-assign]
    folder = CheckpointDir(tmp_path / "run")
    with pytest.raises(KilledError):
        train(first, checkpoints=folder)
    second = pair_task(settings, cone=1.0)
    found = train(second, checkpoints=folder)
    for one, other in zip(weights(whole), weights(second), strict=True):
        np.testing.assert_array_equal(one, other)
    assert second.counters == whole.counters
    plain = [[{**p, "seconds": 0} for p in task.log(run)] for task, run in ((whole, expected), (second, found))]
    assert plain[0] == plain[1]
    assert pair_task(replace(settings, seed=1), cone=1.0).identity != whole.identity == first.identity


def damage(kind: str, task: PairTask) -> None:
    """Change a task so that its training ends badly."""
    if kind == "nan":
        step = task.step

        def poisoned(number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
            if number == 10:
                nn.init.constant_(next(iter(task.towers.parameters())), float("nan"))
            return step(number, update)

        task.step = poisoned  # type: ignore[method-assign]
    elif kind == "climbing":
        own = task.step
        task.step = lambda number, update: (own(number, update)[0] + 10 * (number >= 8), 40)  # type: ignore[method-assign]
    else:  # every row is the same vector, and no gradient can part them
        for side in ("first", "second"):
            nn.init.zeros_(task.towers.get_parameter(f"{side}.layers.3.weight")).requires_grad_(False)
            task.towers.get_submodule(f"{side}.layers.0").requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "outcome", "step"), [("nan", DIVERGED, 10), ("climbing", DIVERGED, 12), ("equal", COLLAPSED, 12)]
)
def test_a_training_that_fails_is_found_and_leaves_finite_weights(kind: str, outcome: str, step: int) -> None:
    task = pair_task(replace(QUICK, epochs=20))
    damage(kind, task)
    run = train(task)
    assert (run.outcome, run.step) == (outcome, step)
    assert all(np.isfinite(value).all() for value in weights(task))
    if kind == "equal":
        assert run.history[-1].train_loss == pytest.approx(np.log(40), rel=0.05)


def test_it_stops_early() -> None:
    run: Run = train(pair_task(replace(QUICK, epochs=60, patience=2)))
    assert run.outcome == EARLY
    assert run.kept == run.history[-3]


def test_a_learned_scale_at_its_limit_is_reported_once() -> None:
    said = Messages()
    scale = LogitScale(5, learned=True, limit=5.01)
    train(pair_task(replace(QUICK, scale=scale, learning_rate=1e-2), reporter=said))
    assert len(said.texts) == 1
    assert "5.01" in said.texts[0]


def test_too_few_pairs_make_one_batch_or_are_refused() -> None:
    said = Messages()
    task = pair_task(replace(QUICK, batch_size=512), reporter=said)
    assert (task.steps_per_epoch, task.settings.batch_size) == (1, 160)
    assert "160" in said.texts[0]
    first, second, index = views(10)
    some, one, none = (some_pairs(first, second, index, np.arange(n)) for n in (10, 1, 0))
    same = replace(some, first_ids=np.zeros(10, dtype=np.int64))
    both = TwoTowers(*new_heads(some, HeadShape(dim=4, hidden=4), 0))
    for training, val, what in ((one, some, "1 training"), (some, none, "0 validation"), (same, some, "1 different")):
        with pytest.raises(ConnectError, match=what):
            PairTask(both, training, val, QUICK, CPU)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "triplet"},
        {"batch_size": 1},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"chunk": 0},
        {"warmup": 2.0},
        {"patience": -1},
        {"close_gap": -1.0},
        {"weight_decay": -0.1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConnectError):
        TrainingSettings(**wrong)
