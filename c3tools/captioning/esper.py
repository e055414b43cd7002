"""ESPER (Yu et al., CVPR 2023): a mapper in front of a frozen language model, trained with images alone.

The language model writes captions of images that have none, the encoder compares each caption with its image, and a
policy gradient trains the mapper to write captions that are closer. The reward, the penalty for leaving the language
model, the clipped objective of PPO and its advantages are those of the paper. These parts differ:

- The language model is one of captions (``c3 train-decoder --unconditional``), which the paper compares with as
  ESPER-Style. The mapper starts as the token that the language model begins with, so that it departs from it slowly.
- There are no rewards for fluency and against repetition, only the penalty for leaving the language model.
- A few hundred updates replace thousands. The encoder chooses the checkpoint on other images, while the paper chose it
  with captions that people wrote.

Shapes: B captions, T tokens.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import devices
from ..arrays import Indices
from ..devices import Compute
from ..errors import DecoderError, telling_what_is_kept
from ..io.spill import hash_rows
from ..moments import unit_rows
from ..reporter import SILENT, Progress, Reporter
from ..seeds import generator
from ..store import Rows
from ..store.strings import hash_strings
from ..training.checkpoints import NOTHING_KEPT, CheckpointDir, interrupts_held
from ..training.optimization import adamw, set_learning_rate, warmup
from .captioner import Captioner
from .config import TrainingConfig
from .generation import generate
from .losses import clipped_policy_loss, generalized_advantages
from .model import Decoder, allowed
from .steering import TextEncoder

ESPER_TRAINING = TrainingConfig(epochs=10, batch_size=128, learning_rate=1e-3, weight_decay=0.0, beta2=0.95)
PREFIX_LENGTH = 10
REWARD_SCALE, REWARD_OFFSET = 50.0, -10.0
DIVERGENCE = 0.15  # weight of log p / p_lm per token
PASSES = 4  # over each batch of captions
VALIDATION_IMAGES = 500
_VALUE_WEIGHT = 0.5


def token_rewards(cosines: Tensor, log_p: Tensor, log_p_lm: Tensor, real: Tensor) -> Tensor:
    """Return the reward of each token (B, T): for leaving the language model, and at the last one for the caption.

        r_t = -0.15 (log p(t) - log p_lm(t)) + [t is the last] (50 cos(image, caption) - 10)

    Args:
        cosines: of each caption with its image, (B,).
        log_p: log-probability of each token by the decoder, (B, T).
        log_p_lm: by the language model.
        real: bool (B, T), False for padding.
    """
    rewards = -DIVERGENCE * (log_p - log_p_lm) * real
    last = real.sum(1) - 1
    rewards[torch.arange(len(rewards)), last] += REWARD_SCALE * cosines + REWARD_OFFSET
    return rewards


def fit_esper(
    train: Rows,
    val: Rows,
    language_model: Captioner,
    encoder: TextEncoder,
    *,
    training: TrainingConfig | None = None,
    compute: Compute | None = None,
    record: dict[str, Any] | None = None,
    checkpoints: CheckpointDir | None = None,
    finished: Callable[[str], Captioner | None] = lambda identity: None,
    label: str = "ESPER",
    reporter: Reporter = SILENT,
) -> Captioner:
    """Train a mapper in front of a language model on images; no caption of them is used.

    Args:
        train: images to learn from.
        val: other images, the first 500 of which choose the checkpoint: by the mean cosine with their captions.
        language_model: a captioner without a prefix; it is not changed.
        encoder: of the model that the embeddings are of.
        training: ``epochs`` (over the images), ``batch_size``, ``learning_rate``, ``warmup``, ``decay``, ``clip_norm``
            and ``seed`` are used; `ESPER_TRAINING` when None.
        compute: the device is used; computed in fp32.
        record, checkpoints, finished, label, reporter: as `fit_captioner` takes them.

    Raises:
        DecoderError: if the decoder reads embeddings, or there are no images to learn from or to choose by.
    """
    if not language_model.is_language_model:
        raise DecoderError(
            "ESPER starts from a language model, and this decoder reads embeddings.",
            remedy="Train one with `c3 train-decoder --unconditional -o c3-lm`, and name it with --from c3-lm.",
        )
    if not len(train) or not len(val):
        raise DecoderError(
            f"ESPER learns from images, and chooses the checkpoint on others; there are {len(train)} and {len(val)}.",
            remedy="Embed images of the train and the val split.",
        )
    device = (compute or devices.pick(precision="fp32")).device
    trainer = _Trainer(train, val, language_model, encoder, training or ESPER_TRAINING, device)
    if (there := finished(trainer.identity)) is not None:
        return there
    history = trainer.run(checkpoints, label, reporter)
    content = {
        "sigma": 0.0,
        **(record or {}),
        "identity": trainer.identity,
        "preset": language_model.pipeline.name,
        "modality": "image",
        "monitor": "reward",
        "size": language_model.record.get("size"),
        "seed": trainer.config.seed,
        "dim": trainer.policy.model.config.dim,
        "captions": {"train": len(train), "val": len(trainer.val)},
        "training": {**asdict(trainer.config), "precision": "fp32"},
        "history": history,
        "trace": [],
        "start_val_loss": None,
        "best_val_loss": trainer.best,
    }
    return Captioner(trainer.policy.model.eval(), language_model.tokenizer, language_model.pipeline, content)


class _Policy(nn.Module):
    """The decoder with its mapper, and the value of each state."""

    def __init__(self, model: Decoder, width: int) -> None:
        super().__init__()
        self.model = model
        self.value = nn.Linear(width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, inputs: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability and the value (B, T) of each token of captions (B, T)."""
        logits, hidden = self.model.score(inputs, tokens)
        values: Tensor = self.value(hidden.detach())[..., 0]
        return token_log_probabilities(self.model, logits, tokens), values


