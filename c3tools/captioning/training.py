"""Training of the built-in decoder on embeddings and captions.

The method's rules, where the released code of the paper departs from them: noise is drawn anew in every epoch,
for training inputs only, from (seed, epoch, key); the validation loss that picks the checkpoint has none; an
end-of-text token is learned; the loss ignores padding and nothing else.

Everything random in a step depends on (seed, epoch, batch) alone, so that a run that was killed continues exactly.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..devices import Compute
from ..errors import DecoderError
from ..reporter import SilentTracker, Tracker
from ..seeds import generator
from ..transforms import Pipeline
from .batches import length_bucketed
from .config import TrainingConfig
from .decoder import Decoder

FloatArray = npt.NDArray[np.float32]
PAUSE_SECONDS = 30.0
TRACE_STEPS = 25
_VALIDATION_BATCH = 512
_NOT_PLAIN = ("best_weights", "average", "history")


class Recorder(Protocol):
    """Told of the losses as training goes on, for example to write them for TensorBoard."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """One value at one optimiser step."""


@dataclass(frozen=True)
class CaptionSet:
    """Embeddings and the captions to be written from them.

    Attributes:
        keys: one per row; noise is keyed by them.
        embeddings: float32 (n, d), as encoded; the pipeline is applied during training.
        tokens: token ids per row, each ending in end-of-text.
        modality: what the embeddings are of: ``text`` for text-only training, ``image`` for real pairs.
    """

    keys: Sequence[str]
    embeddings: FloatArray
    tokens: Sequence[Sequence[int]]
    modality: str = "text"

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.embeddings) == len(self.tokens):
            raise DecoderError(
                f"{len(self.keys)} keys, {len(self.embeddings)} embeddings and {len(self.tokens)} captions "
                "do not form rows.",
                remedy="Give one key and one caption for each embedding.",
            )

    def __len__(self) -> int:
        return len(self.keys)

    def token_batch(self, rows: npt.NDArray[np.int64], pad_id: int) -> Tensor:
        """Token ids of ``rows``, right-padded with ``pad_id``: int64 (B, T)."""
        width = max(len(self.tokens[row]) for row in rows)
        batch = np.full((len(rows), width), pad_id, dtype=np.int64)
        for i, row in enumerate(rows):
            batch[i, : len(self.tokens[row])] = self.tokens[row]
        return torch.from_numpy(batch)


@dataclass
class Epoch:
    """What one epoch came to; losses in nats per token."""

    epoch: int
    train_loss: float
    val_loss: float
    seconds: float
    tokens: int


@dataclass
class TrainingState:
    """All that a run needs to continue exactly; position is (epoch, batch) of the next step.

    ``trace`` has (step, mean training loss since the last entry), every `TRACE_STEPS` steps.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    token_sum: int = 0
    seconds: float = 0.0
    best_val_loss: float = math.inf
    start_val_loss: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    trace: list[tuple[int, float]] = field(default_factory=list)
    traced: tuple[float, int] = (0.0, 0)

    def position(self) -> dict[str, Any]:
        """The state without its tensors, for JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in _NOT_PLAIN}
        return {**plain, "history": [asdict(epoch) for epoch in self.history]}


class Trainer:
    """Trains one decoder; ``run`` leaves the best weights in ``model``."""

    def __init__(
        self,
        model: Decoder,
        train: CaptionSet,
        val: CaptionSet,
        transform: Pipeline,
        config: TrainingConfig,
        compute: Compute,
    ) -> None:
        if not len(train) or not len(val):
            raise DecoderError(
                f"Training needs captions to learn from and others to validate on; there are {len(train)} and "
                f"{len(val)}.",
                remedy="Add captions, or name the splits that hold them.",
            )
        self.model = model.to(compute.device)
        self.train, self.val = train, val
        self.transform, self.config, self.compute = transform, config, compute
        self.state = TrainingState()
        self.lengths = np.array([len(ids) for ids in train.tokens], dtype=np.int64)
        self.steps_per_epoch = len(length_bucketed(self.lengths, config.batch_size, seed=config.seed, epoch=0))
        self.optimizer = _optimizer(self.model, config)
        self._val_inputs = transform.transform(val.embeddings, modality=val.modality, training=False)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def done_steps(self) -> int:
        """Optimiser steps taken so far."""
        return self.state.epoch * self.steps_per_epoch + self.state.batch

    def run(
        self,
        tracker: Tracker | None = None,
        on_pause: Callable[[Trainer], None] | None = None,
        recorder: Recorder | None = None,
    ) -> list[Epoch]:
        """Train to the end (or until patience runs out) and load the best weights into the model.

        Args:
            tracker: told of every step, with losses, tokens per second in its note.
            on_pause: called after each epoch and every ``PAUSE_SECONDS`` within one, to save the run.
            recorder: told of the losses.

        Returns:
            One entry per epoch.
        """
        tracker = tracker or SilentTracker()
        tracker.advance(self.done_steps)
        state, last_pause = self.state, time.monotonic()
        devices = [self.compute.device] if self.compute.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            while state.epoch < self.config.epochs and not self._out_of_patience():
                batches = length_bucketed(
                    self.lengths, self.config.batch_size, seed=self.config.seed, epoch=state.epoch
                )
                self.model.train()
                for rows in batches[state.batch :]:
                    started = time.perf_counter()
                    loss, tokens = self._step(rows)
                    state.loss_sum += loss * tokens
                    state.token_sum += tokens
                    state.seconds += time.perf_counter() - started
                    state.batch += 1
                    self._trace(loss, tokens, recorder)
                    tracker.advance(1, note=self._note())
                    if on_pause and state.batch < len(batches) and time.monotonic() - last_pause > PAUSE_SECONDS:
                        on_pause(self)
                        last_pause = time.monotonic()
                self._end_epoch(recorder)
                if on_pause:
                    on_pause(self)
                    last_pause = time.monotonic()
        self.model.load_state_dict(state.best_weights)
        self.model.eval()
        return state.history

    def keep_start(self) -> None:
        """Let the weights as they are compete for the best: training on little may only make them worse."""
        self.state.best_val_loss = self.state.start_val_loss = self.validation_loss()
        self.state.best_weights = copy.deepcopy(self.model.state_dict())

    def validation_loss(self) -> float:
        """Mean loss per token over the validation captions, without any noise or dropout."""
        self.model.eval()
        total, count, pad = 0.0, 0, self.model.pad_id
        order = np.argsort([len(ids) for ids in self.val.tokens], kind="stable")
        with torch.no_grad():
            for start in range(0, len(order), _VALIDATION_BATCH):
                rows = order[start : start + _VALIDATION_BATCH]
                tokens = self.val.token_batch(rows, pad).to(self.compute.device)
                inputs = torch.from_numpy(self._val_inputs[rows]).to(self.compute.device)
                with self._autocast():
                    logits = self.model(inputs, tokens)
                total += float(_cross_entropy(logits, tokens, pad, reduction="sum"))
                count += int((tokens != pad).sum())
        return total / count

    def _step(self, rows: npt.NDArray[np.int64]) -> tuple[float, int]:
        config, state, pad = self.config, self.state, self.model.pad_id
        rng = generator(config.seed, "step", state.epoch, state.batch)
        torch.manual_seed(int(rng.integers(2**62)))
        inputs = self.transform.transform(
            self.train.embeddings[rows],
            modality=self.train.modality,
            training=True,
            keys=[self.train.keys[row] for row in rows],
            seed=config.seed,
            epoch=state.epoch,
        )
        tokens = self.train.token_batch(rows, pad)
        seen = tokens
        if config.word_dropout:
            hidden = torch.from_numpy(rng.random(tokens.shape) < config.word_dropout)
            seen = tokens.masked_fill(hidden, pad)
        device = self.compute.device
        tokens = tokens.to(device)
        with self._autocast():
            logits = self.model(torch.from_numpy(inputs).to(device), tokens, seen.to(device))
        loss = _cross_entropy(logits, tokens, pad, label_smoothing=config.label_smoothing)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(self.done_steps, self.total_steps, config)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DecoderError(
                f"The training loss became {value} in epoch {state.epoch + 1}, step {state.batch + 1}.",
                remedy="Lower the learning rate, or train with --precision fp32.",
            )
        if config.ema:
            self._average()
        return value, int((tokens != pad).sum())

    def _average(self) -> None:
        """Move the averaged weights towards those of this step, faster in the first steps (as Polyak averaging)."""
        weights, average = self.model.state_dict(), self.state.average
        if not average:
            average.update({name: value.clone() for name, value in weights.items()})
        step = self.done_steps + 1
        weight = 1 - min(self.config.ema, step / (step + 9))
        for name, value in weights.items():
            if value.is_floating_point():
                average[name].lerp_(value, weight)

    def _trace(self, loss: float, tokens: int, recorder: Recorder | None) -> None:
        state, step = self.state, self.done_steps
        total, count = state.traced
        state.traced = (total + loss * tokens, count + tokens)
        if step % TRACE_STEPS and step != self.total_steps:
            return
        value = state.traced[0] / state.traced[1]
        state.trace.append((step, value))
        state.traced = (0.0, 0)
        if recorder:
            recorder.scalar("loss/training", value, step)
            recorder.scalar("learning rate", self.optimizer.param_groups[0]["lr"], step)
            recorder.scalar("tokens per second", state.token_sum / max(state.seconds, 1e-9), step)

    def _end_epoch(self, recorder: Recorder | None) -> None:
        state = self.state
        current = copy.deepcopy(self.model.state_dict()) if state.average else {}
        if current:
            self.model.load_state_dict(state.average)
        val_loss = self.validation_loss()
        state.history.append(
            Epoch(state.epoch + 1, state.loss_sum / state.token_sum, val_loss, state.seconds, state.token_sum)
        )
        if val_loss < state.best_val_loss:
            state.best_val_loss = val_loss
            state.best_weights = copy.deepcopy(self.model.state_dict())
        if current:
            self.model.load_state_dict(current)
        if recorder:
            recorder.scalar("loss/validation", val_loss, self.done_steps)
        state.epoch, state.batch = state.epoch + 1, 0
        state.loss_sum, state.token_sum, state.seconds = 0.0, 0, 0.0

    def _out_of_patience(self) -> bool:
        history, patience = self.state.history, self.config.patience
        if not patience or not history:
            return False
        best = min(range(len(history)), key=lambda i: history[i].val_loss)
        return len(history) - 1 - best >= patience

    def _note(self) -> str:
        state = self.state
        rate = state.token_sum / max(state.seconds, 1e-9)
        val = f", val {state.history[-1].val_loss:.3f}" if state.history else ""
        return f"epoch {state.epoch + 1}, loss {state.loss_sum / state.token_sum:.3f}{val}, {rate:,.0f} tokens/s"

    def _autocast(self) -> torch.autocast:
        compute = self.compute
        return torch.autocast(compute.device.type, dtype=compute.dtype, enabled=compute.precision != "fp32")


def _cross_entropy(
    logits: Tensor, tokens: Tensor, pad_id: int, reduction: str = "mean", label_smoothing: float = 0.0
) -> Tensor:
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        tokens.flatten(),
        ignore_index=pad_id,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _optimizer(model: Decoder, config: TrainingConfig) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)


def schedule(step: int, total: int, config: TrainingConfig) -> float:
    """The learning rate of a step as a share of its peak: linear warm-up from 0, then the decay to 0."""
    rise = max(1, round(total * config.warmup))
    if config.warmup_steps:
        rise = max(1, min(config.warmup_steps, total // 2))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, total - rise)
    return 1 - done if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
