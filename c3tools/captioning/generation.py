"""Batched generation with a key-value cache: greedy, beam search, nucleus sampling and MAGIC.

Rows are independent: the caption of an embedding does not depend on what else is in its batch, and samples are
drawn from (seed, key).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DecoderError
from ..moments import unit_rows
from ..seeds import generator
from .model import Cache, Decoder
from .tokenizer import CaptionTokenizer

_MAGIC_ROWS = 16
Method = Literal["greedy", "beam", "nucleus", "magic"]


class TextEncoder(Protocol):
    """An encoder of texts, as ``magic`` needs one."""

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return L2-normalised embeddings, float32 (n, d)."""


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of generation.

    Attributes:
        method: ``greedy`` (the paper's), ``beam``, ``nucleus``, or ``magic`` (the encoder re-scores each word).
        beams: hypotheses kept per caption by ``beam``.
        length_penalty: ``beam`` compares hypotheses by log-probability / length ** this.
        top_p: ``nucleus`` samples from the smallest set of tokens that has this probability.
        temperature: ``nucleus`` divides the scores by this.
        candidates: tokens that ``magic`` considers at each step (k).
        alpha: weight of ``magic``'s penalty on repetition.
        beta: weight of ``magic``'s similarity of the text so far with the image.
        similarity_scale: ``magic`` multiplies cosines by this before their softmax; CLIP's own logit scale.
        max_tokens: longest caption, end-of-text included; None for what the decoder was built for.
        batch_size: embeddings per batch.
        seed: of ``nucleus``.
    """

    method: Method = "greedy"
    beams: int = 5
    length_penalty: float = 0.7
    top_p: float = 0.9
    temperature: float = 1.0
    candidates: int = 45
    alpha: float = 0.1
    beta: float = 2.0
    similarity_scale: float = 100.0
    max_tokens: int | None = None
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise DecoderError(
                f"Unknown generation method {self.method!r}.", remedy=f"Choose from {', '.join(get_args(Method))}."
            )
        for name in ("beams", "batch_size", "temperature", "top_p", "candidates"):
            if getattr(self, name) <= 0:
                raise DecoderError(f"{name} must be greater than 0, not {getattr(self, name)}.")
        if self.top_p > 1:
            raise DecoderError(f"top_p is a probability, at most 1, not {self.top_p}.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise DecoderError(f"max_tokens must be at least 1, not {self.max_tokens}.")

    @classmethod
    def from_options(
        cls,
        *,
        beams: int = 1,
        length_penalty: float = 0.7,
        top_p: float | None = None,
        temperature: float = 1.0,
        magic: bool = False,
        seed: int = 0,
    ) -> GenerationConfig:
        """Return the settings that the options of the commands mean; by default captions are greedy.

        Raises:
            DecoderError: if the options mean several methods at once.
        """
        if (beams > 1) + (top_p is not None) + magic > 1:
            raise DecoderError("--beams, --top-p and --magic are three ways to write a caption.", remedy="Choose one.")
        if magic:
            return cls("magic")
        if top_p is not None:
            return cls("nucleus", top_p=top_p, temperature=temperature, seed=seed)
        return cls("beam", beams=beams, length_penalty=length_penalty) if beams > 1 else cls()


@torch.inference_mode()
def generate(
    model: Decoder,
    inputs: npt.NDArray[np.float32],
    config: GenerationConfig | None = None,
    keys: Sequence[str] | None = None,
) -> list[list[int]]:
    """Generate the token ids of one caption per input, without the end-of-text token.

    Args:
        model: a trained decoder, in evaluation mode.
        inputs: float32 (n, d), transformed as the decoder's pipeline says.
        config: method and its settings; greedy by default.
        keys: one per input; needed by ``nucleus``, which draws from (seed, key).

    Raises:
        DecoderError: if the inputs have another dimension than the decoder, or keys are missing.
    """
    config = config or GenerationConfig()
    if inputs.ndim != 2 or inputs.shape[1] != model.config.dim:
        raise DecoderError(
            f"The decoder reads embeddings of {model.config.dim} dimensions; the input has shape {inputs.shape}.",
            remedy="Use embeddings of the model that the decoder was trained on.",
        )
    if config.method == "nucleus" and (keys is None or len(keys) != len(inputs)):
        raise DecoderError(f"Sampling draws from keys: pass one per input ({len(inputs)}).")
    limit = min(config.max_tokens or model.config.max_tokens, model.config.max_tokens)
    device = model.device
    captions: list[list[int]] = []
    for start in range(0, len(inputs), config.batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(inputs[start : start + config.batch_size])).to(device)
        if config.method == "beam":
            captions += _beam(model, batch, config, limit)
        elif config.method == "nucleus":
            assert keys is not None
            draws = [generator(config.seed, "nucleus", key).random(limit) for key in keys[start : start + len(batch)]]
            captions += _stepwise(model, batch, limit, _Nucleus(config, np.array(draws)))
        else:
            captions += _stepwise(model, batch, limit, _Greedy())
    return captions


class _Greedy:
    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        return logits.argmax(dim=-1)


class _Nucleus:
    """Nucleus sampling (Holtzman et al., 2020), by inverse transform of one uniform number per (row, step)."""

    def __init__(self, config: GenerationConfig, draws: npt.NDArray[np.float64]) -> None:
        self.config, self.draws = config, torch.from_numpy(draws)

    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        probabilities, order = (logits.double() / self.config.temperature).softmax(-1).sort(-1, descending=True)
        cumulative = probabilities.cumsum(-1)  # (B, V)
        kept = cumulative - probabilities < self.config.top_p  # the first token is always kept
        mass = (probabilities * kept).sum(-1)  # (B,)
        target = self.draws[rows.cpu(), step].to(mass.device) * mass  # (B,)
        choice = torch.searchsorted(cumulative, target[:, None], right=True)  # (B, 1)
        choice = torch.minimum(choice, kept.sum(-1, keepdim=True) - 1)
        return order.gather(1, choice)[:, 0]


def _prefill(model: Decoder, batch: Tensor) -> tuple[Tensor, Cache]:
    """Return the scores of the first token (B, V), and the cache."""
    logits, _, cache = model.prefill(batch)
    return allowed(model, logits), cache


def _decode_step(model: Decoder, tokens: Tensor, cache: Cache) -> Tensor:
    """Return the scores (B, V) of the token after ``tokens`` (B,)."""
    return allowed(model, model.decode_step(tokens, cache)[0])


def allowed(model: Decoder, logits: Tensor) -> Tensor:
    """Return the scores (B, V) in float32 with padding ruled out: it is never trained, so its score means nothing."""
    scores = logits.float()
    if model.pad_id < scores.shape[1]:
        scores[:, model.pad_id] = -torch.inf
    return scores


def _stepwise(model: Decoder, batch: Tensor, limit: int, choose: _Greedy | _Nucleus) -> list[list[int]]:
    captions: list[list[int]] = [[] for _ in range(len(batch))]
    rows = torch.arange(len(batch), device=batch.device)  # rows of the batch that are not finished
    logits, cache = _prefill(model, batch)
    for step in range(limit):
        tokens = choose(logits, rows, step)  # (B,)
        going = tokens != model.end_id
        for row, token in zip(rows[going].tolist(), tokens[going].tolist(), strict=True):
            captions[row].append(token)
        if step + 1 == limit or not bool(going.any()):
            break
        if not bool(going.all()):
            kept = going.nonzero()[:, 0]
            rows, tokens = rows[kept], tokens[kept]
            cache.select(kept)
        logits = _decode_step(model, tokens, cache)
    return captions


def _beam(model: Decoder, batch: Tensor, config: GenerationConfig, limit: int) -> list[list[int]]:
    """Search with K beams; a caption is done when no open beam can beat its best finished one."""
    B, K, V = len(batch), config.beams, model.config.vocab_size
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(B)]
    logits, cache = _prefill(model, batch)
    scores, first = logits.log_softmax(-1).topk(min(2 * K, V), dim=-1)  # (B, 2K)
    history = torch.empty(B, 0, 0, dtype=torch.long)
    rows = list(range(B))
    parents = torch.zeros_like(first)  # all candidates of the first step come from the one prefix
    candidates, step = first, 0
    while True:
        open_scores, open_tokens, open_parents, kept = [], [], [], []
        for i, row in enumerate(rows):
            line: list[tuple[float, int, int]] = []
            for score, token, parent in zip(
                scores[i].tolist(), candidates[i].tolist(), parents[i].tolist(), strict=True
            ):
                if score == -np.inf:
                    continue
                if token == model.end_id:
                    # an end counts only while it is among the K best, as in the usual formulation
                    if len(line) < K:
                        ids = history[i, parent].tolist() if step else []
                        finished[row].append((score / (step + 1) ** config.length_penalty, ids))
                elif len(line) < K:
                    line.append((score, token, parent))
            if step + 1 == limit:
                for score, token, parent in line:
                    ids = history[i, parent].tolist() if step else []
                    finished[row].append((score / (step + 1) ** config.length_penalty, [*ids, token]))
                continue
            if _can_improve(line, finished[row], config, step, limit):
                line += [(-np.inf, model.end_id, 0)] * (K - len(line))
                kept.append(i)
                open_scores.append([score for score, _, _ in line])
                open_tokens.append([token for _, token, _ in line])
                open_parents.append([parent for _, _, parent in line])
        if not kept:
            break
        tokens = torch.tensor(open_tokens)  # (B, K)
        parent = torch.tensor(open_parents)  # (B, K)
        rows = [rows[i] for i in kept]
        if step:
            history = history[torch.tensor(kept)[:, None], parent]  # (B, K, step)
            select = (torch.tensor(kept)[:, None] * K + parent).flatten()
        else:
            history = torch.empty(len(kept), K, 0, dtype=torch.long)
            select = torch.tensor(kept).repeat_interleave(K)
        history = torch.cat([history, tokens[:, :, None]], dim=2)  # (B, K, step + 1)
        cache.select(select.to(batch.device))
        logits = _decode_step(model, tokens.flatten().to(batch.device), cache)  # (B * K, V)
        total = (
            logits.log_softmax(-1).view(len(kept), K, V) + torch.tensor(open_scores, device=batch.device)[:, :, None]
        )
        scores, flat = total.flatten(1).topk(min(2 * K, K * V), dim=-1)  # (B, 2K)
        parents, candidates = flat // V, flat % V
        step += 1
    return [max(options, key=lambda option: option[0])[1] for options in finished]


def _can_improve(
    line: list[tuple[float, int, int]],
    finished: list[tuple[float, list[int]]],
    config: GenerationConfig,
    step: int,
    limit: int,
) -> bool:
    """Return whether an open beam could still end above the best finished caption: scores fall, lengths grow."""
    if not line:
        return False
    if not finished:
        return True
    longest = limit if config.length_penalty > 0 else step + 2
    best = max(score for score, _ in finished)
    return bool(line[0][0] / longest**config.length_penalty > best)


@torch.inference_mode()
def generate_magic(
    model: Decoder,
    tokenizer: CaptionTokenizer,
    inputs: npt.NDArray[np.float32],
    images: npt.NDArray[np.float32],
    config: GenerationConfig,
    encoder: TextEncoder | None,
) -> list[list[int]]:
    """Generate captions by MAGIC (Su et al., 2022): the encoder re-scores every word.

    Of the k tokens that the decoder finds likeliest, the one is taken that has the highest

        (1 - alpha) p(v | text) - alpha max_j cos(h_v, h_j) + beta softmax_k(scale cos(image, text + v))

    The first term is the decoder's probability, the second penalises hidden states that repeat earlier ones, the third
    is the encoder's view of the text so far. Published settings: k = 45, alpha = 0.1, beta = 2. It costs k text
    encodings per word.

    Args:
        model: a trained decoder, in evaluation mode.
        tokenizer: its tokenizer.
        inputs: float32 (n, d), transformed as the decoder's pipeline says.
        images: float32 (n, d), as the encoder gives them: what texts are compared with.
        config: ``candidates``, ``alpha``, ``beta``, ``similarity_scale`` and ``max_tokens``.
        encoder: encodes texts into the space of ``images``.

    Returns:
        Token ids of one caption per image, without the end-of-text token.

    Raises:
        DecoderError: if there is no encoder.
    """
    if encoder is None:
        raise DecoderError("MAGIC has the encoder score every word, and no encoder was given.")
    limit = min(config.max_tokens or model.config.max_tokens, model.config.max_tokens)
    captions: list[list[int]] = []
    for start in range(0, len(inputs), _MAGIC_ROWS):
        rows = slice(start, start + _MAGIC_ROWS)
        batch = torch.from_numpy(np.ascontiguousarray(inputs[rows])).to(model.device)
        captions += _write_magic(model, tokenizer, batch, images[rows], config, encoder, limit)
    return captions


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
