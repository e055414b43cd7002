"""Generators on a GPU: training, saving, and images that are those of the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from c3tools.devices import Compute
from c3tools.paper.imaging.generator import Generator
from c3tools.paper.imaging.model import TrainingConfig
from c3tools.paper.imaging.photos import Photos
from c3tools.paper.imaging.train_generator import GeneratorTask
from c3tools.training.loop import train
from c3tools.transforms import preset
from tests.fake_cuda import FakeCuda
from tests.paper.imaging.conftest import MICRO_SIZE, TOY, image_rows, of_colours

pytestmark = pytest.mark.cuda


def photos_of(start: int, stop: int) -> Photos:
    rows = image_rows([f"{number}.png" for number in range(40)]).select(np.arange(start, stop))
    pixels = np.random.default_rng(start).integers(0, 256, (stop - start, 8, 8, 3))
    return Photos(rows, pixels.astype(np.uint8))


def task_on(compute: Compute) -> GeneratorTask:
    """The training of a network of 8 x 8 pixels in three steps."""
    photos = photos_of(0, 24)
    pipeline = preset("c3", sigma=0.1, train_on="image", infer_on="text").fit(
        {"image": photos.rows.embeddings, "text": of_colours(24, 1)}
    )
    training = TrainingConfig(steps=3, batch_size=4, validations=1)
    return GeneratorTask(
        photos, photos_of(24, 40), pipeline, replace(MICRO_SIZE, training=training), compute
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_generator_is_trained_as_on_the_cpu(gpu: str, precision: str, tmp_path: Path) -> None:
    losses = []
    for device in ("cpu", gpu):
        compute = Compute(device, precision)
        task = task_on(compute)
        generator = task.generator(train(task), {"model": TOY})
        losses.append(generator.record["best_val_loss"])
    tolerance = 1e-3 if precision == "fp32" else 0.05
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)

    generator.save(tmp_path / "generator")
    assert Generator.load(tmp_path / "generator").compute.device == "cuda"
    images = []
    for compute in (Compute(gpu, "fp32"), Compute("cpu", "fp32")):
        loaded = Generator.load(tmp_path / "generator", compute)
        assert loaded.fingerprint() == generator.fingerprint()
        made = loaded.generate(embeddings=of_colours(1, 1), sampling_steps=2)
        images.append(np.asarray(made[0], np.int64))
    assert np.abs(images[0] - images[1]).max() <= 2  # of 255


def test_a_step_of_training_waits_once(shadow: FakeCuda) -> None:
    task = task_on(Compute("cuda:1", "fp32"))
    shadow.log.clear()
    train(task)
    reads = [entry for entry in shadow.waits() if entry.what in ("float", "int", "item")]
    assert len(reads) <= task.plan.steps + 2  # and a validation
    assert shadow.gpus_whose_rng_was_read() <= {1}
