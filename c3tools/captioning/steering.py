"""MAGIC and ZeroCap: the encoder steers a decoder while it writes a caption.

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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..arrays import Matrix
from ..encoders import Encoder, resolve_encoder
from ..errors import DecoderError, EncoderError
from ..identity import ModelIdentity
from ..reporter import Progress
from .model import Decoder
from .tokenizer import CaptionTokenizer

CANDIDATES = {"magic": 45, "zerocap": 512}  # tokens that the encoder compares at each step
_SIMILARITY_SCALE = 100.0  # of cosines, before their softmax over the candidates
# of MAGIC
_ALPHA = 0.1
_BETA = 2.0
_ROWS = 16  # captions at a time
# of ZeroCap
_BEAMS = 5
_GRADIENT_STEPS = 5
_STEP_SIZE = 0.3
_NORM_POWER = 0.9
_FLUENCY = 0.2
_FUSION = 0.99
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
            remedy="Use embeddings that record a model that can be loaded, or pass an encoder.",
        )
    try:
        return resolve_encoder(recorded=model, **options)
    except EncoderError as error:
        raise DecoderError(
            f"{asked_by} need the encoder {model}: {error.message}", remedy=error.remedy
        ) from error


def encode_once(encoder: Encoder, texts: Sequence[str]) -> Matrix:
    """Return the embeddings (n, d) of texts; each different text is encoded once."""
    different_texts = list(dict.fromkeys(texts))
    row_of_text = {text: row for row, text in enumerate(different_texts)}
    return encoder.encode_texts(different_texts)[[row_of_text[text] for text in texts]]


def write_steered(
    model: Decoder,
    tokenizer: CaptionTokenizer,
    inputs: Matrix,
    images: Matrix,
    method: str,
    encoder: Encoder,
    progress: Progress,
) -> list[list[int]]:
    """Write captions of the inputs of a decoder, float32 (n, d), and of their images, unit vectors
    (n, d).
    """
    batch = torch.from_numpy(inputs).to(model.device)
    captions = []
    if method == "zerocap":
        for row, image in zip(batch, images, strict=True):
            similar = _similarity(encoder, tokenizer, image)
            captions.append(_zerocap(model, row[None], similar))
            progress.advance()
        return captions
    for start in range(0, len(batch), _ROWS):
        rows = slice(start, start + _ROWS)
        captions += _magic(model, tokenizer, batch[rows], images[rows], encoder)
        progress.advance(len(batch[rows]))
    return captions


@torch.inference_mode()
def _magic(
    model: Decoder, tokenizer: CaptionTokenizer, batch: Tensor, images: Matrix, encoder: Encoder
) -> list[list[int]]:
    """Write captions of a batch of inputs (B, d) and their images, unit vectors (B, d).

    At each step, all rows of the batch are captions that go on; B falls as captions end.
    """
    limit = model.config.max_tokens
    captions: list[list[int]] = [[] for _ in range(len(batch))]
    caption_of_row = list(range(len(batch)))
    logits, hidden, cache = model.prefill(batch)
    earlier_states = F.normalize(hidden.float(), dim=-1)[:, None]  # (B, steps so far, W)
    for step in range(limit):
        # The decoder's K likeliest tokens
        probabilities = model.allowed(logits).softmax(-1)  # (B, V)
        count = min(CANDIDATES["magic"], probabilities.shape[1])
        likely, tokens = probabilities.topk(count, dim=-1)  # (B, K)
        B, K = tokens.shape
        batch_rows = torch.arange(B, device=batch.device)

        # The encoder compares the image with the text so far, continued by each candidate
        texts: list[str] = []  # K of the first caption, then K of the next
        for caption, candidates in zip(caption_of_row, tokens.tolist(), strict=True):
            texts += [tokenizer.decode([*captions[caption], token]) for token in candidates]
        encoded = encode_once(encoder, texts).reshape(B, K, -1)
        cosines = np.einsum("bd,bkd->bk", images[caption_of_row], encoded)
        similar = torch.from_numpy(cosines).to(likely.device)  # (B, K)
        relevance = (_SIMILARITY_SCALE * similar).softmax(-1)  # (B, K), sums to 1 over K

        # Run every candidate one position further, each with a copy of its caption's cache: its
        # hidden state is compared with earlier ones, and its next scores are needed if it is taken
        cache.batch_select_indices(batch_rows.repeat_interleave(K))
        logits, hidden = model.decode_step(tokens.flatten(), cache)  # (B * K, V), (B * K, W)
        states = F.normalize(hidden.float(), dim=-1).view(B, K, -1)  # (B, K, W)
        repeated = torch.einsum("bkw,bsw->bks", states, earlier_states).amax(-1)  # (B, K)

        # Take the candidate with the highest score
        score = (1 - _ALPHA) * likely - _ALPHA * repeated + _BETA * relevance  # (B, K)
        best = score.argmax(-1)  # (B,)
        best_tokens = tokens[batch_rows, best]  # (B,)
        best_states = states[batch_rows, best]  # (B, W)
        going_on = (best_tokens != model.end_id).nonzero()[:, 0]  # rows whose caption has not ended
        caption_of_row = [caption_of_row[row] for row in going_on.tolist()]
        new_tokens = best_tokens[going_on].tolist()
        for caption, token in zip(caption_of_row, new_tokens, strict=True):
            captions[caption].append(token)
        if step + 1 == limit or not caption_of_row:
            break

        # Keep the rows of these candidates, among the B * K, of the captions that go on
        kept_rows = (batch_rows * K + best)[going_on]
        cache.batch_select_indices(kept_rows)
        logits = logits[kept_rows]
        all_states = torch.cat([earlier_states, best_states[:, None]], dim=1)
        earlier_states = all_states[going_on]
    return captions


def _similarity(encoder: Encoder, tokenizer: CaptionTokenizer, image: Matrix) -> _Similar:
    """Return a function from B texts and the tokens (B, K) that continue them to cosines (B, K)
    with an image.
    """
    cosine_of_text: dict[str, float] = {}  # each different text is encoded once

    def similar(written: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
        texts: list[str] = []
        for ids, candidates in zip(written, tokens.tolist(), strict=True):
            texts += [tokenizer.decode([*ids, token]) for token in candidates]
        new_texts = list(dict.fromkeys(text for text in texts if text not in cosine_of_text))
        if new_texts:
            cosines = encoder.encode_texts(new_texts) @ image
            cosine_of_text.update(zip(new_texts, cosines.tolist(), strict=True))
        values = torch.tensor([cosine_of_text[text] for text in texts], device=tokens.device)
        return values.view(tokens.shape)

    return similar


@dataclass(frozen=True)
class _Beam:
    """A hypothesis of ZeroCap.

    Attributes:
        tokens: so far, with the end-of-text token if it has ended.
        log_probability: of all of them.
        parent: the row of the cache that its last token continued.
    """

    tokens: list[int]
    log_probability: float
    parent: int = 0

    @property
    def score(self) -> float:
        """The mean log-probability of its tokens."""
        return self.log_probability / len(self.tokens)


def _zerocap(model: Decoder, prefix: Tensor, similar: _Similar) -> list[int]:
    """Write one caption from the input of the decoder, (1, d)."""
    with torch.no_grad():
        logits, _, cache = model.prefill(prefix)
    log_p = _log_probabilities(model, logits)  # (1, V)
    beams = [_Beam([], 0.0)]
    for step in range(model.config.max_tokens):
        open_beams = [beam for beam in beams if model.end_id not in beam.tokens]
        if step:
            # the cache is one longer
            log_p = _shifted(model, cache, [beam.tokens for beam in open_beams], similar)

        # Ended beams compete with all continuations of the open ones
        options = [beam for beam in beams if model.end_id in beam.tokens]
        for row, beam in enumerate(open_beams):
            likely, tokens = log_p[row].topk(min(_BEAMS, log_p.shape[1]))
            for value, token in zip(likely.tolist(), tokens.tolist(), strict=True):
                options.append(_Beam([*beam.tokens, token], beam.log_probability + value, row))
        beams = sorted(options, key=lambda beam: -beam.score)[:_BEAMS]
        parents = [beam.parent for beam in beams if model.end_id not in beam.tokens]
        if not parents:
            break
        cache.batch_select_indices(torch.tensor(parents, device=prefix.device))

    # Of the beams, return the one whose caption is closest to the image
    captions = []
    for beam in beams:
        captions.append([token for token in beam.tokens if token != model.end_id])
    ends = torch.full((len(captions), 1), model.end_id, device=prefix.device)
    cosines = similar(captions, ends)  # (beams, 1)
    return captions[int(cosines.argmax())]


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
        shifted_cache = model.new_cache()
        for layer in range(len(context) // 2):
            keys = context[2 * layer] + shift[2 * layer]
            values = context[2 * layer + 1] + shift[2 * layer + 1]
            shifted_cache.update(keys, values, layer)
        return _log_probabilities(model, model.decode_step(last, shifted_cache)[0])  # (B, V)

    shift = [torch.zeros_like(part) for part in context]
    for _ in range(_GRADIENT_STEPS):
        for part in shift:
            part.requires_grad_()
        log_p = after_shift(shift)
        count = min(CANDIDATES["zerocap"], log_p.shape[1])
        likely, tokens = log_p.topk(count, dim=-1)  # (B, K)
        relevance = (_SIMILARITY_SCALE * similar(written, tokens)).softmax(-1)  # (B, K)
        divergence = (log_p.exp() * (log_p - log_p0)).sum(-1)  # (B,)
        loss = (_FLUENCY * divergence - (relevance * likely).sum(-1)).sum()
        gradients = torch.autograd.grad(loss, shift)
        for number, gradient in enumerate(gradients):
            norms = (gradient.flatten(1).norm(dim=1) + 1e-15).view(-1, 1, 1, 1)
            step: Tensor = _STEP_SIZE * gradient / norms**_NORM_POWER
            shift[number] = shift[number].detach() - step
    with torch.no_grad():
        log_p = after_shift(shift)
    return (_FUSION * log_p + (1 - _FUSION) * log_p0).log_softmax(-1)


def _log_probabilities(model: Decoder, logits: Tensor) -> Tensor:
    """Return log-probabilities (B, V) in float32; that of padding is as good as -inf."""
    padding = torch.arange(logits.shape[1], device=logits.device) == model.pad_id
    return logits.float().masked_fill(padding, _RULED_OUT).log_softmax(-1)