def token_log_probabilities(model: Decoder, logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability (B, T) of each token of captions (B, T), given scores (B, T, V); of padding 0."""
    B, T, V = logits.shape
    real = tokens != model.pad_id
    log_p = allowed(model, logits.reshape(B * T, V)).log_softmax(-1).view(B, T, V)
    known = tokens.masked_fill(~real, model.end_id)
    return log_p.gather(2, known[..., None])[..., 0] * real


class _Trainer:
    """The training loop; all random numbers of an update depend only on (seed, update)."""

    def __init__(
        self,
        train: Rows,
        val: Rows,
        language_model: Captioner,
        encoder: TextEncoder,
        config: TrainingConfig,
        device: str,
    ) -> None:
        self.train, self.val = train, val.select(np.arange(min(len(val), VALIDATION_IMAGES)))
        self.tokenizer, self.encoder, self.config, self.device = language_model.tokenizer, encoder, config, device
        self.language_model = copy.deepcopy(language_model.torch_decoder()).to(device).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(config.seed, "initialise").integers(2**62)))
            model = self.language_model.behind_prefix(PREFIX_LENGTH)
        width = self.language_model.prefill(torch.zeros(1, model.config.dim, device=device))[1].shape[1]
        self.policy = _Policy(model, width).to(device)
        self.policy.eval()  # without dropout
        self.inputs, self.val_inputs = (
            language_model.pipeline.transform(rows.embeddings, modality="image", training=False)
            for rows in (train, self.val)
        )
        self.optimizer = adamw(
            self.policy.parameters(),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, config.beta2),
        )
        self.batches = math.ceil(len(train) / config.batch_size)
        self.history: list[dict[str, Any]] = []
        self.best = math.inf
        self.best_weights: dict[str, Tensor] = {}

    @cached_property
    def identity(self) -> str:
        """A digest of all that the run depends on, taken before it begins."""
        plain = [asdict(self.config), self.policy.model.digest(), PREFIX_LENGTH, DIVERGENCE, PASSES, REWARD_SCALE]
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
        for rows in (self.train, self.val):
            hash_strings(digest, rows.keys)
            hash_rows(digest, rows.embeddings)
        return digest.hexdigest()

    def run(self, checkpoints: CheckpointDir | None, label: str, reporter: Reporter) -> list[dict[str, Any]]:
        """Train to the end, with the best mapper; the run is saved after each epoch. Returns the epochs."""
        _ = self.identity  # of the initial weights
        if checkpoints is not None:
            self._resume(checkpoints, reporter)
        total = self.config.epochs * self.batches
        kept = NOTHING_KEPT

        def what_is_kept() -> str:
            return kept if checkpoints is None else checkpoints.after_interrupt(total)

        with (
            telling_what_is_kept(what_is_kept),
            reporter.progress(label, total) as progress,
            torch.random.fork_rng(devices=[self.device] if self.device.startswith("cuda") else []),
            interrupts_held() as interrupted,
        ):
            progress.resume(len(self.history) * self.batches)
            while len(self.history) < self.config.epochs:
                if not self._run_epoch(progress, interrupted):
                    return self.history
                reporter.scalar("loss/validation", self.history[-1]["val_loss"], len(self.history) * self.batches)
                if checkpoints is not None:
                    self._save(checkpoints)
        self.policy.model.load_state_dict(self.best_weights)
        return self.history

    def _run_epoch(self, progress: Progress, interrupted: Callable[[], bool]) -> bool:
        """Train on all images once, and choose the best mapper so far; return False if the run was interrupted."""
        epoch, started = len(self.history), time.perf_counter()
        order = generator(self.config.seed, "esper", epoch).permutation(len(self.train))
        cosines, tokens = [], 0
        for batch in range(self.batches):
            rows = order[batch * self.config.batch_size : (batch + 1) * self.config.batch_size]
            cosine, count = self._update(rows, epoch * self.batches + batch)
            cosines.append(cosine)
            tokens += count
            progress.advance(1, note=f"epoch {epoch + 1}, mean cosine {np.mean(cosines):.3f}")
            if interrupted():
                return False
        val_loss = 1 - self._validate()
        seconds = time.perf_counter() - started
        train_loss = 1 - float(np.mean(cosines))
        self.history.append(
            {"epoch": epoch + 1, "train_loss": train_loss, "val_loss": val_loss, "seconds": seconds, "tokens": tokens}
        )
        if val_loss < self.best:
            self.best, self.best_weights = val_loss, copy.deepcopy(self.policy.model.state_dict())
        return True

    def _update(self, rows: Indices, number: int) -> tuple[float, int]:
        """Write captions of some images, and train towards those that are closer to their images.

        Returns:
            Their mean cosine, and how many tokens they have.
        """
        config, policy = self.config, self.policy
        torch.manual_seed(int(generator(config.seed, "update", number).integers(2**62)))
        inputs = torch.from_numpy(np.ascontiguousarray(self.inputs[rows])).to(self.device)
        tokens = sample(policy.model, inputs)  # (B, T)
        real = tokens != policy.model.pad_id
        cosines = self._cosines(tokens, self.train.embeddings[rows])  # (B,)
        with torch.no_grad():
            before, values = policy(inputs, tokens)
            unprefixed = self.language_model.score(inputs, tokens)[0]
            log_p_lm = token_log_probabilities(self.language_model, unprefixed, tokens)
            rewards = token_rewards(cosines, before, log_p_lm, real)
            advantages = generalized_advantages(rewards, values * real, real)
            targets = advantages + values * real
            own = advantages[real]
            advantages = (advantages - own.mean()) / (own.std() + 1e-6)
        share = warmup(number, config.epochs * self.batches, max(1, round(config.warmup * self.batches)), config.decay)
        set_learning_rate(self.optimizer, config.learning_rate * share)
        for _ in range(PASSES):
            log_p, values = policy(inputs, tokens)
            value_loss = ((values - targets) ** 2)[real].mean()
            loss = clipped_policy_loss(log_p, before, advantages, real) + _VALUE_WEIGHT * value_loss
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), config.clip_norm)
            self.optimizer.step()
        return float(cosines.mean()), int(real.sum())

    def _cosines(self, tokens: Tensor, images: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
        """Return the cosine (B,) of each caption with the embedding of its image."""
        texts = [self.tokenizer.decode(ids) for ids in tokens.tolist()]
        different = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        embeddings = self.encoder.encode_texts(list(different))
        written = embeddings[[different[text] for text in texts]]
        return torch.from_numpy((written * unit_rows(images)).sum(axis=1).astype(np.float32)).to(self.device)

    def _validate(self) -> float:
        """Return the mean cosine of the validation images with their greedy captions."""
        captions = generate(self.policy.model, self.val_inputs)
        texts = [self.tokenizer.decode(ids) for ids in captions]
        return float((self.encoder.encode_texts(texts) * unit_rows(self.val.embeddings)).sum(axis=1).mean())

    def _save(self, checkpoints: CheckpointDir) -> None:
        tensors = {"policy": self.policy.state_dict(), "best": self.best_weights}
        position = {"history": self.history, "best": self.best}
        checkpoints.save(len(self.history) * self.batches, self.identity, position, tensors, self.optimizer)

    def _resume(self, checkpoints: CheckpointDir, reporter: Reporter) -> None:
        found = checkpoints.resume(self.identity, self.optimizer, reporter)
        if found is not None:
            position, groups = found
            self.policy.load_state_dict(groups["policy"])
            self.best_weights = {name: value.to(self.device) for name, value in groups["best"].items()}
            self.history, self.best = position["history"], position["best"]
            reporter.message(f"Continuing the run saved in {checkpoints.path} after epoch {len(self.history)}.")


@torch.no_grad()
def sample(model: Decoder, inputs: Tensor) -> Tensor:
    """Draw one caption per row of what the decoder reads (B, d): int64 (B, T), right-padded; from torch's generator."""
    logits, _, cache = model.prefill(inputs)
    going = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    columns: list[Tensor] = []
    while len(columns) < model.config.max_tokens and going.any():
        if columns:
            logits, _ = model.decode_step(columns[-1].masked_fill(~going, model.end_id), cache)
        drawn = allowed(model, logits).softmax(-1).multinomial(1)[:, 0]  # (B,)
        columns.append(drawn.masked_fill(~going, model.pad_id))
        going = going & (drawn != model.end_id)
    return torch.stack(columns, dim=1)
