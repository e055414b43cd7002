"""MAGIC and ZeroCap: captions that the encoder steers while a decoder writes them.

Both were made for a language model that reads no image (``c3 train-decoder --unconditional``); a
decoder that reads the image is steered in the same way.

MAGIC (Su et al., 2022) scores each word again. Of the k tokens that the decoder finds likeliest,
the one is taken that has the highest

    (1 - alpha) p(v | text) - alpha max_j cos(h_v, h_j) + beta softmax_k(scale cos(image, text + v))

The first term is the decoder's probability, the second penalises hidden states that repeat earlier
ones, the third is the encoder's view of the text so far. Published settings: k = 45, alpha = 0.1,
beta = 2. It costs k text encodings per word.

ZeroCap (Tewel et al., 2022) shifts what the language model has read, by a gradient of the encoder.
Before each word but the first, five gradient steps shift the keys and values of what was written,
to lower

    - sum_v q(v) log p(v) + 0.2 KL(p || p_0),    q = softmax(scale cos(image, text + v))

over the 512 likeliest continuations v, where p_0 is the probability without a shift, and q has no
gradient. A step is -0.3 g / |g|^0.9 for the keys and for the values of each layer. Words are then
scored by p^0.99 p_0^0.01, normalised; of five beams, compared by their mean log-probability, the
one closest to the image is returned. The published model is GPT-2, which continues "Image of a"; a
language model of captions begins without a prompt, so its first word has no context to shift. It
costs up to 5 x 512 text encodings per beam and word.

Shapes: B captions or open beams, K candidates, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..arrays import Matrix
from ..encoders import Encoder, resolve_encoder
from ..errors import DecoderError, EncoderError
from ..identity import ModelIdentity
from .model import Decoder
from .tokenizer import CaptionTokenizer

CANDIDATES = {"magic": 45, "zerocap": 512}  # tokens that the encoder compares at each step
_SIMILARITY_SCALE = 100.0  # of cosines, before their softmax over the candidates
_ALPHA, _BETA = 0.1, 2.0
_ROWS = 16  # captions that MAGIC writes at a time
_BEAMS, _GRADIENT_STEPS, _STEP_SIZE, _NORM_POWER, _FLUENCY, _FUSION = 5, 5, 0.3, 0.9, 0.2, 0.99
_RULED_OUT = -1e9  # finite: infinity has no gradient
_Similar = Callable[[Sequence[Sequence[int]], Tensor], Tensor]


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
        raise DecoderError(
            f"{asked_by} needs an encoder, and the model is unknown.",
            remedy="Use embeddings that say which model they are of and that it can be loaded, or "
            "pass an encoder.",
        )
    try:
        return resolve_encoder(recorded=model, **options)
    except EncoderError as error:
        raise DecoderError(
            f"{asked_by} need the encoder {model}: {error.message}", remedy=error.remedy
        ) from error


def encode_once(encoder: Encoder, texts: Sequence[str]) -> Matrix:
    """Return the embeddings (n, d) of texts; each different text is encoded once."""
    different = list(dict.fromkeys(texts))
    places = {text: row for row, text in enumerate(different)}
    return encoder.encode_texts(different)[[places[text] for text in texts]]


def write_steered(
    model: Decoder,
    tokenizer: CaptionTokenizer,
    inputs: Matrix,
    images: Matrix,
    method: str,
    encoder: Encoder,
) -> list[list[int]]:
    """Write captions of the inputs of a decoder, float32 (n, d), and of their images, unit vectors
    (n, d).
    """
    batch = torch.from_numpy(inputs).to(model.device)
    if method == "zerocap":
        similar = [_similarity(encoder, tokenizer, image) for image in images]
        return [_zerocap(model, row[None], own) for row, own in zip(batch, similar, strict=True)]
    captions = []
    for start in range(0, len(batch), _ROWS):
        rows = slice(start, start + _ROWS)
        captions += _magic(model, tokenizer, batch[rows], images[rows], encoder)
    return captions


@torch.inference_mode()
def _magic(
    model: Decoder, tokenizer: CaptionTokenizer, batch: Tensor, images: Matrix, encoder: Encoder
) -> list[list[int]]:
    limit = model.config.max_tokens
    captions: list[list[int]] = [[] for _ in range(len(batch))]
    rows = list(range(len(batch)))  # those that are not finished
    logits, hidden, cache = model.prefill(batch)
    earlier = F.normalize(hidden.float(), dim=-1)[:, None]  # (B, steps so far, W)
    for step in range(limit):
        probabilities = model.allowed(logits).softmax(-1)
        # (B, K)
        likely, tokens = probabilities.topk(
            min(CANDIDATES["magic"], probabilities.shape[1]), dim=-1
        )
        B, K = tokens.shape
        texts = [
            tokenizer.decode([*captions[row], token])
            for row, line in zip(rows, tokens.tolist(), strict=True)
            for token in line
        ]
        encoded = encode_once(encoder, texts).reshape(B, K, -1)
        # (B, K)
        similar = torch.from_numpy(np.einsum("bd,bkd->bk", images[rows], encoded)).to(likely.device)
        # every candidate is run one position further: its hidden state is needed, and its scores if
        # it is taken
        cache.batch_select_indices(torch.arange(B, device=batch.device).repeat_interleave(K))
        logits, hidden = model.decode_step(tokens.flatten(), cache)  # (B * K, V), (B * K, W)
        states = F.normalize(hidden.float(), dim=-1).view(B, K, -1)  # (B, K, W)
        repeated = torch.einsum("bkw,bsw->bks", states, earlier).amax(-1)  # (B, K)
        view = (_SIMILARITY_SCALE * similar).softmax(-1)
        score = (1 - _ALPHA) * likely - _ALPHA * repeated + _BETA * view  # (B, K)
        best = score.argmax(-1)  # (B,)
        chosen = tokens.gather(1, best[:, None])[:, 0]  # (B,)
        kept = (chosen != model.end_id).nonzero()[:, 0]
        for i in kept.tolist():
            captions[rows[i]].append(int(chosen[i]))
        if step + 1 == limit or not len(kept):
            break
        taken = (torch.arange(B, device=batch.device) * K + best)[kept]
        cache.batch_select_indices(taken)
        logits = logits[taken]
        earlier = torch.cat([earlier, states[torch.arange(B), best][:, None]], dim=1)[kept]
        rows = [rows[i] for i in kept.tolist()]
    return captions


def _similarity(encoder: Encoder, tokenizer: CaptionTokenizer, image: Matrix) -> _Similar:
    """Return a function from B texts and the tokens (B, K) that continue them to cosines (B, K)
    with an image.
    """
    known: dict[str, float] = {}  # each different text is encoded once

    def similar(written: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
        lines = zip(written, tokens.tolist(), strict=True)
        texts = [tokenizer.decode([*ids, token]) for ids, line in lines for token in line]
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            known.update(zip(new, (encoder.encode_texts(new) @ image).tolist(), strict=True))
        return torch.tensor([known[text] for text in texts], device=tokens.device).view(
            tokens.shape
        )

    return similar


def _zerocap(model: Decoder, prefix: Tensor, similar: _Similar) -> list[int]:
    """Write one caption from the input of the decoder, (1, d)."""
    with torch.no_grad():
        logits, _, cache = model.prefill(prefix)
    log_p = _log_probabilities(model, logits)  # (1, V)
    # tokens, with the end-of-text token if the beam has ended, and the sum of their
    # log-probabilities
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    for step in range(model.config.max_tokens):
        going = [beam for beam in beams if model.end_id not in beam[0]]
        if step:
            # the cache is one longer
            log_p = _shifted(model, cache, [tokens for tokens, _ in going], similar)
        options = [(tokens, total, -1) for tokens, total in beams if model.end_id in tokens]
        for row, (written, total) in enumerate(going):
            likely, tokens = log_p[row].topk(min(_BEAMS, log_p.shape[1]))
            options += [
                ([*written, token], total + value, row)
                for value, token in zip(likely.tolist(), tokens.tolist(), strict=True)
            ]
        options = sorted(options, key=lambda option: -option[1] / len(option[0]))[:_BEAMS]
        beams = [(tokens, total) for tokens, total, _ in options]
        parents = [row for tokens, _, row in options if model.end_id not in tokens]
        if not parents:
            break
        cache.batch_select_indices(torch.tensor(parents, device=prefix.device))
    captions = [[token for token in tokens if token != model.end_id] for tokens, _ in beams]
    # (beams, 1)
    closest = similar(captions, torch.full((len(captions), 1), model.end_id, device=prefix.device))
    return captions[int(closest.argmax())]


def _shifted(model: Decoder, cache: Any, written: Sequence[list[int]], similar: _Similar) -> Tensor:
    """Return the log-probabilities (B, V) of the words after ``written``, and extend the cache by
    the last of these.

    Args:
        model: the decoder.
        cache: of all tokens of ``written`` but the last.
        written: the tokens of B texts, all as long.
        similar: to the image.
    """
    last = torch.tensor([tokens[-1] for tokens in written], device=model.device)  # (B,)
    # keys and values of each layer in turn
    context = [part for layer in cache for part in layer[:2]]
    with torch.no_grad():
        log_p0 = _log_probabilities(model, model.decode_step(last, cache)[0])  # (B, V)

    def after_shift(shift: list[Tensor]) -> Tensor:
        shifted, moved = [a + b for a, b in zip(context, shift, strict=True)], model.new_cache()
        for layer, (keys, values) in enumerate(zip(shifted[::2], shifted[1::2], strict=True)):
            moved.update(keys, values, layer)
        return _log_probabilities(model, model.decode_step(last, moved)[0])  # (B, V)

    shift = [torch.zeros_like(part) for part in context]
    for _ in range(_GRADIENT_STEPS):
        for part in shift:
            part.requires_grad_()
        log_p = after_shift(shift)
        likely, tokens = log_p.topk(min(CANDIDATES["zerocap"], log_p.shape[1]), dim=-1)  # (B, K)
        view = (_SIMILARITY_SCALE * similar(written, tokens)).softmax(-1)  # (B, K)
        divergence = (log_p.exp() * (log_p - log_p0)).sum(-1)  # (B,)
        loss = (_FLUENCY * divergence - (view * likely).sum(-1)).sum()
        gradients = torch.autograd.grad(loss, shift)
        shift = [
            part.detach()
            - _STEP_SIZE
            * own
            / (own.flatten(1).norm(dim=1) + 1e-15).view(-1, 1, 1, 1) ** _NORM_POWER
            for part, own in zip(shift, gradients, strict=True)
        ]
    with torch.no_grad():
        log_p = after_shift(shift)
    return (_FUSION * log_p + (1 - _FUSION) * log_p0).log_softmax(-1)


def _log_probabilities(model: Decoder, logits: Tensor) -> Tensor:
    """Return log-probabilities (B, V) in float32; that of padding is as good as -inf."""
    padding = torch.arange(logits.shape[1], device=logits.device) == model.pad_id
    return logits.float().masked_fill(padding, _RULED_OUT).log_softmax(-1)
