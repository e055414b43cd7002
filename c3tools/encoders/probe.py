"""The probe: a few photos and texts with which the speed and the embeddings of encoders of one model are compared.

The photos are bundled ones, because rounding changes the embeddings of random images
by other amounts.
"""

from __future__ import annotations

import math
import time

import numpy as np

from ..arrays import Matrix, Pixels
from ..assets.paths import PHOTOS
from .backends import Modality
from .encoder import Encoder, Tokens
from .preprocessing import ImagePreprocessor

PROBE_TEXTS = ("a dog runs on the grass", "two people at a table", "an old red train in the snow", "food")
_PHOTOS = 8
_ROUNDS = 2
_LONG = 0.5  # seconds of a round that is not repeated
_IMAGES_AT_A_TIME = 4
_TEXTS_AT_A_TIME = 64


def probe_pixels(preprocess: ImagePreprocessor) -> Pixels:
    """Return the pixels of eight bundled photos, uint8 (8, height, width, 3)."""
    photos = sorted((PHOTOS / "images").iterdir())[:_PHOTOS]
    return np.stack([preprocess.load(photo)[0] for photo in photos])


def probe_embeddings(encoder: Encoder) -> tuple[Matrix, Matrix]:
    """Return embeddings (8, d) of photos, and (4, d) of texts."""
    return encoder.encode_pixels(probe_pixels(encoder.preprocess)), encoder.encode_texts(PROBE_TEXTS)


def agreement(expected: tuple[Matrix, Matrix], got: tuple[Matrix, Matrix]) -> float:
    """Return the smallest cosine between the embeddings (n, d) of images and texts by two encoders."""
    return min(float((a * b).sum(axis=1).min()) for a, b in zip(expected, got, strict=True))


def measure_rate(encoder: Encoder, modality: Modality) -> float:
    """Return inputs per second: the best of a few rounds, in each of which all threads are busy."""
    batches = 2 * max(1, encoder.backend.ahead)
    batch = _probe_batch(encoder, modality)
    best = math.inf
    for _ in range(_ROUNDS + 1):  # the first also compiles
        start = time.perf_counter()
        for _ in encoder.backend.run(modality, ((None, batch) for _ in range(batches))):
            pass
        seconds = time.perf_counter() - start
        best = min(best, seconds)
        if seconds > _LONG:
            break
    return round(batches * len(batch) / best, 2)


def _probe_batch(encoder: Encoder, modality: Modality) -> Pixels | Tokens:
    if modality == "image":
        return probe_pixels(encoder.preprocess)[:_IMAGES_AT_A_TIME]
    texts = encoder.tokenise(PROBE_TEXTS * (_TEXTS_AT_A_TIME // len(PROBE_TEXTS)))
    return next(batch for _, batch in encoder.token_batches(texts, _TEXTS_AT_A_TIME))
