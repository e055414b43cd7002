from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from c3tools.connect import connect_towers
from c3tools.connect.gradients import TwoTowers
from c3tools.connect.inputs import PhotoInputs, TokenInputs
from c3tools.connect.losses import ContrastiveLoss, LogitScale
from c3tools.connect.towers import (
    EPOCHS,
    ImageTower,
    TextTower,
    choose_trained,
    decodable_photos,
    image_trunk,
    save_open_clip,
)
from c3tools.corpus import ImageItem, read_corpus
from c3tools.devices import Compute
from c3tools.encoders import load_encoder, load_network
from c3tools.errors import ConnectError
from tests.conftest import Messages

from ..corpus.packing import photos_of, webdataset, write_hf_parquet, write_tar
from .photos import save_photos, save_tiny_clip

CPU = Compute("cpu", "fp32")


def test_towers_embed_as_the_encoder_does(tmp_path: Path) -> None:
    name = save_tiny_clip(tmp_path / "tiny")
    photos = sorted(save_photos(tmp_path / "photos", 1).glob("*.png"))
    items = [ImageItem(path.stem, str(path), None, None) for path in photos]
    network, encoder = load_network(name), load_encoder(name, backend="torch", precision="fp32")
    towers = TwoTowers(ImageTower(network), TextTower(network))
    pixels = PhotoInputs(items, network.preprocess)
    rows = towers.embed_rows(pixels, 0, np.arange(len(photos)), CPU)
    np.testing.assert_allclose(rows, encoder.encode_images(photos), atol=1e-5)
    texts = ["a dog", "two people ride bicycles along a river"]
    found = towers.embed_rows(TokenInputs(network.tokenizer, texts), 1, np.arange(2), CPU)
    np.testing.assert_allclose(found, encoder.encode_texts(texts), atol=1e-5)


def test_only_what_is_chosen_is_trained(tmp_path: Path) -> None:
    network = load_network(save_tiny_clip(tmp_path / "tiny"))
    for image_tower in (False, True):
        choose_trained(network, image_tower=image_tower)
        trained = {name for name, p in network.model.named_parameters() if p.requires_grad}
        assert "logit_scale" not in trained
        assert "token_embedding.weight" in trained
        assert any(name.startswith("visual") for name in trained) == image_tower


def test_a_projection_head_is_trained_on_the_trunk(tmp_path: Path) -> None:
    network = load_network("c3-mini")
    choose_trained(network, image_tower=False, image_head=True)
    trained = {name for name, p in network.model.get_submodule("visual").named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("head.") for name in trained)
    photos = read_corpus(save_photos(tmp_path / "photos", 1)).images[:2]
    pixels = PhotoInputs(photos, network.preprocess).rows(np.arange(2))
    with torch.inference_mode():
        whole = ImageTower(network)(pixels)
        parts = image_trunk(network)[1](ImageTower(network, trunk=True)(pixels))
    torch.testing.assert_close(parts, whole)
    with pytest.raises(ConnectError, match="has no projection head to train"):
        image_trunk(load_network(save_tiny_clip(tmp_path / "tiny")))


def test_half_weights_are_half_as_large_and_encode_alike(tmp_path: Path) -> None:
    network = load_network(save_tiny_clip(tmp_path / "tiny"))
    for name in ("whole", "half"):
        save_open_clip(network, ContrastiveLoss("infonce", LogitScale(20)), tmp_path / name, half=name == "half")
    sizes = [(tmp_path / name / "open_clip_model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)
    rows = [
        load_encoder(f"local-dir:{tmp_path / name}", backend="torch", precision="fp32").encode_texts(["a red square"])
        for name in ("whole", "half")
    ]
    assert float((rows[0] * rows[1]).sum()) > 0.999
    saved = load_network(f"local-dir:{tmp_path / 'whole'}").model.get_parameter("logit_scale")
    assert float(saved.detach().exp()) == pytest.approx(20, rel=1e-5)


def test_a_photo_that_cannot_be_decoded_is_left_out_and_said(tmp_path: Path) -> None:
    photos, said = save_photos(tmp_path / "photos"), Messages()
    broken = photos / "plain-red-3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    connected = connect_towers(
        photos,
        tmp_path / "out",
        mode="lit",
        model=save_tiny_clip(tmp_path / "tiny"),
        epochs=1,
        batch_size=16,
        precision="fp32",
        reporter=said,
    )
    assert said.texts[0].startswith("1 of 48 photos cannot be decoded")
    assert "plain-red-3.png" in said.texts[0]
    record = connected.to_dict()
    assert (record["photos"], record["unreadable"], record["pairs"]["train"]) == (47, 1, 62)
    assert connected.name == f"local-dir:{tmp_path / 'out'}"
    assert connected._repr_html_().count("<tr>") == 1 + 2 * len(record["scores"])


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_photos_in_tars_and_tables_are_those_of_the_folder(tmp_path: Path, form: str) -> None:
    network, folder = load_network(save_tiny_clip(tmp_path / "tiny")), save_photos(tmp_path / "photos", 2)
    packed, photos = tmp_path / f"packed.{form}", photos_of(folder)
    if form == "tar":
        write_tar(packed, webdataset(photos))
    else:
        write_hf_parquet(packed, photos, rows_per_group=5)
    numbers, said = np.random.default_rng(0).permutation(16), Messages()
    expected = PhotoInputs(read_corpus(folder).images, network.preprocess, 0).rows(numbers, 1)
    found, unreadable = decodable_photos(read_corpus(packed), network, said)
    assert (len(found), unreadable, said.texts) == (16, 0, [])
    inputs = PhotoInputs(found, network.preprocess, 0)
    with ThreadPoolExecutor(2) as pool:  # the next batch is loaded while photos to validate on are read
        assert all(torch.equal(rows, expected) for rows in pool.map(lambda _: inputs.rows(numbers, 1), range(40)))


def test_photos_without_captions_or_split_are_one_message(tmp_path: Path) -> None:
    tiny, bare = save_tiny_clip(tmp_path / "tiny"), tmp_path / "bare"
    photos = save_photos(tmp_path / "photos", 3)
    bare.mkdir()
    (photos / "dark-red-0.png").rename(bare / "one.png")
    with pytest.raises(ConnectError, match=r"no pairs of image and text in the split 'train'\. Pairs by split: none"):
        connect_towers(bare, tmp_path / "out", model=tiny)
    with pytest.raises(ConnectError, match="test: 16, train: 16, val: 14"):
        connect_towers(photos, tmp_path / "out", model=tiny, train_split="other")
    assert not (tmp_path / "out").exists()


def test_modes_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="no mode 'half'"):
        connect_towers("nowhere", tmp_path / "out", mode="half")
    with pytest.raises(ConnectError, match="image head is for the mode lit"):
        connect_towers("nowhere", tmp_path / "out", mode="full", image_head=True)
    with pytest.raises(ConnectError, match="epochs must be greater than 0"):
        connect_towers("nowhere", tmp_path / "out", epochs=0)
    assert EPOCHS == {"lit": 20, "full": 10}
