from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from c3tools import devices
from c3tools.decoding import SIZES, CaptionDecoder, CaptionRows, DecoderConfig, Trainer, TrainingConfig, fit_captioner
from c3tools.decoding.tokenizer import END_ID, PAD_ID
from c3tools.decoding.training import CaptionSet, schedule
from c3tools.errors import DecoderError
from c3tools.transforms import preset

from .conftest import DIM, World

FP32 = devices.pick("cpu", "fp32")
SMALL = {"width": 48, "layers": 1, "heads": 2, "prefix_length": 2, "dropout": 0.0}


class Spy:
    """A transform that writes down how it was called."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def transform(
        self,
        x: np.ndarray,
        *,
        modality: str = "text",
        training: bool = False,
        keys: Sequence[str] | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> np.ndarray:
        self.calls.append({"modality": modality, "training": training, "keys": keys, "seed": seed, "epoch": epoch})
        return x


def caption_set(n: int = 20, modality: str = "text") -> CaptionSet:
    rng = np.random.default_rng(0)
    tokens = [[*rng.integers(2, 9, size=rng.integers(1, 6)).tolist(), END_ID] for _ in range(n)]
    return CaptionSet([f"k{i}" for i in range(n)], rng.normal(size=(n, 4)).astype(np.float32), tokens, modality)


def make_trainer(config: TrainingConfig, transform: Any = None, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    model = CaptionDecoder(DecoderConfig(dim=4, vocab_size=9, max_tokens=8, **(SMALL | changes)))
    return Trainer(model, caption_set(), caption_set(8), transform or Spy(), config, FP32)


def test_noise_is_asked_for_training_inputs_only_anew_in_each_epoch() -> None:
    spy = Spy()
    make_trainer(TrainingConfig(epochs=2, batch_size=6, seed=5), spy).run()
    validation = [call for call in spy.calls if not call["training"]]
    assert len(validation) == 1  # the same clean inputs serve every epoch
    for epoch in (0, 1):
        calls = [call for call in spy.calls if call["training"] and call["epoch"] == epoch]
        assert sorted(key for call in calls for key in call["keys"]) == sorted(caption_set().keys)
        assert {call["seed"] for call in calls} == {5}


def test_the_modality_of_the_inputs_is_passed_on() -> None:
    spy = Spy()
    model = CaptionDecoder(DecoderConfig(dim=4, vocab_size=9, max_tokens=8, **SMALL))
    Trainer(model, caption_set(4, "image"), caption_set(4), spy, TrainingConfig(epochs=1), FP32).run()
    assert [call["modality"] for call in spy.calls] == ["text", "image"]


def test_validation_loss_is_the_mean_over_real_tokens_end_included() -> None:
    trainer = make_trainer(TrainingConfig(epochs=1))
    data, total, count = trainer.val, 0.0, 0
    trainer.model.eval()
    for row, ids in enumerate(data.tokens):
        with torch.no_grad():
            scores = trainer.model(torch.from_numpy(data.embeddings[row : row + 1]), torch.tensor([ids]))[0]
        total -= float(scores.double().log_softmax(-1)[range(len(ids)), ids].sum())
        count += len(ids)
    assert trainer.validation_loss() == pytest.approx(total / count, rel=1e-5)


def test_the_loss_of_a_step_ignores_padding_and_nothing_else() -> None:
    trainer = make_trainer(TrainingConfig(epochs=1, batch_size=20))
    expected = trainer.model(
        torch.from_numpy(trainer.train.embeddings), trainer.train.token_batch(np.arange(20), PAD_ID)
    ).log_softmax(-1)
    expected = expected.detach()
    tokens = trainer.train.token_batch(np.arange(20), PAD_ID)
    real = tokens != PAD_ID
    mean = float(-expected.gather(2, tokens[:, :, None])[:, :, 0][real].mean())
    loss, count = trainer._step(np.arange(20))
    assert loss == pytest.approx(mean, rel=1e-5)
    assert count == int(real.sum()) == sum(len(ids) for ids in trainer.train.tokens)


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    config = TrainingConfig(warmup=0.1)
    assert [schedule(step, 100, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule(55, 100, config) == pytest.approx(0.5)
    assert schedule(99, 100, config) == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_the_papers_schedule_warms_up_for_a_number_of_steps_and_falls_linearly() -> None:
    config = SIZES["paper"].training
    assert [schedule(step, 20_000, config) for step in (0, 2499, 4999)] == pytest.approx([1 / 5000, 0.5, 1.0])
    assert schedule(12_500, 20_000, config) == pytest.approx(0.5)
    assert schedule(19_999, 20_000, config) == pytest.approx(1 / 15_000)
    # a corpus too small for it: half of the steps
    assert schedule(499, 1000, config) == 1.0


def test_the_best_weights_are_kept_and_patience_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(TrainingConfig(epochs=10, batch_size=10, patience=2))
    losses = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    weights: list[torch.Tensor] = []

    def fake() -> float:
        weights.append(trainer.model.tokens.weight.detach().clone())
        return next(losses)

    monkeypatch.setattr(trainer, "validation_loss", fake)
    history = trainer.run()
    assert [epoch.val_loss for epoch in history] == [3.0, 2.0, 2.5, 2.4]
    assert trainer.state.best_val_loss == 2.0
    torch.testing.assert_close(trainer.model.tokens.weight, weights[1], rtol=0, atol=0)


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    trainer = make_trainer(TrainingConfig(epochs=1))
    torch.manual_seed(1)
    trainer.run()
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_hidden_words_are_drawn_at_the_asked_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(TrainingConfig(epochs=1, word_dropout=0.25))
    seen: list[torch.Tensor] = []
    forward = trainer.model.forward

    def spy(embeddings: torch.Tensor, tokens: torch.Tensor, shown: torch.Tensor | None = None) -> torch.Tensor:
        assert shown is not None
        seen.append((shown == PAD_ID)[tokens != PAD_ID])
        return forward(embeddings, tokens, shown)

    monkeypatch.setattr(trainer.model, "forward", spy)
    for _ in range(100):
        trainer._step(np.arange(20))
        trainer.state.batch += 1
    assert float(torch.cat(seen).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    trainer = make_trainer(TrainingConfig(epochs=1))
    trainer.model.tokens.weight.data[:] = float("nan")
    with pytest.raises(DecoderError, match="loss became nan in epoch 1, step 1"):
        trainer.run()


def test_nothing_to_learn_from_and_unequal_rows_are_errors() -> None:
    with pytest.raises(DecoderError, match="2 keys, 1 embeddings and 1 captions"):
        CaptionSet(["a", "b"], np.zeros((1, 4), np.float32), [[1]])
    rows = CaptionRows(["a"], np.ones((1, 4), np.float32), ["  "])
    with pytest.raises(DecoderError, match="there are 0 and 0"):
        fit_captioner(rows, rows, preset("c1").fit({}))


def test_a_decoder_trained_on_texts_captions_images(world: World) -> None:
    """Toy captions across a gap: with Collapse and Corrupt images get the right words, with neither they do not."""
    train, val = world.split(held_out=10)
    test = list(world.images)[-10:]
    images = np.stack([world.images[key] for key in test])
    right = {}
    for name in ("c1", "c3"):
        pipeline = preset(name, sigma=0.02).fit(world.moments)
        captioner = fit_captioner(
            train,
            val,
            pipeline,
            size_name="tiny",
            training=TrainingConfig(epochs=25, batch_size=16, learning_rate=3e-3),
            compute=FP32,
        )
        assert captioner.record["best_val_loss"] == min(e["val_loss"] for e in captioner.record["history"])
        captions = captioner.caption(images)
        right[name] = sum(
            word in caption for key, caption in zip(test, captions, strict=True) for word in _content(world, key)
        )
        assert all(len(caption.split()) <= 8 for caption in captions)  # the end of the text was learned
    assert right["c3"] >= 24  # of 30
    assert right["c3"] > right["c1"]
    assert images.shape[1] == DIM


def _content(world: World, key: str) -> list[str]:
    _, colour, animal, _, _, place = world.references[key][0].rstrip(".").split()
    return [colour, animal, place]
