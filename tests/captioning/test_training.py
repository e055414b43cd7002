from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from c3tools import Captioner, devices
from c3tools.captioning.config import SIZES, DecoderConfig, TrainingConfig
from c3tools.captioning.model import CaptionDecoder
from c3tools.captioning.tokenizer import END_ID, PAD_ID
from c3tools.captioning.train import DecoderTask
from c3tools.store import Rows
from c3tools.training.loop import Plan, train

from .conftest import tiny

FP32 = devices.pick("cpu", "fp32")
SMALL: dict[str, Any] = {"width": 48, "layers": 1, "heads": 2, "prefix_length": 2, "dropout": 0.0}


class Spy:
    """A transform that writes down how it was called."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def config(self) -> None:
        """Have no settings."""

    def record(self) -> dict[str, Any]:
        return {"tensors": []}

    def transform(
        self,
        x: np.ndarray,
        *,
        modality: str = "text",
        training: bool = False,
        keys: Sequence[str] | None = None,
        items: Sequence[str] | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> np.ndarray:
        names = {"keys": keys, "items": items}
        self.calls.append({"modality": modality, "training": training, **names, "seed": seed, "epoch": epoch})
        return x


class Digits:
    """A tokenizer of captions that are token ids."""

    def encode(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        return [[*map(int, caption.split()), END_ID][:max_tokens] for caption in captions]


def caption_rows(n: int = 20, modality: str = "text") -> Rows:
    rng = np.random.default_rng(0)
    captions = [" ".join(map(str, rng.integers(2, 9, size=rng.integers(1, 6)))) for _ in range(n)]
    images = [f"image {i // 2}" for i in range(n)]
    return Rows.of(modality, [f"k{i}" for i in range(n)], rng.normal(size=(n, 4)), caption=captions, image_key=images)


def make_task(config: TrainingConfig, transform: Any = None) -> DecoderTask:
    torch.manual_seed(0)
    spy: Any = transform or Spy()
    start = Captioner(CaptionDecoder(DecoderConfig(dim=4, vocab_size=9, max_tokens=8, **SMALL)), Digits(), spy)  # type: ignore[arg-type]
    return DecoderTask(caption_rows(), caption_rows(8), spy, tiny(config), FP32, start)


def test_noise_is_asked_for_training_inputs_only_anew_in_each_epoch() -> None:
    spy = Spy()
    train(make_task(TrainingConfig(epochs=2, batch_size=6, seed=5), spy))
    validation = [call for call in spy.calls if not call["training"]]
    assert len(validation) == 1  # the same clean inputs serve every epoch
    for epoch in (0, 1):
        calls = [call for call in spy.calls if call["training"] and call["epoch"] == epoch]
        names = [pair for call in calls for pair in zip(call["keys"], call["items"], strict=True)]
        assert sorted(names) == sorted(zip(caption_rows().keys, caption_rows().items, strict=True))
        assert {(call["seed"], call["modality"]) for call in calls} == {(5, "text")}


def test_the_loss_of_a_step_ignores_padding_and_nothing_else() -> None:
    task = make_task(TrainingConfig(epochs=1, batch_size=20))
    tokens = torch.from_numpy(task.train_tokens.batch(np.arange(20), PAD_ID))
    real = tokens != PAD_ID
    logits, hidden = task.model(torch.from_numpy(task.train.embeddings), tokens)
    log_p = logits.log_softmax(-1)
    expected = -log_p.gather(2, tokens[:, :, None])[:, :, 0][real].mean()
    moved: list[float] = []

    def update(loss: torch.Tensor | float) -> float:
        moved.append(float(torch.as_tensor(loss).detach()))
        return moved[-1]

    loss, count = task.step(0, update)
    assert loss == moved[0] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert count == int(real.sum()) == task.train_tokens.lengths.sum()
    # the contrastive loss moves the weights, and is not reported
    task = make_task(TrainingConfig(epochs=1, batch_size=20, contrastive_margin=1.5))
    assert task.step(0, update)[0] == pytest.approx(loss, rel=1e-6)
    apart = []  # of the hidden states of each caption: mean of max(0, 1.5 - 1 + cos) over the pairs of different ones
    for states, length in zip(hidden.detach(), task.train_tokens.lengths, strict=True):
        pairs = [(i, j) for i in range(length) for j in range(length) if i != j]
        cosines = [float(torch.cosine_similarity(states[i], states[j], dim=0)) for i, j in pairs]
        apart.append(sum(max(0.0, 0.5 + cosine) for cosine in cosines) / len(pairs))
    assert moved[1] - loss == pytest.approx(np.mean(apart), rel=1e-5)


def test_the_papers_schedule_warms_up_for_a_number_of_steps_and_falls_linearly() -> None:
    settings = replace(SIZES["paper"].training, batch_size=4)
    assert make_task(settings).plan == Plan(
        50, 2e-5, 5, 25, "linear", start="keep", steps_per_epoch=5
    )  # half of a small corpus
    assert make_task(replace(settings, warmup_steps=7)).plan.rise == 7


def test_hidden_words_are_drawn_at_the_asked_rate() -> None:
    task = make_task(TrainingConfig(epochs=1, word_dropout=0.25))
    hidden: list[torch.Tensor] = []
    task.model.register_forward_pre_hook(lambda _, read: hidden.append((read[2] == PAD_ID)[read[1] != PAD_ID]))
    for number in range(100):
        task.step(number, lambda loss: float(torch.as_tensor(loss).detach()))
    assert float(torch.cat(hidden).float().mean()) == pytest.approx(0.25, abs=0.02)
