"""Models of transformers, sentence-transformers and diffusers on a GPU give what they give on the
CPU."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c3tools.captioning.generation import GenerationConfig, generate
from c3tools.devices import Compute
from c3tools.encoders.st import SentenceTransformersModel
from c3tools.paper.imaging.generator import PretrainedGenerator
from tests.captioning import test_language_model
from tests.conftest import make_store, unit_rows
from tests.encoders import test_sentence_transformers
from tests.paper.imaging.test_pretrained import unclip

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("default")]  # of the libraries

gpt2 = test_language_model.gpt2
models = test_sentence_transformers.models


def test_a_model_of_sentence_transformers(gpu: str, models: Path) -> None:
    texts = ["a dog", "snow on a hill"]
    images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    for name in ("clip", "text"):
        # The model itself: c3tools calls it in another thread, where a shadow does not reach
        on_cpu = SentenceTransformersModel(str(models / name))
        on_gpu = SentenceTransformersModel(str(models / name), device=gpu)
        assert on_gpu.identity["weights_sha256"] == on_cpu.identity["weights_sha256"]
        np.testing.assert_allclose(
            on_gpu.encode_texts(texts), on_cpu.encode_texts(texts), atol=1e-4
        )
        if name == "clip":
            np.testing.assert_allclose(
                on_gpu.encode_images(images), on_cpu.encode_images(images), atol=1e-3
            )


def test_captions_by_a_language_model_of_transformers(gpu: str, gpt2: Path) -> None:
    decoder = test_language_model.decoder_of(gpt2)
    on_gpu = copy.deepcopy(decoder).to(gpu)
    rows = unit_rows(3, decoder.config.dim)
    keys = ["a", "b", "c"]
    for config in (GenerationConfig("beam", beams=2), GenerationConfig("nucleus")):
        assert generate(on_gpu, rows, config, keys) == generate(decoder, rows, config, keys)


def test_a_pipeline_of_diffusers_makes_the_images_of_the_cpu(gpu: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unclip(8, tmp_path).save_pretrained(tmp_path / "unclip")
    store = make_store(tmp_path / "store", unit_rows(20, 8), unit_rows(20, 8, 1))
    images = []
    for device in ("cpu", gpu):
        generator = PretrainedGenerator(
            f"unclip:{tmp_path / 'unclip'}", store, Compute(device, "fp32")
        )
        made = generator.generate(embeddings=unit_rows(1, 8, 2), modality="text", sampling_steps=2)
        images.append(np.asarray(made[0], np.int64))
    assert np.abs(images[0] - images[1]).max() <= 2  # of 255
