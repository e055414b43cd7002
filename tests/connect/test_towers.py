"""Whole models: their towers, what of them is trained, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c3tools.connect import connect_towers
from c3tools.connect.gradients import TwoTowers
from c3tools.connect.losses import ContrastiveLoss, LogitScale
from c3tools.connect.pairs import PhotoInputs, TokenInputs
from c3tools.connect.towers import ImageFeatures, TextFeatures, choose_trained, image_trunk, save_open_clip
from c3tools.corpus import ImageItem, read_corpus
from c3tools.devices import Compute
from c3tools.encoders import load_encoder, load_network
from c3tools.errors import ConnectError, OutputError
from tests.conftest import Messages

from .photos import save_photos, save_tiny_clip

CPU = Compute("cpu", "fp32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("tiny") / "m")


def test_towers_embed_as_the_encoder_does(tmp_path: Path, tiny: str) -> None:
    photos = sorted(save_photos(tmp_path / "photos", 1).glob("*.png"))
    items = [ImageItem(path.stem, str(path), None, None) for path in photos]
    network, encoder = load_network(tiny), load_encoder(tiny, backend="torch", precision="fp32")
    towers = TwoTowers(ImageFeatures(network), TextFeatures(network))
    pixels = PhotoInputs(items, network.preprocess)
    rows = towers.embed_rows(pixels, 0, np.arange(len(photos)), CPU)
    np.testing.assert_allclose(rows, encoder.encode_images(photos), atol=1e-5)
    texts = ["a dog", "two people ride bicycles along a river"]
    found = towers.embed_rows(TokenInputs(network.tokenizer, texts), 1, np.arange(2), CPU)
    np.testing.assert_allclose(found, encoder.encode_texts(texts), atol=1e-5)


def test_only_what_is_chosen_is_trained(tmp_path: Path, tiny: str) -> None:
    network = load_network(tiny)
    for image_tower in (False, True):
        choose_trained(network, image_tower=image_tower)
        trained = {name for name, p in network.model.named_parameters() if p.requires_grad}
        assert "logit_scale" not in trained
        assert "token_embedding.weight" in trained
        assert any(name.startswith("visual") for name in trained) == image_tower
    with pytest.raises(ConnectError, match="--image-head"):
        image_trunk(network)
    network = load_network("c3-mini")
    choose_trained(network, image_tower=False, image_head=True)
    trained = {name for name, p in network.model.get_submodule("visual").named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("head.") for name in trained)
    photos = read_corpus(save_photos(tmp_path / "photos", 1)).images[:2]
    pixels = PhotoInputs(photos, network.preprocess).rows(np.arange(2))
    with torch.inference_mode():
        whole = ImageFeatures(network)(pixels)
        parts = image_trunk(network)[1](ImageFeatures(network, trunk=True)(pixels))
    torch.testing.assert_close(parts, whole)


def test_half_weights_are_half_as_large_and_encode_alike(tmp_path: Path, tiny: str) -> None:
    network, rows, sizes = load_network(tiny), [], []
    for name in ("whole", "half"):
        (tmp_path / name).mkdir()
        save_open_clip(network, ContrastiveLoss("infonce", LogitScale(20)), tmp_path / name, half=name == "half")
        sizes.append((tmp_path / name / "open_clip_model.safetensors").stat().st_size)
        encoder = load_encoder(f"local-dir:{tmp_path / name}", backend="torch", precision="fp32")
        rows.append(encoder.encode_texts(["a red square"]))
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)
    assert float((rows[0] * rows[1]).sum()) > 0.999
    saved = load_network(f"local-dir:{tmp_path / 'whole'}").model.get_parameter("logit_scale")
    assert float(saved.detach().exp()) == pytest.approx(20, rel=1e-5)


@pytest.mark.parametrize("mode", ["lit", "full"])
def test_a_model_is_trained_on_the_photos_that_can_be_decoded(tmp_path: Path, tiny: str, mode: str) -> None:
    photos, said = save_photos(tmp_path / "photos"), Messages()
    broken = photos / "plain-red-3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    options: dict[str, Any] = {
        "mode": mode,
        "model": tiny,
        "epochs": 1,
        "batch_size": 32,
        "chunk": 12,
        "precision": "fp32",
    }
    connected = connect_towers(photos, tmp_path / "out", reporter=said, **options)
    assert said.texts[0].startswith("1 of 48")
    assert "plain-red-3.png" in said.texts[0]
    record = connected.to_dict()
    assert (record["photos"], record["unreadable"], record["pairs"]["train"]) == (47, 1, 62)
    assert connected._repr_html_().count("<tr>") == 1 + 2 * len(record["scores"])
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "connect.json", "geometry.json", "geometry.svg", "open_clip_config.json"} < files
    before, after = (load_network(name).model.state_dict() for name in (tiny, connected.name))
    changed = {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert ("visual" in changed) == (mode == "full")
    assert "transformer" in changed
    again = connect_towers(photos, tmp_path / "out", reporter=said, **options)
    assert again.to_dict() == record
    assert "nothing to do" in said.texts[-1]
    with pytest.raises(OutputError, match="--output"):  # the folder that a training starts from
        connect_towers(photos, tmp_path / "out", overwrite=True, **{**options, "model": connected.name})


def test_photos_without_captions_or_split_and_wrong_options_are_refused(tmp_path: Path, tiny: str) -> None:
    bare, photos = tmp_path / "bare", save_photos(tmp_path / "photos", 3)
    bare.mkdir()
    (photos / "dark-red-0.png").rename(bare / "one.png")
    cases: tuple[tuple[Any, dict[str, Any], str], ...] = (
        (bare, {}, "'train'.*none"),
        (photos, {"train_split": "other"}, "test: 16, train: 16, val: 14"),
        ("nowhere", {"mode": "half"}, "'half'"),
        ("nowhere", {"mode": "full", "image_head": True}, "lit"),
        ("nowhere", {"epochs": 0}, "epochs.*0"),
    )
    for paths, options, named in cases:
        with pytest.raises(ConnectError, match=named):
            connect_towers(paths, tmp_path / "out", model=tiny, **options)
    assert not (tmp_path / "out").exists()
