from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from c3tools import devices
from c3tools.captioning import SIZES, CaptionDecoder, CaptionRows, DecoderConfig, Trainer, TrainingConfig, fit_captioner
from c3tools.captioning.tokenizer import END_ID, PAD_ID
from c3tools.captioning.training import CaptionSet, schedule
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


def test_averaged_weights_are_what_is_validated_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(TrainingConfig(epochs=2, batch_size=10, ema=0.5))
    raw: list[torch.Tensor] = []
    validated: list[torch.Tensor] = []
    step = trainer._step

    def spy(rows: np.ndarray) -> tuple[float, int]:
        result = step(rows)
        raw.append(trainer.model.tokens.weight.detach().clone())
        return result

    def loss() -> float:
        validated.append(trainer.model.tokens.weight.detach().clone())
        return -float(len(validated))

    monkeypatch.setattr(trainer, "_step", spy)
    monkeypatch.setattr(trainer, "validation_loss", loss)
    trainer.run()
    average = raw[0]
    averages = [average]
    for number, weights in enumerate(raw[1:], start=2):
        decay = min(0.5, number / (number + 9))
        average = decay * average + (1 - decay) * weights
        averages.append(average)
    torch.testing.assert_close(validated[0], averages[1])
    torch.testing.assert_close(validated[1], averages[3])
    torch.testing.assert_close(trainer.model.tokens.weight, averages[3])


def test_the_course_is_written_down_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.captioning.training.TRACE_STEPS", 3)
    trainer = make_trainer(TrainingConfig(epochs=2, batch_size=5))  # 8 steps
    losses: list[tuple[float, int]] = []
    step = trainer._step

    def spy(rows: np.ndarray) -> tuple[float, int]:
        losses.append(step(rows))
        return losses[-1]

    class Told:
        def scalar(self, name: str, value: float, step: int) -> None:
            told.setdefault(name, []).append((value, step))

    told: dict[str, list[tuple[float, int]]] = {}
    monkeypatch.setattr(trainer, "_step", spy)
    history = trainer.run(recorder=Told())
    expected = []
    for end, part in ((3, losses[:3]), (6, losses[3:6]), (8, losses[6:])):
        expected.append((end, sum(loss * n for loss, n in part) / sum(n for _, n in part)))
    assert [point[0] for point in trainer.state.trace] == [3, 6, 8]
    assert [point[1] for point in trainer.state.trace] == pytest.approx([value for _, value in expected])
    assert [step for _, step in told["loss/training"]] == [3, 6, 8]
    assert told["loss/validation"] == [(history[0].val_loss, 4), (history[1].val_loss, 8)]
    assert "tokens per second" in told


@pytest.mark.parametrize("modality", ["text", "image"])
def test_training_inputs_of_any_modality_get_the_noise_of_the_pipeline(
    world: World, monkeypatch: pytest.MonkeyPatch, modality: str
) -> None:
    train, val = (replace(part, modality=modality) for part in world.split(held_out=40))
    seen: list[np.ndarray] = []
    forward = CaptionDecoder.forward

    def spy(self: CaptionDecoder, embeddings: torch.Tensor, *rest: Any) -> torch.Tensor:
        if self.training:
            seen.append(embeddings.numpy().copy())
        return forward(self, embeddings, *rest)

    monkeypatch.setattr(CaptionDecoder, "forward", spy)
    training = TrainingConfig(epochs=1, batch_size=80)
    inputs = {}
    for sigma in (0.0, 0.5):
        seen.clear()
        pipeline = preset("c3", sigma=sigma).fit(world.moments)
        fit_captioner(train, val, pipeline, size_name="tiny", training=training, compute=FP32)
        inputs[sigma] = np.concatenate(seen)
    clean = pipeline.transform(train.embeddings, modality=modality, training=False)
    order = np.lexsort(clean.T)
    np.testing.assert_allclose(inputs[0.0][np.lexsort(inputs[0.0].T)], clean[order], atol=1e-6)
    assert np.abs(np.sort(inputs[0.5], axis=0) - np.sort(clean, axis=0)).max() > 0.1


def test_training_starts_from_the_weights_and_tokenizer_of_another(world: World) -> None:
    train, val = world.split(held_out=40)
    pipeline = preset("c3", sigma=0.02).fit(world.moments)
    training = TrainingConfig(epochs=6, batch_size=16, learning_rate=3e-3)
    first = fit_captioner(train, val, pipeline, size_name="tiny", training=training, compute=FP32)
    before = first.digest()
    short = TrainingConfig(epochs=1, batch_size=16, learning_rate=1e-5)
    second = fit_captioner(train, val, pipeline, training=short, compute=FP32, start=first)
    assert first.digest() == before  # a copy is trained
    assert second.tokenizer is first.tokenizer
    assert second.record["size"] == "tiny"
    assert second.record["best_val_loss"] == pytest.approx(first.record["best_val_loss"], abs=0.02)
    assert second.digest() != before
    # a rate that spoils everything: what training started from is kept
    wild = TrainingConfig(epochs=2, batch_size=16, learning_rate=3.0, clip_norm=0.0)
    third = fit_captioner(train, val, pipeline, training=wild, compute=FP32, start=first)
    assert third.digest() == before
    assert third.record["best_val_loss"] == pytest.approx(first.record["best_val_loss"])
    assert third.record["start_val_loss"] == third.record["best_val_loss"]
    assert first.record["start_val_loss"] is None
    assert min(epoch["val_loss"] for epoch in third.record["history"]) > third.record["best_val_loss"]


def test_captions_without_a_letter_are_left_out_and_listed(world: World) -> None:
    train, val = world.split(held_out=40)
    captions = ["", " . ", "\ue000\ue001", "\U0001f642", "\u0378", *train.captions[5:]]
    rows = CaptionRows(train.keys, train.embeddings, captions)
    said: list[str] = []
    captioner = fit_captioner(
        rows,
        val,
        preset("c1").fit({}),
        size_name="tiny",
        training=TrainingConfig(epochs=1),
        compute=FP32,
        say=said.append,
    )
    assert captioner.record["captions"]["train"] == len(train) - 5
    named = ", ".join(train.keys[:5])
    assert said == [f"5 of {len(train)} captions are empty or hold no letter of any script, and are left out: {named}."]


@pytest.mark.parametrize("caption", ["\u72ac", "\u0441\u043e\u0431\u0430\u043a\u0430", "\u0643\u0644\u0628", "7"])
def test_captions_of_every_script_are_kept(caption: str) -> None:
    rows = CaptionRows(["a"], np.ones((1, 4), np.float32), [caption])
    assert len(rows.written()) == 1
    assert rows.unwritten() is None


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
