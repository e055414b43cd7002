"""Batched generation with a key-value cache: greedy, beam search and nucleus sampling.

Rows are independent: the caption of an embedding does not depend on what else is in its batch, and
samples are drawn from (seed, key).

Shapes: B captions, K beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import DecoderError, UnusedOptionError
from ..seeds import generator
from ..training.sizes import require_valid
from .model import Decoder

Method = Literal["greedy", "beam", "nucleus", "magic", "zerocap"]
STEERED = ("magic", "zerocap")


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of generation.

    Attributes:
        method: ``greedy`` (the paper's), ``beam`` or ``nucleus``; or, steered by the encoder,
            ``magic`` (it scores each word again) or ``zerocap`` (a gradient shifts what the decoder
            has read).
        beams: hypotheses kept per caption by ``beam``.
        length_penalty: ``beam`` compares hypotheses by log-probability / length ** this.
        top_p: ``nucleus`` samples from the smallest set of tokens that has this probability.
        temperature: ``nucleus`` divides the scores by this.
        batch_size: embeddings per batch.
        seed: of ``nucleus``.
    """

    method: Method = "greedy"
    beams: int = 5
    length_penalty: float = 0.7
    top_p: float = 0.9
    temperature: float = 1.0
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise DecoderError(
                f"There is no generation method {self.method!r}.",
                remedy=f"Choose from {', '.join(get_args(Method))}.",
            )
        positive = ("beams", "batch_size", "temperature", "top_p")
        require_valid(self, positive=positive, shares=("top_p",), error=DecoderError)


@dataclass(frozen=True)
class GenerationOptions:
    """The options of commands that say how captions are generated; see `caption_images`.

    Attributes:
        beams: hypotheses; 1 is greedy. By default 5 for the built-in decoder, and 1 for a language
            model of transformers.
        length_penalty: of the comparison of beams.
        top_p: samples from a nucleus of this probability.
        temperature: of these samples.
        steer: ``magic`` or ``zerocap``, if the encoder steers the decoder.
        seed: of these samples.
    """

    beams: int | None = None
    length_penalty: float = 0.7
    top_p: float | None = None
    temperature: float = 1.0
    steer: str | None = None
    seed: int = 0

    def config(self, *, built_in: bool = True) -> GenerationConfig:
        """Return the settings of generation that the options mean.

        Args:
            built_in: whether the decoder is the built-in one.

        Raises:
            DecoderError: if the options mean several methods at once.
            UnusedOptionError: if a length penalty is given for another method than beam search.
        """
        beams = self.beams
        if beams is None:
            searches = built_in and self.top_p is None and self.steer is None
            beams = GenerationConfig.beams if searches else 1
        if (beams > 1) + (self.top_p is not None) + (self.steer is not None) > 1:
            raise DecoderError(
                "--beams, --top-p and --steer exclude each other.", remedy="Choose one."
            )
        if self.length_penalty != GenerationConfig.length_penalty and beams == 1:
            raise UnusedOptionError("--length-penalty", "without beam search (--beams above 1)")
        if self.steer is not None:
            if self.steer not in STEERED:
                raise DecoderError(
                    f"No method {self.steer!r} steers a decoder.",
                    remedy=f"Choose {' or '.join(STEERED)}.",
                )
            return GenerationConfig(self.steer)  # type: ignore[arg-type]
        if self.top_p is not None:
            return GenerationConfig(
                "nucleus", top_p=self.top_p, temperature=self.temperature, seed=self.seed
            )
        if beams > 1:
            return GenerationConfig("beam", beams=beams, length_penalty=self.length_penalty)
        return GenerationConfig()


@torch.inference_mode()
def generate(
    model: Decoder,
    inputs: npt.NDArray[np.float32],
    config: GenerationConfig | None = None,
    keys: Sequence[str] = (),
) -> list[list[int]]:
    """Generate the token ids of one caption per input, without the end-of-text token.

    Args:
        model: a trained decoder, in evaluation mode.
        inputs: float32 (n, d), transformed as the decoder's pipeline says.
        config: method and its settings; greedy by default.
        keys: one per input; needed by ``nucleus``, which draws from (seed, key).
    """
    config = config or GenerationConfig()
    captions: list[list[int]] = []
    for start in range(0, len(inputs), config.batch_size):
        part = slice(start, start + config.batch_size)
        batch = torch.from_numpy(np.ascontiguousarray(inputs[part])).to(model.device)
        if config.method == "beam":
            captions += _search_with_beams(model, batch, config)
            continue
        draws = None
        if config.method == "nucleus":
            numbers = [
                generator(config.seed, "nucleus", key).random(model.config.max_tokens)
                for key in keys[part]
            ]
            # MPS has no float64, so the CPU samples in its place
            draws_on = "cpu" if model.device.type == "mps" else model.device
            draws = torch.from_numpy(np.array(numbers)).to(draws_on)  # (B, T)
        captions += _write_step_by_step(model, batch, config, draws)
    return captions


