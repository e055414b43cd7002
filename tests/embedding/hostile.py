"""A folder of everything that image corpora hold beside photos: some of it can be embedded, the rest has a reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

EXIF_ORIENTATION = 0x0112


def write_odd_images(folder: Path, photo: Path) -> None:
    """Write odd images, made from a good photo, that are to be embedded."""
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("LA").save(folder / "grey-alpha.png")
    deep = np.asarray(image.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(deep).save(folder / "sixteen-bit.png")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    image.save(folder / "turned.jpg", exif=exif)
    frames = [image.resize((64, 64)), image.resize((64, 64)).rotate(90)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    image.resize((1, 1)).save(folder / "one.png")
    image.resize((20_000, 10)).save(folder / "wide.jpg")
    image.save(folder / "twin.png")
    image.save(folder / "twin.jpg")
    image.save(folder / "фото 写真 صورة.jpg")
    image.save(folder / "two\nlines.jpg")
    image.save(folder / "UPPER.JPG")
    (folder / "a folder named x.jpg").mkdir()
    image.save(folder / "a folder named x.jpg" / "inside.png")
    (folder / "link-inside.jpg").symlink_to(folder / "turned.jpg")


def write_bad_files(folder: Path, photo: Path) -> None:
    """Write files that are to be listed as failures."""
    whole = photo.read_bytes()
    (folder / "empty.jpg").touch()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "head-only.jpg").write_bytes(whole[:100])
    (folder / "text.jpg").write_text("not an image\n")
    (folder / "page.png").write_text("<!doctype html><title>404</title>")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "loop-folder").symlink_to(folder)
    (folder / "dangling.jpg").symlink_to(folder / "nothing.jpg")
    (folder / "outside.jpg").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe.jpg")
    Path(os.fsdecode(os.fsencode(folder) + b"/not-utf8-\xff.jpg")).write_bytes(whole)
