from __future__ import annotations

from pathlib import Path

import pytest
import torch

from c3tools.encoders import Encoder
from c3tools.imaging.generator import Generator
from c3tools.imaging.model import ImageNetwork, Size, TrainingConfig
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from tests.conftest import build_store, unit_rows

from .worlds import FP32, write_photos

MICRO_SIZE = Size(8, 2, (16, 16), (False, True), training=TrainingConfig(steps=6, batch_size=8, validations=3))


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the size tiny be a network of 8 x 8 pixels that is trained at once."""
    monkeypatch.setattr("c3tools.imaging.model.SIZES", {"tiny": MICRO_SIZE})


@pytest.fixture(scope="session")
def untrained(encoder: Encoder) -> Generator:
    """A generator of 8 x 8 pixels for the bundled model, whose images depend on what they are asked for."""
    torch.manual_seed(0)
    network = ImageNetwork(Size(8, 2, (16, 16), (False, True), dim=encoder.dim))
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.3)
    rows = {name: unit_rows(20, encoder.dim, seed) for seed, name in enumerate(("image", "text"))}
    pipeline = preset("c3", sigma=0.1, train_on="image", infer_on="text").fit(rows)
    return Generator(network, pipeline, {"model": dict(encoder.identity), "preset": "c3", "size": "micro"}, FP32)


@pytest.fixture(scope="session")
def store(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of photos of plain colours, embedded by the bundled model, for tests that only read it."""
    return mini_store(tmp_path_factory.mktemp("mini") / "c3-store", encoder)


def mini_store(folder: Path, encoder: Encoder, count: int = 24) -> Store:
    """A store of photos of plain colours and captions of them, embedded by the bundled model."""
    paths = write_photos(folder.parent / "mini-photos", count)
    keys = [path.stem for path in paths]
    splits = ["test" if i % 2 else "train" for i in range(count)]
    captions = [f"a photo of number {i}" for i in range(count)]
    images = Rows.of("image", keys, encoder.encode_images(paths), path=[str(p) for p in paths], split=splits)
    texts = Rows.of(
        "text", [f"{k}#0" for k in keys], encoder.encode_texts(captions), caption=captions, image_key=keys, split=splits
    )
    return build_store(folder, images, texts, model=encoder.identity, dtype="float32")
