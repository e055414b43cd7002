"""Whether two photos show the same, whatever was done to one of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from c3tools.assets.paths import PHOTOS
from c3tools.curation.agreement import COPY, SAME_SCENE, THUMBNAILS, Photo, compare

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
    "cropped by 5%": cropped(0.05),
    "cropped by 10%": cropped(0.1),
    "cropped by 20%": cropped(0.2),
    "cropped by 30%": cropped(0.3),
}


def is_on_plain_ground(image: Image.Image) -> bool:
    return THUMBNAILS(image).ndim == 3


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Photos that are not on plain ground."""
    images = [Image.open(file).convert("RGB") for file in FILES]
    return [image for image in images if not is_on_plain_ground(image)]


def tie(colour: tuple[int, int, int]) -> Image.Image:
    """A product on white, shaded from left to right."""
    image = Image.new("RGB", (240, 320), "white")
    outline = Image.new("L", image.size)
    corners = [(105, 20), (135, 20), (130, 60), (150, 260), (120, 300), (90, 260), (110, 60)]
    ImageDraw.Draw(outline).polygon(corners, fill=255)
    shade = np.linspace(0.7, 1.1, image.width)[None, :, None] * np.array(colour)
    cloth = np.broadcast_to(shade, (image.height, image.width, 3)).clip(0, 255)
    image.paste(Image.fromarray(cloth.astype(np.uint8)), mask=outline)
    return image


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_photo_is_a_copy(
    images: list[Image.Image], change: Callable[[Image.Image], Image.Image]
) -> None:
    for image in images:
        assert compare(as_photo(image), as_photo(change(image))).is_copy


CHANGES_OF_COLOURS = ("grey", "brighter")


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in CHANGES_OF_COLOURS])
def test_a_changed_picture_on_plain_ground_is_a_copy(name: str) -> None:
    product = tie((190, 40, 50))
    assert is_on_plain_ground(product)
    assert compare(as_photo(product), as_photo(CHANGES[name](product))).is_copy


@pytest.mark.parametrize("colour", [(25, 25, 30), (190, 190, 50), (30, 40, 90), (130, 130, 130)])
def test_products_of_two_colours_are_alike_and_no_copies(colour: tuple[int, int, int]) -> None:
    comparison = compare(as_photo(tie((190, 40, 50))), as_photo(tie(colour)))
    assert comparison.agreement >= COPY
    assert not comparison.is_copy


def test_a_small_patch_of_another_colour_makes_another_product() -> None:
    product = tie((190, 40, 50))
    with_badge = product.copy()
    ImageDraw.Draw(with_badge).ellipse((105, 130, 135, 160), fill="white")
    assert not compare(as_photo(product), as_photo(with_badge)).is_copy


def test_a_photo_that_was_compressed_again_is_a_copy(images: list[Image.Image]) -> None:
    for image in images:
        assert compare(as_photo(image), as_photo(image, quality=30)).is_copy


def test_different_photos_do_not_show_the_same(images: list[Image.Image]) -> None:
    photos = [as_photo(image) for image in images]
    for first, second in combinations(photos, 2):
        assert compare(first, second).agreement < SAME_SCENE


def test_a_photo_agrees_with_itself(images: list[Image.Image]) -> None:
    photo = as_photo(images[0])
    assert compare(photo, photo).agreement == pytest.approx(1, abs=1e-4)


def test_the_order_of_two_photos_does_not_matter(images: list[Image.Image]) -> None:
    photo = as_photo(images[0])
    crop = as_photo(cropped(0.2)(images[0]))
    first, second = compare(photo, crop), compare(crop, photo)
    assert first[:2] == second[:2]
    assert first.scale == pytest.approx(1 / second.scale)


def with_border(image: Image.Image, colour: str = "white") -> Image.Image:
    return ImageOps.expand(image, image.width // 14, colour)


@pytest.mark.parametrize(
    "change",
    [
        with_border,
        lambda image: with_border(ImageOps.mirror(image), "black"),
        with_caption_bar,
        lambda image: with_border(image).resize((image.width // 2, image.height // 2)),
    ],
    ids=["white border", "mirrored, black border", "caption bar", "border, half"],
)
def test_a_photo_is_better_than_with_a_border(
    images: list[Image.Image], change: Callable[[Image.Image], Image.Image]
) -> None:
    for image in images:
        bordered = change(image)
        comparison = compare(as_photo(image), as_photo(bordered))
        assert comparison.better((max(image.size), max(bordered.size))) == 0
        comparison = compare(as_photo(bordered), as_photo(image))
        assert comparison.better((max(bordered.size), max(image.size))) == 1


def test_of_a_photo_and_its_part_that_on_the_larger_area_is_better(
    images: list[Image.Image],
) -> None:
    """A part of the same resolution is as good; one that is 1.2 times as long is better."""
    for image in images:
        part = cropped(0.2)(image)
        comparison = compare(as_photo(image), as_photo(part))
        assert comparison.better((max(image.size), max(part.size))) is None
        assert comparison.better((max(image.size), 1.2 * max(part.size))) == 1


def test_a_turned_photo_is_not_found(images: list[Image.Image]) -> None:
    turned = images[0].transpose(Image.Transpose.ROTATE_90)
    assert compare(as_photo(images[0]), as_photo(turned)).agreement < SAME_SCENE


@pytest.mark.parametrize("size", [(64, 48), (64, 2), (1, 1)])
def test_an_image_of_one_colour_agrees_with_nothing(size: tuple[int, int]) -> None:
    empty = Photo(np.full((size[1], size[0]), 128, np.uint8))
    assert compare(empty, empty)[:2] == (-1, False)


def test_a_photo_that_its_exif_data_turn_agrees_with_the_turned_one(
    images: list[Image.Image],
) -> None:
    sideways = images[0].transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise when shown
    content = io.BytesIO()
    sideways.save(content, "jpeg", exif=exif)
    content.seek(0)
    assert compare(as_photo(images[0]), Photo(THUMBNAILS.load(content)[0])).is_copy
