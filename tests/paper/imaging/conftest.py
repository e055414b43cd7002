"""A world of plain colours: photos of one colour, embeddings that are its RGB values turned, and
two modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from c3tools import devices
from c3tools.encoders import Encoder
from c3tools.paper.imaging.generator import Generator
from c3tools.paper.imaging.model import ImageNetwork, Size, TrainingConfig
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from tests.conftest import build_store, unit_rows
from tests.stores import unit

DIM = 16
COLOURS = np.random.default_rng(0).integers(0, 256, (40, 3)).astype(np.uint8)  # of the photos
TOY = {"name": "toy-model", "weights_sha256": "1" * 64}
FP32 = devices.pick("cpu", "fp32")
QUICK = TrainingConfig(steps=6, batch_size=8, validations=3)
MICRO_SIZE = Size(8, 2, (16, 16), (False, True), training=QUICK)


def micro_network(dim: int) -> ImageNetwork:
    """A network of 8 x 8 pixels with random weights, whose images depend on what they are asked
    for."""
    torch.manual_seed(0)
    network = ImageNetwork(replace(MICRO_SIZE, dim=dim))
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.3)
    return network.eval()


def of_colours(count: int, side: int) -> np.ndarray:
    """Unit vectors (n, DIM) of the first n colours, with a gap between the modalities 1 and -1."""
    rng = np.random.default_rng(7)
    turn, gap = rng.normal(size=(3, DIM)), rng.normal(size=DIM)
    noise = np.random.default_rng(2 + side).normal(size=(count, DIM))
    return unit((COLOURS[:count] / 127.5 - 1) @ turn + side * gap + 0.05 * noise)


def write_photos(folder: Path, count: int) -> list[Path]:
    """Photos of one colour, with a darker left half, so that a flip can be seen."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photo{number:03d}.png" for number in range(count)]
    for path, colour in zip(paths, COLOURS, strict=False):
        Image.fromarray(np.tile(np.repeat([[colour // 2, colour]], 6, axis=1), (12, 1, 1))).save(
            path
        )
    return paths


def image_rows(paths: Sequence[str | Path]) -> Rows:
    count, splits = len(paths), ["test", "val", "train", "train", "train"] * 8
    keys = [f"photo{number:03d}" for number in range(count)]
    return Rows.of(
        "image", keys, of_colours(count, -1), path=[*map(str, paths)], split=splits[:count]
    )


def text_rows(images: Rows, embeddings: np.ndarray) -> Rows:
    """A text of each image."""
    keys, captions = (
        [f"{key}#0" for key in images.keys],
        [f"a photo of number {i}" for i in range(len(images))],
    )
    own = {"caption": captions, "image_key": images.keys, "split": images.splits}
    return Rows.of("text", keys, embeddings, **own)


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the size tiny be a network of 8 x 8 pixels that is trained at once."""
    monkeypatch.setattr("c3tools.paper.imaging.model.SIZES", {"tiny": MICRO_SIZE})


@pytest.fixture(scope="session")
def untrained(encoder: Encoder) -> Generator:
    """A generator of 8 x 8 pixels for the bundled model, whose images depend on what they are asked
    for."""
    rows = {"image": unit_rows(20, encoder.dim), "text": unit_rows(20, encoder.dim, 1)}
    pipeline = preset("c3", sigma=0.1, train_on="image", infer_on="text").fit(rows)
    record = {"model": dict(encoder.identity), "preset": "c3", "size": "micro"}
    return Generator(micro_network(encoder.dim), pipeline, record, FP32)


@pytest.fixture(scope="session")
def store(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of photos of plain colours, embedded by the bundled model, for tests that only read
    it."""
    return mini_store(tmp_path_factory.mktemp("mini") / "c3-store", encoder)


def mini_store(folder: Path, encoder: Encoder, photos: int = 24) -> Store:
    """A store of photos of plain colours and captions of them, embedded by the bundled model."""
    paths = write_photos(folder.parent / "mini-photos", photos)
    columns: Any = {"path": [*map(str, paths)], "split": ["train", "test"] * (photos // 2)}
    images = Rows.of(
        "image", [path.stem for path in paths], encoder.encode_images(paths), **columns
    )
    texts = text_rows(
        images, encoder.encode_texts([f"a photo of number {i}" for i in range(photos)])
    )
    return build_store(folder, images, texts, model=encoder.identity, dtype="float32")
