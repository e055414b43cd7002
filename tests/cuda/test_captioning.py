"""Captioners on a GPU: training, saving, and captions that are those of the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c3tools import Captioner
from c3tools.captioning.config import UNCONDITIONAL, TrainingConfig, load_size
from c3tools.captioning.esper import EsperTask
from c3tools.captioning.generation import GenerationConfig, generate
from c3tools.captioning.steering import CANDIDATES
from c3tools.captioning.train_captioner import DecoderTask
from c3tools.devices import Compute
from c3tools.store import Rows
from c3tools.training.loop import train
from c3tools.transforms import preset
from tests.captioning.conftest import (
    ANIMALS,
    DIM,
    counting_encoder,
    fit,
    make_world,
    trained_captioner,
)
from tests.conftest import unit_rows
from tests.fake_cuda import FakeCuda

pytestmark = pytest.mark.cuda

SMALL = ("width=16", "layers=1", "heads=2", "max_tokens=8")
WORLD = make_world()
KEYS = [str(row) for row in range(6)]
QUICK = TrainingConfig(1, 16, 3e-3)
METHODS = (
    GenerationConfig(),
    GenerationConfig("beam", beams=3),
    GenerationConfig("nucleus"),
)


def task_on(compute: Compute, training: TrainingConfig = QUICK, *changes: str) -> DecoderTask:
    """The training of a very small decoder on ten images, in two steps."""
    size = replace(load_size("tiny", (*SMALL, *changes)), training=training)
    pipeline = preset("c1" if changes else "c3", sigma=0.02).fit(WORLD.moments)
    return DecoderTask(*WORLD.split(64), pipeline, size, compute)


def inputs_of(captioner: Captioner) -> Any:
    return captioner.pipeline.transform(WORLD.images.embeddings[:6], modality="image")


def words(config: GenerationConfig) -> int:
    """The number of words of the longest caption, with its end."""
    captioner = trained_captioner()
    captions = generate(captioner.decoder, inputs_of(captioner), config, KEYS)
    return max(map(len, captions)) + 1


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method)
def test_captions_are_those_of_the_cpu(gpu: str, config: GenerationConfig) -> None:
    captioner = trained_captioner()
    inputs = inputs_of(captioner)
    on_gpu = copy.deepcopy(captioner.decoder).to(gpu)
    expected = generate(captioner.decoder, inputs, config, KEYS)
    assert generate(on_gpu, inputs, config, KEYS) == expected


def test_a_nucleus_is_sampled_where_there_is_no_float64(shadow: FakeCuda) -> None:
    captioner = trained_captioner()
    inputs = inputs_of(captioner)
    config = GenerationConfig("nucleus")
    on_mps = copy.deepcopy(captioner.decoder).to("mps")
    expected = generate(captioner.decoder, inputs, config, KEYS)
    assert generate(on_mps, inputs, config, KEYS) == expected


def test_one_read_a_word(shadow: FakeCuda) -> None:
    captioner = trained_captioner()
    inputs = inputs_of(captioner)
    decoder = copy.deepcopy(captioner.decoder).to("cuda")
    # The tokens; of beams their scores and numbers
    for config, budget in zip(METHODS, (1, 2, 1), strict=True):
        shadow.log.clear()
        generate(decoder, inputs, config, KEYS)
        assert len(shadow.waits()) <= budget * words(config), config.method


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captioner_is_trained_as_on_the_cpu(gpu: str, precision: str, tmp_path: Path) -> None:
    on_cpu = fit(task_on(Compute("cpu", precision)))
    on_gpu = fit(task_on(Compute(gpu, precision)))
    tolerance = 1e-4 if precision == "fp32" else 0.02
    assert on_gpu.record["best_val_loss"] == pytest.approx(
        on_cpu.record["best_val_loss"], rel=tolerance
    )
    on_gpu.save(tmp_path / "decoder")
    for device in ("cpu", gpu):
        loaded = Captioner.load(tmp_path / "decoder", device)
        assert loaded.fingerprint() == on_gpu.fingerprint()
        assert loaded.decoder.device.type == torch.device(device).type


@pytest.mark.usefixtures("shadow")
def test_a_captioner_is_on_the_fastest_device_unless_asked_otherwise() -> None:
    assert Captioner.load("c3-mini").decoder.device == torch.device("cuda:0")
    assert Captioner.load("c3-mini", "cpu").decoder.device == torch.device("cpu")


def test_a_step_of_training_waits_once(shadow: FakeCuda) -> None:
    task = task_on(Compute("cuda:1", "fp32"), replace(QUICK, epochs=4))
    shadow.log.clear()
    train(task)
    validations = 4
    reads = [entry for entry in shadow.waits() if entry.what in ("float", "int", "item")]
    assert len(reads) <= task.plan.steps + 2 * validations
    assert shadow.gpus_whose_rng_was_read() <= {1}


def test_a_language_model_is_trained_as_on_the_cpu(gpu: str) -> None:
    training = replace(QUICK, contrastive_margin=0.5, word_dropout=0.1, label_smoothing=0.05)
    losses = []
    for device in ("cpu", gpu):
        captioner = fit(task_on(Compute(device, "fp32"), training, *UNCONDITIONAL))
        losses.append(captioner.record["best_val_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.fixture(scope="module")
def small_language_model() -> Captioner:
    return fit(task_on(Compute("cpu", "fp32"), QUICK, *UNCONDITIONAL))


@pytest.mark.parametrize("method", ["magic", "zerocap"])
def test_the_encoder_steers_as_on_the_cpu(
    gpu: str, method: Any, small_language_model: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CANDIDATES, method, 6)
    encoder = counting_encoder(ANIMALS)
    captions = []
    for device in ("cpu", gpu):
        captioner = copy.copy(small_language_model)
        captioner.decoder = copy.deepcopy(small_language_model.decoder).to(device)
        captions.append(
            captioner.caption(embeddings=unit_rows(2, DIM), steer=method, encoder=encoder)
        )
    assert captions[0] == captions[1]


def test_esper_takes_the_steps_of_the_cpu(gpu: str, small_language_model: Captioner) -> None:
    rows = Rows.of("image", [str(i) for i in range(8)], unit_rows(8, DIM))
    losses = []
    for device in ("cpu", gpu):
        task = EsperTask(
            rows,
            rows,
            small_language_model,
            counting_encoder(ANIMALS),
            TrainingConfig(1, 4, 1e-3),
            device,
        )
        run = train(task)
        losses.append(run.history[-1].val_loss)
        assert np.isfinite(losses[-1])
    # A real GPU draws other captions
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if gpu == "cuda:1" else 0.5)
