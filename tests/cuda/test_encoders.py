"""Encoders on a GPU: the embeddings of the CPU, one wait a batch, and batches that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from c3tools.arrays import Matrix
from c3tools.assets.paths import PHOTOS
from c3tools.corpus.items import ImageItem
from c3tools.embedding.shard_work import EmbedOptions, encoded_images
from c3tools.encoders import Encoder, load_encoder
from tests.fake_cuda import FakeCuda

pytestmark = pytest.mark.cuda

IMAGES = sorted((PHOTOS / "images").glob("*.jpg"))[:4]
TEXTS = ["a dog", "snow on a hill", "two people at a table in the sun"]


def on_gpu(device: str) -> Encoder:
    return load_encoder(device=device, precision="fp32")


def assert_same(rows: Matrix, expected: Matrix) -> None:
    """Compare unit rows; convolutions of a real GPU are in TF32."""
    assert (rows * expected).sum(axis=1).min() > 0.9999


def test_a_gpu_embeds_as_the_cpu_does(gpu: str, encoder: Encoder) -> None:
    encoder_on_gpu = on_gpu(gpu)
    assert (encoder_on_gpu.backend.name, encoder_on_gpu.compute.device) == ("torch", gpu)
    assert_same(encoder_on_gpu.encode_images(IMAGES, batch_size=2), encoder.encode_images(IMAGES))
    assert_same(encoder_on_gpu.encode_texts(TEXTS), encoder.encode_texts(TEXTS))


def test_a_batch_is_waited_for_once_and_copied_from_pinned_memory(shadow: FakeCuda) -> None:
    encoder = on_gpu("cuda")
    shadow.log.clear()
    encoder.encode_images(IMAGES, batch_size=2)
    encoder.encode_texts(TEXTS)
    assert len(shadow.waits()) == 3
    assert not shadow.pageable_copies()


def test_images_are_decoded_into_pinned_memory(shadow: FakeCuda, encoder: Encoder) -> None:
    on_shadow = on_gpu("cuda")
    shadow.log.clear()
    items = [ImageItem(path.name, str(path), None, None) for path in IMAGES]
    options = EmbedOptions(workers=1, batch_size=2)
    batches = encoded_images(on_shadow, [(0, items)], options, cores=1)
    rows = np.concatenate([features for _, features in batches])
    # Pixels are not copied once more to be pinned; each batch and its result have memory of theirs
    assert [entry.what for entry in shadow.entries("pin")] == ["allocate"] * 4
    assert not shadow.pageable_copies()
    assert_same(rows, encoder.encode_images(IMAGES))


def test_a_result_is_not_waited_for_longer_than_it_takes(shadow: FakeCuda) -> None:
    encoder = on_gpu("cuda")
    pixels = np.stack([encoder.pixels(image) for image in IMAGES])
    first = encoder.backend.submit("image", pixels[:2])
    launched = len(shadow.log)
    second = encoder.backend.submit("image", pixels[2:])
    rows = first()
    # The second batch is still running
    assert shadow.waits()[-1].until <= launched
    assert_same(np.concatenate([rows, second()]), encoder.encode_images(IMAGES))


def test_batches_follow_each_other_without_a_pause(shadow: FakeCuda) -> None:
    encoder = on_gpu("cuda")
    encoder.encode_images(IMAGES, batch_size=1)
    # When the host waits for a batch, at least one further batch is in the queue
    copies = [number for number, entry in enumerate(shadow.log) if entry.kind == "to device"][-4:]
    waits = [number for number, entry in enumerate(shadow.log) if entry.kind == "wait"][-4:]
    assert copies[1] < waits[0]
    assert copies[2] < waits[0]
    assert copies[3] < waits[1]


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    shadow: FakeCuda, encoder: Encoder
) -> None:
    encoder_on_gpu = on_gpu("cuda")
    shadow.largest_so_far = 0
    encoder_on_gpu.encode_images(IMAGES[:2], batch_size=2)
    shadow.largest = shadow.largest_so_far
    rows = encoder_on_gpu.encode_images([*IMAGES, *IMAGES], batch_size=4)
    assert len(shadow.entries("empty cache")) == 1  # what follows is halved at once
    assert_same(rows, np.tile(encoder.encode_images(IMAGES), (2, 1)))
