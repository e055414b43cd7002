from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c3tools.arrays import Pixels
from c3tools.errors import GeneratorError, OutputError, TransformError
from c3tools.export import export_store
from c3tools.paper.imaging.evaluate_images import evaluate_images
from c3tools.paper.imaging.generation import generate
from c3tools.paper.imaging.generator import Generator
from c3tools.paper.imaging.model import TrainingConfig
from c3tools.paper.imaging.photos import Photos
from c3tools.paper.imaging.train_generator import GeneratorSettings, GeneratorTask, train_generator
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import C3, Messages, build_store, done
from tests.golden import assert_interface, recorded

from .conftest import (
    COLOURS,
    FP32,
    MICRO_SIZE,
    QUICK,
    TOY,
    image_rows,
    of_colours,
    text_rows,
    write_photos,
)

IMAGES = image_rows([f"{number}.png" for number in range(40)])
TEXTS = text_rows(IMAGES, of_colours(40, 1))
HELD = np.array([split == "val" for split in IMAGES.splits])
PIXELS = np.tile(COLOURS[:, None, None], (1, 8, 8, 1))
Train = Callable[..., tuple[Generator, list[str]]]
TRAIN, VAL = (Photos(IMAGES.select(chosen), PIXELS[chosen]) for chosen in (~HELD, HELD))


def as_images(pixels: Pixels) -> torch.Tensor:
    """Pixels as the network takes them: float32 (n, 3, height, width), -1 to 1."""
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def make_task(config: TrainingConfig = QUICK, sigma: float = 0.0) -> GeneratorTask:
    rows = {"image": IMAGES.embeddings, "text": TEXTS.embeddings}
    pipeline = preset("c3", sigma=sigma, train_on="image", infer_on="text").fit(rows)
    return GeneratorTask(TRAIN, VAL, pipeline, replace(MICRO_SIZE, training=config), FP32)


def test_the_loss_of_a_step_is_that_of_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is asked at (1 - t) x + t noise, and its answer is compared with noise - x."""
    # more than there are photos: one batch is an epoch
    config = replace(QUICK, batch_size=64, drop=0.25, seed=2)
    task, withheld, rows_of = make_task(config, sigma=0.2), 0, TRAIN.rows
    forward, asked = task.network.forward, list[torch.Tensor]()

    def spy(*arguments: torch.Tensor) -> torch.Tensor:
        velocity = forward(*arguments)
        asked[:] = (each.detach().clone() for each in (*arguments, velocity))
        return velocity

    monkeypatch.setattr(task.network, "forward", spy)
    for number in range(8):
        # moves nothing
        loss, count = task.step(number, lambda loss: float(torch.as_tensor(loss).detach()))
        noisy, times, inputs, withhold, velocity = asked
        assert count == len(noisy)
        epoch, rows = task.batch(number)
        assert (epoch, sorted(rows)) == (number, [*range(len(TRAIN))])
        images = as_images(TRAIN.pixels[rows])  # of one colour each, so that a flip changes nothing
        assert noisy.is_contiguous()
        # Corrupt draws noise in every epoch; none retrieves itself
        keys = [rows_of.keys[row] for row in rows]
        drawn: dict[str, Any] = {"keys": keys, "items": keys, "seed": 2, "epoch": epoch}
        expected = task.pipeline.transform(
            rows_of.embeddings[rows], modality="image", training=True, **drawn
        )
        torch.testing.assert_close(inputs, torch.from_numpy(expected))
        t = times[:, None, None, None]
        noise = (noisy - (1 - t) * images) / t
        assert float(noise.std()) == pytest.approx(1, abs=0.05)
        assert loss == pytest.approx(float(((velocity - (noise - images)) ** 2).mean()), rel=1e-3)
        withheld += int(withhold.sum())
    assert 0.15 < withheld / (8 * len(TRAIN)) < 0.35


@pytest.mark.parametrize(("steps", "rise"), [(4000, 300), (2000, 200), (5, 1)])
def test_the_learning_rate_rises_over_at_most_a_tenth_of_the_steps(steps: int, rise: int) -> None:
    task = make_task(replace(QUICK, steps=steps, warmup=300))
    assert task.plan.rise == rise


def test_the_validation_loss_is_the_same_each_time_and_that_of_the_velocity() -> None:
    task = make_task(sigma=0.2)
    clean = task.pipeline.transform(VAL.rows.embeddings, modality="image", training=False)
    # there is no noise in validation
    torch.testing.assert_close(task.val_inputs, torch.from_numpy(clean))
    with torch.no_grad():
        loss, _ = task.validate()
        assert task.validate()[0] == loss
    # an untrained network answers 0: the loss is that of noise - image
    assert loss == pytest.approx(1 + float((as_images(VAL.pixels) ** 2).mean()), rel=0.1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of colours and their photos."""
    folder = tmp_path_factory.mktemp("store")
    images = image_rows(write_photos(folder / "photos", 40))
    return build_store(folder / "c3-store", images, TEXTS, model=TOY, dtype="float32")


@pytest.fixture
def train(store: Store, c3: C3) -> Train:
    """Train for a moment in an empty folder; returns the generator and what was said."""

    def run(**changes: Any) -> tuple[Generator, list[str]]:
        told = Messages()
        options: dict[str, Any] = {
            "store": store,
            "output": "c3-generator",
            "sigma": 0.05,
            "steps": 2,
        }
        options |= {
            "set": ["validations=1"],
            "device": "cpu",
            "precision": "fp32",
            "reporter": told,
            **changes,
        }
        return train_generator(**options), told.texts

    return run


