"""Captions that the encoder steers while a decoder writes them: what MAGIC and ZeroCap share.

Both were made for a language model that reads no image (``c3 train-decoder --unconditional``); a decoder that reads the
image is steered in the same way.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...encoders import Encoder, resolve_encoder
from ...errors import DecoderError, EncoderError
from ...identity import ModelIdentity
from ...moments import unit_rows
from ...reporter import counted
from ..generation import GenerationConfig
from ..model import Decoder
from ..tokenizer import CaptionTokenizer
from .magic import TextEncoder, write_magic
from .zerocap import write_zerocap

ENCODER_REMEDY = "Use embeddings that say which model they are of and that it can be loaded, or pass an encoder."
_ROWS = 16
_WORDS = 12  # of a usual caption
_TIMED_TEXTS = 256


def generate_steered(
    model: Decoder,
    tokenizer: CaptionTokenizer,
    inputs: npt.NDArray[np.float32],
    images: npt.NDArray[np.float32],
    config: GenerationConfig,
    encoder: TextEncoder | None,
) -> list[list[int]]:
    """Generate captions by MAGIC or ZeroCap; see `magic` and `zerocap`.

    Args:
        model: a trained decoder, in evaluation mode.
        tokenizer: its tokenizer.
        inputs: float32 (n, d), transformed as the decoder's pipeline says.
        images: float32 (n, d), as the encoder computes them: what texts are compared with.
        config: the method, its settings, and ``max_tokens``.
        encoder: encodes texts into the space of ``images``.

    Returns:
        Token ids of one caption per image, without the end-of-text token.

    Raises:
        DecoderError: if there is no encoder.
    """
    if encoder is None:
        raise DecoderError(
            "Steering needs an encoder, which compares texts with the image, but none was given.",
            remedy=ENCODER_REMEDY,
        )
    write = write_zerocap if config.method == "zerocap" else write_magic
    captions: list[list[int]] = []
    for start in range(0, len(inputs), _ROWS):
        part = slice(start, start + _ROWS)
        batch = torch.from_numpy(np.ascontiguousarray(inputs[part])).to(model.device)
        captions += write(model, tokenizer, batch, unit_rows(images[part]), config, encoder)
    return captions


def load_text_encoder(model: ModelIdentity, asked_by: str, **options: Any) -> Encoder:
    """Load the encoder of embeddings, for methods that have it compare texts with images.

    Args:
        model: whose embeddings they are.
        asked_by: the methods, for the message.
        options: of `c3tools.encoders.resolve_encoder`.

    Raises:
        DecoderError: if it cannot be loaded, as with imported embeddings of an unknown model.
    """
    try:
        return resolve_encoder(recorded=model, **options)
    except EncoderError as error:
        raise DecoderError(
            f"{asked_by} need texts encoded by {model}, the model of these embeddings, which cannot be loaded: "
            f"{error.message}",
            remedy=error.remedy,
        ) from error


def describe_cost(config: GenerationConfig, encoder: Encoder, images: int) -> str:
    """Return in words what steering costs, by the number of texts per second that the encoder is measured at."""
    texts = config.candidates * images * _WORDS
    seconds = []
    for _ in range(2):  # the first also compiles
        start = time.perf_counter()
        encoder.encode_texts(["a dog runs on the grass"] * _TIMED_TEXTS)
        seconds.append(time.perf_counter() - start)
    rate = _TIMED_TEXTS / min(seconds)
    if config.method == "zerocap":
        texts *= config.beams  # the candidates of later gradient steps are mostly those of the first
        each = f"{config.candidates} texts for each of {config.beams} beams at each of {config.gradient_steps} steps"
    else:
        each = f"{config.candidates} texts"
    return (
        f"the encoder compares {each} for every word: about {texts:,} texts for {counted(images, 'image')}, and at "
        f"{rate:,.0f} texts per second about {counted(max(1, round(texts / rate / 60)), 'minute')}."
    )
