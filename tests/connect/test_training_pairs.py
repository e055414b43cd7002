"""Pairs of features, of photos and of texts: how they are matched, split, drawn and augmented."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from c3tools import read_features
from c3tools.connect.training_pairs import PhotoInputs
from c3tools.corpus.items import ImageItem
from c3tools.corpus.reading import read_corpus
from c3tools.encoders import load_network
from c3tools.errors import ConnectError
from tests.conftest import Messages

from ..conftest import make_store, unit_rows
from ..corpus.packing import photos_of, webdataset, write_hf_parquet, write_tar
from .photos import save_photos, save_tiny_clip
from .worlds import some_pairs, views, write_files


def test_files_are_paired_by_their_table(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    table = files["text_meta"]
    table.write_text(table.read_text().replace("caption 239", " Caption 1 "))  # the same as another
    pairs = read_features(**files).inputs()
    assert [len(pairs.where(split)) for split in ("train", "val", "test")] == [168, 36, 36]
    assert len(pairs.where("val").item_rows) == 18
    # captions tell the texts apart, features the images
    assert ([len({*ids.tolist()}) for ids in pairs.ids], pairs.ids[1, 1]) == (
        [120, 239],
        pairs.ids[1, 239],
    )


def test_stores_are_paired_with_one_row_per_item_first(tmp_path: Path) -> None:
    image, text, index = views(30, 2, dims=(8, 8))
    one = make_store(tmp_path / "one", image, text, owners=index.tolist())
    make_store(tmp_path / "two", -image, text, owners=index.tolist())
    pairs = read_features(store=one, modalities=("text", "image"))
    twice = read_features(store=one, second_store=tmp_path / "two", modalities=("image", "image"))
    np.testing.assert_array_equal(twice.second.embeddings, -twice.first.embeddings)
    for features in (pairs, read_features(store=one, second_store=tmp_path / "two")):
        assert (features.first.modality, features.second.modality, len(features)) == (
            "image",
            "text",
            60,
        )
    with pytest.raises(ConnectError, match=r"3 \(image, text, audio\)"):
        read_features(store=one, modalities=("image", "text", "audio"))
    lonely = make_store(
        tmp_path / "lonely", unit_rows(4, 6), unit_rows(5, 6, 1), owners=[0, 1, 2, 3, None]
    )
    assert "1 of 5 text rows" in read_features(store=lonely).notes[0]


def test_other_modalities_are_paired_by_order(tmp_path: Path) -> None:
    files = write_files(tmp_path, 120, 1)
    features = read_features(text=files["text"], other={"audio": files["image"]})
    assert ((features.first.modality, features.second.modality), len(features)) == (
        ("text", "audio"),
        120,
    )


@pytest.mark.parametrize(
    ("splits", "asked", "counts", "told"),
    [
        (["train"], "train", [90, 10], "10 pairs of 'train' are held out"),
        (["train", "val"], "train", [50, 50], ""),
        (["train", "val"], "val", [46, 4], "4 pairs of 'val' are held out"),
        (["web"], "web", [90, 10], "10 pairs of 'web' are held out"),
        (["train", "val"], "all", [90, 10], "All splits are trained on, so 10 pairs of 'all'"),
    ],
)
def test_without_a_val_split_a_tenth_of_the_items_is_held_out(
    splits: list[str], asked: str, counts: list[int], told: str
) -> None:
    pairs, said = some_pairs(*views(50, 2), np.arange(100)), Messages()
    pairs = replace(pairs, splits=np.repeat(splits, 100 // len(splits)).astype(object))
    train, val = pairs.train_and_val(asked, ("image", "text"), said)
    assert ([len(train), len(val)], {*train.items} & {*val.items}) == (counts, set())
    assert [told in text for text in said.texts] == [True][: len(told)]
    with pytest.raises(ConnectError, match=f"'dev2'.*{splits[0]}"):
        pairs.train_and_val("dev2", ("image", "text"))


def test_photos_in_tars_and_tables_are_those_of_the_folder(tmp_path: Path) -> None:
    network, folder = (
        load_network(save_tiny_clip(tmp_path / "tiny")),
        save_photos(tmp_path / "photos", 2),
    )
    write_tar(tmp_path / "packed.tar", webdataset(photos_of(folder)))
    write_hf_parquet(tmp_path / "packed.parquet", photos_of(folder), rows_per_group=5)
    numbers = np.random.default_rng(0).permutation(16)
    expected = PhotoInputs(read_corpus(folder).images, network.preprocess, 0).read(numbers, 1)
    for packed in tmp_path.glob("packed.*"):
        ask = partial(PhotoInputs(read_corpus(packed).images, network.preprocess, 0).read, numbers)
        # the next batch is loaded while photos to validate on are read
        with ThreadPoolExecutor(2) as pool:
            assert all(torch.equal(rows, expected) for rows in pool.map(ask, [1] * 10))


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_photo_that_is_gone_or_damaged_during_training_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    network = load_network(save_tiny_clip(tmp_path / "tiny"))
    photos = read_corpus(save_photos(tmp_path / "photos", 1)).images
    path = Path(photos[3].path)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ConnectError, match=f"{path} can no longer be read .*\nRestore"):
        PhotoInputs(photos, network.preprocess).read(np.arange(8))


def test_augmentation_is_drawn_from_seed_epoch_and_key(tmp_path: Path) -> None:

    green, red = np.linspace(0, 255, 200).astype(np.uint8)[np.indices((200, 200))]
    Image.fromarray(np.stack([red, green, 0 * red], axis=2)).save(tmp_path / "ramp.png")
    preprocess = load_network(save_tiny_clip(tmp_path / "tiny")).preprocess

    def pixels(seed: int | None, epoch: int | None, *keys: str) -> npt.NDArray[np.float64]:
        photos = [ImageItem(key, str(tmp_path / "ramp.png"), None, None) for key in keys or "a"]
        return np.asarray(
            PhotoInputs(photos, preprocess, seed).read(np.arange(len(photos)), epoch), float
        )

    others = pixels(0, 1), pixels(1, 1), pixels(0, 2), pixels(0, 1, "b")
    assert [np.array_equal(pixels(0, 1), other) for other in others] == [True, False, False, False]
    np.testing.assert_array_equal(pixels(None, 1), pixels(0, None))
    many = pixels(0, 0, *map(str, range(300))) / 255 * 32 / 31  # half are mirrored, none is turned
    width, height = many[:, 10, -1, 0] - many[:, 10, 0, 0], many[:, -1, 15, 1] - many[:, 0, 15, 1]
    assert 120 < np.count_nonzero(width < 0) < 180
    area, ratio = abs(width) * height, abs(width) / height
    found = area.min(), area.mean(), area.max(), ratio.min(), ratio.max()
    assert found == pytest.approx((1 / 2, 3 / 4, 1, 3 / 4, 4 / 3), rel=0.03)
