"""A toy world: captions made from a few words, embeddings that are sums of word vectors, and two modalities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c3tools import Captioner, devices
from c3tools.captioning.config import UNCONDITIONAL, AnySize, DecoderConfig, TrainingConfig, load_size
from c3tools.captioning.model import CaptionDecoder, Decoder
from c3tools.captioning.train import DecoderTask, fit
from c3tools.moments import Moments
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from tests.conftest import build_store

COLOURS = ("red", "blue", "green", "white")
ANIMALS = ("dog", "cat", "horse", "bird", "cow")
PLACES = ("grass", "beach", "street", "snow")
DIM = 32
CPU = devices.pick("cpu", "fp32")
TOY = {"name": "toy-model", "weights_sha256": "1" * 64}


@dataclass(frozen=True)
class World:
    """Texts with the columns ``caption`` and ``image_key``, their images, and what people wrote about each."""

    texts: Rows
    images: Rows
    references: dict[str, list[str]]

    @property
    def moments(self) -> dict[str, Moments]:
        return {rows.modality: Moments.from_rows(rows.embeddings) for rows in (self.texts, self.images)}

    def split(self, held_out: int) -> tuple[Rows, Rows]:
        """The captions of the first images, and those of the last ``held_out``."""
        last = set(self.images.keys[-held_out:])
        inside = np.array([item in last for item in self.texts.items])
        return self.texts.select(~inside), self.texts.select(inside)


def make_world(gap: float = 1.0, noise: float = 0.02, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    words = {word: rng.normal(size=DIM) / np.sqrt(DIM) for word in (*COLOURS, *ANIMALS, *PLACES)}
    offset = gap * rng.normal(size=DIM) / np.sqrt(DIM)
    keys, embeddings, captions, items = [], [], [], []
    images: dict[str, np.ndarray] = {}
    references: dict[str, list[str]] = {}
    scenes = [(colour, animal, place) for colour in COLOURS for animal in ANIMALS for place in PLACES]
    for number in rng.permutation(len(scenes)):
        colour, animal, place = scenes[number]
        item = f"image{number:02d}"
        meaning = words[colour] + words[animal] + words[place]
        image = meaning - offset / 2 + noise * rng.normal(size=DIM)
        images[item] = (image / np.linalg.norm(image)).astype(np.float32)
        references[item] = [f"A {colour} {animal} on the {place}.", f"on the {place} stands a {colour} {animal}"]
        for rank, caption in enumerate(references[item]):
            text = meaning + offset / 2 + noise * rng.normal(size=DIM)
            keys.append(f"{item}#{rank}")
            embeddings.append(text / np.linalg.norm(text))
            captions.append(caption)
            items.append(item)
    texts = Rows.of("text", keys, np.array(embeddings), caption=captions, image_key=items)
    return World(texts, Rows.of("image", list(images), np.stack(list(images.values()))), references)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


def make_captions_store(path: Path, *, splits: bool = True, noise: float = 0.02) -> tuple[Store, World]:
    """80 images with two captions each: train 56, val 8, test 16; without splits everything is train."""
    world = make_world(noise=noise)
    images, texts = world.images, world.texts
    parts = ["test" if i % 5 == 0 else "val" if i % 10 == 1 else "train" for i in range(len(images))]
    split = dict(zip(images.keys, parts if splits else ["train"] * len(images), strict=True))
    sides = [8] * len(images)
    paths = [f"{key}.png" for key in images.keys]
    columns: dict[str, Any] = {"path": paths, "width": sides, "height": sides, "split": list(split.values())}
    own = {"caption": texts.captions, "image_key": texts.items, "split": [split[item] for item in texts.items]}
    rows = (
        Rows.of("image", images.keys, images.embeddings, **columns),
        Rows.of("text", texts.keys, texts.embeddings, **own),
    )
    return build_store(path, *rows, model=TOY, dtype="float32"), world


def tiny(training: TrainingConfig, *changes: str) -> AnySize:
    """The size tiny with other settings of training."""
    return replace(load_size("tiny", changes), training=training)


@cache
def trained_captioner() -> Captioner:
    """A captioner of the toy world, trained once for all tests that need one; a test that changes it takes a copy."""
    world = make_world()
    training = TrainingConfig(epochs=3, batch_size=16, learning_rate=3e-3)
    pipeline = preset("c3", sigma=0.02).fit(world.moments)
    task = DecoderTask(*world.split(held_out=20), pipeline, tiny(training), CPU)
    return fit(task, record={"model": TOY, "sigma": 0.02, "size": "tiny"})


@pytest.fixture(scope="session")
def captioner() -> Captioner:
    return trained_captioner()


@pytest.fixture(scope="session")
def language_model() -> Captioner:
    """A language model of the toy world's captions, trained once."""
    world = make_world()
    training = TrainingConfig(epochs=4, batch_size=16, learning_rate=5e-3, contrastive_margin=0.5)
    pipeline = preset("c1").fit(world.moments)
    task = DecoderTask(*world.split(held_out=20), pipeline, tiny(training, *UNCONDITIONAL), CPU)
    return fit(task, record={"model": TOY})


@pytest.fixture(scope="session")
def captions_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The toy world as a store, for tests that only read it."""
    return make_captions_store(tmp_path_factory.mktemp("captions") / "c3-store")[0]


def logits_after(model: Decoder, x: np.ndarray, written: list[int]) -> torch.Tensor:
    """The definition of the scores of the next token, (V,): the whole sequence is computed again."""
    with torch.no_grad():
        logits = model(torch.from_numpy(x[None]), torch.tensor([[*written, model.pad_id]]))[0]
    return model.allowed(logits[0, len(written)])


def greedy_without_cache(model: Decoder, x: np.ndarray) -> list[int]:
    written: list[int] = []
    while (
        len(written) < model.config.max_tokens
        and (token := int(logits_after(model, x, written).argmax())) != model.end_id
    ):
        written.append(token)
    return written


@pytest.fixture
def tiny_model() -> CaptionDecoder:
    """A random decoder of 7 tokens whose scores are far from uniform."""
    torch.manual_seed(3)
    config = DecoderConfig(dim=6, vocab_size=7, width=16, layers=2, heads=2, prefix_length=3, max_tokens=6, dropout=0.0)
    model = CaptionDecoder(config).eval()
    blocks: Any = model.blocks
    for block in blocks:
        block.attention.out.weight.data *= 6
        block.down.weight.data *= 6
    model.norm.weight.data *= 2.5
    return model
