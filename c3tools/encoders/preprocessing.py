"""Convert images to the pixels that a model needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..arrays import Pixels
from ..io.images import open_image

# beyond this ratio of the sides only the middle is used: a 20,000 × 10 image, its short side
# resized to 224, would have 100 million pixels before the centre crop throws almost all of them
# away
MAX_ASPECT_RATIO = 16


@dataclass(frozen=True)
class ImagePreprocessor:
    """The resizing and cropping that a model was trained with; scaling to floats is left to the
    device.

    Attributes:
        geometry: open_clip's own transforms up to, and without, the conversion to a tensor.
        config: open_clip's preprocessing settings: ``size``, ``mean`` and ``std`` (per channel, in
            units of 0…1), ….
        fixed: whether all results have this size; if not, it is the most that they have.
        exact: decode JPEGs at full scale, as open_clip does.
    """

    geometry: tuple[Callable[[Image.Image], Image.Image], ...]
    config: dict[str, Any]
    fixed: bool = True
    exact: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        size = self.config["size"]
        return (size, size) if isinstance(size, int) else tuple(size)[-2:]

    def __call__(self, image: Image.Image) -> Pixels:
        """Return pixels (height, width, 3), uint8, of an RGB image of any size."""
        # Of an image whose sides differ by more than `MAX_ASPECT_RATIO`, the middle
        most = MAX_ASPECT_RATIO * min(image.size)
        width = min(image.width, most)
        height = min(image.height, most)
        if (width, height) != image.size:
            left = (image.width - width) // 2
            top = (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        for step in self.geometry:
            image = step(image)
        return np.array(image, dtype=np.uint8)

    def load(self, source: str | Path | BinaryIO) -> tuple[Pixels, int, int]:
        """Return pixels (height, width, 3) of an image file (a path or a stream), and width and
        height of the original.

        Raises:
            OSError, Image.DecompressionBombError, SyntaxError, ValueError: as `open_image`.
        """
        image, width, height = open_image(source, None if self.exact else self.size)
        return self(image), width, height
