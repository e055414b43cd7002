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
    for mode, name in {"CMYK": "cmyk.jpg", "P": "palette.png", "RGBA": "alpha.png", "LA": "grey-alpha.png"}.items():
        image.convert(mode).save(folder / name)
    deep = np.asarray(image.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(deep).save(folder / "sixteen-bit.png")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    image.save(folder / "turned.jpg", exif=exif)
    small = image.resize((64, 64))
    small.save(folder / "animated.gif", save_all=True, append_images=[small.rotate(90)])
    image.resize((1, 1)).save(folder / "one.png")
    image.resize((20_000, 10)).save(folder / "wide.jpg")
    (folder / "a folder named x.jpg").mkdir()
    names = (
        "twin.png",
        "twin.jpg",
        "фото 写真 صورة.jpg",
        "two\nlines.jpg",
        "UPPER.JPG",
        "a folder named x.jpg/inside.png",
    )
    for name in names:
        image.save(folder / name)
    (folder / "link-inside.jpg").symlink_to(folder / "turned.jpg")


def write_bad_files(folder: Path, photo: Path) -> None:
    """Write files that are to be listed as failures."""
    whole = photo.read_bytes()
    bad = {"empty.jpg": b"", "cut.jpg": whole[: len(whole) // 2], "head-only.jpg": whole[:100]}
    bad |= {"text.jpg": b"not an image\n", "page.png": b"<!doctype html><title>404</title>"}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    links = {"loop.jpg": "loop.jpg", "loop-folder": ".", "dangling.jpg": "nothing.jpg", "outside.jpg": "/etc/hostname"}
    for name, target in links.items():
        (folder / name).symlink_to(folder / target)
    os.mkfifo(folder / "pipe.jpg")
    Path(os.fsdecode(os.fsencode(folder) + b"/not-utf8-\xff.jpg")).write_bytes(whole)
