from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c3tools import devices
from c3tools.captioning import SIZES, CaptionDecoder, Captioner, DecoderConfig, Trainer, TrainingConfig, fit_captioner
from c3tools.captioning.model import Decoder
from c3tools.captioning.tokenizer import END_ID, PAD_ID, token_batch
from c3tools.captioning.training import schedule
from c3tools.errors import DecoderError
from c3tools.reporter import Progress, Reporter
from c3tools.store import Rows
from c3tools.training.checkpoints import NOTHING_KEPT, CheckpointDir
from c3tools.transforms import preset

from .conftest import make_world

FP32 = devices.pick("cpu", "fp32")
WORLD = make_world()
STEPS = 15  # of the runs that are killed: 3 epochs of 5 batches
SMALL: dict[str, Any] = {"width": 48, "layers": 1, "heads": 2, "prefix_length": 2, "dropout": 0.0}


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


def make_trainer(config: TrainingConfig, transform: Any = None, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    model = CaptionDecoder(DecoderConfig(dim=4, vocab_size=9, max_tokens=8, **(SMALL | changes)))
    return Trainer(model, Digits(), caption_rows(), caption_rows(8), transform or Spy(), config, FP32)  # type: ignore[arg-type]


def token_weights(model: Decoder) -> torch.Tensor:
    """Return the token embeddings (V, W) of a built-in decoder."""
    assert isinstance(model, CaptionDecoder)
    return model.tokens.weight


def test_noise_is_asked_for_training_inputs_only_anew_in_each_epoch() -> None:
    spy = Spy()
    make_trainer(TrainingConfig(epochs=2, batch_size=6, seed=5), spy).run()
    validation = [call for call in spy.calls if not call["training"]]
    assert len(validation) == 1  # the same clean inputs serve every epoch
    for epoch in (0, 1):
        calls = [call for call in spy.calls if call["training"] and call["epoch"] == epoch]
        names = [pair for call in calls for pair in zip(call["keys"], call["items"], strict=True)]
        assert sorted(names) == sorted(zip(caption_rows().keys, caption_rows().items, strict=True))
        assert {call["seed"] for call in calls} == {5}


def test_the_modality_of_the_inputs_is_passed_on() -> None:
    spy = Spy()
    model = CaptionDecoder(DecoderConfig(dim=4, vocab_size=9, max_tokens=8, **SMALL))
    rows = caption_rows(4, "image"), caption_rows(4)
    Trainer(model, Digits(), *rows, spy, TrainingConfig(epochs=1), FP32).run()  # type: ignore[arg-type]
    assert [call["modality"] for call in spy.calls] == ["text", "image"]


def test_validation_loss_is_the_mean_over_real_tokens_end_included() -> None:
    trainer = make_trainer(TrainingConfig(epochs=1))
    total, count = 0.0, 0
    trainer.model.eval()
    for row, ids in enumerate(trainer.val_tokens):
        with torch.no_grad():
            scores = trainer.model(
                torch.from_numpy(trainer.val.embeddings[row : row + 1]), torch.tensor([ids.tolist()])
            )[0]
        total -= float(scores.double().log_softmax(-1)[range(len(ids)), ids].sum())
        count += len(ids)
    assert trainer.validation_loss() == pytest.approx(total / count, rel=1e-5)


def test_the_loss_of_a_step_ignores_padding_and_nothing_else() -> None:
    trainer = make_trainer(TrainingConfig(epochs=1, batch_size=20))
    expected = trainer.model(
        torch.from_numpy(trainer.train.embeddings),
        torch.from_numpy(token_batch(trainer.train_tokens, np.arange(20), PAD_ID)),
    ).log_softmax(-1)
    expected = expected.detach()
    tokens = torch.from_numpy(token_batch(trainer.train_tokens, np.arange(20), PAD_ID))
    real = tokens != PAD_ID
    mean = float(-expected.gather(2, tokens[:, :, None])[:, :, 0][real].mean())
    loss, count = trainer._step(np.arange(20))
    assert loss == pytest.approx(mean, rel=1e-5)
    assert count == int(real.sum()) == sum(len(ids) for ids in trainer.train_tokens)


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
        weights.append(token_weights(trainer.model).detach().clone())
        return next(losses)

    monkeypatch.setattr(trainer, "validation_loss", fake)
    history = trainer.run()
    assert [epoch.val_loss for epoch in history] == [3.0, 2.0, 2.5, 2.4]
    assert trainer.state.best_val_loss == 2.0
    torch.testing.assert_close(token_weights(trainer.model), weights[1], rtol=0, atol=0)


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
        raw.append(token_weights(trainer.model).detach().clone())
        return result

    def loss() -> float:
        validated.append(token_weights(trainer.model).detach().clone())
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
    torch.testing.assert_close(token_weights(trainer.model), averages[3])


def test_the_course_is_written_down_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.captioning.training.TRACE_STEPS", 3)
    trainer = make_trainer(TrainingConfig(epochs=2, batch_size=5))  # 8 steps
    losses: list[tuple[float, int]] = []
    step = trainer._step

    def spy(rows: np.ndarray) -> tuple[float, int]:
        losses.append(step(rows))
        return losses[-1]

    class Told(Reporter):
        def scalar(self, name: str, value: float, step: int) -> None:
            told.setdefault(name, []).append((value, step))

    told: dict[str, list[tuple[float, int]]] = {}
    monkeypatch.setattr(trainer, "_step", spy)
    history = trainer.run(reporter=Told())
    expected = []
    for end, part in ((3, losses[:3]), (6, losses[3:6]), (8, losses[6:])):
        expected.append((end, sum(loss * n for loss, n in part) / sum(n for _, n in part)))
    assert [point[0] for point in trainer.state.trace] == [3, 6, 8]
    assert [point[1] for point in trainer.state.trace] == pytest.approx([value for _, value in expected])
    assert [step for _, step in told["loss/training"]] == [3, 6, 8]
    assert told["loss/validation"] == [(history[0].val_loss, 4), (history[1].val_loss, 8)]
    assert "tokens per second" in told


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    trainer = make_trainer(TrainingConfig(epochs=1))
    token_weights(trainer.model).data[:] = float("nan")
    with pytest.raises(DecoderError, match="loss became nan in epoch 1, step 1"):
        trainer.run()


class KilledError(Exception):
    pass


class Killer(Reporter, Progress):
    """A reporter that ends the run at a given step, and keeps the messages."""

    def __init__(self, at: int = STEPS + 1) -> None:
        self.at, self.done = at, 0
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        assert total == STEPS
        yield self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done += count
        if note is not None and self.done >= self.at:
            raise KilledError


def train(
    folder: Path | None, killer: Killer | None = None, learning_rate: float = 1e-3, ema: float = 0.0
) -> Captioner:
    train_rows, val_rows = WORLD.split(held_out=40)
    return fit_captioner(
        train_rows,
        val_rows,
        preset("c3", sigma=0.1).fit(WORLD.moments),
        size="tiny",
        training=TrainingConfig(
            epochs=3, batch_size=16, word_dropout=0.2, learning_rate=learning_rate, ema=ema, seed=4
        ),
        compute=FP32,
        checkpoints=None if folder is None else CheckpointDir(folder),
        reporter=killer or Killer(),
    )


@pytest.fixture(scope="module")
def uninterrupted() -> Captioner:
    return train(None)


@given(kills=st.lists(st.integers(1, STEPS), min_size=1, max_size=2))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_killed_run_ends_with_the_same_weights(
    kills: list[int], uninterrupted: Captioner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for kill in sorted(kills):
        with pytest.raises(KilledError):
            train(folder, Killer(kill))
    resumed = train(folder)
    for name, value in uninterrupted.torch_decoder().state_dict().items():
        torch.testing.assert_close(resumed.torch_decoder().state_dict()[name], value, rtol=0, atol=0)
    losses = [[e["train_loss"], e["val_loss"]] for e in resumed.record["history"]]
    assert losses == [[e["train_loss"], e["val_loss"]] for e in uninterrupted.record["history"]]


def test_a_run_saved_within_an_epoch_is_continued_there(
    uninterrupted: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.captioning.training.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KilledError):
        train(tmp_path, Killer(8))
    killer = Killer()
    resumed = train(tmp_path, killer)
    assert "step 7 of 15" in killer.messages[0]
    torch.testing.assert_close(
        token_weights(resumed.torch_decoder()), token_weights(uninterrupted.torch_decoder()), rtol=0, atol=0
    )
    assert len(list(tmp_path.glob("state-*.safetensors"))) == 2


class Interrupter(Killer):
    """Sends SIGINT to this process at a step, as Ctrl-C does."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done += count
        if note is not None and self.done == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [1, 2, 5, 15])  # the first of all, in the first epoch, at its end, the last of all
def test_an_interrupted_run_is_saved_at_that_step_and_ends_with_the_same_weights(
    uninterrupted: Captioner, tmp_path: Path, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt) as interrupt:
        train(tmp_path, Interrupter(step))
    said = f"The training is saved at step {step} of 15; run the same command again to continue."
    assert interrupt.value.__notes__ == [said]
    assert (tmp_path / f"state-{step:08d}.safetensors").is_file()
    resumed = train(tmp_path)
    assert resumed.torch_decoder().digest() == uninterrupted.torch_decoder().digest()
    assert resumed.record["trace"] == uninterrupted.record["trace"]
    losses = [[(e["train_loss"], e["val_loss"]) for e in run.record["history"]] for run in (resumed, uninterrupted)]
    assert losses[0] == losses[1]


def test_an_interrupted_run_without_a_folder_says_that_nothing_is_kept() -> None:
    with pytest.raises(KeyboardInterrupt) as interrupt:
        train(None, Interrupter(3))
    assert interrupt.value.__notes__ == [NOTHING_KEPT]


def test_on_two_threads_a_killed_run_ends_with_the_same_weights_too(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = train(None)
        with pytest.raises(KilledError):
            train(tmp_path, Killer(8))
        assert train(tmp_path).torch_decoder().digest() == whole.torch_decoder().digest()
    finally:
        torch.set_num_threads(threads)


def test_averaged_weights_are_continued_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.captioning.training.CHECKPOINT_SECONDS", 0.0)
    whole = train(None, ema=0.9)
    with pytest.raises(KilledError):
        train(tmp_path, Killer(8), ema=0.9)
    resumed = train(tmp_path, ema=0.9)
    assert resumed.torch_decoder().digest() == whole.torch_decoder().digest()
    assert resumed.record["trace"] == whole.record["trace"]


def test_a_state_that_was_cut_short_is_named_and_the_one_before_is_used(
    uninterrupted: Captioner, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, Killer(12))
    newest = sorted(tmp_path.glob("state-*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    killer = Killer()
    resumed = train(tmp_path, killer)
    assert newest.name in killer.messages[0]
    assert "cut short" in killer.messages[0]
    assert "step 5 of 15" in killer.messages[1]
    torch.testing.assert_close(
        token_weights(resumed.torch_decoder()), token_weights(uninterrupted.torch_decoder()), rtol=0, atol=0
    )


def test_a_run_with_other_settings_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, Killer(12))
    killer = Killer()
    train(tmp_path, killer, learning_rate=2e-3)
    assert "other settings or data" in killer.messages[0]
    CheckpointDir(tmp_path).clear()
    assert not tmp_path.exists()


def test_nothing_random_is_left_to_chance(uninterrupted: Captioner) -> None:
    again = train(None)
    torch.testing.assert_close(
        token_weights(again.torch_decoder()), token_weights(uninterrupted.torch_decoder()), rtol=0, atol=0
    )


def test_the_toy_world_has_as_many_steps_as_the_killer_expects() -> None:
    assert -(-len(WORLD.split(held_out=40)[0]) // 16) * 3 == STEPS
