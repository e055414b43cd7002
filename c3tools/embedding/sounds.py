"""Embeddings of sound files that are not in a store, such as queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..arrays import Matrix
from ..corpus.images import read_sound
from ..encoders import Encoder
from ..errors import EncoderError, reason_of


def encode_sounds(encoder: Encoder, paths: Sequence[str | Path]) -> Matrix:
    """Return the embeddings, float32 (n, d), of sound files, as `c3 embed` computes them.

    Raises:
        EncoderError: if the model takes no sounds, or a file cannot be read (the message names it).
        MissingExtraError: if soundfile is not installed.
    """
    encoder.require("audio")
    rows = [np.zeros((0, encoder.dim), np.float32)]
    for path in paths:
        try:
            sound, _ = read_sound(path, encoder.sampling_rate)
        except (OSError, ValueError) as error:
            raise EncoderError(f"{path} cannot be read as a sound ({reason_of(error)}).") from error
        rows.append(encoder.encode_audio(sound))
    return np.concatenate(rows)
