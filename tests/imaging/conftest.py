"""A world of plain colours: photos of one colour, embeddings that are its RGB values turned, and two modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c3tools import devices
from c3tools.encoders import Encoder
from c3tools.imaging.generator import Generator
from c3tools.imaging.model import ImageNetwork, Size, TrainingConfig
from c3tools.imaging.photos import Photos
from c3tools.moments import Moments
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from tests.conftest import build_store, unit_rows
from tests.stores import unit

DIM = 16
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "white": (235, 235, 235)}
TOY = {"name": "toy-model", "weights_sha256": "1" * 64}
FP32 = devices.pick("cpu", "fp32")
QUICK = TrainingConfig(steps=6, batch_size=8, validations=3)
MICRO_SIZE = Size(8, 2, (16, 16), (False, True), training=QUICK)


def micro_network(dim: int) -> ImageNetwork:
    """A network of 8 x 8 pixels with random weights, whose images depend on what they are asked for."""
    torch.manual_seed(0)
    network = ImageNetwork(replace(MICRO_SIZE, dim=dim))
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.3)
    return network.eval()


def colour_of(number: int) -> tuple[str, np.ndarray]:
    """The name and the RGB values of the photo with this number."""
    name = list(COLOURS)[number % len(COLOURS)]
    rng = np.random.default_rng(number)
    return name, np.clip(np.array(COLOURS[name]) + rng.integers(-15, 16, 3), 0, 255)


def _unit_rows(count: int, modality: str) -> np.ndarray:
    """Unit vectors (n, DIM) of the first n colours, with a gap between the modalities."""
    colours = np.stack([colour_of(number)[1] for number in range(count)])
    rng = np.random.default_rng(7)
    turn, gap = rng.normal(size=(3, DIM)), rng.normal(size=DIM)
    noise = np.random.default_rng([0, modality == "text"]).normal(size=(count, DIM))
    return unit((colours / 127.5 - 1) @ turn + (gap if modality == "text" else -gap) + 0.05 * noise)


def split_of(number: int) -> str:
    return "test" if number % 5 == 0 else "val" if number % 5 == 1 else "train"


def write_photos(folder: Path, count: int) -> list[Path]:
    """Photos of one colour, with a darker left half, so that a flip can be seen."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        square = np.tile(colour_of(number)[1].astype(np.uint8), (12, 12, 1))
        square[:, :6] //= 2
        paths.append(folder / f"photo{number:03d}.png")
        Image.fromarray(square).save(paths[-1])
    return paths


def image_rows(paths: Sequence[str | Path]) -> Rows:
    count = range(len(paths))
    own = {"path": list(map(str, paths)), "split": list(map(split_of, count))}
    return Rows.of("image", [f"photo{number:03d}" for number in count], _unit_rows(len(paths), "image"), **own)


def text_rows(count: int) -> Rows:
    items = [f"photo{number:03d}" for number in range(count)]
    captions = [f"a {colour_of(number)[0]} square" for number in range(count)]
    own = {"caption": captions, "image_key": items, "split": list(map(split_of, range(count)))}
    return Rows.of("text", [f"{item}#0" for item in items], _unit_rows(count, "text"), **own)


def photos_in_memory() -> tuple[Photos, Photos, dict[str, Moments]]:
    """Photos to learn from and to validate on, and the moments of both modalities."""
    rows = image_rows([f"{number}.png" for number in range(40)])
    pixels = np.stack([np.tile(colour_of(n)[1].astype(np.uint8), (8, 8, 1)) for n in range(40)])
    moments = {r.modality: Moments.from_rows(r.embeddings) for r in (rows, text_rows(40))}
    held = np.array([split == "val" for split in rows.splits])
    train, val = (Photos(rows.select(chosen), pixels[chosen]) for chosen in (~held, held))
    return train, val, moments


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the size tiny be a network of 8 x 8 pixels that is trained at once."""
    monkeypatch.setattr("c3tools.imaging.model.SIZES", {"tiny": MICRO_SIZE})


@pytest.fixture(scope="session")
def untrained(encoder: Encoder) -> Generator:
    """A generator of 8 x 8 pixels for the bundled model, whose images depend on what they are asked for."""
    rows = {name: unit_rows(20, encoder.dim, seed) for seed, name in enumerate(("image", "text"))}
    pipeline = preset("c3", sigma=0.1, train_on="image", infer_on="text").fit(rows)
    record = {"model": dict(encoder.identity), "preset": "c3", "size": "micro"}
    return Generator(micro_network(encoder.dim), pipeline, record, FP32)


@pytest.fixture(scope="session")
def store(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of photos of plain colours, embedded by the bundled model, for tests that only read it."""
    return mini_store(tmp_path_factory.mktemp("mini") / "c3-store", encoder)


def mini_store(folder: Path, encoder: Encoder) -> Store:
    """A store of photos of plain colours and captions of them, embedded by the bundled model."""
    paths = write_photos(folder.parent / "mini-photos", 24)
    keys, splits = [path.stem for path in paths], ["train", "test"] * 12
    captions = [f"a photo of number {i}" for i in range(24)]
    images = Rows.of("image", keys, encoder.encode_images(paths), path=[str(p) for p in paths], split=splits)
    own = {"caption": captions, "image_key": keys, "split": splits}
    texts = Rows.of("text", [f"{key}#0" for key in keys], encoder.encode_texts(captions), **own)
    return build_store(folder, images, texts, model=encoder.identity, dtype="float32")
