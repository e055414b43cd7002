"""The loss, gradients of chunks, and one contrastive training: its log, its end, and how it is
continued."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor, nn

from c3tools.connect.contrastive import ContrastiveLoss, PairTask, TrainingSettings, TwoTowers
from c3tools.connect.geometry import geometry_figure, measure
from c3tools.devices import Compute
from c3tools.errors import ConnectError
from c3tools.training.loop import FINISHED, CheckpointDir, train
from tests.conftest import unit_rows
from tests.geometry.spaces import plain_measures
from tests.golden import drawn, recorded
from tests.stores import unit

from .worlds import some_pairs, views

CPU = Compute("cpu", "fp32")
QUICK = TrainingSettings(
    logit_scale="20",
    close_gap=0.0,
    batch_size=40,
    chunk=None,
    epochs=6,
    learning_rate=3e-3,
    patience=0,
    train_split="train",
    seed=0,
)
NAMES = ("image", "text")
SIDES = torch.from_numpy(unit_rows(12, 6)), torch.from_numpy(unit_rows(12, 5))
IDS = torch.stack([torch.arange(12) // 2, torch.arange(12)])  # every item has two pairs


@settings(max_examples=40)
@given(
    n=st.integers(2, 9), scale=st.floats(0.5, 100), seed=st.integers(0, 1000), repeats=st.booleans()
)
def test_loss_and_the_terms_that_close_the_gap_are_those_of_their_papers(
    n: int, scale: float, seed: int, repeats: bool
) -> None:
    a, b = unit_rows(n, 5, seed), unit_rows(n, 5, seed + 1)
    ids = (
        np.random.default_rng(seed).integers(0, max(2, n // 2), size=n) if repeats else np.arange(n)
    )
    others = ids[:, None] != ids[None]
    inputs = torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(~others)
    loss = ContrastiveLoss(str(scale), 0.5)
    a, b = a.astype(np.float64), b.astype(np.float64)
    masked = np.where(others | np.eye(n, dtype=bool), scale * a @ b.T, -np.inf)
    rows, columns = (np.diagonal(log_softmax(masked, axis=axis)) for axis in (1, 0))
    assert float(loss(*inputs)) == pytest.approx(-(rows.mean() + columns.mean()) / 2, abs=2e-4)
    centroids = unit(a + b)
    near = np.exp(-2 * ((centroids[:, None] - centroids[None]) ** 2).sum(axis=2))[others]
    gap = np.mean(np.sum((a - b) ** 2, axis=1)) + (np.log(near.mean()) if len(near) else 0.0)
    assert float(loss.gap_terms(*inputs)) == pytest.approx(0.5 * gap, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "value"), [("100", 100), ("200", 200), ("learned", 1 / 0.07), ("learned:20", 20)]
)
def test_a_logit_scale_is_fixed_or_learned(text: str, value: float) -> None:
    loss = ContrastiveLoss(text)
    assert loss.logit_scale == pytest.approx(value, rel=1e-6)
    assert loss.log_scale.requires_grad == text.startswith("learned")


@pytest.mark.parametrize("text", ["learned:x", "0", "-3", "nan", "inf", "14:50", "", "learned:101"])
def test_what_is_no_logit_scale_is_refused(text: str) -> None:
    with pytest.raises(ConnectError, match="logit scale"):
        ContrastiveLoss(text)


def towers(dropout: float = 0.0) -> TwoTowers:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))
    return TwoTowers(first, nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)), CPU)


def gradients(*modules: nn.Module) -> list[Tensor]:
    return [p.grad for module in modules for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("chunk", [None, 5, 1])
@pytest.mark.parametrize("close_gap", [0.0, 0.7])
def test_chunks_have_the_gradient_of_the_whole_batch(chunk: int | None, close_gap: float) -> None:
    plain, plain_loss = towers(), ContrastiveLoss("learned:20", close_gap)
    first, second, same = (
        plain.embed(SIDES[0], 0),
        plain.embed(SIDES[1], 1),
        IDS[0][:, None] == IDS[0],
    )
    value = plain_loss(first, second, same)
    (value + plain_loss.gap_terms(first, second, same)).backward()
    cached, loss = towers(), ContrastiveLoss("learned:20", close_gap)
    assert cached.backward(loss, SIDES, IDS, chunk=chunk) == pytest.approx(
        float(value.detach()), rel=1e-6
    )
    torch.testing.assert_close(
        gradients(cached, loss), gradients(plain, plain_loss), rtol=1e-4, atol=1e-7
    )


def test_dropout_is_the_same_in_both_passes() -> None:
    trained, runs, loss = towers(dropout=0.5).train(), [], ContrastiveLoss("learned")
    for _ in range(2):
        trained.zero_grad()
        torch.manual_seed(torch.seed())  # what was drawn before must not matter
        trained.backward(loss, SIDES, IDS, chunk=4, scope=(0, 3))
        runs.append(gradients(trained))
    assert all(map(torch.equal, *runs))
    # finite differences of the loss with the same masks: another mask in the second pass would show
    values, nudge = [], 1e-3
    for sign in (1, -1):
        moved = copy.deepcopy(trained)
        moved.get_parameter("sides.0.0.weight").data[0, 0] += sign * nudge
        values.append(moved.backward(loss, SIDES, IDS, chunk=4, scope=(0, 3)))
    assert runs[0][0][0, 0] == pytest.approx(
        (values[0] - values[1]) / (2 * nudge), rel=0.05, abs=1e-4
    )


def test_a_frozen_tower_gets_no_gradient_and_batch_normalisation_stays_as_it_is() -> None:
    trained = towers()
    trained.sides[0].requires_grad_(False)
    trained.backward(ContrastiveLoss("20"), SIDES, IDS, chunk=5)
    assert [p.grad is None for p in trained.parameters()] == [True] * 4 + [False] * 4
    normalised = TwoTowers(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), nn.Linear(5, 8), CPU
    ).train()
    assert normalised.sides[1].training
    assert not normalised.get_submodule("sides.0.1").training


def test_the_log_has_the_measures_of_a_report() -> None:
    first, second, index = unit_rows(30, 6), unit_rows(60, 6, seed=1), np.repeat(np.arange(30), 2)
    found, expected = measure(first, second, index, NAMES), plain_measures(first, second, index)
    found |= {
        f"{name}_effective_dimension": value
        for name, value in found.pop("effective_dimension").items()
    }
    for way, recall in found.pop("recall").items():
        found |= {f"raw {way} {name}": value for name, value in recall.items()}
    assert len(found) == 12
    assert found == pytest.approx(
        {name: expected["length" if name == "gap" else name] for name in found}, abs=1e-6
    )


def test_the_figure_draws_the_log() -> None:
    index = np.arange(12) // 2
    log = [
        {
            "step": step,
            "logit_scale": 20.0 + step,
            **measure(unit_rows(6, 4, step), unit_rows(12, 4, 9), index, NAMES),
        }
        for step in (0, 600, 1200, 1800)
    ]
    recorded(Path(__file__).parent / "golden/figure.json", drawn(geometry_figure(log, NAMES, 1200)))


def pair_task(settings: TrainingSettings = QUICK, *, pairs: int = 160) -> PairTask:
    first, second, index = views(100, 2)
    training, val = (
        some_pairs(first, second, index, rows) for rows in (np.arange(pairs), np.arange(160, 200))
    )
    torch.manual_seed(settings.seed)
    one, two = (
        nn.Sequential(nn.Linear(n, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16))
        for n in (20, 12)
    )
    return PairTask(TwoTowers(one, two, CPU), training, val, settings)


def test_training_connects_and_keeps_the_best_point() -> None:
    task = pair_task()
    run = train(task)
    assert (run.outcome, run.step) == (FINISHED, 6 * 4)
    recalls = [
        np.mean([way["recall@1"] for way in point["recall"].values()]) for point in task.log(run)
    ]
    assert recalls[0] < 0.3
    assert max(recalls) > 0.5
    assert run.kept is not None
    assert run.kept.step == 4 * (1 + int(np.argmax(recalls[1:])))
    # the towers hold the weights of that point
    assert measure(*task.towers.embed_pairs(task.val), NAMES).items() <= run.kept.facts.items()


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = replace(QUICK, logit_scale="learned:20", epochs=4)
    whole, first, second = (pair_task(settings) for _ in range(3))
    expected, step = train(whole), first.step

    def killed(number: int, update: Any) -> tuple[float, int]:
        if number == 11:
            raise TimeoutError
        return step(number, update)

    first.step = killed  # type: ignore[method-assign]
    folder = CheckpointDir(tmp_path / "run")
    with pytest.raises(TimeoutError):
        train(first, checkpoints=folder)
    found = train(second, checkpoints=folder)
    assert all(map(torch.equal, whole.module.parameters(), second.module.parameters()))
    assert whole.log(expected) == second.log(found)
    assert pair_task(replace(settings, seed=1)).identity != whole.identity == first.identity


def test_a_learned_scale_has_a_limit() -> None:
    task = pair_task(replace(QUICK, logit_scale="learned:99.99"))

    def update(_: Tensor | float) -> float:
        task.loss.log_scale.data += 1
        return 0.0

    task.step(0, update)
    assert task.loss.logit_scale == pytest.approx(100)


def test_too_few_pairs_make_one_batch_or_are_refused() -> None:
    for size, pairs, expected in ((512, 160, 160), (2, 3, 2)):
        task = pair_task(replace(QUICK, batch_size=size, chunk=1), pairs=pairs)
        assert (task.steps_per_epoch, task.settings.batch_size) == (1, expected)
    with pytest.raises(ConnectError, match="1 training"):
        pair_task(pairs=1)
