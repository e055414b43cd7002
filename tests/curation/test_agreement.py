"""Whether two photos show the same, whatever was done to one of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from c3tools.assets.paths import PHOTOS
from c3tools.curation.agreement import COPY, SAME_SCENE, THUMBNAILS, Photo, agreement

FILES = sorted((PHOTOS / "images").glob("*.jpg"))[:12]


def as_photo(image: Image.Image, quality: int = 90) -> Photo:
    content = io.BytesIO()
    image.save(content, "jpeg", quality=quality)
    content.seek(0)
    return Photo(THUMBNAILS.load(content)[0])


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    """What cuts off a share of width and height, most of it on the left and at the top."""

    def crop(image: Image.Image) -> Image.Image:
        left = round(0.7 * share * image.width)
        top = round(0.6 * share * image.height)
        width = round((1 - share) * image.width)
        height = round((1 - share) * image.height)
        return image.crop((left, top, left + width, top + height))

    return crop


def with_caption_bar(image: Image.Image) -> Image.Image:
    taller = Image.new("RGB", (image.width, round(1.15 * image.height)), "white")
    taller.paste(image)
    return taller


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "double": lambda image: image.resize((image.width * 2, image.height * 2)),
    "grey": lambda image: image.convert("L"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "mirrored": ImageOps.mirror,
    "border": lambda image: ImageOps.expand(image, image.width // 14, "black"),
    "caption bar": with_caption_bar,
    "cropped by 5 %": cropped(0.05),
    "cropped by 10 %": cropped(0.1),
    "cropped by 20 %": cropped(0.2),
    "cropped by 30 %": cropped(0.3),
}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in FILES]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_photo_is_a_copy(
    images: list[Image.Image], change: Callable[[Image.Image], Image.Image]
) -> None:
    for image in images:
        assert agreement(as_photo(image), as_photo(change(image))) >= COPY


def test_a_photo_that_was_compressed_again_is_a_copy(images: list[Image.Image]) -> None:
    for image in images:
        assert agreement(as_photo(image), as_photo(image, quality=30)) >= COPY


def test_different_photos_do_not_show_the_same(images: list[Image.Image]) -> None:
    photos = [as_photo(image) for image in images]
    for first, second in combinations(photos, 2):
        assert agreement(first, second) < SAME_SCENE


def test_a_photo_agrees_with_itself(images: list[Image.Image]) -> None:
    photo = as_photo(images[0])
    assert agreement(photo, photo) == pytest.approx(1, abs=1e-4)


def test_the_order_of_two_photos_does_not_matter(images: list[Image.Image]) -> None:
    photo = as_photo(images[0])
    crop = as_photo(cropped(0.2)(images[0]))
    assert agreement(photo, crop) == agreement(crop, photo)


def test_a_turned_photo_is_not_found(images: list[Image.Image]) -> None:
    turned = images[0].transpose(Image.Transpose.ROTATE_90)
    assert agreement(as_photo(images[0]), as_photo(turned)) < SAME_SCENE


@pytest.mark.parametrize("size", [(64, 48), (64, 2), (1, 1)])
def test_an_image_of_one_colour_agrees_with_nothing(size: tuple[int, int]) -> None:
    empty = Photo(np.full((size[1], size[0]), 128, np.uint8))
    assert agreement(empty, empty) == -1


def test_a_photo_that_its_exif_data_turn_agrees_with_the_turned_one(
    images: list[Image.Image],
) -> None:
    sideways = images[0].transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise when shown
    content = io.BytesIO()
    sideways.save(content, "jpeg", exif=exif)
    content.seek(0)
    assert agreement(as_photo(images[0]), Photo(THUMBNAILS.load(content)[0])) >= COPY
