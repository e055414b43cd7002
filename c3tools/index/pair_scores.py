"""Scores that are learned from pairs: the log odds that a row is the right one."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ..errors import StoreError
from ..store import Store
from ..transforms.calibration import Calibration
from ..transforms.fitting import first_pairs

if TYPE_CHECKING:
    from ..encoders import Encoder

_MOST_PAIRS, _LEAST_PAIRS = 400, 20


def fit_on_pairs(
    calibration: Calibration, store: Store, asked: str, encoder: Callable[[], Encoder]
) -> Calibration:
    """Return the calibration with curves for queries of a modality, from the first images with
    captions of a store.

    What asks for an image is its first caption, or another view of it (mirrored, the middle 80%),
    and what asks for a caption is the next one of the image, or the image.

    Raises:
        StoreError: if there are too few pairs.
    """
    from PIL import ImageOps

    from ..corpus.containers import PhotoFinder
    from ..io.images import UNREADABLE, open_image

    transform = calibration.pipeline.transform
    found = first_pairs(store, None, _MOST_PAIRS)
    image_of_caption = found.item_index[found.rows]
    image_rows, first_captions = np.unique(image_of_caption, return_index=True)
    photos = found.first.select(image_rows)
    images = transform(photos.embeddings, modality="image")
    captions = transform(found.second.embeddings[found.rows], modality="text")
    if asked == "text":
        image_of_next = np.append(image_of_caption[1:], -1)
        has_second = image_of_next[first_captions] == image_of_caption[first_captions]
        asking = first_captions[has_second]
        pairs = {
            "image": (captions[first_captions], images),
            "text": (captions[asking + 1], captions[asking]),
        }
    else:
        # Embed another view of each photo that can be read
        views = []
        photo_rows = []
        with PhotoFinder(beside=store.path) as finder:
            for row, path in enumerate(photos.column("path")):
                with suppress(*UNREADABLE):
                    photo = open_image(io.BytesIO(finder.read_again(path)))[0]
                    mirrored = ImageOps.mirror(photo)
                    views.append(ImageOps.crop(mirrored, min(mirrored.size) // 10))
                    photo_rows.append(row)
        embeddings = encoder().encode_images(views) if views else photos.embeddings[:0]
        pairs = {
            "text": (images, captions[first_captions]),
            "image": (transform(embeddings, modality="image"), images[photo_rows]),
        }
    for kind, (_, rows) in pairs.items():
        if len(rows) < _LEAST_PAIRS:
            raise StoreError(
                f"{_LEAST_PAIRS} pairs are needed to learn how {kind} rows score for {asked} "
                f"queries, but the store {store.path} has {len(rows)}.",
                remedy="Use a store with two captions for each image, whose image files still "
                "exist.",
            )
    return calibration.fit_pairs({(asked, kind): both for kind, both in pairs.items()})