def _write_step_by_step(
    model: Decoder, batch: Tensor, config: GenerationConfig, draws: Tensor | None
) -> list[list[int]]:
    """Write one token of each caption after the other.

    Args:
        model: the decoder.
        batch: its inputs (B, d).
        config: of the nucleus.
        draws: numbers in [0, 1), (B, T), that sample from the nucleus; None for the likeliest
            token.
    """
    captions: list[list[int]] = [[] for _ in range(len(batch))]
    unfinished_rows = list(range(len(batch)))
    logits, _, cache = model.prefill(batch)
    limit = model.config.max_tokens
    for step in range(limit):
        scores = model.allowed(logits)  # (B, V)
        if draws is None:
            tokens = scores.argmax(-1)  # (B,)
        else:
            tokens = _sample_from_nucleus(scores, config, draws[:, step])  # (B,)

        # The only place where the host waits for a GPU
        new_tokens = tokens.tolist()
        continued = [place for place, token in enumerate(new_tokens) if token != model.end_id]
        for place in continued:
            captions[unfinished_rows[place]].append(new_tokens[place])

        # Drop the captions that end here
        if len(continued) < len(unfinished_rows):
            unfinished_rows = [unfinished_rows[place] for place in continued]
            places = torch.tensor(continued, dtype=torch.int64, device=batch.device)
            tokens = tokens[places]
            draws = None if draws is None else draws[places.to(draws.device)]
            cache.batch_select_indices(places)
        if step + 1 == limit or not unfinished_rows:
            break
        logits, _ = model.decode_step(tokens, cache)
    return captions


def _sample_from_nucleus(scores: Tensor, config: GenerationConfig, draws: Tensor) -> Tensor:
    """Sample tokens (B,) from the nucleus (Holtzman et al., 2020), by inverse transform of numbers
    in [0, 1), (B,). It is computed where these numbers are.
    """
    unsorted = (scores.to(draws.device).double() / config.temperature).softmax(-1)
    probabilities, order = unsorted.sort(-1, descending=True)  # (B, V)
    cumulative = probabilities.cumsum(-1)  # (B, V)
    is_in_nucleus = cumulative - probabilities < config.top_p  # the first token always is
    target = draws * (probabilities * is_in_nucleus).sum(-1)  # (B,)
    rank = torch.searchsorted(cumulative, target[:, None], right=True)  # (B, 1)
    rank = torch.minimum(rank, is_in_nucleus.sum(-1, keepdim=True) - 1)
    return order.gather(1, rank)[:, 0].to(scores.device)


@dataclass(frozen=True)
class _Beam:
    """A hypothesis: the tokens so far, and what it is compared by."""

    score: float  # log-probability; of a finished caption, divided by the length penalty
    tokens: list[int]


def _search_with_beams(model: Decoder, batch: Tensor, config: GenerationConfig) -> list[list[int]]:
    """Search with K beams; a caption is done when no open beam can beat its best finished one."""
    K = config.beams
    limit = model.config.max_tokens
    finished: list[list[_Beam]] = [[] for _ in range(len(batch))]
    logits, _, cache = model.prefill(batch)
    # Beams of the captions that are not done, by row. There is one at first: the empty caption
    open_beams = {row: [_Beam(0.0, [])] for row in range(len(batch))}
    for step in range(limit):
        is_last = step + 1 == limit
        length_penalty = (step + 1) ** config.length_penalty
        width = len(next(iter(open_beams.values())))
        totals = torch.tensor(
            [[beam.score for beam in beams] for beams in open_beams.values()], device=batch.device
        )
        log_p = model.allowed(logits).log_softmax(-1).view(len(open_beams), width, -1)  # (B, K, V)
        V = log_p.shape[2]
        # K of the best 2K candidates are no ends, because each beam has one end
        all_scores = (log_p + totals[:, :, None]).flatten(1)  # (B, K * V)
        scores, candidates = all_scores.topk(min(2 * K, width * V), dim=-1)  # (B, 2K)
        best_scores = scores.tolist()
        best_candidates = candidates.tolist()

        next_beams: dict[int, list[_Beam]] = {}
        cache_rows: list[int] = []  # the beams that those of the next step continue
        for place, (row, beams) in enumerate(open_beams.items()):
            continued: list[_Beam] = []
            parents: list[int] = []
            for score, candidate in zip(best_scores[place], best_candidates[place], strict=True):
                # an end counts only while it is among the K best
                if score == -np.inf or len(continued) == K:
                    break
                parent, token = divmod(candidate, V)
                tokens = beams[parent].tokens
                if token != model.end_id:
                    tokens = [*tokens, token]
                    continued.append(_Beam(score, tokens))
                    parents.append(parent)
                if token == model.end_id or is_last:
                    finished[row].append(_Beam(score / length_penalty, tokens))
            if is_last or not continued:
                continue

            # Could an open beam still end above the best finished caption? Its log-probability can
            # only fall, and its length grow
            best_length = limit if config.length_penalty > 0 else step + 2
            best_possible = continued[0].score / best_length**config.length_penalty
            best_finished = max((beam.score for beam in finished[row]), default=-np.inf)
            if best_possible > best_finished:
                # beams that are missing have probability 0
                missing = K - len(continued)
                padding = [_Beam(-np.inf, [model.end_id])] * missing
                next_beams[row] = continued + padding
                parents += [0] * missing
                cache_rows += [place * width + parent for parent in parents]
        if not next_beams:
            break
        open_beams = next_beams
        cache.batch_select_indices(torch.tensor(cache_rows, device=batch.device))
        last_tokens = [beam.tokens[-1] for beams in open_beams.values() for beam in beams]
        last = torch.tensor(last_tokens, device=batch.device)
        logits, _ = model.decode_step(last, cache)  # (B * K, V)
    return [max(beams, key=lambda beam: beam.score).tokens for beams in finished]
