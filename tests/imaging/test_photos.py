from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c3tools.errors import GeneratorError
from c3tools.imaging import read_photos
from c3tools.imaging.photos import to_square
from tests.conftest import build_store

from .worlds import TOY, image_rows, photo_store, write_photos


def test_photos_become_squares_in_the_order_of_their_rows(tmp_path: Path) -> None:
    store = photo_store(tmp_path / "c3-store", 20)
    photos = read_photos(store, store.load("image"), 6)
    assert photos.pixels.shape == (20, 6, 6, 3)
    assert photos.rows.keys == store.load("image").keys
    assert not photos.unread
    for path, square in zip(photos.rows.column("path"), photos.pixels, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(square, np.asarray(image.resize((6, 6), Image.Resampling.LANCZOS)))


def test_a_square_is_cut_about_the_middle() -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    assert np.asarray(to_square(Image.fromarray(wide), 4)).min() == 200
    assert np.asarray(to_square(Image.fromarray(wide.transpose(1, 0, 2)), 4)).min() == 200


def test_photos_that_are_gone_are_named_and_odd_ones_converted(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 10)
    paths[1].unlink()
    paths[2].write_bytes(b"no image")
    Image.new("L", (12, 12), 90).save(paths[3])
    Image.new("RGBA", (12, 12), (9, 9, 9, 9)).save(paths[4])
    Image.new("RGB", (3, 20)).save(paths[5])
    store = build_store(tmp_path / "c3-store", image_rows(paths), model=TOY, dtype="float32")
    photos = read_photos(store, store.load("image"), 8)
    assert [int(key[-3:]) for key in photos.rows.keys] == [0, *range(3, 10)]
    assert photos.pixels.shape == (8, 8, 8, 3)
    assert f"{paths[1]} (there is no such file); {paths[2]}" in photos.unread


def test_a_store_without_photos_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    store = photo_store(tmp_path / "c3-store", 10)
    for path in store.load("image").column("path"):
        Path(path).unlink()
    with pytest.raises(GeneratorError, match="None of the 10 photos"):
        read_photos(store, store.load("image"), 8)
    rows = image_rows([""] * 10)
    imported = build_store(tmp_path / "imported", rows, model=TOY, dtype="float32")
    with pytest.raises(GeneratorError, match="no paths"):
        read_photos(imported, imported.load("image"), 8)
