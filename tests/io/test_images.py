from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from c3tools.errors import MissingExtraError
from c3tools.io.images import open_image, thumbnail
from c3tools.io.limits import TooLargeError
from tests import bombs as files

EXIF = Image.Exif()
EXIF[0x0112] = 5  # the orientation: rows are columns


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def assert_opened(path: Path, expected: Image.Image, tolerance: int = 0) -> None:
    image, *size = open_image(path)
    assert (image.mode, *size) == ("RGB", *expected.size)
    np.testing.assert_allclose(np.asarray(image, int), np.asarray(expected), atol=tolerance)


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1", "YCbCr"):
        image = gradient(30, 20).convert(mode)
        image.save(tmp_path / "x", "tiff" if mode in ("CMYK", "YCbCr") else "png")
        assert_opened(tmp_path / "x", image.convert("RGB"), 2)


def test_deep_images_are_scaled_alike_in_all_their_rows(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 2100).astype(np.uint16).reshape(700, 3)
    holes = values.astype(np.float32) / 2**20
    holes[0, 0], holes[300, 1], holes[300, 2] = np.nan, np.inf, -np.inf
    known = np.nan_to_num(holes.astype(float), posinf=65535 / 2**20).clip(0)
    for name, content, scaled in (
        ("x.png", values, values / 65535),
        ("x.tif", holes, known / known.max()),
    ):
        Image.fromarray(content).save(tmp_path / name)
        np.testing.assert_array_equal(
            np.asarray(open_image(tmp_path / name)[0])[..., 1], (scaled * 255).astype(int)
        )


def test_formats_that_pillow_may_have(tmp_path: Path) -> None:
    more: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (64, 48))]}
    for name, tolerance, options in (("x.avif", 12, {}), ("x.jp2", 0, {}), ("x.gif", 20, more)):
        if Path(name).suffix in Image.registered_extensions():
            # of an animation, the first frame counts
            gradient(64, 48).save(tmp_path / name, **options)
            assert_opened(tmp_path / name, gradient(64, 48), tolerance)


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_means_nothing_turns_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient(40, 20).save(tmp_path / "a.jpg", exif=exif)
    _, width, height = open_image(tmp_path / "a.jpg")
    assert (width, height) == (40, 20)


def test_rotation_is_applied_and_heic_is_read_by_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = gradient(40, 20)
    turned = source.transpose(Image.Transpose.TRANSPOSE)
    source.save(tmp_path / "turned.png", exif=EXIF)
    assert_opened(tmp_path / "turned.png", turned)
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    pillow_heif.from_pillow(source).save(tmp_path / "turned.heic", quality=95, exif=EXIF.tobytes())
    assert_opened(tmp_path / "turned.heic", turned, 16)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(MissingExtraError, match=r'install "pillow-heif>='):
        open_image(tmp_path / "turned.heic")


def test_images_that_would_take_too_much_memory_are_not_decoded(tmp_path: Path) -> None:
    for content in (files.png(13_000, 13_000, rows=1), files.tiff_of_one_strip(13_000, 13_000)):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(TooLargeError, match=r"[67]\d\d,\d{3},\d{3} bytes.*629,145,600"):
            open_image(tmp_path / "x")


def test_decoders_take_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    small, modes = (40, 20), {"RGB": 4, "RGBA": 8, "L": 5, "P": 5, "1": 5, "I;16": 6}
    cases: list[tuple[str, str, tuple[int, int], dict[str, Any], int, int]] = [
        *(("png", mode, small, {}, 0, size * 800) for mode, size in modes.items()),
        *(
            (k, "RGB", small, {}, 0, n * 800)
            for k, n in {"avif": 12, "jpeg": 4, "jpeg2000": 20, "webp": 17}.items()
        ),
        ("jpeg", "RGB", small, {"exif": EXIF}, 4 * 800, 8 * 800),  # turning needs a copy
        # passes are kept whole
        ("jpeg", "RGB", (400, 200), {"progressive": True}, 0, 4 * 100 * 50 + 6 * 80_000),
    ]
    for kind, mode, shape, options, limit, size in cases:
        if kind.upper() in Image.SAVE:  # else Pillow was built without it
            Image.new(mode, shape).save(tmp_path / "x", kind, **options)
            monkeypatch.setattr("c3tools.io.images.LARGEST_DECODED", limit)
            with pytest.raises(TooLargeError, match=f" {size:,} bytes"):
                open_image(tmp_path / "x", (10, 20))


def test_damaged_files_bombs_and_programs_raise(tmp_path: Path) -> None:
    gradient(200, 200).save(tmp_path / "x.jpg")
    gradient(8, 8).save(tmp_path / "x.eps")  # Pillow would start another program
    whole, drawn = (tmp_path / "x.jpg").read_bytes(), (tmp_path / "x.eps").read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"not an image"):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(OSError, match=r"truncated|not an image"):
            open_image(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes(drawn)
    with pytest.raises(UnidentifiedImageError):
        open_image(tmp_path / "x.jpg")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(Image.DecompressionBombError):
        open_image(tmp_path / "bomb.png")


def test_a_thumbnail_is_the_image_made_smaller(tmp_path: Path) -> None:
    gradient(800, 400).save(tmp_path / "a.png")
    head, _, content = thumbnail(tmp_path / "a.png", 200).partition(",")
    assert head == "data:image/jpeg;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(content)))
    np.testing.assert_allclose(np.asarray(shown, int), np.asarray(gradient(200, 100)), atol=24)
