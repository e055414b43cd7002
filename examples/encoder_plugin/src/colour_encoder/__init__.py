"""An encoder that c3tools finds by its entry point: images and texts by their colours.

    pip install examples/encoder_plugin
    c3 embed photos/ --model colours:4

It takes a second. An image is the histogram of its colours, a text that of the colours that it
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageColor


class ColourEncoder:
    """Histograms of ``levels`` per channel; their dimension is levels ** 3."""

    def __init__(self, levels: str, **_: Any) -> None:
        self.levels = int(levels or 4)
        self.dim = self.levels**3
        self.identity = {"architecture": "histogram", "levels": self.levels}

    def _histogram(self, pixels: Any) -> Any:
        """Return the frequencies (d,) of colours, uint8 (..., 3), none of them 0."""
        red, green, blue = np.moveaxis(
            np.asarray(pixels, np.int64).reshape(-1, 3) * self.levels // 256, 1, 0
        )
        bins = (red * self.levels + green) * self.levels + blue
        return np.bincount(bins, minlength=self.dim) / max(1, len(bins)) + 0.01

    def encode_images(self, images: Sequence[Image.Image]) -> Any:
        """Return embeddings (n, d) of RGB images."""
        return np.stack([self._histogram(image) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> Any:
        """Return embeddings (n, d) of texts."""
        named = [[w for w in text.lower().split() if w in ImageColor.colormap] for text in texts]
        return np.stack(
            [self._histogram([ImageColor.getrgb(word)[:3] for word in words]) for words in named]
        )
