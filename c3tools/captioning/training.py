"""The training loop of caption decoders.

It follows the method as published, which the released code of the paper does not always do: noise is drawn again in
every epoch, for training inputs only, from (seed, epoch, key); the validation loss that chooses the checkpoint has no
noise; an end-of-text token is learned; the loss ignores padding and nothing else.

Everything random in a step depends on (seed, epoch, batch) alone, so a run that was killed continues exactly.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import Indices
from ..devices import Compute
from ..errors import DecoderError, telling_what_is_kept
from ..io.spill import blocks_of, collect_rows, hash_rows
from ..reporter import SILENT, Progress, Reporter
from ..seeds import generator
from ..store.rows import Rows
from ..store.strings import hash_strings
from ..training.checkpoints import NOTHING_KEPT, CheckpointDir, interrupts_held
from ..training.optimization import adamw, set_learning_rate, warmup
from ..transforms import Pipeline
from .config import TrainingConfig
from .losses import contrastive_loss, cross_entropy
from .model import Decoder
from .tokenizer import CaptionTokenizer, TokenRows, length_bucketed, token_batch

CHECKPOINT_SECONDS = 30.0
TRACE_STEPS = 25
_VALIDATION_BATCH = 512
_NOT_PLAIN = ("best_weights", "average", "history")


@dataclass
class Epoch:
    """Metrics of one epoch; losses in nats per token."""

    epoch: int
    train_loss: float
    val_loss: float
    seconds: float
    tokens: int


@dataclass
class TrainingState:
    """State of a run, from which it continues exactly; the next step is (epoch, batch).

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
        """Return the state without its tensors, for JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in _NOT_PLAIN}
        return {**plain, "history": [asdict(epoch) for epoch in self.history]}

    @classmethod
    def restore(cls, position: Mapping[str, Any], best: dict[str, Tensor], average: dict[str, Tensor]) -> TrainingState:
        """Make the state again from its position and its tensors."""
        history = [Epoch(**epoch) for epoch in position["history"]]
        return cls(**{**position, "history": history}, best_weights=best, average=average)


class Trainer:
    """Training of one decoder; `run` leaves the best weights in ``model``.

    Args:
        model: the decoder to train.
        tokenizer: its tokenizer.
        train: rows with the column ``caption``; the decoder learns to write each caption from its embedding.
        val: rows that the checkpoint is chosen on; their embeddings get no noise.
        pipeline: fitted; applied to the embeddings during training.
        config: settings of the training.
        compute: device and precision.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: CaptionTokenizer,
        train: Rows,
        val: Rows,
        pipeline: Pipeline,
        config: TrainingConfig,
        compute: Compute,
    ) -> None:
        self.model = model.to(compute.device)
        self.train, self.val = train, val
        encode = partial(tokenizer.encode, max_tokens=model.config.max_tokens)
        self.train_tokens, self.val_tokens = TokenRows(encode, train.captions), TokenRows(encode, val.captions)
        self.pipeline, self.config, self.compute = pipeline, config, compute
        self.state = TrainingState()
        self.steps_per_epoch = len(self._batches(0))
        self.optimizer = adamw(
            self.model.parameters(),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, config.beta2),
            fused=True,
        )
        transformed = (
            pipeline.transform(block, modality=val.modality, training=False) for block in blocks_of(val.embeddings)
        )
        self._val_inputs = collect_rows(transformed, val.embeddings.shape[1:], np.float32)

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
        checkpoints: CheckpointDir | None = None,
        *,
        keep_initial: bool = False,
        label: str = "Training",
        reporter: Reporter = SILENT,
    ) -> list[Epoch]:
        """Train to the end, or until patience runs out, and load the best weights into the model.

        Args:
            checkpoints: where the run is saved after each epoch and every `CHECKPOINT_SECONDS`; a run that is saved
                there with the same settings and data is continued.
            keep_initial: evaluate the initial weights too, so that they are kept if no epoch improves on them.
            label: what the progress is called.
            reporter: shows the progress, and records losses, learning rate and tokens per second.

        Returns:
            One entry per epoch.

        Raises:
            DecoderError: if the loss is not finite.
            OutputError: if a run of other settings is saved there that is not to be dropped.
            KeyboardInterrupt: after Ctrl-C, when the step at hand is done and the run is saved.
        """
        resumed = checkpoints is not None and self._resume(checkpoints, reporter)
        if keep_initial and not resumed:
            self.state.best_val_loss = self.state.start_val_loss = self.validation_loss()
            self.state.best_weights = copy.deepcopy(self.model.state_dict())
        devices = [self.compute.device] if self.compute.device_type == "cuda" else []
        with (
            telling_what_is_kept(lambda: self._kept(checkpoints)),
            reporter.progress(label, self.total_steps) as progress,
            torch.random.fork_rng(devices=devices),
            interrupts_held() as interrupted,
        ):
            progress.resume(self.done_steps)
            self._run_epochs(checkpoints, interrupted, progress, reporter)
        self.model.load_state_dict(self.state.best_weights)
        self.model.eval()
        return self.state.history

    def _run_epochs(
        self,
        checkpoints: CheckpointDir | None,
        interrupted: Callable[[], bool],
        progress: Progress,
        reporter: Reporter,
    ) -> None:
        """Train until the end or until a signal arrives; in that case the state is saved as after an epoch."""
        state, last_saved = self.state, time.monotonic()
        while state.epoch < self.config.epochs and not self._out_of_patience():
            batches = self._batches(state.epoch)
            self.model.train()
            for rows in batches[state.batch :]:
                self._run_step(rows, reporter)
                progress.advance(1, note=self._note())
                due = time.monotonic() - last_saved > CHECKPOINT_SECONDS and state.batch < len(batches)
                if checkpoints is not None and (due or interrupted()):
                    self._save(checkpoints)
                    last_saved = time.monotonic()
                if interrupted():
                    return
            self._end_epoch(reporter)
            if checkpoints is not None:
                self._save(checkpoints)
                last_saved = time.monotonic()

    def validation_loss(self) -> float:
        """Return the mean loss per token over the validation captions, without noise or dropout."""
        self.model.eval()
        total, count, pad = 0.0, 0, self.model.pad_id
        order = np.argsort(self.val_tokens.lengths, kind="stable")
        with torch.no_grad():
            for start in range(0, len(order), _VALIDATION_BATCH):
                rows = order[start : start + _VALIDATION_BATCH]
                tokens = torch.from_numpy(token_batch(self.val_tokens, rows, pad)).to(self.compute.device)
                inputs = torch.from_numpy(self._val_inputs[rows]).to(self.compute.device)
                with self._autocast():
                    logits = self.model(inputs, tokens)
                total += float(cross_entropy(logits, tokens, pad, reduction="sum"))
                count += int((tokens != pad).sum())
        return total / count

    def _run_step(self, rows: Indices, reporter: Reporter) -> None:
        state, started = self.state, time.perf_counter()
        loss, tokens = self._step(rows)
        state.loss_sum += loss * tokens
        state.token_sum += tokens
        state.seconds += time.perf_counter() - started
        state.batch += 1
        self._trace(loss, tokens, reporter)

    def _step(self, rows: Indices) -> tuple[float, int]:
        config, state, pad = self.config, self.state, self.model.pad_id
        rng = generator(config.seed, "step", state.epoch, state.batch)
        torch.manual_seed(int(rng.integers(2**62)))
        inputs = self.pipeline.transform(
            self.train.embeddings[rows],
            modality=self.train.modality,
            training=True,
            keys=[self.train.keys[row] for row in rows],
            items=[self.train.items[row] for row in rows],
            seed=config.seed,
            epoch=state.epoch,
        )
        tokens = torch.from_numpy(token_batch(self.train_tokens, rows, pad))
        seen = tokens
        if config.word_dropout:
            hidden = torch.from_numpy(rng.random(tokens.shape) < config.word_dropout)
            seen = tokens.masked_fill(hidden, pad)
        device = self.compute.device
        tokens = tokens.to(device)
        read = (torch.from_numpy(inputs).to(device), tokens, seen.to(device))
        with self._autocast():
            states: tuple[Tensor, ...] = self.model.score(*read) if config.contrastive_margin else (self.model(*read),)
        loss = cross_entropy(states[0], tokens, pad, label_smoothing=config.label_smoothing)
        objective = loss
        for hidden in states[1:]:
            objective = loss + contrastive_loss(hidden, tokens != pad, config.contrastive_margin)
        set_learning_rate(self.optimizer, config.learning_rate * schedule(self.done_steps, self.total_steps, config))
        self.optimizer.zero_grad()
        objective.backward()
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

    def _trace(self, loss: float, tokens: int, reporter: Reporter) -> None:
        state, step = self.state, self.done_steps
        total, count = state.traced
        state.traced = (total + loss * tokens, count + tokens)
        if step % TRACE_STEPS and step != self.total_steps:
            return
        value = state.traced[0] / state.traced[1]
        state.trace.append((step, value))
        state.traced = (0.0, 0)
        reporter.scalar("loss/training", value, step)
        reporter.scalar("learning rate", self.optimizer.param_groups[0]["lr"], step)
        reporter.scalar("tokens per second", state.token_sum / max(state.seconds, 1e-9), step)

    def _end_epoch(self, reporter: Reporter) -> None:
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
        reporter.scalar("loss/validation", val_loss, self.done_steps)
        state.epoch, state.batch = state.epoch + 1, 0
        state.loss_sum, state.token_sum, state.seconds = 0.0, 0, 0.0

    def _out_of_patience(self) -> bool:
        history, patience = self.state.history, self.config.patience
        if not patience or not history:
            return False
        best = min(range(len(history)), key=lambda i: history[i].val_loss)
        return len(history) - 1 - best >= patience

    @cached_property
    def identity(self) -> str:
        """A digest of all that the run depends on, taken while the model has its initial weights."""
        plain = [asdict(self.model.config), asdict(self.config), self.pipeline.config(), self.model.digest()]  # type: ignore[call-overload]
        plain += [self.compute.precision, self.pipeline.record()["tensors"]]
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
        for rows in (self.train, self.val):
            hash_strings(digest, rows.keys, rows.captions)
            hash_rows(digest, rows.embeddings)
        return digest.hexdigest()

    def _save(self, checkpoints: CheckpointDir) -> None:
        state = self.state
        tensors = {"model": self.model.state_dict(), "best": state.best_weights, "average": state.average}
        checkpoints.save(self.done_steps, self.identity, state.position(), tensors, self.optimizer)

    def _resume(self, checkpoints: CheckpointDir, reporter: Reporter) -> bool:
        found = checkpoints.resume(self.identity, self.optimizer, reporter)
        if found is None:
            return False
        position, groups = found
        self.model.load_state_dict(groups["model"])
        best, average = (
            {name: value.to(self.compute.device) for name, value in groups.get(group, {}).items()}
            for group in ("best", "average")
        )
        self.state = TrainingState.restore(position, best, average)
        reporter.message(
            f"Continuing the run saved in {checkpoints.path} at step {self.done_steps:,} of {self.total_steps:,}."
        )
        return True

    def _kept(self, checkpoints: CheckpointDir | None) -> str:
        """Return a sentence that says what is kept if the run is interrupted now."""
        return NOTHING_KEPT if checkpoints is None else checkpoints.after_interrupt(self.total_steps)

    def _note(self) -> str:
        state = self.state
        rate = state.token_sum / max(state.seconds, 1e-9)
        val = f", val {state.history[-1].val_loss:.3f}" if state.history else ""
        return f"epoch {state.epoch + 1}, loss {state.loss_sum / state.token_sum:.3f}{val}, {rate:,.0f} tokens/s"

    def _batches(self, epoch: int) -> list[Indices]:
        return length_bucketed(self.train_tokens.lengths, self.config.batch_size, seed=self.config.seed, epoch=epoch)

    def _autocast(self) -> torch.autocast:
        compute = self.compute
        return torch.autocast(compute.device_type, dtype=compute.dtype, enabled=compute.precision != "fp32")


def schedule(step: int, total: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step as a share of its peak (see `c3tools.training.warmup`)."""
    rise = max(1, round(total * config.warmup))
    if config.warmup_steps:
        rise = max(1, min(config.warmup_steps, total // 2))
    return warmup(step, total, rise, config.decay)
