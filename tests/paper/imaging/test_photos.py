from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c3tools.errors import GeneratorError
from c3tools.paper.imaging.photos import read_photos
from tests.bombs import slow_jpeg
from tests.conftest import build_store

from .conftest import image_rows, write_photos


def test_photos_become_squares_about_the_middle_in_the_order_of_their_rows(tmp_path: Path) -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = [[[10], [200], [90], [20]]]
    square = wide[:, 4:8]
    large = square.repeat(2, 0).repeat(2, 1)
    for number, pixels in enumerate((wide, wide.transpose(1, 0, 2), large)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = image_rows([tmp_path / f"{number}.png" for number in range(3)])
    photos = read_photos(build_store(tmp_path / "c3-store", rows), rows, 4)
    assert (photos.rows.keys, photos.unread) == (rows.keys, "")
    small = Image.fromarray(large).resize((4, 4), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(
        photos.pixels, np.stack([square, square.transpose(1, 0, 2), np.asarray(small)])
    )


def test_photos_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 6)
    for path in (paths[1], *paths[3:]):
        path.unlink()
    paths[2].write_bytes(b"no image")
    store = build_store(tmp_path / "c3-store", image_rows(paths))
    photos = read_photos(store, store.load("image"), 8)
    assert (photos.rows.keys, photos.pixels.shape) == (["photo000"], (1, 8, 8, 3))
    gone = (
        f"{paths[1]} (there is no such file); {paths[2]} (not an image in a format that Pillow "
        f"can read); {paths[3]}"
    )
    assert photos.unread == f"Could not read: {gone} (there is no such file); and 2 more"
    paths[0].unlink()
    for of in (store, build_store(tmp_path / "imported", image_rows([""] * 6))):
        with pytest.raises(GeneratorError, match=f"None of the 6 photos of the store {of.path}"):
            read_photos(of, of.load("image"), 8)


def test_a_photo_that_takes_too_long_to_decode_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_photos(tmp_path / "photos", 3)
    paths[1].write_bytes(slow_jpeg())
    store = build_store(tmp_path / "c3-store", image_rows(paths))
    monkeypatch.setattr("c3tools.paper.imaging.photos.IMAGE_SECONDS", 2.0)
    photos = read_photos(store, store.load("image"), 8)
    assert photos.rows.keys == ["photo000", "photo002"]
    assert photos.unread.startswith(f"Could not read: {paths[1]} (took longer than 2 s to decode")
