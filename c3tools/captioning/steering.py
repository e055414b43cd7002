"""Captions that the encoder steers while a decoder writes them: MAGIC (Su et al., 2022), ZeroCap (Tewel et al., 2022).

Both were made for a language model that reads no image (``c3 train-decoder --unconditional``); a decoder that reads the
image is steered in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders import Encoder, resolve_encoder
from ..encoders.probe import measure_rate
from ..errors import DecoderError, EncoderError
from ..identity import ModelIdentity
from ..moments import unit_rows
from ..reporter import counted
from .generation import GenerationConfig
from .model import Cache, Decoder, allowed
from .tokenizer import CaptionTokenizer

ENCODER_REMEDY = "Use embeddings that say which model they are of and that it can be loaded, or pass an encoder."
_ROWS = 16
_WORDS = 12  # of a usual caption
_NORM_POWER = 0.9
_RULED_OUT = -1e9  # finite: infinity has no gradient


class TextEncoder(Protocol):
    """An encoder of texts, as steering needs one."""

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return L2-normalised embeddings, float32 (n, d)."""


def generate_steered(
    model: Decoder,
    tokenizer: CaptionTokenizer,
    inputs: npt.NDArray[np.float32],
    images: npt.NDArray[np.float32],
    config: GenerationConfig,
    encoder: TextEncoder | None,
) -> list[list[int]]:
    """Generate captions by MAGIC or ZeroCap.

    *MAGIC*: of the k tokens that the decoder finds likeliest, the one is taken that has the highest

        (1 - alpha) p(v | text) - alpha max_j cos(h_v, h_j) + beta softmax_k(scale cos(image, text + v))

    The first term is the decoder's probability, the second penalises hidden states that repeat earlier ones, the third
    is the encoder's view of the text so far. Published settings: k = 45, alpha = 0.1, beta = 2. It costs k text
    encodings per word.

    *ZeroCap*: before each word but the first, five gradient steps shift the keys and values of what was written, to
    lower

        - sum_v q(v) log p(v) + 0.2 KL(p || p_0),    q = softmax(scale cos(image, text + v)) over the 512 likeliest

    where p_0 is the probability without a shift, and q has no gradient. A step is -0.3 g / |g|^0.9 for the keys and for
    the values of each layer. Words are then scored by p^0.99 p_0^0.01, normalised; of five beams, compared by their
    mean log-probability, the one closest to the image is returned. The published model is GPT-2, which continues "Image
    of a"; a language model of captions begins without a prompt, so its first word has no context to shift. It costs up
    to 5 x 512 text encodings per beam and word.

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
    limit = min(config.max_tokens or model.config.max_tokens, model.config.max_tokens)
    if config.method == "zerocap":
        rows = [torch.from_numpy(np.ascontiguousarray(row[None])).to(model.device) for row in inputs]
        similar = [_Similarity(encoder, tokenizer, image) for image in unit_rows(images)]
        return [_write_zerocap(model, row, own, config, limit) for row, own in zip(rows, similar, strict=True)]
    captions: list[list[int]] = []
    for start in range(0, len(inputs), _ROWS):
        part = slice(start, start + _ROWS)
        batch = torch.from_numpy(np.ascontiguousarray(inputs[part])).to(model.device)
        captions += _write_magic(model, tokenizer, batch, images[part], config, encoder, limit)
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
    rate = measure_rate(encoder, "text")
    if config.method == "zerocap":
        texts *= config.beams  # the candidates of later gradient steps are mostly those of the first
        each = f"{config.candidates} texts for each of {config.beams} beams at each of {config.gradient_steps} steps"
    else:
        each = f"{config.candidates} texts"
    return (
        f"the encoder compares {each} for every word: about {texts:,} texts for {counted(images, 'image')}, and at "
        f"{rate:,.0f} texts per second about {counted(max(1, round(texts / rate / 60)), 'minute')}."
    )


@torch.inference_mode()
def _write_magic(
    model: Decoder,
    tokenizer: CaptionTokenizer,
    batch: Tensor,
    images: npt.NDArray[np.float32],
    config: GenerationConfig,
    encoder: TextEncoder,
    limit: int,
) -> list[list[int]]:
    captions: list[list[int]] = [[] for _ in range(len(batch))]
    rows = list(range(len(batch)))  # those that are not finished
    logits, hidden, cache = model.prefill(batch)
    earlier = F.normalize(hidden.float(), dim=-1)[:, None]  # (B, steps so far, W)
    for step in range(limit):
        probabilities = allowed(model, logits).softmax(-1)
        likely, tokens = probabilities.topk(min(config.candidates, probabilities.shape[1]), dim=-1)  # (B, K)
        B, K = tokens.shape
        texts = [
            tokenizer.decode([*captions[row], token])
            for row, line in zip(rows, tokens.tolist(), strict=True)
            for token in line
        ]
        similar = _similarity(encoder, texts, images[rows]).to(likely.device)  # (B, K)
        # every candidate is run one position further: its hidden state is needed, and its scores if it is taken
        cache.select(torch.arange(B, device=batch.device).repeat_interleave(K))
        logits, hidden = model.decode_step(tokens.flatten(), cache)  # (B * K, V), (B * K, W)
        states = F.normalize(hidden.float(), dim=-1).view(B, K, -1)  # (B, K, W)
        repeated = torch.einsum("bkw,bsw->bks", states, earlier).amax(-1)  # (B, K)
        view = (config.similarity_scale * similar).softmax(-1)
        score = (1 - config.alpha) * likely - config.alpha * repeated + config.beta * view  # (B, K)
        best = score.argmax(-1)  # (B,)
        chosen = tokens.gather(1, best[:, None])[:, 0]  # (B,)
        going = chosen != model.end_id
        for row, token, goes in zip(rows, chosen.tolist(), going.tolist(), strict=True):
            if goes:
                captions[row].append(token)
        kept = going.nonzero()[:, 0]
        if step + 1 == limit or not len(kept):
            break
        taken = (torch.arange(B, device=batch.device) * K + best)[kept]
        cache.select(taken)
        logits = logits[taken]
        earlier = torch.cat([earlier, states[torch.arange(B), best][:, None]], dim=1)[kept]
        rows = [rows[i] for i in kept.tolist()]
    return captions


def _similarity(encoder: TextEncoder, texts: list[str], images: npt.NDArray[np.float32]) -> Tensor:
    """Return the cosines (B, K) of each image with its K texts; each different text is encoded once."""
    different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    embeddings = encoder.encode_texts(list(different))
    numbers = np.array([different[text] for text in texts]).reshape(len(images), -1)  # (B, K)
    return torch.from_numpy(np.einsum("bd,bkd->bk", unit_rows(images), embeddings[numbers]))


class _Similarity:
    """Cosines of one image, a unit vector (d,), with texts; each different text is encoded once."""

    def __init__(self, encoder: TextEncoder, tokenizer: CaptionTokenizer, image: npt.NDArray[np.float32]) -> None:
        self._encoder, self._tokenizer, self._image = encoder, tokenizer, image
        self._known: dict[str, float] = {}

    def __call__(self, written: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
        """Return the cosines (B, K) of B texts, each continued by its tokens (B, K)."""
        lines = zip(written, tokens.tolist(), strict=True)
        texts = [self._tokenizer.decode([*ids, token]) for ids, line in lines for token in line]
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        cosines = self._encoder.encode_texts(new) @ self._image if new else ()
        self._known.update(zip(new, (float(cosine) for cosine in cosines), strict=True))
        return torch.tensor([self._known[text] for text in texts], device=tokens.device).view(tokens.shape)


@dataclass(frozen=True)
class _Beam:
    """A hypothesis: its tokens with the end-of-text token, if it has ended, and the sum of their log-probabilities."""

    tokens: list[int]
    total: float
    ended: bool

    @property
    def mean(self) -> float:
        return self.total / len(self.tokens)


def _write_zerocap(
    model: Decoder, prefix: Tensor, similar: _Similarity, config: GenerationConfig, limit: int
) -> list[int]:
    """Write one caption from the input of the decoder, (1, d)."""
    with torch.no_grad():
        logits, _, cache = model.prefill(prefix)
    log_p = _log_probabilities(model, logits)  # (1, V)
    beams = [_Beam([], 0.0, False)]
    for step in range(limit):
        if step:
            written = [beam.tokens for beam in beams if not beam.ended]
            log_p = _shifted(model, cache, written, similar, config)  # (open beams, V), and the cache is one longer
        options = [(beam, -1) for beam in beams if beam.ended]
        for row, beam in enumerate(beam for beam in beams if not beam.ended):
            likely, tokens = log_p[row].topk(min(config.beams, log_p.shape[1]))
            options += [
                (_Beam([*beam.tokens, token], beam.total + value, token == model.end_id), row)
                for value, token in zip(likely.tolist(), tokens.tolist(), strict=True)
            ]
        options = sorted(options, key=lambda option: -option[0].mean)[: config.beams]
        beams = [beam for beam, _ in options]
        parents = [row for beam, row in options if not beam.ended]
        if not parents:
            break
        cache.select(torch.tensor(parents, device=prefix.device))
    captions = [beam.tokens[:-1] if beam.ended else beam.tokens for beam in beams]
    closest = similar(captions, torch.full((len(captions), 1), model.end_id, device=prefix.device))  # (beams, 1)
    return captions[int(closest.argmax())]


def _shifted(
    model: Decoder, cache: Cache, written: Sequence[list[int]], similar: _Similarity, config: GenerationConfig
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
    shift = [torch.zeros_like(part) for part in context]
    for _ in range(config.gradient_steps):
        for part in shift:
            part.requires_grad_()
        log_p = _log_probabilities(model, _after_shift(model, last, context, shift))  # (B, V)
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
        log_p = _log_probabilities(model, _after_shift(model, last, context, shift))
    return (config.fusion * log_p + (1 - config.fusion) * log_p0).log_softmax(-1)


def _after_shift(model: Decoder, last: Tensor, context: list[Tensor], shift: list[Tensor]) -> Tensor:
    return model.decode_step(last, model.cache_of([a + b for a, b in zip(context, shift, strict=True)]))[0]  # (B, V)


def _log_probabilities(model: Decoder, logits: Tensor) -> Tensor:
    """Return log-probabilities (B, V) in float32; that of padding is -inf."""
    scores = logits.float()
    if model.pad_id < scores.shape[1]:
        padding = torch.arange(scores.shape[1], device=scores.device) == model.pad_id
        scores = scores.masked_fill(padding, _RULED_OUT)
    return scores.log_softmax(-1)
