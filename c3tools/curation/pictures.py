"""Photos for a page, scaled down to the size at which it shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import reason_of
from ..io.images import UNREADABLE, thumbnail
from ..photos.finder import PhotoFinder

_SIDE = 360  # pixels of the longer side of a photo


@dataclass(frozen=True)
class Picture:
    """A photo on a page: its ``data:`` URL, or why there is none."""

    picture: str | None
    problem: str


NO_PATH = Picture(None, "no path recorded")


def pictures_of(paths: Iterable[str | None], beside: Path) -> dict[str, Picture]:
    """Return photos by their paths, as small as the page shows them."""
    pictures: dict[str, Picture] = {}
    with PhotoFinder(beside) as photos:
        for path in paths:
            if not path or path in pictures:
                continue
            try:
                pictures[path] = Picture(thumbnail(photos.read_again(path), _SIDE), "")
            except UNREADABLE as error:
                pictures[path] = Picture(None, reason_of(error))
    return pictures
