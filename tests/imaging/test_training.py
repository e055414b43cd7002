from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c3tools import devices
from c3tools.errors import GeneratorError
from c3tools.imaging import Generator, ImageNetwork, Trainer, TrainingConfig, fit_generator
from c3tools.imaging.training import to_network
from c3tools.reporter import Progress, Reporter
from c3tools.training.checkpoints import CheckpointDir
from c3tools.transforms import preset

from .conftest import MICRO_SIZE
from .worlds import FP32, QUICK, photos_in_memory

TRAIN, VAL, MOMENTS = photos_in_memory()
SIZE = MICRO_SIZE


def make_trainer(config: TrainingConfig = QUICK, sigma: float = 0.0, seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    pipeline = preset("c3", sigma=sigma, train_on="image", infer_on="text").fit(MOMENTS)
    return Trainer(ImageNetwork(SIZE.config(TRAIN.rows.embeddings.shape[1])), TRAIN, VAL, pipeline, config, FP32)


class Told(Reporter, Progress):
    """A reporter that keeps messages and scalars, and ends the run at a step."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.done = at, 0
        self.messages: list[str] = []
        self.scalars: dict[str, list[tuple[float, int]]] = {}

    def message(self, text: str) -> None:
        self.messages.append(text)

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        yield self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done += count
        if note is not None and self.at is not None and self.done >= self.at:
            raise KilledError

    def scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((value, step))


class KilledError(Exception):
    pass


def train(folder: Path | None, reporter: Reporter | None = None, **changes: float) -> Generator:
    pipeline = preset("c3", sigma=0.1, train_on="image", infer_on="text").fit(MOMENTS)
    config = replace(QUICK, **changes)  # type: ignore[arg-type]
    checkpoints = None if folder is None else CheckpointDir(folder)
    return fit_generator(
        TRAIN,
        VAL,
        pipeline,
        training=config,
        compute=FP32,
        checkpoints=checkpoints,
        reporter=reporter or Reporter(),
    )


@pytest.fixture(scope="module")
def uninterrupted() -> Generator:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("c3tools.imaging.model.SIZES", {"tiny": SIZE})
        return train(None)


def same_weights(one: Generator, other: Generator) -> bool:
    weights = other.network.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.network.state_dict().items())


def spied_steps(trainer: Trainer, steps: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, ...]]:
    """Take steps; return noisy images, times, inputs, withheld rows and the velocity of each, and the loss."""
    calls: list[tuple[torch.Tensor, ...]] = []
    forward = trainer.network.forward

    def spy(*arguments: torch.Tensor) -> torch.Tensor:
        velocity = forward(*arguments)
        calls.append(tuple(argument.detach().clone() for argument in (*arguments, velocity)))
        return velocity

    monkeypatch.setattr(trainer.network, "forward", spy)
    for step in range(steps):
        trainer.state.step = step
        loss = trainer._step()
        calls[-1] = (*calls[-1], torch.tensor(loss))
    return calls


def test_a_photo_does_not_retrieve_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    photos = {"image": TRAIN.rows.embeddings}
    retrieval = preset("c3-retrieval", sigma=0.1, train_on="image", infer_on="text")
    trainer.pipeline = retrieval.fit(MOMENTS, photos, items={"image": TRAIN.rows.items})
    ((_, _, inputs, *_),) = spied_steps(trainer, 1, monkeypatch)
    epoch, rows = trainer._batch(0)
    own = TRAIN.rows.select(rows)
    expected = trainer.pipeline.transform(
        own.embeddings, modality="image", training=True, keys=own.keys, items=own.keys, seed=QUICK.seed, epoch=epoch
    )
    torch.testing.assert_close(inputs, torch.from_numpy(expected))


def test_the_loss_of_a_step_is_that_of_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is asked at (1 - t) x + t noise, and its answer is compared with noise - x."""
    trainer = make_trainer(replace(QUICK, batch_size=64, drop=0.25))
    withheld = 0
    for step, (noisy, times, inputs, withhold, velocity, loss) in enumerate(spied_steps(trainer, 8, monkeypatch)):
        epoch, rows = trainer._batch(step)
        assert sorted(rows) == list(range(len(TRAIN)))  # fewer photos than a batch: one batch is an epoch
        assert epoch == step
        images = to_network(TRAIN.pixels[rows])  # of one colour each, so that a flip changes nothing
        expected = trainer.pipeline.transform(TRAIN.rows.embeddings[rows], modality="image")
        torch.testing.assert_close(inputs, torch.from_numpy(expected))
        t = times[:, None, None, None]
        noise = (noisy - (1 - t) * images) / t
        assert float(noise.std()) == pytest.approx(1, abs=0.05)
        assert float(loss) == pytest.approx(float(((velocity - (noise - images)) ** 2).mean()), rel=1e-3)
        withheld += int(withhold.sum())
    assert 0.15 < withheld / (8 * len(TRAIN)) < 0.35


def test_photos_reach_the_network_channels_first() -> None:
    assert to_network(TRAIN.pixels[:4]).is_contiguous()


@pytest.mark.parametrize(("precision", "pixels", "fused"), [("bf16", 8, False), ("bf16", 128, True), ("fp32", 8, True)])
def test_attention_to_few_positions_in_bf16_is_not_fused(precision: str, pixels: int, fused: bool) -> None:
    trainer = make_trainer()
    trainer.compute = devices.pick("cpu", precision)
    trainer.network.config = replace(trainer.network.config, pixels=pixels)
    with trainer._attention():
        assert torch.backends.cuda.flash_sdp_enabled() is fused


def test_corrupt_draws_other_noise_in_every_epoch_and_none_in_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(replace(QUICK, batch_size=64), sigma=0.2)
    clean = trainer.pipeline.transform(VAL.rows.embeddings, modality="image")
    torch.testing.assert_close(trainer.val_inputs, torch.from_numpy(clean))
    seen = []
    for step, (_, _, inputs, *_) in enumerate(spied_steps(trainer, 2, monkeypatch)):
        seen.append(inputs[np.argsort(trainer._batch(step)[1])])
    clean = trainer.pipeline.transform(TRAIN.rows.embeddings, modality="image")
    cosines = [(torch.from_numpy(clean) * inputs).sum(1).mean() for inputs in seen]
    assert all(0.2 < float(cosine) < 0.9 for cosine in cosines)
    assert not torch.allclose(seen[0], seen[1])


def test_half_of_the_photos_are_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(replace(QUICK, batch_size=64))
    trainer.train = replace(TRAIN, pixels=np.zeros_like(TRAIN.pixels))
    trainer.train.pixels[:, :, :4] = 255
    monkeypatch.setattr(torch, "randn", torch.zeros)
    calls = spied_steps(trainer, 8, monkeypatch)
    left = torch.cat([(noisy / (1 - times)[:, None, None, None])[:, 0, 0, 0] for noisy, times, *_ in calls])
    assert 0.35 < float((left < 0).float().mean()) < 0.65


def test_the_validation_loss_is_the_same_each_time_and_that_of_the_velocity() -> None:
    trainer = make_trainer()
    assert trainer.validation_loss() == trainer.validation_loss()
    # an untrained network answers 0: the loss is that of noise - image
    expected = 1 + float((to_network(VAL.pixels) ** 2).mean())
    assert trainer.validation_loss() == pytest.approx(expected, rel=0.1)
    assert trainer.network.training


def test_the_best_averaged_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(replace(QUICK, ema=0.5))
    losses, seen = iter([3.0, 2.0, 2.5]), []

    def fake() -> float:
        seen.append(copy.deepcopy(trainer.network.state_dict()))
        return next(losses)

    monkeypatch.setattr(trainer, "validation_loss", fake)
    raw: list[torch.Tensor] = []
    step = trainer._step

    def spy() -> float:
        loss = step()
        raw.append(trainer.network.withheld.detach().clone())
        return loss

    monkeypatch.setattr(trainer, "_step", spy)
    trainer.run()
    assert [step for step, _ in trainer.state.validations] == [2, 4, 6]
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value, seen[1][name])
    average = raw[0]
    for number, weights in enumerate(raw[1:4], start=1):
        decay = min(0.5, number / (number + 9))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(trainer.network.withheld.detach(), average)