def test_a_generator_is_written_once_with_all_that_it_needs(train: Train, tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match=r"'restval'.*train \(24\), val \(8\), test \(8\)"):
        train(train_split="restval")
    assert not list(tmp_path.iterdir())
    options: dict[str, Any] = {
        "steps": 6,
        "set": ["validations=3", "ema=0.5", "learning_rate=0.01", "warmup=2"],
    }
    made, said = train(**options)
    record = made.record
    facts = {name: value for name, value in record.items() if name not in ("made_from", "seconds")}
    # nothing else of the run
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    recorded(
        Path(__file__).parent / "golden/training.json",
        {**facts, "said": said, "files": files},
        rel=2e-3,
    )
    assert_interface(evaluate_images, generate, train_generator)
    assert Generator.load("c3-generator", FP32).record == record
    assert "nothing to do" in train(**options)[1][-1]
    with pytest.raises(OutputError, match=r"steps 6, not 2[\s\S]*--overwrite"):
        train()


@dataclass(frozen=True)
class LaterConfig(TrainingConfig):
    """The settings of a training in a later version, which has one more."""

    time_shift: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LaterSettings(GeneratorSettings):
    """The options of `train_generator` in a later version, which has one more."""

    mirror: bool = True


def test_an_option_and_a_setting_that_are_added_disown_no_generator(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    training = LaterConfig(**asdict(MICRO_SIZE.training))
    size = replace(MICRO_SIZE, training=training)
    monkeypatch.setattr("c3tools.paper.imaging.model.SIZES", {"tiny": size})
    monkeypatch.setattr("c3tools.paper.imaging.train_generator.GeneratorSettings", LaterSettings)
    _, messages = train()
    assert "nothing to do" in messages[-1]


def test_the_method_reads_no_caption(train: Train, store: Store) -> None:
    """The mean of the texts is all that is kept of them, for asking."""
    texts = store.load("text")
    wordless = replace(texts, table=texts.table.drop_columns("caption"))
    other = build_store(Path("wordless"), store.load("image"), wordless, model=TOY, dtype="float32")
    made, again = train()[0], train(store=other, output="two")[0]
    assert made.fingerprint() == again.fingerprint()


def test_what_the_user_should_know_is_noted(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(MICRO_SIZE, training=replace(QUICK, steps=22))
    monkeypatch.setattr("c3tools.paper.imaging.model.SIZES", {"tiny": size})
    paths = [*map(str, write_photos(Path("photos"), 30))]
    plain = Rows.of("image", paths, of_colours(30, -1), path=paths, split=["train"] * 30)
    made, told = train(store=build_store(Path("plain"), plain, model=TOY))
    assert made.record["photos"] == {"train": 27, "val": 3}
    notes = made.record["notes"]
    for words in (
        "3 images are held out",
        "no text",
        "2 steps are too few",
    ):
        assert any(words in note for note in notes), words
    assert {*notes} <= {*told}


def test_sigma_of_a_rule_is_that_of_noise_on_photos(train: Train, store: Store) -> None:
    made, told = train(sigma="pairs")
    sigma, why = sigma_by_rule("pairs", store, noised="image")
    assert sigma != sigma_by_rule("pairs", store)[0]
    assert (made.record["sigma"], made.pipeline.provenance["sigma"]) == (pytest.approx(sigma), why)
    assert any(text.startswith(why) for text in told)


def test_the_command_trains_and_prints(c3: C3, store: Store) -> None:
    quick = ("--steps", "2", "--precision", "fp32", "--sigma", "0.05", "--store", store.path)
    done(c3("train-generator", *quick, "--json", "run.json"))
    written = json.loads(Path("run.json").read_text())
    assert written == {"schema": 1, **Generator.load("c3-generator").to_dict()}


def test_an_export_before_the_noise_gives_the_weights_of_the_store(
    train: Train, store: Store
) -> None:
    noise: dict[str, Any] = {"preset": "c3", "sigma": 0.1}
    export_store(store, output="export", train_on="image", before_noise=True, **noise)
    of_export: dict[str, Any] = {"store": "export", "sigma": None}
    own, other = train(**of_export)[0], train(output="other", **noise)[0]
    assert own.fingerprint() == other.fingerprint()
    for changes, named in (
        ({"sigma": 0.1}, "its own sigma"),
        ({"pipeline": preset("c1").fit(store)}, "export"),
    ):
        with pytest.raises(TransformError, match=named):
            train(**of_export | changes)


def test_validations_are_listed_with_the_training_loss_since_the_one_before(
    tmp_path: Path, store: Store
) -> None:
    generator = train_generator(store, output=tmp_path / "out", steps=6, set=["validations=3"])
    assert len({row[1] for row in generator.losses().rows}) == 3
    generator.record = {
        "validations": [[1, 1.5, 1.1], [3, 1.25, 1.0], [1005, 1.125, 1.2]],
        "best_val_loss": 1.0,
    }
    assert generator.losses().rows == [
        ["1", "1.5000", "1.1000"],
        ["3", "1.2500", "1.0000 (kept)"],
        ["1,005", "1.1250", "1.2000"],
    ]
