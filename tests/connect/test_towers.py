from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c3tools.connect import FeatureInputs, TwoTowers, processes
from c3tools.connect.towers import (
    ImageTower,
    PhotoInputs,
    TextTower,
    TokenInputs,
    augmented,
    choose_trained,
    image_trunk,
)
from c3tools.devices import Compute
from c3tools.encoders import load_encoder, load_network
from c3tools.errors import ConnectError

from .photos import save_photos, save_tiny_clip

CPU = Compute(torch.device("cpu"), "fp32")


def test_towers_embed_as_the_encoder_does(tmp_path: Path) -> None:
    name = save_tiny_clip(tmp_path / "tiny")
    photos = sorted(save_photos(tmp_path / "photos", 1).glob("*.png"))
    network, encoder = load_network(name), load_encoder(name, precision="fp32")
    towers = TwoTowers(ImageTower(network), TextTower(network))
    pixels = PhotoInputs([str(path) for path in photos], [path.stem for path in photos], network.preprocess)
    rows = towers.embed_rows(pixels, 0, np.arange(len(photos)), CPU)
    np.testing.assert_allclose(rows, encoder.encode_images(photos), atol=1e-5)
    texts = ["a dog", "two people ride bicycles along a river"]
    found = towers.embed_rows(TokenInputs(network, texts), 1, np.arange(2), CPU)
    np.testing.assert_allclose(found, encoder.encode_texts(texts), atol=1e-5)


def test_augmentation_is_drawn_from_seed_epoch_and_key(tmp_path: Path) -> None:
    network = load_network(save_tiny_clip(tmp_path / "tiny"))
    path = str(next(save_photos(tmp_path / "photos", 1).glob("*.png")))

    def pixels(seed: int | None, epoch: int | None, key: str = "a") -> np.ndarray:
        return PhotoInputs([path], [key], network.preprocess, seed).rows(np.array([0]), epoch).numpy()

    np.testing.assert_array_equal(pixels(0, 1), pixels(0, 1))
    for other in (pixels(1, 1), pixels(0, 2), pixels(0, 1, "b")):
        assert not np.array_equal(pixels(0, 1), other)
    np.testing.assert_array_equal(pixels(None, 1), pixels(0, None))


def test_an_augmented_photo_is_a_part_of_it() -> None:
    # red rises from left to right, green from top to bottom: a part keeps to the range, and half are mirrored
    ramp = np.linspace(0, 255, 200).astype(np.uint8)
    photo = np.zeros((200, 200, 3), np.uint8)
    photo[..., 0], photo[..., 1] = ramp[None, :], ramp[:, None]
    mirrored = 0
    for seed in range(60):
        part = augmented(Image.fromarray(photo), (20, 30), np.random.default_rng(seed)).astype(int)
        assert part.shape == (20, 30, 3)
        mirrored += part[10, 0, 0] > part[10, -1, 0]
        assert part[0, 15, 1] < part[-1, 15, 1]
        wide, high = abs(part[10, -1, 0] - part[10, 0, 0]), part[-1, 15, 1] - part[0, 15, 1]
        assert wide * high > 0.4 * 255**2
    assert 15 < mirrored < 45


def test_only_what_is_chosen_is_trained(tmp_path: Path) -> None:
    network = load_network(save_tiny_clip(tmp_path / "tiny"))
    for image_tower in (False, True):
        choose_trained(network, image_tower=image_tower)
        trained = {name for name, p in network.model.named_parameters() if p.requires_grad}
        assert "logit_scale" not in trained
        assert "token_embedding.weight" in trained
        assert any(name.startswith("visual") for name in trained) == image_tower


def test_one_process_gathers_its_own_rows() -> None:
    rows = torch.ones(3, 2)
    assert processes.gathered(rows) is rows
    assert (processes.rank(), processes.world()) == (0, 1)
    assert FeatureInputs(np.ones((3, 2), np.float16)).rows(np.array([0, 2])).dtype == torch.float32


def test_a_projection_head_is_trained_on_the_trunk(tmp_path: Path) -> None:
    network = load_network("c3-mini")
    choose_trained(network, image_tower=False, image_head=True)
    trained = {name for name, p in network.model.visual.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("head.") for name in trained)
    photos = sorted(save_photos(tmp_path / "photos", 1).glob("*.png"))[:2]
    pixels = PhotoInputs([str(path) for path in photos], ["a", "b"], network.preprocess).rows(np.arange(2))
    with torch.inference_mode():
        whole = ImageTower(network)(pixels)
        parts = image_trunk(network)[1](ImageTower(network, trunk=True)(pixels))
    torch.testing.assert_close(parts, whole)
    with pytest.raises(ConnectError, match="no projection head of its own"):
        image_trunk(load_network(save_tiny_clip(tmp_path / "tiny")))
