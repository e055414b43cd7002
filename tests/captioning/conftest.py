"""A toy world: captions made from a few words, embeddings that are sums of word vectors, and two
modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, cycle, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from c3tools import Captioner, devices
from c3tools.arrays import Matrix
from c3tools.captioning.config import UNCONDITIONAL, DecoderConfig, TrainingConfig, load_size
from c3tools.captioning.model import CaptionDecoder, Decoder
from c3tools.captioning.task import CaptioningTask
from c3tools.captioning.train_captioner import DecoderTask
from c3tools.moments import Moments
from c3tools.store import Rows, Store
from c3tools.training.loop import train
from c3tools.transforms import preset
from tests.conftest import build_store
from tests.stores import unit

COLOURS = ("red", "blue", "green", "white")
ANIMALS = ("dog", "cat", "horse", "bird", "cow")
PLACES = ("grass", "beach", "street", "snow")
DIM = 32
CPU = devices.pick("cpu", "fp32")
TOY = {"name": "toy-model", "weights_sha256": "1" * 64}
SPLITS = ("test", "val", "train", "train", "train", "test", "train", "train", "train", "train")


@dataclass(frozen=True)
class World:
    """Texts with the columns ``caption`` and ``image_key``, their images, and what people wrote
    about each."""

    texts: Rows
    images: Rows
    references: Any

    @property
    def moments(self) -> Any:
        return {
            rows.modality: Moments.from_rows(rows.embeddings) for rows in (self.texts, self.images)
        }

    def split(self, held_out: int) -> tuple[Rows, Rows]:
        """The captions of the first images, and those of the last ``held_out``."""
        last = set(self.images.keys[-held_out:])
        inside = np.array([item in last for item in self.texts.items])
        return self.texts.select(~inside), self.texts.select(inside)


def make_world(gap: float = 1.0, noise: float = 0.02, seed: int = 0) -> World:
    """80 images of a colour, an animal and a place, with two captions each."""
    rng = np.random.default_rng(seed)
    words = {word: rng.normal(size=DIM) / np.sqrt(DIM) for word in (*COLOURS, *ANIMALS, *PLACES)}
    offset = gap * rng.normal(size=DIM) / np.sqrt(DIM)
    scenes = list(product(COLOURS, ANIMALS, PLACES))
    order, references = rng.permutation(len(scenes)), {}
    for number in order:
        colour, animal, place = scenes[number]
        captions = [
            f"A {colour} {animal} on the {place}.",
            f"on the {place} stands a {colour} {animal}",
        ]
        references[f"image{number:02d}"] = captions
    meanings = np.array([sum(words[word] for word in scenes[number]) for number in order])
    sides = offset / 2 * np.array([[-1], [1], [1]])  # of the image, and of its captions
    rows = meanings[:, None] + sides + noise * rng.normal(size=(len(order), 3, DIM))
    images, texts = (unit(part.reshape(-1, DIM)) for part in (rows[:, 0], rows[:, 1:]))
    keys = [f"{item}#{rank}" for item in references for rank in (0, 1)]
    items = [key.partition("#")[0] for key in keys]
    return World(
        Rows.of("text", keys, texts, caption=[*chain(*references.values())], image_key=items),
        Rows.of("image", [*references], images, path=[f"{key}.png" for key in references]),
        references,
    )


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


def make_captions_store(path: Path, *, noise: float = 0.02) -> tuple[Store, World]:
    """The toy world as a store: of its images 56 are train, 8 val and 16 test."""
    world = make_world(noise=noise)
    return store_of(path, world), world


def store_of(path: Path, world: World, splits: Sequence[str] = SPLITS, model: Any = TOY) -> Store:
    """A store of a world, whose images have these splits, over and over, and captions the split of
    their image."""
    split = dict(zip(world.images.keys, cycle(splits), strict=False))
    sides = (
        replace(
            rows, table=rows.table.append_column("split", [[split[item] for item in rows.items]])
        )
        for rows in (world.images, world.texts)
    )
    return build_store(path, *sides, model=model, dtype="float32")


def task_of(
    world: World,
    training: TrainingConfig,
    name: str = "c1",
    *changes: str,
    held_out: int = 20,
    start: Captioner | None = None,
) -> DecoderTask:
    """The training of a tiny decoder by a preset, on the captions of all images but the last."""
    size = replace(load_size("tiny", changes), training=training)
    pipeline = preset(name, sigma=0.02).fit(world.moments)
    return DecoderTask(*world.split(held_out), pipeline, size, CPU, start)


def fit(task: CaptioningTask, record: dict[str, Any] | None = None) -> Captioner:
    """Train a captioner in memory."""
    return task.captioner(train(task), record or {})


@cache
def trained_captioner() -> Captioner:
    """A captioner of the toy world, trained once for all tests that need one; a test that changes
    it takes a copy."""
    task = task_of(make_world(), TrainingConfig(3, 16, 3e-3), "c3")
    return fit(task, record={"model": TOY, "sigma": 0.02, "size": "tiny"})


@pytest.fixture(scope="session")
def captioner() -> Captioner:
    return trained_captioner()


@pytest.fixture(scope="session")
def language_model(world: World) -> Captioner:
    """A language model of the toy world's captions, trained once."""
    training = TrainingConfig(
        4, 16, 5e-3, contrastive_margin=0.5, word_dropout=0.1, label_smoothing=0.05
    )
    return fit(task_of(world, training, "c1", *UNCONDITIONAL), record={"model": TOY})


@pytest.fixture(scope="session")
def captions_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The toy world as a store, for tests that only read it."""
    return make_captions_store(tmp_path_factory.mktemp("captions") / "c3-store")[0]


def counting_encoder(words: Sequence[str], dim: int = DIM) -> Any:
    """An encoder of texts by how often each of some words is in them."""

    def encode_texts(texts: Sequence[str]) -> Matrix:
        counts = np.array(
            [[text.count(word) + 0.02 for word in words] for text in texts], np.float32
        )
        return unit(np.pad(counts, ((0, 0), (0, dim - len(words)))))

    return SimpleNamespace(encode_texts=encode_texts)


def logits_after(model: Decoder, x: Any, written: Any) -> Any:
    """The definition of the scores of the next token, (V,): the whole sequence is computed
    again."""
    with torch.no_grad():
        logits = model(torch.from_numpy(x[None]), torch.tensor([[*written, model.pad_id]]))[0]
    return model.allowed(logits[0, len(written)])


@torch.no_grad()
def mean_loss(model: Decoder, x: Any, tokens: torch.Tensor) -> float:
    """The definition of the loss of captions (B, T): the mean of -log p over their tokens, without
    padding."""
    log_p = model(torch.from_numpy(x), tokens)[0].log_softmax(-1)
    return -float(log_p.gather(2, tokens[..., None])[..., 0][tokens != model.pad_id].mean())


def greedy_without_cache(model: Decoder, x: Any) -> Any:
    written: Any = []
    for _ in range(model.config.max_tokens):
        token = int(logits_after(model, x, written).argmax())
        if token == model.end_id:
            break
        written.append(token)
    return written


@pytest.fixture
def tiny_model() -> Any:
    """A random decoder of 7 tokens whose scores are far from uniform."""
    torch.manual_seed(3)
    config = DecoderConfig(
        dim=6, vocab_size=7, width=16, layers=2, heads=2, prefix_length=3, max_tokens=6, dropout=0.0
    )
    model: Any = CaptionDecoder(config).eval()
    for block in model.blocks:
        for layer in (block.attention.out, block.down):
            layer.weight.data *= 6
    model.norm.weight.data *= 2.5
    return model
