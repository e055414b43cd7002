"""ESPER (Yu et al., CVPR 2023): a mapper in front of a frozen language model, trained with images
alone.

The language model writes captions of images that have none, the encoder compares each caption with
its image, and a policy gradient trains the mapper to write captions that are closer. The reward,
the penalty for leaving the language model, the clipped objective of PPO and its advantages are
those of the paper. These parts differ:

- The language model is one of captions (``c3 train-decoder --unconditional``), which the paper
  compares with as ESPER-Style. The mapper starts as the token that the language model begins with,
  so that it departs from it slowly.
- There are no rewards for fluency and against repetition, only the penalty for leaving the language
  model.
- A few hundred updates replace thousands. The encoder chooses the checkpoint on other images, while
  the paper chose it with captions that people wrote.

Shapes: B captions, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import devices
from ..arrays import Matrix
from ..encoders import Encoder
from ..errors import DecoderError
from ..io.artifact import digest_of
from ..moments import unit_rows
from ..seeds import torch_seed
from ..store import Rows
from ..training.loop import Validation
from .captioner import Captioner
from .config import TrainingConfig
from .generation import generate
from .model import Decoder
from .steering import encode_once
from .task import CaptioningTask

ESPER_TRAINING = TrainingConfig(
    epochs=10, batch_size=128, learning_rate=1e-3, weight_decay=0.0, beta2=0.95
)
LANGUAGE_MODEL_REMEDY = (
    "Train one with `c3 train-decoder --unconditional -o c3-lm`, and pass it with --from c3-lm."
)
_PREFIX_LENGTH = 10
_REWARD_SCALE = 50.0
_REWARD_OFFSET = -10.0
_DIVERGENCE = 0.15  # weight of log p / p_lm per token
_PASSES = 4  # over each batch of captions
_VALIDATION_IMAGES = 500
_VALUE_WEIGHT = 0.5


class EsperTask(CaptioningTask):
    """The training of a mapper in front of a language model on images; no caption of them is used.
    In fp32.

    Args:
        train: images to learn from.
        val: other images, the first 500 of which choose the checkpoint: by the mean cosine with
            their captions.
        start: a captioner without a prefix; it is not changed.
        encoder: of the model that the embeddings are of.
        config: ``epochs`` (over the images), ``batch_size``, ``learning_rate``, ``warmup``,
            ``decay``, ``clip_norm`` and ``seed`` are used.
        device: to train on; the fastest available when None.

    Raises:
        DecoderError: if the decoder reads embeddings.
    """

    unit = "images"
    error = DecoderError

    def __init__(
        self,
        train: Rows,
        val: Rows,
        start: Captioner,
        encoder: Encoder,
        config: TrainingConfig = ESPER_TRAINING,
        device: str | None = None,
    ) -> None:
        if not start.is_language_model:
            raise DecoderError(
                "ESPER starts from a plain language model, but this decoder reads embeddings.",
                remedy=LANGUAGE_MODEL_REMEDY,
            )
        self.train = train
        self.val = val.select(np.arange(min(len(val), _VALIDATION_IMAGES)))
        self.tokenizer = start.tokenizer
        self.pipeline = start.pipeline
        self.encoder = encoder
        self.config = config
        self.device = device or devices.pick(precision="fp32").device

        # The mapper in front of the language model, and the value of each hidden state
        self.language_model = copy.deepcopy(start.decoder).to(self.device).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(config.seed, "initialise"))
            self.model = self.language_model.behind_prefix(_PREFIX_LENGTH)
        no_image = torch.zeros(1, self.model.config.dim, device=self.device)
        _, hidden, _ = self.language_model.prefill(no_image)  # (1, W)
        self.value = nn.Linear(hidden.shape[1], 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.module = nn.ModuleDict({"model": self.model, "value": self.value}).to(self.device)

        # What it reads, and the schedule
        self.inputs = self.pipeline.transform(train.embeddings, modality="image")
        self.val_inputs = self.pipeline.transform(self.val.embeddings, modality="image")
        self.optimizer = config.optimizer(self.module)
        self.per_epoch = math.ceil(len(train) / config.batch_size)
        self.plan = config.plan(self.per_epoch, config.warmup * self.per_epoch)

        # A run is continued with the same settings, weights and images
        settings = [
            config,
            self.model.digest(),
            _PREFIX_LENGTH,
            _DIVERGENCE,
            _PASSES,
            _REWARD_SCALE,
        ]
        self.identity = digest_of(
            settings, train.keys, train.embeddings, self.val.keys, self.val.embeddings
        )
        self.facts = {
            "sigma": 0.0,
            "modality": "image",
            "monitor": "reward",
            "size": start.size,
            "training": {**asdict(config), "precision": "fp32"},
        }

    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Write captions of some images, and train towards those that are closer to their
        images.
        """
        config = self.config
        self.module.eval()  # without dropout
        epoch, place = divmod(number, self.per_epoch)
        order = self.order(len(self.train), config.seed, "esper", epoch)
        rows = order[place * config.batch_size : (place + 1) * config.batch_size]

        # Write captions, and compare them with their images
        torch.manual_seed(torch_seed(config.seed, "update", number))
        inputs = torch.from_numpy(np.ascontiguousarray(self.inputs[rows])).to(self.device)
        tokens = _sample(self.model, inputs)  # (B, T)
        is_word = tokens != self.model.pad_id
        similar = self._cosines(tokens.tolist(), self.train.embeddings[rows])
        cosines = torch.from_numpy(similar).to(self.device)  # (B,)

        # How much better each word was than expected
        with torch.no_grad():
            log_p_before, values = self._policy(inputs, tokens)
            log_p_lm, _ = _token_log_probabilities(self.language_model, inputs, tokens)
            expected = values * is_word
            advantages = self.advantages(cosines, log_p_before, log_p_lm, expected, is_word)
            targets = advantages + expected
            of_words = advantages[is_word]
            advantages = (advantages - of_words.mean()) / (of_words.std() + 1e-6)

        # Move towards words that did better than expected, several times over the same captions
        for _ in range(_PASSES):
            log_p, values = self._policy(inputs, tokens)
            policy_loss = self.policy_loss(log_p, log_p_before, advantages, is_word)
            value_loss = ((values - targets) ** 2)[is_word].mean()
            update(policy_loss + _VALUE_WEIGHT * value_loss)
        return 1 - float(cosines.mean()), len(rows)

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return 1 minus the mean cosine of the validation images with their greedy captions."""
        captions = generate(self.model, self.val_inputs)
        cosines = self._cosines(captions, self.val.embeddings)
        return 1 - float(cosines.mean()), {}

    def note(self, latest: Validation) -> str:
        """Return the mean cosine of the last validation in words."""
        return f"val cosine {1 - latest.val_loss:.3f}"

    def _policy(self, inputs: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability and the value (B, T) of each token of captions (B, T)."""
        log_p, hidden = _token_log_probabilities(self.model, inputs, tokens)
        return log_p, self.value(hidden.detach())[..., 0]

    def _cosines(self, captions: list[list[int]], images: Matrix) -> Matrix:
        """Return the cosine (B,) of each caption with the embedding of its image."""
        texts = [self.tokenizer.decode(ids) for ids in captions]
        embeddings = encode_once(self.encoder, texts)
        cosines: Matrix = (embeddings * unit_rows(images)).sum(axis=1).astype(np.float32)
        return cosines

    @staticmethod
    def advantages(
        cosines: Tensor,
        log_p: Tensor,
        log_p_lm: Tensor,
        values: Tensor,
        is_word: Tensor,
        smoothing: float = 0.95,
    ) -> Tensor:
        """Return the advantage of each token (B, T), without discount (GAE, Schulman et al., 2016);
        of padding 0.

            A_t = sum_k smoothing^k (r_(t+k) + V_(t+k+1) - V_(t+k)),  V = 0 after the last token
            r_t = -0.15 (log p(t) - log p_lm(t)) + [t is the last] (50 cos(image, caption) - 10)

        The reward is for leaving the language model, and at the last token for the caption.

        Args:
            cosines: of each caption with its image, (B,).
            log_p: log-probability of each token by the decoder, (B, T).
            log_p_lm: by the language model.
            values: expected sum of the rewards from each token on, (B, T).
            is_word: bool (B, T), False for padding.
            smoothing: lambda.
        """
        rewards = -_DIVERGENCE * (log_p - log_p_lm) * is_word
        captions = torch.arange(len(rewards))
        last_words = is_word.sum(1) - 1
        rewards[captions, last_words] += _REWARD_SCALE * cosines + _REWARD_OFFSET

        # From the last word to the first
        advantages = torch.zeros_like(rewards)
        next_advantage = torch.zeros_like(rewards[:, 0])
        next_value = torch.zeros_like(next_advantage)
        for t in reversed(range(rewards.shape[1])):
            surprise = rewards[:, t] + next_value - values[:, t]
            advantages[:, t] = (surprise + smoothing * next_advantage) * is_word[:, t]
            next_advantage = advantages[:, t]
            next_value = values[:, t] * is_word[:, t]
        return advantages

    @staticmethod
    def policy_loss(
        log_p: Tensor,
        log_p_before: Tensor,
        advantages: Tensor,
        is_word: Tensor,
        clip: float = 0.2,
    ) -> Tensor:
        """Return the clipped objective of PPO (Schulman et al., 2017) as a loss, mean over tokens
        without padding.

            -min(p / p_before A, clamp(p / p_before, 1 - clip, 1 + clip) A)

        Args:
            log_p: log-probability of each token (B, T).
            log_p_before: the same when the captions were written.
            advantages: of each token.
            is_word: bool (B, T), False for padding.
            clip: 0.2 in ESPER.
        """
        ratio = (log_p - log_p_before).exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        objective = torch.minimum(ratio * advantages, clipped * advantages)
        return -objective[is_word].mean()


