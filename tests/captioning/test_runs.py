from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c3tools import devices
from c3tools.captioning import Captioner, RunFolder, TrainingConfig, fit_captioner
from c3tools.transforms import preset

from .conftest import World, make_world

FP32 = devices.pick("cpu", "fp32")
STEPS = 15  # 3 epochs of 5 batches
WORLD = make_world()


class KilledError(Exception):
    pass


class Killer:
    """A display that ends the run at a given step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, label: str, total: int | None) -> Killer:
        assert total == STEPS
        return self

    def __enter__(self) -> Killer:
        self.done = 0
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done += count
        if note is not None and self.done >= self.at:
            raise KilledError


def train(
    run: RunFolder | None, killer: Killer | None = None, learning_rate: float = 1e-3, ema: float = 0.0
) -> Captioner:
    train_rows, val_rows = WORLD.split(held_out=40)
    pipeline = preset("c3", sigma=0.1).fit(WORLD.moments)
    training = TrainingConfig(epochs=3, batch_size=16, word_dropout=0.2, learning_rate=learning_rate, ema=ema, seed=4)
    options = {} if killer is None else {"progress": killer}
    return fit_captioner(
        train_rows, val_rows, pipeline, size_name="tiny", training=training, compute=FP32, run=run, **options
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
            train(RunFolder(folder), Killer(kill))
    resumed = train(RunFolder(folder))
    for name, value in uninterrupted.decoder.state_dict().items():
        torch.testing.assert_close(resumed.decoder.state_dict()[name], value, rtol=0, atol=0)
    losses = [[e["train_loss"], e["val_loss"]] for e in resumed.record["history"]]
    assert losses == [[e["train_loss"], e["val_loss"]] for e in uninterrupted.record["history"]]


def test_a_run_saved_within_an_epoch_is_continued_there(
    uninterrupted: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    saved: list[int] = []
    original = RunFolder.save

    def save(self: RunFolder, trainer: object, identity: str) -> None:
        original(self, trainer, identity)  # type: ignore[arg-type]
        saved.append(trainer.done_steps)  # type: ignore[attr-defined]

    monkeypatch.setattr(RunFolder, "save", save)
    monkeypatch.setattr("c3tools.captioning.training.PAUSE_SECONDS", 0.0)
    with pytest.raises(KilledError):
        train(run, Killer(8))
    assert saved[-1] == 7
    resumed = train(RunFolder(tmp_path))
    torch.testing.assert_close(resumed.decoder.tokens.weight, uninterrupted.decoder.tokens.weight, rtol=0, atol=0)
    assert len(list(tmp_path.glob("state-*.safetensors"))) == 2


def test_on_two_threads_a_killed_run_ends_with_the_same_weights_too(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = train(None)
        with pytest.raises(KilledError):
            train(RunFolder(tmp_path), Killer(8))
        assert train(RunFolder(tmp_path)).digest() == whole.digest()
    finally:
        torch.set_num_threads(threads)


def test_averaged_weights_are_continued_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.captioning.training.PAUSE_SECONDS", 0.0)
    whole = train(None, ema=0.9)
    with pytest.raises(KilledError):
        train(RunFolder(tmp_path), Killer(8), ema=0.9)
    resumed = train(RunFolder(tmp_path), ema=0.9)
    assert resumed.digest() == whole.digest()
    assert resumed.record["trace"] == whole.record["trace"]


def test_a_state_that_was_cut_short_is_named_and_the_one_before_is_used(
    uninterrupted: Captioner, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(RunFolder(tmp_path), Killer(12))
    newest = sorted(tmp_path.glob("state-*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    run = RunFolder(tmp_path)
    resumed = train(run)
    assert newest.name in run.messages[0]
    assert "cut short" in run.messages[0]
    assert "step 5 of 15" in run.messages[1]
    torch.testing.assert_close(resumed.decoder.tokens.weight, uninterrupted.decoder.tokens.weight, rtol=0, atol=0)


def test_a_run_with_other_settings_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(RunFolder(tmp_path), Killer(12))
    run = RunFolder(tmp_path)
    train(run, learning_rate=2e-3)
    assert "other settings or data" in run.messages[0]
    run.clear()
    assert not tmp_path.exists()


def test_nothing_random_is_left_to_chance(uninterrupted: Captioner) -> None:
    again = train(None)
    torch.testing.assert_close(again.decoder.tokens.weight, uninterrupted.decoder.tokens.weight, rtol=0, atol=0)


def test_the_toy_world_has_as_many_steps_as_the_killer_expects() -> None:
    world: World = WORLD
    assert -(-len(world.split(held_out=40)[0]) // 16) * 3 == STEPS
