"""Embeddings of sound files: those of a store, and others, such as queries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import Matrix
from ..corpus.image_reader import read_sound
from ..encoders import Encoder
from ..errors import EncoderError, reason_of


@dataclass(frozen=True)
class EncodedSound:
    """A sound file and its embedding.

    Attributes:
        embedding: float32 (1, d).
        duration: of the whole sound, in seconds.
        reading: seconds that were spent on reading and decoding the file.
    """

    embedding: Matrix
    duration: float
    reading: float


def encode_sound(encoder: Encoder, path: str | Path) -> EncodedSound:
    """Read and embed a sound file.

    Raises:
        OSError, ValueError: if it is no sound, or damaged.
        MissingExtraError: if soundfile is not installed.
    """
    start = time.perf_counter()
    samples, duration = read_sound(path, encoder.sampling_rate)
    reading = time.perf_counter() - start
    return EncodedSound(encoder.encode_audio(samples), duration, reading)


def encode_sounds(encoder: Encoder, paths: Sequence[str | Path]) -> Matrix:
    """Return the embeddings, float32 (n, d), of sound files, as `c3 embed` computes them.

    Raises:
        EncoderError: if the model takes no sounds, or a file cannot be read (the message names it).
        MissingExtraError: if soundfile is not installed.
    """
    encoder.require("audio")
    embeddings = [np.zeros((0, encoder.dim), np.float32)]
    for path in paths:
        try:
            embeddings.append(encode_sound(encoder, path).embedding)
        except (OSError, ValueError) as error:
            raise EncoderError(f"{path} cannot be read as audio ({reason_of(error)}).") from error
    return np.concatenate(embeddings)
