"""The agreement of two photos in what they show, whatever was done to one of them.

A copy may be smaller, compressed, cropped, mirrored, grey, or have a border or a bar of text. So
small grey versions are aligned: one of the photos, scaled down by up to 30 %, is moved over the
other, and the best normalised cross-correlation counts. Both are high-pass filtered first, or any
two photos with a bright sky would correlate. Turned photos are not found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..arrays import Floats, Matrix, Pixels
from ..encoders import ImagePreprocessor

COPY = 0.7
"""From this agreement on two photos are copies: docs/results/curation.md."""
SAME_SCENE = 0.54
"""From this agreement on they show the same scene."""
_SIDE = 64  # pixels of the longer side
_COARSE_SIDE = 32
# of the coarse pass; no planted copy of docs/results/curation.md is below it, and few other photos
# are above
_COARSE_LEAST = 0.4
_COARSE_SCALES = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
_STEPS = np.arange(-3, 4) * 0.0156  # of the closer look: one pixel of 64
_BLUR = 5  # pixels of the box whose mean is subtracted
# of a window or a whole thumbnail: grey levels; flatter ones (an empty sky) agree with anything
_LEAST_DEVIATION = 2.0
_EDGE = _BLUR // 2  # pixels that the blur takes from beyond the photo


def _thumbnail(image: Image.Image) -> Image.Image:
    """Return a small grey version of an image, aspect kept."""
    return _scaled(image.convert("L"), _SIDE)


THUMBNAILS = ImagePreprocessor(geometry=(_thumbnail,), config={"size": _SIDE}, fixed=False)
"""Decodes photos to grey levels (height, width), uint8, of `_SIDE` pixels on the longer side."""


@dataclass(frozen=True)
class _Field:
    """A thumbnail that others are moved over, at one resolution.

    Attributes:
        grey: the thumbnail itself.
        spectrum: of its high-pass filtered grey levels, padded to a square.
        mirrored: the same of its mirror image.
        sums: their integral image, and that of their squares: float64 (height + 1, width + 1) each.
    """

    grey: Image.Image
    spectrum: Any
    mirrored: Any
    sums: tuple[Floats, Floats]


class Photo:
    """A photo as it is compared with others.

    Args:
        thumbnail: its grey levels (height, width), uint8; see `THUMBNAILS`.
    """

    def __init__(self, thumbnail: Pixels) -> None:
        self._grey = Image.fromarray(thumbnail)
        self._fields: dict[int, _Field] = {}

    def field(self, side: int) -> _Field:
        """Return the photo as others are moved over it, at ``side`` pixels of the longer side."""
        if side not in self._fields:
            grey = _scaled(self._grey, side)
            levels = _high_pass(grey)
            self._fields[side] = _Field(
                grey,
                np.fft.rfft2(levels, (side, side)),
                np.fft.rfft2(levels[:, ::-1], (side, side)),
                (_integral(levels), _integral(levels * levels)),
            )
        return self._fields[side]


def agreement(first: Photo, second: Photo) -> float:
    """Return how much two photos agree: the largest normalised cross-correlation of either within
    the other, from -1 to 1.

    A coarse look finds the scale. If the photos differ even there, its result is returned; else a
    closer look around that scale decides.
    """
    coarse, best_scale = -1.0, 1.0
    for scale in _COARSE_SCALES:
        correlation = _correlation_either_way(first, second, _COARSE_SIDE, scale)
        if correlation > coarse:
            coarse, best_scale = correlation, scale
    if coarse < _COARSE_LEAST:
        return coarse
    scales = [scale for scale in best_scale + _STEPS if scale <= 1]
    return max(_correlation_either_way(first, second, _SIDE, scale) for scale in scales)


def _correlation_either_way(first: Photo, second: Photo, side: int, scale: float) -> float:
    """Return the larger correlation of each photo, scaled, within the other."""
    return max(_correlation(first, second, side, scale), _correlation(second, first, side, scale))


def _correlation(place: Photo, moved: Photo, side: int, scale: float) -> float:
    """Return the largest correlation of a photo, scaled and moved over another, mirrored or not."""
    field = place.field(side)
    grey = moved.field(side).grey
    height, width = field.sums[0].shape[0] - 1, field.sums[0].shape[1] - 1
    # Without its edges, whose surroundings are others in a photo with a border
    levels = _high_pass(_scaled(grey, round(scale * side)))[_EDGE:-_EDGE, _EDGE:-_EDGE]
    if levels.shape[0] > height or levels.shape[1] > width or not levels.size:
        return -1.0
    levels = levels - levels.mean()
    norm = float(np.linalg.norm(levels))
    window = levels.shape
    pixels = window[0] * window[1]
    if norm < _LEAST_DEVIATION * np.sqrt(pixels):
        return -1.0
    # The windows that lie within the other photo, and how much each varies
    rows, columns = height - window[0] + 1, width - window[1] + 1
    means = _window_sums(field.sums[0], window) / pixels
    squares = _window_sums(field.sums[1], window)
    deviations = np.sqrt(np.maximum(squares - pixels * means**2, 0))
    varied = deviations >= _LEAST_DEVIATION * np.sqrt(pixels)
    # Positions within are not touched by the circular wrap of the products of spectra
    spectrum = np.conj(np.fft.rfft2(levels, (side, side)))
    best = -1.0
    for other, other_deviations, other_varied in (
        (field.spectrum, deviations, varied),
        (field.mirrored, deviations[:, ::-1], varied[:, ::-1]),
    ):
        products = np.fft.irfft2(other * spectrum, (side, side))[:rows, :columns]
        correlations = products[other_varied] / (norm * other_deviations[other_varied])
        if len(correlations):
            best = max(best, float(correlations.max()))
    return best


def _scaled(grey: Image.Image, side: int) -> Image.Image:
    """Return a grey image with ``side`` pixels on its longer side."""
    scale = side / max(grey.size)
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    return grey if size == grey.size else grey.resize(size, Image.Resampling.BILINEAR)


def _high_pass(grey: Image.Image) -> Matrix:
    """Return grey levels less their mean over a box, float32 (height, width)."""
    levels = np.asarray(grey, np.float32)
    sums = _integral(np.pad(levels, _BLUR // 2, mode="edge"))
    return (levels - _window_sums(sums, (_BLUR, _BLUR)) / _BLUR**2).astype(np.float32)


def _integral(levels: Floats) -> Floats:
    """Return the integral image (height + 1, width + 1): sums of all levels above and to the
    left.
    """
    sums = np.zeros((levels.shape[0] + 1, levels.shape[1] + 1))
    sums[1:, 1:] = levels.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    return sums


def _window_sums(sums: Floats, window: tuple[int, int]) -> Floats:
    """Return the sum of each window of this size, from an integral image."""
    height, width = window
    return (
        sums[height:, width:]
        - sums[:-height, width:]
        - sums[height:, :-width]
        + sums[:-height, :-width]
    )
