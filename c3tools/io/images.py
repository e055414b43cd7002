"""Image files of any kind: decoding them, and small copies for pages."""

from __future__ import annotations

import base64
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..arrays import Array
from ..errors import optional_module
from .limits import LARGEST_DECODED, LARGEST_IMAGE_FILE, TooLargeError

# `open_image`, of a damaged file
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# JPEGs may be decoded at a lower scale (1/2, 1/4, 1/8) while that leaves this many times the pixels
# needed per side
SCALED_DECODING_MARGIN = 2
# bytes per pixel that decoders take beside the image itself, measured
_DECODER_BYTES = {"AVIF": 8, "HEIF": 6, "JPEG2000": 16, "WEBP": 13}
_PROGRESSIVE_BYTES = 6  # a JPEG sent in several passes is kept whole, whatever its scale
_ONE_BYTE_MODES = ("1", "L", "P")
_ORIENTATION = 0x0112
_QUARTER_TURNS = range(5, 9)  # of its values; others than 1 to 8 mean nothing
_ROWS_AT_A_TIME = 256
_NOT_OPENED = "EPS"  # Pillow would start Ghostscript
# without a handler, logging prints messages of Pillow to standard error
logging.getLogger("PIL").addHandler(logging.NullHandler())
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def open_image(
    source: str | Path | BinaryIO, target_size: tuple[int, int] | None = None
) -> tuple[Image.Image, int, int]:
    """Decode an image file: first frame, EXIF rotation applied, RGB.

    Args:
        source: the file's path, or its content as a binary stream.
        target_size: (height, width) the model takes; large JPEGs are then decoded at a lower scale
            that keeps at least twice that.

    Returns:
        The image, and width and height in pixels as the viewer sees the file (after EXIF rotation).

    Raises:
        OSError: if the file cannot be read or decoded.
        Image.DecompressionBombError: if it has more than 179 million pixels.
        TooLargeError: if the file has more than 256 MiB, or decoding it would take more than 600
            MiB.
        MissingExtraError: if it is HEIC, and the package that reads it is not installed.
        SyntaxError, ValueError: for some kinds of damaged file.
    """
    if isinstance(source, str | Path):
        with Path(source).open("rb") as stream:
            content = stream.read(LARGEST_IMAGE_FILE + 1)
    else:
        content = source.read(LARGEST_IMAGE_FILE + 1)
    if len(content) > LARGEST_IMAGE_FILE:
        raise TooLargeError(f"an image file may have {LARGEST_IMAGE_FILE:,} bytes")
    with warnings.catch_warnings():
        # metadata that Pillow finds odd, and images between 89 and 179 million pixels, are no
        # reason to stop
        warnings.simplefilter("ignore")
        with _open(content) as file:
            width, height = file.size
            if target_size is not None and file.format == "JPEG":
                needed = SCALED_DECODING_MARGIN * max(target_size)
                file.draft(None, (needed, needed))
            _check_memory(file, (width, height))
            file.load()
            orientation = file.getexif().get(_ORIENTATION, 1)
            if orientation != 1:
                _check_memory(file, (width, height), copies=2)
                ImageOps.exif_transpose(file, in_place=True)
            image: Image.Image = file
            if image.mode.startswith(("I", "F")):
                image = _to_bytes(image)
            if image.mode != "RGB":
                image = image.convert("RGB")
    if orientation in _QUARTER_TURNS:
        return image, height, width
    return image, width, height


def thumbnail(source: str | Path | bytes, side: int) -> str:
    """Return an image file (its path or content) as a ``data:`` URL of a JPEG of at most ``side``
    pixels a side.

    Raises:
        OSError, Image.DecompressionBombError, SyntaxError, ValueError: as `open_image`.
    """
    image, _, _ = open_image(io.BytesIO(source) if isinstance(source, bytes) else source)
    image.thumbnail((side, side))
    return data_url(image, "jpeg", quality=80)


def data_url(image: Image.Image, kind: str = "png", **options: Any) -> str:
    """Return an image as a ``data:`` URL, by default without loss; ``options`` are those of
    `Image.save`.
    """
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _open(content: bytes) -> Image.Image:
    """Open an image file of any format that this installation reads without starting another
    program.
    """
    for load_plugins in (Image.preinit, Image.init):  # those of the usual formats, then all
        load_plugins()
        formats = [name for name in Image.ID if name != _NOT_OPENED]
        with suppress(UnidentifiedImageError):
            return Image.open(io.BytesIO(content), formats=formats)
    if content[4:8] != b"ftyp" or content[8:12] not in _HEIF_BRANDS:
        # Pillow's own message contains the object that was read
        raise UnidentifiedImageError("not an image in a format that Pillow can read")
    heif = optional_module(
        "pillow_heif", "pillow-heif", extra="heif", purpose="Reading HEIC images"
    )
    heif.register_heif_opener()
    return Image.open(io.BytesIO(content), formats=["HEIF"])


def _check_memory(file: Image.Image, size: tuple[int, int], copies: int = 1) -> None:
    """Refuse an image that would take too much memory according to its header.

    Args:
        file: opened, at the scale that it will be decoded at.
        size: width and height at full scale, which some decoders keep.
        copies: of it that there are at one time, beside the one in RGB.

    Raises:
        TooLargeError: with the size and the memory.
    """
    # Bytes of a pixel: as the file has it, in RGB, and what the decoder keeps
    pixel_bytes = 4
    if file.mode in _ONE_BYTE_MODES:
        pixel_bytes = 1
    elif file.mode.startswith("I;16"):
        pixel_bytes = 2
    rgb_bytes = 0 if file.mode == "RGB" else 4
    decoder_bytes = _DECODER_BYTES.get(file.format or "", 0)
    if file.info.get("progressive"):
        decoder_bytes = _PROGRESSIVE_BYTES

    width, height = size
    image_size = (pixel_bytes * copies + rgb_bytes) * file.width * file.height
    needed = image_size + decoder_bytes * width * height
    if needed > LARGEST_DECODED:
        raise TooLargeError(
            f"{width:,} x {height:,} pixels ({file.mode}) take {needed:,} bytes to decode; "
            f"an image may take {LARGEST_DECODED:,}"
        )


def _to_bytes(image: Image.Image) -> Image.Image:
    """Scale 16-bit and float pixels to 0…255, some rows at a time; Pillow would clip them at
    255.
    """
    highest = 65535.0
    if image.mode.startswith("F"):
        highest = 1e-12
        for _, values in _bands(image):
            highest = max(highest, float(np.max(values, where=np.isfinite(values), initial=0.0)))
    pixels = np.empty((image.height, image.width), np.uint8)
    for top, values in _bands(image):
        scaled = np.nan_to_num(values / highest * 255.0)
        pixels[top : top + len(values)] = np.clip(scaled, 0, 255)
    return Image.fromarray(pixels)


def _bands(image: Image.Image) -> Iterator[tuple[int, Array]]:
    """Yield some rows of an image at a time as float64: the number of the first, and (rows, width)
    values.
    """
    for top in range(0, image.height, _ROWS_AT_A_TIME):
        bottom = min(top + _ROWS_AT_A_TIME, image.height)
        yield top, np.asarray(image.crop((0, top, image.width, bottom)), dtype=np.float64)
