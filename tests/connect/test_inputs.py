from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from c3tools.connect import read_features
from c3tools.connect.inputs import FeatureInputs, PhotoInputs, augment, number_rows, number_texts
from c3tools.corpus import ImageItem
from c3tools.encoders import load_network
from c3tools.errors import ConnectError
from tests.conftest import Messages

from ..conftest import make_store, unit_rows
from .photos import save_photos, save_tiny_clip
from .worlds import views, write_files


def test_files_are_paired_by_their_table(tmp_path: Path) -> None:
    features = read_features(**write_files(tmp_path))
    assert features.names == ("image", "text")
    assert features.item_index.tolist() == np.repeat(np.arange(120), 2).tolist()
    assert features.notes == ["Texts were paired with images by the column 'text_rows'."]
    pairs = features.inputs()
    assert [len(pairs.where(split)) for split in ("train", "val", "test")] == [168, 36, 36]
    assert len(pairs.where("val").item_rows) == 18
    # captions tell the texts apart, features the images
    assert (len(set(pairs.second_ids.tolist())), len(set(pairs.first_ids.tolist()))) == (240, 120)


def test_the_side_with_one_row_per_item_comes_first(tmp_path: Path) -> None:
    image, text, index = views(30, 2, dims=(8, 8))
    store = make_store(tmp_path / "store", image, text, owners=index.tolist())
    features = read_features(store=store, modalities=("text", "image"))
    assert features.names == ("image", "text")
    assert len(features) == 60
    assert "width" not in features.first.table.column_names


def test_one_modality_of_two_stores_gets_a_second_name(tmp_path: Path) -> None:
    image, text, index = views(30, 2, dims=(8, 8))
    make_store(tmp_path / "one", image, text, owners=index.tolist())
    make_store(tmp_path / "two", -image, text, owners=index.tolist())
    features = read_features(store=tmp_path / "one", second_store=tmp_path / "two", modalities=("image", "image"))
    assert features.names == ("image", "image_2")
    np.testing.assert_array_equal(features.second.embeddings, -features.first.embeddings)
    across = read_features(store=tmp_path / "one", second_store=tmp_path / "two")
    assert across.names == ("image", "text")


def test_other_modalities_are_paired_by_order(tmp_path: Path) -> None:
    first, second, _ = views(120)
    np.save(tmp_path / "sounds.npy", first)
    np.save(tmp_path / "words.npy", second)
    features = read_features(text=tmp_path / "words.npy", other={"audio": tmp_path / "sounds.npy"})
    assert features.names == ("text", "audio")
    assert "row i was paired with row i (120 pairs)" in features.notes[0]
    assert len(features) == 120


def test_rows_with_nan_or_without_a_partner_are_in_no_pair(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    rows = np.load(files["image"])
    rows[3, 5] = np.nan  # its two captions go as well
    np.save(files["image"], rows)
    features = read_features(**files)
    assert "1 of 120 image rows contain NaN or infinity and are left out." in features.notes
    assert (len(features), len(features.inputs().where("train"))) == (238, 166)
    store = make_store(tmp_path / "store", unit_rows(4, 6), unit_rows(5, 6, 1), owners=[0, 1, 2, 3, None])
    assert read_features(store=store).notes == ["1 of 5 text rows have no image row and are left out."]


def test_two_modalities_are_needed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(4))
    with pytest.raises(ConnectError, match=r"Two modalities are needed, not 1 \(image\)"):
        read_features(image=tmp_path / "a.npy")
    store = make_store(tmp_path / "store", unit_rows(4, 6), unit_rows(4, 6, 1))
    with pytest.raises(ConnectError, match=r"not 1 \(image\)\.\n.*--modalities audio,text"):
        read_features(store=store, modalities=["image"])


def test_without_a_val_split_a_tenth_of_the_items_is_held_out(tmp_path: Path) -> None:
    image, text, index = views(50, 2, dims=(8, 8))
    pairs = read_features(store=make_store(tmp_path / "store", image, text, owners=index.tolist())).inputs()
    said = Messages()
    train, val = pairs.train_and_val("train", ("image", "text"), said)
    assert (len(train), len(val), len(val.item_rows)) == (90, 10, 5)
    assert not set(train.items) & set(val.items)
    assert said.texts == ["There is no val split, so 10 pairs are held out from the split 'train'."]
    with pytest.raises(ConnectError, match=r"no pairs of image and text in the split 'dev2'.*train: 100"):
        pairs.train_and_val("dev2", ("image", "text"))


def test_equal_contents_have_equal_ids() -> None:
    rows = np.array([[1, 2], [3, 4], [1, 2]], dtype=np.float16)
    assert number_rows(rows).tolist() == [0, 1, 0]
    assert number_texts(["a", "b", "B ", "c"]).tolist() == [0, 1, 1, 2]


def test_features_are_given_as_float32() -> None:
    assert FeatureInputs(np.ones((3, 2), np.float16)).rows(np.array([0, 2])).dtype == torch.float32


def test_augmentation_is_drawn_from_seed_epoch_and_key(tmp_path: Path) -> None:
    network = load_network(save_tiny_clip(tmp_path / "tiny"))
    path = str(next(save_photos(tmp_path / "photos", 1).glob("*.png")))

    def pixels(seed: int | None, epoch: int | None, key: str = "a") -> npt.NDArray[np.uint8]:
        found = PhotoInputs([ImageItem(key, path, None, None)], network.preprocess, seed).rows(np.array([0]), epoch)
        return np.asarray(found.numpy(), dtype=np.uint8)

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
        part = augment(Image.fromarray(photo), (20, 30), np.random.default_rng(seed)).astype(int)
        assert part.shape == (20, 30, 3)
        mirrored += part[10, 0, 0] > part[10, -1, 0]
        assert part[0, 15, 1] < part[-1, 15, 1]
        wide, high = abs(part[10, -1, 0] - part[10, 0, 0]), part[-1, 15, 1] - part[0, 15, 1]
        assert wide * high > 0.4 * 255**2
    assert 15 < mirrored < 45
