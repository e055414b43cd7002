"""A toy world: captions made from a few words, embeddings that are sums of word vectors, and two modalities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from c3tools.captioning import CaptionDecoder, CaptionRows, DecoderConfig
from c3tools.moments import Moments

COLOURS = ("red", "blue", "green", "white")
ANIMALS = ("dog", "cat", "horse", "bird", "cow")
PLACES = ("grass", "beach", "street", "snow")
DIM = 32


@dataclass(frozen=True)
class World:
    texts: CaptionRows
    owners: list[str]
    images: dict[str, np.ndarray]
    references: dict[str, list[str]]

    @property
    def moments(self) -> dict[str, Moments]:
        return {
            "text": Moments.from_rows(self.texts.embeddings),
            "image": Moments.from_rows(np.stack(list(self.images.values()))),
        }

    def split(self, held_out: int) -> tuple[CaptionRows, CaptionRows]:
        """The captions of the first images, and those of the last ``held_out``."""
        last = set(list(self.images)[-held_out:])
        inside = np.array([owner in last for owner in self.owners])
        return self.texts.select(np.flatnonzero(~inside)), self.texts.select(np.flatnonzero(inside))


def make_world(gap: float = 1.0, noise: float = 0.02, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    words = {word: rng.normal(size=DIM) / np.sqrt(DIM) for word in (*COLOURS, *ANIMALS, *PLACES)}
    offset = gap * rng.normal(size=DIM) / np.sqrt(DIM)
    keys, embeddings, captions, owners = [], [], [], []
    images, references = {}, {}
    scenes = [(colour, animal, place) for colour in COLOURS for animal in ANIMALS for place in PLACES]
    for number in rng.permutation(len(scenes)):
        colour, animal, place = scenes[number]
        owner = f"image{number:02d}"
        meaning = words[colour] + words[animal] + words[place]
        image = meaning - offset / 2 + noise * rng.normal(size=DIM)
        images[owner] = (image / np.linalg.norm(image)).astype(np.float32)
        references[owner] = [f"A {colour} {animal} on the {place}.", f"on the {place} stands a {colour} {animal}"]
        for rank, caption in enumerate(references[owner]):
            text = meaning + offset / 2 + noise * rng.normal(size=DIM)
            keys.append(f"{owner}#{rank}")
            embeddings.append(text / np.linalg.norm(text))
            captions.append(caption)
            owners.append(owner)
    rows = CaptionRows(keys, np.array(embeddings, dtype=np.float32), captions)
    return World(rows, owners, images, references)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture
def tiny_model() -> CaptionDecoder:
    """A random decoder of 7 tokens whose scores are far from uniform."""
    torch.manual_seed(3)
    config = DecoderConfig(dim=6, vocab_size=7, width=16, layers=2, heads=2, prefix_length=3, max_tokens=6, dropout=0.0)
    model = CaptionDecoder(config).eval()
    for block in model.blocks:
        block.attention.out.weight.data *= 6
        block.down.weight.data *= 6
    model.norm.weight.data *= 2.5
    return model
