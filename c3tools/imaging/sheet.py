"""Images side by side: a contact sheet as one picture, and as a page with the text of each image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..arrays import Pixels
from ..io.files import write_atomically, write_text_atomically

_GAP = 4
_FONT, _LINE = 13, 20  # pixels of a text, and of the line that it is on
_LEAST = 96  # pixels a side that a small image is enlarged to, so that it can be seen


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | Pixels]], *, texts: Sequence[str] = (), side: int | None = None
) -> Image.Image:
    """Return rows of square images as one picture on white.

    Args:
        rows: images, or pixels uint8 (height, width, 3); rows may differ in length.
        texts: written above the rows, one line each, cut to the width of the sheet; empty for none.
        side: pixels of an image in the sheet; None for those of the first, or a multiple of it that can be seen.
    """
    first = _as_image(rows[0][0])
    side = side or first.width * max(1, -(-_LEAST // first.width))
    width = max(map(len, rows)) * (side + _GAP) + _GAP
    above = _LINE if texts else 0
    step = side + _GAP + above
    sheet = Image.new("RGB", (width, len(rows) * step + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for number, row in enumerate(rows):
        top = _GAP + number * step
        if texts:  # on one line, with an ellipsis if it has to be cut to the width
            text, cut = " ".join(texts[number].split())[:width], ""
            while font.getlength(text + cut) > width - 2 * _GAP:
                text, cut = text[:-1].rstrip(), "..."
            draw.text((_GAP, top), text + cut, fill="black", font=font)
        for column, picture in enumerate(row):
            resized = _as_image(picture).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(resized, (_GAP + column * (side + _GAP), top + above))
    return sheet


def in_rows(images: Sequence[Any], columns: int) -> list[Sequence[Any]]:
    """Return the images in rows of so many."""
    return [images[start : start + columns] for start in range(0, len(images), columns)]


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, complete or not at all.

    Raises:
        OSError: if it cannot be written, for example because the disk is full.
    """
    write_atomically(path, lambda temporary: image.save(temporary, "PNG"))


def inline_png(image: Image.Image | Pixels) -> str:
    """Return a small image as a ``data:`` URL, without loss."""
    buffer = io.BytesIO()
    _as_image(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def save_page(path: Path, title: str, lead: str, entries: Sequence[tuple[str, Sequence[Image.Image]]]) -> None:
    """Write a self-contained page of images, each group with its text."""
    from ..pages import render_page

    groups = [{"asked": asked, "images": [inline_png(image) for image in images]} for asked, images in entries]
    template = Path(__file__).parent / "templates" / "images.html"
    write_text_atomically(path, render_page(template, title=title, lead=lead, groups=groups))


def _as_image(picture: Image.Image | Pixels) -> Image.Image:
    return Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