def test_training_leaves_the_global_generator_alone() -> None:
    trainer = make_trainer()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    trainer.run()
    assert torch.equal(torch.rand(3), expected)


@given(kills=st.lists(st.integers(1, QUICK.steps), min_size=1, max_size=2))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_killed_run_ends_with_the_same_weights(
    kills: list[int], uninterrupted: Generator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for kill in sorted(kills):
        with pytest.raises(KilledError):
            train(folder, Told(kill))
    resumed = train(folder)
    assert same_weights(resumed, uninterrupted)
    timeless = [{k: v for k, v in g.record.items() if k != "seconds"} for g in (resumed, uninterrupted)]
    assert timeless[0] == timeless[1]


def test_a_run_saved_between_validations_is_continued_there(
    uninterrupted: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.imaging.training.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KilledError):
        train(tmp_path, Told(4))
    told = Told()
    assert same_weights(train(tmp_path, told), uninterrupted)
    assert "at step 3 of 6" in told.messages[0]


def test_a_state_that_was_cut_short_is_named_and_the_one_before_is_used(
    uninterrupted: Generator, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, Told(5))
    newest = sorted(tmp_path.glob("state-*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    told = Told()
    assert same_weights(train(tmp_path, told), uninterrupted)
    assert "cut short" in told.messages[0]


def test_a_loss_that_is_no_number_stops_and_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    step, told = Trainer._step, Told()
    kept: list[dict[str, torch.Tensor]] = []

    def spoiled(self: Trainer) -> float:
        if self.state.step == 5:
            kept.append(copy.deepcopy(self.state.best))
            self.network.withheld.data[:] = float("nan")
            self.network.unet.conv_in.weight.data[:] = float("nan")
        return step(self)

    monkeypatch.setattr(Trainer, "_step", spoiled)
    made = train(None, told)
    assert any("loss became nan in step 6" in text and "step 4 is kept" in text for text in told.messages)
    assert all(torch.equal(value, kept[0][name]) for name, value in made.network.state_dict().items())
    monkeypatch.setattr(Trainer, "_step", lambda self: float("inf"))
    with pytest.raises(GeneratorError, match=r"became inf in step 1[\s\S]*learning_rate"):
        train(None)


def test_the_course_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.imaging.training.TRACE_STEPS", 2)
    told = Told()
    record = train(None, told).record
    assert [step for _, step in told.scalars["loss/training"]] == [2, 4, 6] == [step for step, _ in record["trace"]]
    assert [[step, loss] for loss, step in told.scalars["loss/validation"]] == record["validations"]
    assert record["best_val_loss"] == min(loss for _, loss in record["validations"])
    assert record["photos"] == {"train": len(TRAIN), "val": len(VAL)}
    assert "images per second" in told.scalars


def test_fewer_photos_than_a_batch_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    train(None, told, batch_size=64)
    assert told.messages == ["There are 32 photos, fewer than a batch of 64, so all of them are one batch."]
