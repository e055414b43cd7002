"""Batched generation with a key-value cache: greedy, beam search and nucleus sampling; by torch or by numpy.

Rows are independent: the caption of an embedding does not depend on what else is in its batch, and samples are
drawn from (seed, key).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from ..arrays import Floats, Indices
from ..errors import DecoderError
from ..seeds import generator
from ..training.sizes import require_valid
from .config import Shape

Method = Literal["greedy", "beam", "nucleus", "magic", "zerocap"]
STEERED = ("magic", "zerocap")


class Scores(Protocol):
    """Scores of the next token: B rows, one for each of V tokens."""

    def best(self) -> Indices:
        """Return the token (B,) with the highest score."""

    def sample(self, uniform: Floats, top_p: float, temperature: float) -> Indices:
        """Return a token (B,) of the nucleus, by inverse transform of one number in [0, 1) for each row, (B,)."""

    def extend(self, totals: Floats, count: int) -> tuple[Floats, Indices]:
        """Return the best extensions of hypotheses, K for each of n captions; B is n times K.

        Args:
            totals: their log-probabilities (n, K) so far.
            count: how many of the K times V extensions to return.

        Returns:
            Log-probabilities (n, count), the highest first, and extensions (n, count): hypothesis times V plus token.
        """


class StepwiseDecoder(Protocol):
    """A decoder that writes captions token by token."""

    pad_id: int
    end_id: int

    @property
    def config(self) -> Shape:
        """The dimensions of its input and its scores, and the longest caption."""

    def start(self, inputs: npt.NDArray[np.float32]) -> tuple[Scores, Any]:
        """Run the prefix of embeddings (B, d): the scores of the first token, and the cache."""

    def extend(self, tokens: Indices, cache: Any) -> Scores:
        """Run tokens (B,) and extend the cache: the scores of the next token."""

    def select(self, cache: Any, rows: Indices) -> None:
        """Keep, repeat or reorder rows of the cache: int64 (any number,)."""


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of generation.

    Attributes:
        method: ``greedy`` (the paper's), ``beam`` or ``nucleus``; or, steered by the encoder, ``magic`` (it scores each
            word again) or ``zerocap`` (a gradient shifts what the decoder has read).
        beams: hypotheses kept per caption by ``beam`` and ``zerocap``.
        length_penalty: ``beam`` compares hypotheses by log-probability / length ** this.
        top_p: ``nucleus`` samples from the smallest set of tokens that has this probability.
        temperature: ``nucleus`` divides the scores by this.
        candidates: tokens that the encoder compares at each step: 45 in MAGIC (k), 512 in ZeroCap.
        alpha: weight of ``magic``'s penalty on repetition.
        beta: weight of ``magic``'s similarity of the text so far with the image.
        similarity_scale: cosines are multiplied by this before their softmax over the candidates.
        gradient_steps: of ``zerocap``, for each word.
        step_size: of each; gradients are divided by their norm ** 0.9.
        fluency: weight of ``zerocap``'s divergence from the decoder as it was.
        fusion: ``zerocap`` multiplies its probabilities ** this by those of the decoder as it was ** (1 - this).
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
    gradient_steps: int = 5
    step_size: float = 0.3
    fluency: float = 0.2
    fusion: float = 0.99
    max_tokens: int | None = None
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise DecoderError(
                f"There is no generation method {self.method!r}.", remedy=f"Choose from {', '.join(get_args(Method))}."
            )
        positive = ("beams", "batch_size", "temperature", "top_p", "candidates")
        require_valid(self, positive=positive, error=DecoderError)
        if self.top_p > 1:
            raise DecoderError(f"top_p is a probability and must be at most 1, not {self.top_p}.")
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
        steer: str | None = None,
        seed: int = 0,
    ) -> GenerationConfig:
        """Return the settings that the options of the commands mean; by default captions are greedy.

        Raises:
            DecoderError: if the options mean several methods at once.
        """
        if (beams > 1) + (top_p is not None) + (steer is not None) > 1:
            raise DecoderError("--beams, --top-p and --steer exclude each other.", remedy="Choose one.")
        if steer is not None:
            if steer not in STEERED:
                raise DecoderError(f"No method {steer!r} steers a decoder.", remedy=f"Choose {' or '.join(STEERED)}.")
            return cls("magic") if steer == "magic" else cls("zerocap", candidates=512)
        if top_p is not None:
            return cls("nucleus", top_p=top_p, temperature=temperature, seed=seed)
        return cls("beam", beams=beams, length_penalty=length_penalty) if beams > 1 else cls()


def generate(
    model: StepwiseDecoder,
    inputs: npt.NDArray[np.float32],
    config: GenerationConfig | None = None,
    keys: Sequence[str] | None = None,
) -> list[list[int]]:
    """Generate the token ids of one caption per input, without the end-of-text token.

    Args:
        model: a trained decoder.
        inputs: float32 (n, d), transformed as the decoder's pipeline says.
        config: method and its settings; greedy by default.
        keys: one per input; needed by ``nucleus``, which draws from (seed, key).

    Raises:
        DecoderError: if the inputs have another dimension than the decoder, or keys are missing.
    """
    config = config or GenerationConfig()
    if inputs.ndim != 2 or inputs.shape[1] != model.config.dim:
        raise DecoderError(
            f"The decoder needs embeddings of {model.config.dim} dimensions, but the input has shape {inputs.shape}.",
            remedy="Use embeddings of the model that the decoder was trained on.",
        )
    if config.method == "nucleus" and (keys is None or len(keys) != len(inputs)):
        raise DecoderError(
            f"Sampling depends on the keys of the inputs: pass keys=, one for each of the {len(inputs)} inputs."
        )
    limit = min(config.max_tokens or model.config.max_tokens, model.config.max_tokens)
    captions: list[list[int]] = []
    for start in range(0, len(inputs), config.batch_size):
        batch = np.ascontiguousarray(inputs[start : start + config.batch_size])
        if config.method == "beam":
            captions += _beam(model, batch, config, limit)
        elif config.method == "nucleus":
            assert keys is not None
            drawn = keys[start : start + len(batch)]
            draws = np.array([generator(config.seed, "nucleus", key).random(limit) for key in drawn])
            captions += _stepwise(model, batch, limit, partial(_nucleus, config, draws))
        else:
            captions += _stepwise(model, batch, limit, lambda scores, rows, step: scores.best())
    return captions


def _nucleus(config: GenerationConfig, draws: Floats, scores: Scores, rows: Indices, step: int) -> Indices:
    """Sample from the nucleus (Holtzman et al., 2020), with one uniform number for each (row, step)."""
    return scores.sample(draws[rows, step], config.top_p, config.temperature)


def _stepwise(
    model: StepwiseDecoder,
    batch: npt.NDArray[np.float32],
    limit: int,
    choose: Callable[[Scores, Indices, int], Indices],
) -> list[list[int]]:
    captions: list[list[int]] = [[] for _ in range(len(batch))]
    rows = np.arange(len(batch))  # rows of the batch that are not finished
    scores, cache = model.start(batch)
    for step in range(limit):
        tokens = choose(scores, rows, step)  # (B,)
        going = tokens != model.end_id
        for row, token in zip(rows[going].tolist(), tokens[going].tolist(), strict=True):
            captions[row].append(token)
        if step + 1 == limit or not going.any():
            break
        if not going.all():
            kept = np.flatnonzero(going)
            rows, tokens = rows[kept], tokens[kept]
            model.select(cache, kept)
        scores = model.extend(tokens, cache)
    return captions


def _beam(
    model: StepwiseDecoder, batch: npt.NDArray[np.float32], config: GenerationConfig, limit: int
) -> list[list[int]]:
    """Search with K beams; a caption is done when no open beam can beat its best finished one."""
    B, K, V = len(batch), config.beams, model.config.vocab_size
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(B)]
    first, cache = model.start(batch)
    history = np.empty((B, 0, 0), np.int64)
    rows = list(range(B))
    # all candidates of the first step come from the one prefix
    scores, flat = first.extend(np.zeros((B, 1)), min(2 * K, V))  # (B, 2K)
    step = 0
    while True:
        parents, candidates = flat // V, flat % V
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
        tokens, parent = np.array(open_tokens), np.array(open_parents)  # (B, K)
        rows = [rows[i] for i in kept]
        if step:
            history = history[np.array(kept)[:, None], parent]  # (B, K, step)
            selected = (np.array(kept)[:, None] * K + parent).ravel()
        else:
            history = np.empty((len(kept), K, 0), np.int64)
            selected = np.repeat(kept, K)
        history = np.concatenate([history, tokens[:, :, None]], axis=2)  # (B, K, step + 1)
        model.select(cache, selected)
        following = model.extend(tokens.ravel(), cache)  # (B * K, V)
        scores, flat = following.extend(np.array(open_scores), min(2 * K, K * V))  # (B, 2K)
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
