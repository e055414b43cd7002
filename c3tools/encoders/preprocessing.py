"""Convert image files of any kind to the pixels that a model needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]

# beyond this ratio of the sides only the middle is used: a 20,000 × 10 image, its short side resized to 224,
# would have 100 million pixels before the centre crop throws almost all of them away
MAX_ASPECT_RATIO = 16
# JPEGs may be decoded at a lower scale (1/2, 1/4, 1/8) while that leaves this many times the pixels needed per side
SCALED_DECODING_MARGIN = 2


def open_image(
    source: str | Path | BinaryIO, target_size: tuple[int, int] | None = None
) -> tuple[Image.Image, int, int]:
    """Decode an image file: first frame, EXIF rotation applied, RGB.

    Args:
        source: the file's path, or its content as a binary stream.
        target_size: (height, width) the model takes; large JPEGs are then decoded at a lower scale that keeps at
            least twice that.

    Returns:
        The image, and width and height in pixels as the viewer sees the file (after EXIF rotation).

    Raises:
        OSError: if the file cannot be read or decoded.
        Image.DecompressionBombError: if it has more than 179 million pixels.
        SyntaxError, ValueError: for some kinds of damaged file.
    """
    with warnings.catch_warnings():
        # metadata that Pillow finds odd, and images between 89 and 179 million pixels, are no reason to stop
        warnings.simplefilter("ignore")
        with Image.open(source) as file:
            width, height = file.size
            if target_size is not None and file.format == "JPEG":
                needed = SCALED_DECODING_MARGIN * max(target_size)
                file.draft(None, (needed, needed))
            file.load()
            turned = file.getexif().get(0x0112, 1) >= 5
            image = _to_rgb(ImageOps.exif_transpose(file))
    return image, *((height, width) if turned else (width, height))


@dataclass(frozen=True)
class ImagePreprocessor:
    """The resizing and cropping that a model was trained with; scaling to floats is left to the device.

    Attributes:
        geometry: open_clip's own transforms up to, and without, the conversion to a tensor.
        size: (height, width) of the result.
        mean, std: per channel, in units of 0…1.
        config: open_clip's preprocessing settings, for the record.
    """

    geometry: tuple[Callable[[Image.Image], Image.Image], ...]
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    config: dict[str, Any]

    def __call__(self, image: Image.Image) -> Pixels:
        """Return pixels (height, width, 3), uint8, of an RGB image of any size."""
        image = _crop_extreme(image)
        for step in self.geometry:
            image = step(image)
        return np.array(image, dtype=np.uint8)

    def load(self, source: str | Path | BinaryIO) -> tuple[Pixels, int, int]:
        """Return pixels (height, width, 3) of an image file (a path or a stream), and width and height of the original.

        Raises:
            OSError, Image.DecompressionBombError, SyntaxError, ValueError: as `open_image`.
        """
        image, width, height = open_image(source, self.size)
        return self(image), width, height


@dataclass(frozen=True)
class Squash:
    """Resizing to a height and a width, whatever the shape of the image; one step of the geometry, without torchvision.

    Attributes:
        size: (height, width).
    """

    size: tuple[int, int]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image, resized by bicubic interpolation."""
        return image.resize(self.size[::-1], Image.Resampling.BICUBIC)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow would clip 16-bit and float pixels at 255
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max(initial=0.0)), 1e-12)
        image = Image.fromarray(np.clip(values / top * 255.0, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _crop_extreme(image: Image.Image) -> Image.Image:
    width, height = image.size
    limit = MAX_ASPECT_RATIO * min(width, height)
    if max(width, height) <= limit:
        return image
    if width > height:
        left = (width - limit) // 2
        return image.crop((left, 0, left + limit, height))
    top = (height - limit) // 2
    return image.crop((0, top, width, top + limit))
