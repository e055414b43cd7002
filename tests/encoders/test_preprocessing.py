from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError, features

from c3tools.assets.paths import PHOTOS
from c3tools.encoders import Encoder, open_image
from c3tools.encoders.preprocessing import MAX_ASPECT_RATIO
from c3tools.errors import MissingExtraError
from c3tools.io.limits import TooLargeError
from tests import bombs as files

EXIF_ORIENTATION = 0x0112


def gradient(width: int, height: int) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    source = gradient(40, 20)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    source.save(tmp_path / "turned.png", exif=exif)
    image, width, height = open_image(tmp_path / "turned.png")
    assert image.size == (20, 40) == (width, height)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(source.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode in ("CMYK", "YCbCr", "HSV") else "png"
    path = tmp_path / f"x.{suffix}"
    source = gradient(30, 20).convert(mode)
    if mode == "HSV":
        source = source.convert("RGB")
    source.save(path)
    image, width, height = open_image(path)
    assert (image.mode, width, height) == ("RGB", 30, 20)


def test_deep_images_are_scaled_alike_in_all_their_rows(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 700 * 3).astype(np.uint16).reshape(700, 3)
    for name, content, top in (("x.png", values, 65535), ("x.tif", values.astype(np.float32) / 8, 65535 / 8)):
        Image.fromarray(content).save(tmp_path / name)
        image, _, _ = open_image(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(image)[..., 1], (content.astype(float) / top * 255).astype(np.uint8))


def test_pixels_without_a_number_do_not_change_the_scale(tmp_path: Path) -> None:
    values = np.linspace(0, 0.5, 700 * 3, dtype=np.float32).reshape(700, 3)
    values[0, 0], values[300, 1], values[300, 2] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "x.tif")
    expected = (np.nan_to_num(values.astype(float), posinf=0.5).clip(0) * 510).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "x.tif")[0])[..., 0], expected)


@pytest.mark.parametrize(("suffix", "feature", "tolerance"), [("avif", "avif", 12), ("jp2", "jpg_2000", 0)])
def test_formats_that_pillow_may_have(tmp_path: Path, suffix: str, feature: str, tolerance: int) -> None:
    if not features.check(feature):
        pytest.skip(f"Pillow was built without {feature}")
    source = gradient(64, 48)
    source.save(tmp_path / f"x.{suffix}")
    image, width, height = open_image(tmp_path / f"x.{suffix}")
    assert (image.mode, width, height) == ("RGB", 64, 48)
    np.testing.assert_allclose(np.asarray(image).astype(int), np.asarray(source), atol=tolerance)


def test_heic_is_read_by_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    source = gradient(64, 48)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    pillow_heif.from_pillow(source).save(tmp_path / "x.heic", quality=95)
    turned = source.transpose(Image.Transpose.ROTATE_270)
    pillow_heif.from_pillow(source).save(tmp_path / "turned.heic", quality=95, exif=exif.tobytes())
    for name, expected in (("x", source), ("turned", turned)):
        image, width, height = open_image(tmp_path / f"{name}.heic")
        assert (image.mode, width, height) == ("RGB", *expected.size)
        np.testing.assert_allclose(np.asarray(image).astype(int), np.asarray(expected), atol=16)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(MissingExtraError, match=r"c3tools\[heif\]"):
        open_image(tmp_path / "x.heic")


def test_what_another_program_would_have_to_draw_is_not_opened(tmp_path: Path) -> None:
    gradient(8, 8).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.jpg")
    with pytest.raises(UnidentifiedImageError):
        open_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.png", lambda: files.png(13_000, 13_000, rows=1)),
        ("alpha.png", lambda: files.png(9000, 9000, colour=6, rows=1)),
        ("x.webp", lambda: files.saved(Image.new("RGB", (6200, 6200)), "WEBP", lossless=True, quality=0, method=0)),
        ("x.tif", lambda: files.tiff_of_one_strip(13_000, 13_000)),
    ],
)
def test_images_that_would_take_too_much_memory_are_not_decoded(
    tmp_path: Path, name: str, content: Callable[[], bytes]
) -> None:
    (tmp_path / name).write_bytes(content())
    with pytest.raises(TooLargeError, match=r"[67]\d\d,\d{3},\d{3} bytes.*629,145,600"):
        open_image(tmp_path / name)


def test_the_memory_of_a_large_jpeg_is_that_of_the_scale_it_is_decoded_at(tmp_path: Path) -> None:
    Image.new("RGB", (8000, 6000)).save(tmp_path / "x.jpg")
    image, width, height = open_image(tmp_path / "x.jpg", (224, 224))
    assert (width, height) == (8000, 6000)
    assert image.size == (1000, 750)


def test_an_animated_gif_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image, _, _ = open_image(tmp_path / "a.gif")
    assert image.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000), (3, 2)])
def test_extreme_sizes_are_preprocessed(tmp_path: Path, encoder: Encoder, size: tuple[int, int]) -> None:
    gradient(*size).save(tmp_path / "x.png")
    pixels, width, height = encoder.preprocess.load(tmp_path / "x.png")
    assert pixels.shape == (352, 352, 3)
    assert pixels.dtype == np.uint8
    assert (width, height) == size


def test_only_the_middle_of_an_extreme_image_is_looked_at(encoder: Encoder) -> None:
    wide = Image.new("RGB", (4000, 10), "black")
    half = MAX_ASPECT_RATIO * 10 // 2
    wide.paste((255, 255, 255), (2000 - half, 0, 2000 + half, 10))
    assert encoder.preprocess(wide).min() == 255


def test_large_jpegs_decoded_at_a_lower_scale_embed_the_same(tmp_path: Path, encoder: Encoder) -> None:
    for number, path in enumerate(sorted((PHOTOS / "images").iterdir())[:2]):
        with Image.open(path) as photo:
            large = photo.convert("RGB").resize((2400, 1800), Image.Resampling.BICUBIC)
        file = tmp_path / f"{number}.jpg"
        large.save(file, quality=92)
        scaled, width, height = open_image(file, (224, 224))
        assert scaled.width < 2400
        assert (width, height) == (2400, 1800)
        plain, _, _ = open_image(file)
        a, b = encoder.encode_images([scaled, plain])
        assert a @ b >= 0.999


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_damaged_files_raise(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.jpg"
    gradient(200, 200).save(path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not an image"}[damage])
    with pytest.raises(OSError, match=r"truncated|not an image"):
        open_image(path)


def test_a_decompression_bomb_raises(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(Image.DecompressionBombError):
        open_image(tmp_path / "bomb.png")
