"""Captions that the encoder steers while a decoder writes them: what MAGIC, ZeroCap and ESPER share.

MAGIC and ZeroCap were made for a language model that reads no image (``c3 train-decoder --unconditional``); a decoder
that reads the image is steered in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ...arrays import Matrix
from ...encoders import Encoder, resolve_encoder
from ...errors import DecoderError, EncoderError
from ...identity import ModelIdentity

ENCODER_REMEDY = "Use embeddings that say which model they are of and that it can be loaded, or pass an encoder."


class TextEncoder(Protocol):
    """An encoder of texts into the space of the images that they are compared with."""

    def encode_texts(self, texts: Sequence[str]) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d)."""


def encode_once(encoder: TextEncoder, texts: Sequence[str]) -> Matrix:
    """Return the embeddings (n, d) of texts; each different text is encoded once."""
    different = list(dict.fromkeys(texts))
    places = {text: row for row, text in enumerate(different)}
    return encoder.encode_texts(different)[[places[text] for text in texts]]


def load_text_encoder(model: ModelIdentity, asked_by: str, **options: Any) -> Encoder:
    """Load the encoder of embeddings, for methods that have it compare texts with images.

    Args:
        model: whose embeddings they are.
        asked_by: the methods, for the message.
        options: of `c3tools.encoders.resolve_encoder`.

    Raises:
        DecoderError: if it cannot be loaded, as with imported embeddings of an unknown model.
    """
    if not model:
        raise DecoderError(f"{asked_by} needs an encoder, and the model is unknown.", remedy=ENCODER_REMEDY)
    try:
        return resolve_encoder(recorded=model, **options)
    except EncoderError as error:
        raise DecoderError(
            f"{asked_by} need texts encoded by {model}, the model of these embeddings, which cannot be loaded: "
            f"{error.message}",
            remedy=error.remedy,
        ) from error
