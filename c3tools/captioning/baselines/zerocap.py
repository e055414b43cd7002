"""ZeroCap (Tewel et al., 2022): a gradient of the encoder shifts what a language model has read.

Before each word but the first, five gradient steps shift the keys and values of what was written, to lower

    - sum_v q(v) log p(v) + 0.2 KL(p || p_0),    q = softmax(scale cos(image, text + v)) over the 512 likeliest

where p_0 is the probability without a shift, and q has no gradient. A step is -0.3 g / |g|^0.9 for the keys and for the
values of each layer. Words are then scored by p^0.99 p_0^0.01, normalised; of five beams, compared by their mean
log-probability, the one closest to the image is returned. The published model is GPT-2, which continues "Image of a"; a
language model of captions begins without a prompt, so its first word has no context to shift. It costs up to 5 x 512
text encodings per beam and word.

Shapes: B open beams, K candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...arrays import Matrix
from ..generation import GenerationConfig
from ..language_model import Decoder
from ..tokenizer import CaptionTokenizer
from .steering import TextEncoder

_NORM_POWER = 0.9
_RULED_OUT = -1e9  # finite: infinity has no gradient
Similar = Callable[[Sequence[Sequence[int]], Tensor], Tensor]


class _Beam(NamedTuple):
    """A hypothesis: its tokens, with the end-of-text token if it has ended, and the sum of their log-probabilities."""

    tokens: list[int]
    total: float
    ended: bool


def write_zerocap(
    model: Decoder,
    tokenizer: CaptionTokenizer,
    batch: Tensor,
    images: Matrix,
    config: GenerationConfig,
    encoder: TextEncoder,
) -> list[list[int]]:
    """Write captions of embeddings (n, d) and of their images, unit vectors (n, d); see the module."""
    similar = [_similarity(encoder, tokenizer, image) for image in images]
    return [_write(model, row[None], own, config) for row, own in zip(batch, similar, strict=True)]


def _similarity(encoder: TextEncoder, tokenizer: CaptionTokenizer, image: Matrix) -> Similar:
    """Return a function from B texts and the tokens (B, K) that continue them to cosines (B, K) with an image."""
    known: dict[str, float] = {}  # each different text is encoded once

    def similar(written: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
        lines = zip(written, tokens.tolist(), strict=True)
        texts = [tokenizer.decode([*ids, token]) for ids, line in lines for token in line]
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            known.update(zip(new, (encoder.encode_texts(new) @ image).tolist(), strict=True))
        return torch.tensor([known[text] for text in texts], device=tokens.device).view(tokens.shape)

    return similar


def _write(model: Decoder, prefix: Tensor, similar: Similar, config: GenerationConfig) -> list[int]:
    """Write one caption from the input of the decoder, (1, d)."""
    with torch.no_grad():
        logits, _, cache = model.prefill(prefix)
    log_p = _log_probabilities(model, logits)  # (1, V)
    beams = [_Beam([], 0.0, False)]
    for step in range(model.config.max_tokens):
        going = [beam for beam in beams if not beam.ended]
        if step:
            log_p = _shifted(model, cache, [beam.tokens for beam in going], similar, config)  # the cache is one longer
        options = [(beam, -1) for beam in beams if beam.ended]
        for row, beam in enumerate(going):
            likely, tokens = log_p[row].topk(min(config.beams, log_p.shape[1]))
            options += [
                (_Beam([*beam.tokens, token], beam.total + value, token == model.end_id), row)
                for value, token in zip(likely.tolist(), tokens.tolist(), strict=True)
            ]
        options = sorted(options, key=lambda option: -option[0].total / len(option[0].tokens))[: config.beams]
        beams = [beam for beam, _ in options]
        parents = [row for beam, row in options if not beam.ended]
        if not parents:
            break
        cache.select(torch.tensor(parents, device=prefix.device))
    captions = [beam.tokens[:-1] if beam.ended else beam.tokens for beam in beams]
    closest = similar(captions, torch.full((len(captions), 1), model.end_id, device=prefix.device))  # (beams, 1)
    return captions[int(closest.argmax())]


def _shifted(
    model: Decoder, cache: Any, written: Sequence[list[int]], similar: Similar, config: GenerationConfig
) -> Tensor:
    """Return the log-probabilities (B, V) of the words after ``written``, and extend the cache by the last of these.

    Args:
        model: the decoder.
        cache: of all tokens of ``written`` but the last.
        written: the tokens of B texts, all as long.
        similar: to the image.
        config: of ``zerocap``.
    """
    last = torch.tensor([tokens[-1] for tokens in written], device=model.device)  # (B,)
    context = cache.tensors()
    with torch.no_grad():
        log_p0 = _log_probabilities(model, model.decode_step(last, cache)[0])  # (B, V)

    def after_shift(shift: list[Tensor]) -> Tensor:
        moved = model.cache_of([a + b for a, b in zip(context, shift, strict=True)])
        return _log_probabilities(model, model.decode_step(last, moved)[0])  # (B, V)

    shift = [torch.zeros_like(part) for part in context]
    for _ in range(config.gradient_steps):
        for part in shift:
            part.requires_grad_()
        log_p = after_shift(shift)
        likely, tokens = log_p.topk(min(config.candidates, log_p.shape[1]), dim=-1)  # (B, K)
        view = (config.similarity_scale * similar(written, tokens)).softmax(-1)  # (B, K)
        divergence = (log_p.exp() * (log_p - log_p0)).sum(-1)  # (B,)
        loss = (config.fluency * divergence - (view * likely).sum(-1)).sum()
        gradients = torch.autograd.grad(loss, shift)
        shift = [
            part.detach()
            - config.step_size * own / (own.flatten(1).norm(dim=1) + 1e-15).view(-1, 1, 1, 1) ** _NORM_POWER
            for part, own in zip(shift, gradients, strict=True)
        ]
    with torch.no_grad():
        log_p = after_shift(shift)
    return (config.fusion * log_p + (1 - config.fusion) * log_p0).log_softmax(-1)


def _log_probabilities(model: Decoder, logits: Tensor) -> Tensor:
    """Return log-probabilities (B, V) in float32; that of padding is -inf."""
    scores = logits.float()
    if model.pad_id < scores.shape[1]:
        padding = torch.arange(scores.shape[1], device=scores.device) == model.pad_id
        scores = scores.masked_fill(padding, _RULED_OUT)
    return scores.log_softmax(-1)
