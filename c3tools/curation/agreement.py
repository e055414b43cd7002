"""The agreement of two photos in content, even if one of them was edited.

A copy may be smaller, compressed, cropped, mirrored, grey, or have a border or a bar of text. So
small grey versions are aligned: one of the photos, scaled down by up to 30%, is moved over the
other, and the best normalised cross-correlation counts. Both are high-pass filtered first, or any
two photos with a bright sky would correlate. Turned and stretched photos are not found.

Pictures on plain ground (emoji, logos, products) have little but an outline, in which different
ones agree: a red tie and a black one. Two of them are copies only if, where they agree best, their
colours are alike in every small patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple

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
# A picture is on plain ground if this share of the pixels along its edges differ from their right
# and lower neighbours by so many levels at most: docs/results/curation.md
_PLAIN_EDGE = 0.58
_PLAIN_LEVELS = 2
_PATCH = 5  # pixels of the side of a patch whose mean colours are compared
_PATCH_LEVELS = 20  # that the mean colours of patches of two copies differ by at most
_LARGER = 1.1  # areas that are nearer to each other are equal, as scales are 0.0156 apart


def _thumbnail(image: Image.Image) -> Image.Image:
    """Return a small version of an image, aspect kept: in colours on plain ground, else grey."""
    small = _scaled(image.convert("RGB"), _SIDE)
    levels = np.asarray(small, np.int16)
    steps = np.maximum(
        np.abs(levels[:-1, 1:] - levels[:-1, :-1]), np.abs(levels[1:, :-1] - levels[:-1, :-1])
    ).max(axis=2)
    along_edges = np.ones(steps.shape, dtype=bool)
    along_edges[1:-1, 1:-1] = False
    is_plain = steps[along_edges] <= _PLAIN_LEVELS
    if is_plain.sum() >= _PLAIN_EDGE * len(is_plain):
        return small
    return _scaled(image.convert("L"), _SIDE)


THUMBNAILS = ImagePreprocessor(geometry=(_thumbnail,), config={"size": _SIDE}, fixed=False)
"""Decodes images to `_SIDE` pixels on the longer side, uint8: pictures on plain ground to RGB
(height, width, 3), others to grey levels (height, width)."""


@dataclass(frozen=True)
class _Field:
    """A thumbnail that others are moved over, at one resolution.

    Attributes:
        grey: the thumbnail itself.
        spectrum: of its high-pass filtered grey levels, padded to a square.
        mirrored: the same of its mirror image.
        sums: the integral image of these levels: float64 (height + 1, width + 1).
        square_sums: the integral image of their squares: float64 (height + 1, width + 1).
    """

    grey: Image.Image
    spectrum: Any
    mirrored: Any
    sums: Floats
    square_sums: Floats


class Photo:
    """A photo as it is compared with others.

    Args:
        thumbnail: its grey levels (height, width), or RGB (height, width, 3) if it is on plain
            ground, uint8; see `THUMBNAILS`.
    """

    def __init__(self, thumbnail: Pixels) -> None:
        image = Image.fromarray(thumbnail)
        self.colours = image if thumbnail.ndim == 3 else None
        self._grey = image.convert("L")
        self._fields: dict[int, _Field] = {}

    def field(self, side: int) -> _Field:
        """Return the photo as others are moved over it, at ``side`` pixels of the longer side."""
        if side not in self._fields:
            grey = _scaled(self._grey, side)
            levels = _high_pass(grey)
            self._fields[side] = _Field(
                grey,
                spectrum=np.fft.rfft2(levels, (side, side)),
                mirrored=np.fft.rfft2(levels[:, ::-1], (side, side)),
                sums=_integral(levels),
                square_sums=_integral(levels * levels),
            )
        return self._fields[side]


@dataclass(frozen=True)
class _Alignment:
    """The place where a photo, scaled, agrees best with another.

    Attributes:
        correlation: normalised, from -1 to 1; -1 where nothing can be compared.
        place: the photo that the other is moved over.
        moved: the other photo.
        scale: of ``moved``.
        is_mirrored: whether it agrees with the mirror image of ``place``.
        corner: row and column of the window of ``place``.
    """

    correlation: float
    place: Photo
    moved: Photo
    scale: float
    is_mirrored: bool = False
    corner: tuple[int, int] = (0, 0)


class Comparison(NamedTuple):
    """The content that two photos have in common.

    Attributes:
        agreement: the largest normalised cross-correlation of either within the other, from -1
            to 1.
        is_copy: whether they are copies, and not only alike.
        scale: the length of what both show, as a share of the longer side of the first photo, over
            that share of the second; 1 if they are no copies.
        bordered: 0 or 1 if the first or the second photo is the other one with a plain border; None
            if neither is.
    """

    agreement: float
    is_copy: bool
    scale: float = 1.0
    bordered: int | None = None

    def better(self, longer_sides: tuple[float, float]) -> int | None:
        """Return which photo shows what both show better: on a larger area or, if the areas are
        about equal, without a border; 0 or 1, None for neither.

        Args:
            longer_sides: of the two photos, in pixels.
        """
        first, second = longer_sides
        area = (self.scale * first / second) ** 2
        if area > _LARGER:
            return 0
        if area < 1 / _LARGER:
            return 1
        return None if self.bordered is None else 1 - self.bordered


def compare(first: Photo, second: Photo) -> Comparison:
    """Compare what two photos show.

    A coarse look finds the scale. If the photos differ even there, its result is returned; else a
    closer look around that scale decides.
    """
    coarse = max(
        (_best_alignment(first, second, _COARSE_SIDE, scale) for scale in _COARSE_SCALES),
        key=attrgetter("correlation"),
    )
    if coarse.correlation < _COARSE_LEAST:
        return Comparison(coarse.correlation, is_copy=False)
    scales = [scale for scale in coarse.scale + _STEPS if scale <= 1]
    closer = max(
        (_best_alignment(first, second, _SIDE, scale) for scale in scales),
        key=attrgetter("correlation"),
    )
    if closer.correlation < COPY or _colour_difference(closer) > _PATCH_LEVELS:
        return Comparison(closer.correlation, is_copy=False)
    is_first_moved = closer.moved is first
    scale = float(1 / closer.scale if is_first_moved else closer.scale)
    bordered = int(is_first_moved) if _has_border(closer) else None
    return Comparison(closer.correlation, is_copy=True, scale=scale, bordered=bordered)


def _has_border(best: _Alignment) -> bool:
    """Return whether most of what surrounds the other photo has one grey level."""
    levels = np.asarray(best.place.field(_SIDE).grey, np.float32)
    if best.is_mirrored:
        levels = levels[:, ::-1]
    moved = _scaled(best.moved.field(_SIDE).grey, round(best.scale * _SIDE))
    # The photo, and a pixel on each side that is a mean of the photo and its border
    top, left = (max(0, corner - _EDGE - 1) for corner in best.corner)
    bottom, right = (
        corner - _EDGE + length + 1
        for corner, length in zip(best.corner, (moved.height, moved.width), strict=True)
    )
    is_around = np.ones(levels.shape, dtype=bool)
    is_around[top:bottom, left:right] = False
    around = levels[is_around]
    if not len(around):
        return False
    is_plain = np.abs(around - np.median(around)) <= _PLAIN_LEVELS
    return bool(is_plain.mean() >= _PLAIN_EDGE)


def _colour_difference(best: _Alignment) -> float:
    """Return by how many levels the mean colours of two aligned pictures on plain ground differ,
    in the patch where they differ most; 0 if one of them is a photo.

    Pictures are aligned to whole pixels, so each patch may be moved by one more.
    """
    if best.moved.colours is None or best.place.colours is None:
        return 0.0
    moved = _scaled(best.moved.colours, round(best.scale * _SIDE))
    colours = np.asarray(moved, np.float32)[_EDGE:-_EDGE, _EDGE:-_EDGE]
    place = np.asarray(best.place.colours, np.float32)
    if best.is_mirrored:
        place = place[:, ::-1]
    place = np.pad(place, ((1, 1), (1, 1), (0, 0)), mode="edge")  # so that it can be moved
    height, width, _ = colours.shape
    patch = (min(_PATCH, height), min(_PATCH, width))
    differences = []  # of the means of all patches, for each of nine moves
    for row, column in product(range(3), repeat=2):
        top, left = best.corner[0] + row, best.corner[1] + column
        difference = colours - place[top : top + height, left : left + width]
        means = _window_sums(_integral(difference), patch) / (patch[0] * patch[1])
        differences.append(np.abs(means).max(axis=2))
    return float(np.min(differences, axis=0).max())


def _best_alignment(first: Photo, second: Photo, side: int, scale: float) -> _Alignment:
    """Return the better alignment of each photo, scaled, within the other."""
    return max(
        _align(first, second, side, scale),
        _align(second, first, side, scale),
        key=attrgetter("correlation"),
    )


def _align(place: Photo, moved: Photo, side: int, scale: float) -> _Alignment:
    """Move a photo, scaled, over another one, and return where it agrees best, mirrored or not."""
    field = place.field(side)
    best = _Alignment(-1.0, place, moved, scale)

    # The photo that is moved, without its edges: beyond them, the other may have a border
    scaled = _scaled(moved.field(side).grey, round(scale * side))
    levels = _high_pass(scaled)[_EDGE:-_EDGE, _EDGE:-_EDGE]
    height, width = levels.shape
    if height > field.grey.height or width > field.grey.width or not levels.size:
        return best  # it does not fit into the other
    levels = levels - levels.mean()
    norm = float(np.linalg.norm(levels))
    least_norm = _LEAST_DEVIATION * np.sqrt(levels.size)
    if norm < least_norm:
        return best  # a flat photo agrees with anything

    # The windows of its size in the other photo, and the norm of each less its mean
    rows, columns = field.grey.height - height + 1, field.grey.width - width + 1
    means = _window_sums(field.sums, (height, width)) / levels.size
    squares = _window_sums(field.square_sums, (height, width))
    window_norms = np.sqrt(np.maximum(squares - levels.size * means**2, 0))

    # The product of spectra wraps around, which these windows are not touched by
    spectrum = np.conj(np.fft.rfft2(levels, (side, side)))
    for is_mirrored in (False, True):
        place_spectrum = field.mirrored if is_mirrored else field.spectrum
        place_norms = window_norms[:, ::-1] if is_mirrored else window_norms
        products = np.fft.irfft2(place_spectrum * spectrum, (side, side))[:rows, :columns]
        correlations = np.full(products.shape, -1.0)
        varied = place_norms >= least_norm
        np.divide(products, norm * place_norms, out=correlations, where=varied)
        row, column = divmod(int(correlations.argmax()), columns)
        if correlations[row, column] > best.correlation:
            correlation = float(correlations[row, column])
            best = _Alignment(correlation, place, moved, scale, is_mirrored, corner=(row, column))
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
    """Return the integral image (height + 1, width + 1, …): sums of all levels above and to the
    left.
    """
    sums = np.zeros((levels.shape[0] + 1, levels.shape[1] + 1, *levels.shape[2:]))
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
