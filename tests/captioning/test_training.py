"""One step of the training of a decoder: what it computes, and how fast it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from c3tools.captioning import train_captioner
from c3tools.captioning.config import SIZES, TrainingConfig
from c3tools.training.loop import TrainingPlan

from .conftest import World, mean_loss, task_of

WHOLE = TrainingConfig(1, 120, 1e-3)  # of all rows of the training split


def value_of(loss: torch.Tensor | float) -> float:
    return float(torch.as_tensor(loss).detach())


def test_the_loss_of_a_step_ignores_padding_and_nothing_else(world: World) -> None:
    task = task_of(world, WHOLE)
    tokens = torch.from_numpy(task.train_tokens.batch(np.arange(120), task.model.pad_id))
    hidden = task.model(torch.from_numpy(task.train.embeddings), tokens)[1].detach()
    expected = mean_loss(task.model, task.train.embeddings, tokens)
    moved = list[float]()

    def update(loss: torch.Tensor | float) -> float:
        moved.append(value_of(loss))
        return moved[-1]

    loss, count = task.step(0, update)
    assert loss == moved[0] == pytest.approx(expected, rel=1e-5)
    assert count == task.train_tokens.lengths.sum()
    # the contrastive loss moves the weights, and is not reported
    task = task_of(world, replace(WHOLE, contrastive_margin=1.5))
    assert task.step(0, update)[0] == pytest.approx(loss, rel=1e-6)
    # of the hidden states of each caption: mean of max(0, 1.5 - 1 + cos) over the pairs of
    # different ones
    apart = []
    for states, length in zip(hidden, task.train_tokens.lengths, strict=True):
        cosines = torch.cosine_similarity(states[:length, None], states[None, :length], dim=-1)
        apart.append(
            float((0.5 + cosines[~torch.eye(length, dtype=torch.bool)]).clamp(min=0).mean())
        )
    assert moved[1] - loss == pytest.approx(np.mean(apart), rel=1e-4)


def test_validation_holds_few_scores_of_a_large_vocabulary_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(world, WHOLE)
    task.model.eval()
    with torch.no_grad():
        expected = task.validate()[0]
        limit = 100 * task.model.config.vocab_size  # the scores of a hundred tokens
        monkeypatch.setattr(train_captioner, "_VALIDATION_SCORES", limit)
        counts: list[int] = []
        task.model.register_forward_hook(lambda *call: counts.append(call[2][0].numel()))
        assert task.validate()[0] == pytest.approx(expected, rel=1e-5)
    assert len(counts) > 1
    assert max(counts) <= limit


def test_the_papers_schedule_warms_up_for_a_number_of_steps_and_falls_linearly(
    world: World,
) -> None:
    settings = SIZES["paper"].training
    # half of a small corpus
    assert task_of(world, settings).plan == TrainingPlan(
        30, 2e-5, 3, 15, "linear", start="skip", steps_per_epoch=3
    )
    assert task_of(world, replace(settings, warmup_steps=7)).plan.rise == 7


def test_a_step_depends_on_nothing_but_its_number(world: World) -> None:
    task = task_of(world, TrainingConfig(1, 40, 1e-3), "c3", "dropout=0.5")
    losses = [task.step(number, value_of)[0] for number in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
