"""Contact sheets: where images and texts stand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from c3tools.imaging.sheet import contact_sheet

RED, BLUE = (np.full((8, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


def dark(sheet: Image.Image) -> npt.NDArray[np.bool_]:
    """The pixels that are of a text: nearly black, as no image here is."""
    return np.asarray(np.asarray(sheet).max(axis=2) < 100)


def test_rows_of_images_stand_apart_on_white() -> None:
    sheet = contact_sheet([[RED, BLUE], [BLUE]], side=10)
    assert sheet.size == (32, 32)
    assert [sheet.getpixel(at) for at in ((9, 9), (23, 9), (9, 23), (23, 23))] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 0, 255),
        (255, 255, 255),
    ]


def test_texts_stand_above_their_rows_and_are_cut_to_the_width() -> None:
    plain = contact_sheet([[RED, RED], [BLUE]])
    sheet = contact_sheet(
        [[RED, RED], [BLUE]], texts=["a dog", "a text that is much longer than two images are wide, " * 3]
    )
    assert sheet.width == plain.width
    assert not dark(plain).any()
    lines = np.flatnonzero(dark(sheet).any(axis=1))
    assert len(np.flatnonzero(np.diff(lines) > 50)) == 1  # two lines of text, with an image between them
    columns = np.flatnonzero(dark(sheet)[lines[-1] - 12 : lines[-1] + 1].any(axis=0))
    assert columns[-1] > 0.8 * sheet.width
    assert not dark(sheet)[:, -4:].any()