@torch.no_grad()
def _sample(model: Decoder, inputs: Tensor) -> Tensor:
    """Draw one caption per row of what the decoder reads (B, d): int64 (B, T), right-padded; from
    torch's generator.
    """
    logits, _, cache = model.prefill(inputs)
    is_open = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    columns: list[Tensor] = []
    while len(columns) < model.config.max_tokens and is_open.any():
        if columns:
            last_tokens = columns[-1].masked_fill(~is_open, model.end_id)
            logits, _ = model.decode_step(last_tokens, cache)
        drawn = model.allowed(logits).softmax(-1).multinomial(1)[:, 0]  # (B,)
        columns.append(drawn.masked_fill(~is_open, model.pad_id))
        is_open = is_open & (drawn != model.end_id)
    return torch.stack(columns, dim=1)


def _token_log_probabilities(
    model: Decoder, inputs: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each token (B, T), of padding 0, and the hidden states (B, T,
    W).
    """
    logits, hidden = model(inputs, tokens)
    log_p = model.allowed(logits).log_softmax(-1)  # (B, T, V)
    is_word = tokens != model.pad_id
    indices = tokens.masked_fill(~is_word, model.end_id)  # padding may have no score
    of_tokens = log_p.gather(2, indices[..., None])[..., 0]
    return of_tokens * is_word, hidden
