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

from ..errors import DecoderError
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

    @classmethod
    def from_options(
        cls,
        beams: int | None = None,
        length_penalty: float = 0.7,
        top_p: float | None = None,
        temperature: float = 1.0,
        steer: str | None = None,
        seed: int = 0,
        *,
        built_in: bool = True,
    ) -> GenerationConfig:
        """Return the settings that the options of the commands mean.

        By default the built-in decoder searches with five beams, and a language model of
        transformers is greedy.

        Raises:
            DecoderError: if the options mean several methods at once.
        """
        if beams is None:
            beams = cls.beams if built_in and top_p is None and steer is None else 1
        if (beams > 1) + (top_p is not None) + (steer is not None) > 1:
            raise DecoderError(
                "--beams, --top-p and --steer exclude each other.", remedy="Choose one."
            )
        if steer is not None:
            if steer not in STEERED:
                raise DecoderError(
                    f"No method {steer!r} steers a decoder.",
                    remedy=f"Choose {' or '.join(STEERED)}.",
                )
            return cls(steer)  # type: ignore[arg-type]
        if top_p is not None:
            return cls("nucleus", top_p=top_p, temperature=temperature, seed=seed)
        return cls("beam", beams=beams, length_penalty=length_penalty) if beams > 1 else cls()


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
            captions += _beam(model, batch, config)
            continue
        draws = None
        if config.method == "nucleus":
            numbers = [
                generator(config.seed, "nucleus", key).random(model.config.max_tokens)
                for key in keys[part]
            ]
            draws = torch.from_numpy(np.array(numbers)).to(model.device)  # (B, T)
        captions += _stepwise(model, batch, config, draws)
    return captions


def _stepwise(
    model: Decoder, batch: Tensor, config: GenerationConfig, draws: Tensor | None
) -> list[list[int]]:
    """Write one token of each caption after the other: the likeliest, or by one number in [0, 1)
    per (row, step).
    """
    captions: list[list[int]] = [[] for _ in range(len(batch))]
    rows = torch.arange(len(batch), device=batch.device)  # rows of the batch that are not finished
    logits, _, cache = model.prefill(batch)
    limit = model.config.max_tokens
    for step in range(limit):
        scores = model.allowed(logits)  # (B, V)
        # (B,)
        tokens = (
            scores.argmax(-1) if draws is None else _from_nucleus(scores, config, draws[rows, step])
        )
        going = tokens != model.end_id
        if not going.all():
            kept = going.nonzero()[:, 0]
            rows, tokens = rows[kept], tokens[kept]
            cache.batch_select_indices(kept)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            captions[row].append(token)
        if step + 1 == limit or not len(rows):
            break
        logits, _ = model.decode_step(tokens, cache)
    return captions


def _from_nucleus(scores: Tensor, config: GenerationConfig, draws: Tensor) -> Tensor:
    """Sample tokens (B,) from the nucleus (Holtzman et al., 2020), by inverse transform of numbers
    in [0, 1), (B,).
    """
    probabilities, order = (
        (scores.double() / config.temperature).softmax(-1).sort(-1, descending=True)
    )
    cumulative = probabilities.cumsum(-1)  # (B, V)
    kept = cumulative - probabilities < config.top_p  # the first token is always kept
    target = draws * (probabilities * kept).sum(-1)  # (B,)
    choice = torch.searchsorted(cumulative, target[:, None], right=True)  # (B, 1)
    choice = torch.minimum(choice, kept.sum(-1, keepdim=True) - 1)
    return order.gather(1, choice)[:, 0]


def _beam(model: Decoder, batch: Tensor, config: GenerationConfig) -> list[list[int]]:
    """Search with K beams; a caption is done when no open beam can beat its best finished one."""
    K, penalty, limit = config.beams, config.length_penalty, model.config.max_tokens
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in batch]
    logits, _, cache = model.prefill(batch)
    # beams of the captions that are open; all candidates of the first step come from the one prefix
    beams: dict[int, list[tuple[float, list[int]]]] = {
        row: [(0.0, [])] for row in range(len(batch))
    }
    for step in range(limit):
        width = len(next(iter(beams.values())))
        totals = torch.tensor(
            [[total for total, _ in line] for line in beams.values()], device=batch.device
        )
        likely = model.allowed(logits).log_softmax(-1).view(len(beams), width, -1)  # (B, K, V)
        V = likely.shape[2]
        # (B, 2K)
        scores, flat = (likely + totals[:, :, None]).flatten(1).topk(min(2 * K, width * V), dim=-1)
        going: dict[int, list[tuple[float, list[int]]]] = {}
        selected: list[int] = []
        for i, (row, line) in enumerate(beams.items()):
            grown: list[tuple[float, list[int]]] = []
            parents: list[int] = []
            for score, place in zip(scores[i].tolist(), flat[i].tolist(), strict=True):
                parent, token = divmod(place, V)
                # an end counts only while it is among the K best
                if score == -np.inf or len(grown) == K:
                    break
                ids = line[parent][1] if token == model.end_id else [*line[parent][1], token]
                if token == model.end_id or step + 1 == limit:
                    finished[row].append((score / (step + 1) ** penalty, ids))
                if token != model.end_id:
                    grown.append((score, ids))
                    parents.append(parent)
            # whether an open beam could still end above the best finished caption: scores fall,
            # lengths grow
            longest = limit if penalty > 0 else step + 2
            best = max((score for score, _ in finished[row]), default=-np.inf)
            if step + 1 < limit and grown and grown[0][0] / longest**penalty > best:
                missing = K - len(grown)
                going[row] = grown + [(-np.inf, [model.end_id])] * missing
                selected += [i * width + parent for parent in parents + [0] * missing]
        if not going:
            break
        beams = going
        cache.batch_select_indices(torch.tensor(selected, device=batch.device))
        last = [ids[-1] for line in beams.values() for _, ids in line]
        logits, _ = model.decode_step(torch.tensor(last, device=batch.device), cache)  # (B * K, V)
    return [max(options, key=lambda option: option[0])[1] for options in finished]
