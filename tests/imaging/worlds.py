"""A world of plain colours: photos of one colour, embeddings that are its RGB values turned, and two modalities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from c3tools import devices
from c3tools.imaging.model import TrainingConfig
from c3tools.imaging.photos import Photos
from c3tools.moments import Moments
from c3tools.store import Rows, Store
from tests.conftest import build_store

DIM = 16
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "white": (235, 235, 235)}
TOY = {"name": "toy-model", "weights_sha256": "1" * 64}
FP32 = devices.pick("cpu", "fp32")
QUICK = TrainingConfig(steps=6, batch_size=8, validations=3)


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
    rows = (colours / 127.5 - 1) @ turn + (gap if modality == "text" else -gap) + 0.05 * noise
    unit: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def split_of(number: int) -> str:
    return "test" if number % 5 == 0 else "val" if number % 5 == 1 else "train"


def write_photos(folder: Path, count: int, side: int = 12) -> list[Path]:
    """Photos of one colour, with a darker left half, so that a flip can be seen."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        square = np.tile(colour_of(number)[1].astype(np.uint8), (side, side, 1))
        square[:, : side // 2] //= 2
        paths.append(folder / f"photo{number:03d}.png")
        Image.fromarray(square).save(paths[-1])
    return paths


def image_rows(paths: Sequence[str | Path]) -> Rows:
    count = len(paths)
    own = {"path": list(map(str, paths)), "split": list(map(split_of, range(count)))}
    return Rows.of("image", [f"photo{number:03d}" for number in range(count)], _unit_rows(count, "image"), **own)


def text_rows(count: int) -> Rows:
    items = [f"photo{number:03d}" for number in range(count)]
    captions = [f"a {colour_of(number)[0]} square" for number in range(count)]
    own = {"caption": captions, "image_key": items, "split": list(map(split_of, range(count)))}
    return Rows.of("text", [f"{item}#0" for item in items], _unit_rows(count, "text"), **own)


def photo_store(folder: Path, count: int = 40) -> Store:
    """A store of colours with their photos in ``photos/`` beside it."""
    paths = write_photos(folder.parent / "photos", count)
    return build_store(folder, image_rows(paths), text_rows(count), model=TOY, dtype="float32")


def photos_in_memory(count: int = 40, side: int = 8) -> tuple[Photos, Photos, dict[str, Moments]]:
    """Photos to learn from and to validate on, and the moments of both modalities."""
    rows = image_rows([f"{number}.png" for number in range(count)])
    pixels = np.stack([np.tile(colour_of(n)[1].astype(np.uint8), (side, side, 1)) for n in range(count)])
    moments = {r.modality: Moments.from_rows(r.embeddings) for r in (rows, text_rows(count))}
    held = np.array([split_of(number) == "val" for number in range(count)])
    train, val = (Photos(rows.select(chosen), pixels[chosen]) for chosen in (~held, held))
    return train, val, moments
