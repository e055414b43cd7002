from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c3tools.arrays import Pixels
from c3tools.errors import C3Error, OutputError, StoreError, TransformError
from c3tools.export import export_store
from c3tools.imaging.generator import Generator
from c3tools.imaging.model import TrainingConfig
from c3tools.imaging.train import GeneratorTask, train_generator
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import C3, Messages, build_store

from .conftest import MICRO_SIZE
from .worlds import FP32, QUICK, TOY, image_rows, photo_store, photos_in_memory, text_rows, write_photos

TRAIN, VAL, MOMENTS = photos_in_memory()
WHOLE = replace(QUICK, batch_size=64)  # more than there are photos: one batch is an epoch
Call = tuple[torch.Tensor, ...]  # noisy images, times, inputs, withheld rows, velocity, loss


def as_images(pixels: Pixels) -> torch.Tensor:
    """Pixels as the network takes them: float32 (n, 3, height, width), -1 to 1."""
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def make_task(config: TrainingConfig = QUICK, sigma: float = 0.0) -> GeneratorTask:
    pipeline = preset("c3", sigma=sigma, train_on="image", infer_on="text").fit(MOMENTS)
    return GeneratorTask(TRAIN, VAL, pipeline, replace(MICRO_SIZE, training=config), FP32)


def spied_steps(task: GeneratorTask, steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Take steps that move nothing; yield what the network was asked and answered, and the loss."""
    calls: list[Call] = []
    forward = task.network.forward

    def spy(*arguments: torch.Tensor) -> torch.Tensor:
        velocity = forward(*arguments)
        calls.append(tuple(each.detach().clone() for each in (*arguments, velocity)))
        return velocity

    monkeypatch.setattr(task.network, "forward", spy)
    for number in range(steps):
        loss, count = task.step(number, lambda loss: float(torch.as_tensor(loss).detach()))
        assert count == len(calls[-1][0])
        yield (*calls[-1], torch.tensor(loss))


def test_the_loss_of_a_step_is_that_of_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is asked at (1 - t) x + t noise, and its answer is compared with noise - x."""
    task, withheld = make_task(replace(WHOLE, drop=0.25)), 0
    steps = spied_steps(task, 8, monkeypatch)
    for number, (noisy, times, inputs, withhold, velocity, loss) in enumerate(steps):
        epoch, rows = task.batch(number)
        assert sorted(rows) == list(range(len(TRAIN)))
        assert epoch == number
        images = as_images(TRAIN.pixels[rows])  # of one colour each, so that a flip changes nothing
        assert noisy.is_contiguous()
        expected = task.pipeline.transform(TRAIN.rows.embeddings[rows], modality="image")
        torch.testing.assert_close(inputs, torch.from_numpy(expected))
        t = times[:, None, None, None]
        noise = (noisy - (1 - t) * images) / t
        assert float(noise.std()) == pytest.approx(1, abs=0.05)
        assert float(loss) == pytest.approx(float(((velocity - (noise - images)) ** 2).mean()), rel=1e-3)
        withheld += int(withhold.sum())
    assert 0.15 < withheld / (8 * len(TRAIN)) < 0.35


def test_corrupt_draws_other_noise_in_every_epoch_and_none_in_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(WHOLE, sigma=0.2)
    clean, val = (
        torch.from_numpy(task.pipeline.transform(of.rows.embeddings, modality="image")) for of in (TRAIN, VAL)
    )
    torch.testing.assert_close(task.val_inputs, val)
    steps = enumerate(spied_steps(task, 2, monkeypatch))
    seen = [inputs[np.argsort(task.batch(number)[1])] for number, (_, _, inputs, *_) in steps]
    assert all(0.2 < float((clean * inputs).sum(1).mean()) < 0.9 for inputs in seen)
    assert not torch.allclose(seen[0], seen[1])


def test_half_of_the_photos_are_flipped_and_none_retrieves_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    task, asked, flipped = make_task(WHOLE), list[Any](), list[torch.Tensor]()
    task.train = replace(TRAIN, pixels=np.zeros_like(TRAIN.pixels))
    task.train.pixels[:, :, :4] = 255
    transform = task.pipeline.transform
    monkeypatch.setattr(torch, "randn", torch.zeros)

    def spy(*arguments: Any, **named: Any) -> Any:
        asked.append(named)
        return transform(*arguments, **named)

    monkeypatch.setattr(task.pipeline, "transform", spy)
    for noisy, times, *_ in spied_steps(task, 8, monkeypatch):
        flipped.append((noisy / (1 - times)[:, None, None, None])[:, 0, 0, 0] < 0)
    assert 0.35 < float(torch.cat(flipped).float().mean()) < 0.65
    assert all(named["keys"] == named["items"] for named in asked)
    assert [named["epoch"] for named in asked] == list(range(8))


def test_the_validation_loss_is_the_same_each_time_and_that_of_the_velocity() -> None:
    task = make_task()
    with torch.no_grad():
        loss, _ = task.validate()
        assert task.validate()[0] == loss
    # an untrained network answers 0: the loss is that of noise - image
    assert loss == pytest.approx(1 + float((as_images(VAL.pixels) ** 2).mean()), rel=0.1)


Train = Callable[..., tuple[Generator, list[str]]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return photo_store(tmp_path_factory.mktemp("store") / "c3-store")


@pytest.fixture
def train(store: Store, tmp_path: Path) -> Train:
    """Train for a moment; returns the generator and what was said."""

    def run(**changes: Any) -> tuple[Generator, list[str]]:
        told = Messages()
        options: dict[str, Any] = {"store": store, "output": tmp_path / "c3-generator", "sigma": 0.05, "steps": 2}
        options |= {"set": ["validations=1"], "device": "cpu", "precision": "fp32", "reporter": told, **changes}
        return train_generator(**options), told.texts

    return run


def test_a_generator_is_written_once_with_all_that_it_needs(train: Train, tmp_path: Path) -> None:
    made, _ = train(steps=6, set=["validations=3"])
    folder, record = tmp_path / "c3-generator", made.record
    names = {"generator.json", "weights.safetensors", "transform.json", "transform.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["c3-generator"]
    assert (record["preset"], record["sigma"], record["size"], record["model"]) == ("c3", 0.05, "tiny", TOY)
    assert [step for step, _ in record["validations"]] == [2, 4, 6]
    assert record["best_val_loss"] == min(loss for _, loss in record["validations"])
    assert (record["photos"], record["trace"][-1][0]) == ({"train": 24, "val": 8}, 6)
    assert Generator.load(folder, FP32).record == record
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    assert "nothing to do" in train(steps=6, set=["validations=3"])[1][-1]
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"steps 6, not 2[\s\S]*--overwrite"):
        train()


def test_the_method_looks_at_no_text(train: Train, store: Store, tmp_path: Path) -> None:
    """Other captions give the same generator: the mean of the texts is all that is kept of them, for asking."""
    other = text_rows(40)
    columns = {"image_key": other.items, "split": other.column("split")}
    odd = Rows.of("text", other.keys, other.embeddings, caption=["?"] * 40, **columns)
    changed = build_store(tmp_path / "other", store.load("image"), odd, model=TOY, dtype="float32")
    losses = [made.record["best_val_loss"] for made, _ in (train(), train(store=changed, output=tmp_path / "two"))]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("c3-generator", "two")]
    assert (weights[0], losses[0]) == (weights[1], losses[1])


def test_what_the_user_should_know_is_noted(tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(MICRO_SIZE, training=replace(MICRO_SIZE.training, steps=60))
    monkeypatch.setattr("c3tools.imaging.model.SIZES", {"tiny": size})
    rows = image_rows(write_photos(tmp_path / "photos", 30))
    plain = Rows.of("image", rows.keys, rows.embeddings, path=rows.column("path"), split=["train"] * 30)
    made, told = train(store=build_store(tmp_path / "plain", plain, model=TOY))
    assert made.record["photos"] == {"train": 27, "val": 3}
    for note, named in zip(
        made.record["notes"], ("3 photos are held out", "no text", "2 steps are too few"), strict=True
    ):
        assert named in note
    assert set(made.record["notes"]) <= set(told)


def test_sigma_of_a_rule_is_that_of_noise_on_photos(train: Train, store: Store) -> None:
    made, told = train(sigma="pairs")
    sigma, why = sigma_by_rule("pairs", store, noised="image")
    assert sigma != sigma_by_rule("pairs", store)[0]
    assert (made.record["sigma"], made.pipeline.provenance["sigma"]) == (pytest.approx(sigma), why)
    assert any(text.startswith(why) for text in told)


def test_a_pipeline_is_used_as_it_is_or_fitted_on_the_store(train: Train, tmp_path: Path) -> None:
    own = preset("lafite", train_on="image", infer_on="text")
    made, _ = train(pipeline=own, sigma=None)
    assert (made.record["preset"], made.record["sigma"], made.pipeline.fitted) == ("lafite", 0.0, True)
    with pytest.raises(TransformError, match="sigma"):
        train(pipeline=own, sigma=0.1, output=tmp_path / "b")
    foreign = preset("c1").fit({}, provenance={"model": {"name": "other"}})
    with pytest.raises(TransformError, match="other"):
        train(pipeline=foreign, sigma=None, output=tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": "huge"}, "'huge'"),
        ({"train_split": "restval"}, r"'restval'.*train \(24\), val \(8\), test \(8\)"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    train: Train, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(C3Error, match=named):
        train(**changes)
    assert not (tmp_path / "c3-generator").exists()
    with pytest.raises(StoreError, match="image"):
        train(store=build_store(tmp_path / "texts", text_rows(10), model=TOY))


def test_the_command_trains_and_prints(c3: C3, store: Store, tmp_path: Path) -> None:
    quick = ("--steps", "2", "--precision", "fp32", "--sigma", "0.05", "--store", store.path)
    result = c3("train-generator", *quick, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    assert "(kept)" in result.stdout
    assert json.loads((tmp_path / "run.json").read_text()) == Generator.load(tmp_path / "c3-generator").to_dict()


def test_an_export_before_the_noise_gives_the_weights_of_the_store(store: Store, tmp_path: Path) -> None:
    options: dict[str, Any] = {"preset": "c3", "sigma": 0.1}
    export_store(store, tmp_path / "export", train_on="image", before_noise=True, **options)
    common: dict[str, Any] = {"size": "tiny", "steps": 4, "device": "cpu", "precision": "fp32"}
    train_generator(tmp_path / "export", output=tmp_path / "own", **common)
    train_generator(store, output=tmp_path / "other", **options, **common)
    own, other = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("own", "other"))
    assert own == other
    with pytest.raises(TransformError, match="its own sigma"):
        train_generator(tmp_path / "export", output=tmp_path / "d", sigma=0.1, **common)
    with pytest.raises(TransformError, match="export"):
        train_generator(tmp_path / "export", preset("c1").fit(store), output=tmp_path / "d", **common)
