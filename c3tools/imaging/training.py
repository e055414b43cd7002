"""The training loop of image generators.

The network learns each photo from that photo's own embedding, transformed as the method says: Corrupt's noise is drawn
again in every epoch from (seed, epoch, key), for training inputs alone; the validation loss that chooses the checkpoint
has none. No text is seen. Everything random in a step depends on the seed and the step alone, so that a run that was
killed continues exactly.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..arrays import Indices, Pixels
from ..devices import Compute
from ..errors import GeneratorError, telling_what_is_kept
from ..io.spill import hash_rows
from ..reporter import SILENT, Progress, Reporter
from ..seeds import generator
from ..store.strings import hash_strings
from ..training.checkpoints import NOTHING_KEPT, CheckpointDir, interrupts_held
from ..training.optimization import adamw, set_learning_rate, warmup
from ..transforms import Pipeline
from .model import ImageNetwork, TrainingConfig, autocast
from .photos import Photos

CHECKPOINT_SECONDS = 60.0
TRACE_STEPS = 25
MAX_VALIDATED = 512
_VALIDATION_BATCH = 64
_FEW_POSITIONS = 64
_NOT_PLAIN = ("best", "average")


@dataclass
class TrainingState:
    """State of a run after ``step`` optimiser steps, from which it continues exactly.

    ``trace`` has (step, mean training loss since the last entry), ``validations`` (step, validation loss).
    """

    step: int = 0
    seconds: float = 0.0
    traced: tuple[float, int] = (0.0, 0)
    trace: list[tuple[int, float]] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    best_val_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)

    def position(self) -> dict[str, Any]:
        """Return the state without its tensors, for JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in _NOT_PLAIN}
        return plain | {"best_val_loss": None if math.isinf(self.best_val_loss) else self.best_val_loss}

    @classmethod
    def restore(cls, position: Mapping[str, Any], best: dict[str, Tensor], average: dict[str, Tensor]) -> TrainingState:
        """Make the state again from its position and its tensors."""
        loss = position["best_val_loss"]
        return cls(**{**position, "best_val_loss": math.inf if loss is None else loss}, best=best, average=average)


class Trainer:
    """Training of one network; `run` leaves the best averaged weights in ``network``.

    Args:
        network: to train.
        train: photos to learn from, with their embeddings.
        val: other photos that the checkpoint is chosen on.
        pipeline: fitted; applied to the embeddings during training.
        config: settings of the training.
        compute: device and precision.
    """

    def __init__(
        self,
        network: ImageNetwork,
        train: Photos,
        val: Photos,
        pipeline: Pipeline,
        config: TrainingConfig,
        compute: Compute,
    ) -> None:
        self.network = network.to(compute.device)
        self.train, self.pipeline, self.config, self.compute = train, pipeline, config, compute
        self.val = val.select(np.arange(min(len(val), MAX_VALIDATED)))
        self.batch_size = min(config.batch_size, len(train))
        self.state = TrainingState()
        self.optimizer = adamw(
            self.network.parameters(),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        rows = self.val.rows
        inputs = pipeline.transform(rows.embeddings, modality=rows.modality, training=False)
        self.val_inputs = torch.from_numpy(inputs)
        self._order: tuple[int, Indices] = (-1, np.empty(0, np.int64))

    def run(
        self,
        checkpoints: CheckpointDir | None = None,
        *,
        on_validation: Callable[[ImageNetwork, int], object] = lambda network, step: None,
        label: str = "Training",
        reporter: Reporter = SILENT,
    ) -> None:
        """Train to the end, and load the best averaged weights into the network.

        Args:
            checkpoints: where the run is saved after each validation and every `CHECKPOINT_SECONDS`; a run that is
                saved there with the same settings and data is continued.
            on_validation: is called after each validation with the network, in its averaged weights, and the step.
            label: what the progress is called.
            reporter: shows the progress, and records losses, learning rate and images per second.

        Raises:
            GeneratorError: if the loss is not finite before any checkpoint was kept.
            OutputError: if a run of other settings is saved there that is not to be dropped.
            KeyboardInterrupt: after Ctrl-C, when the step at hand is done and the run is saved.
        """
        if checkpoints is not None:
            self._resume(checkpoints, reporter)
        devices = [self.compute.device] if self.compute.device_type == "cuda" else []
        with (
            telling_what_is_kept(lambda: self._kept(checkpoints)),
            reporter.progress(label, self.config.steps) as progress,
            torch.random.fork_rng(devices=devices),
            interrupts_held() as interrupted,
        ):
            progress.resume(self.state.step)
            self._run_steps(checkpoints, on_validation, interrupted, progress, reporter)
        self.network.load_state_dict(self.state.best)
        self.network.eval()

    def _run_steps(
        self,
        checkpoints: CheckpointDir | None,
        on_validation: Callable[[ImageNetwork, int], object],
        interrupted: Callable[[], bool],
        progress: Progress,
        reporter: Reporter,
    ) -> None:
        """Train until the end, or until a signal has arrived; then the run is saved."""
        state, config, last_saved = self.state, self.config, time.monotonic()
        every = max(1, config.steps // config.validations)
        self.network.train()
        while state.step < config.steps:
            started = time.perf_counter()
            loss = self._step()
            if not math.isfinite(loss):
                self._stop_at(loss, reporter)
                return
            state.step += 1
            state.seconds += time.perf_counter() - started
            self._trace(loss, reporter)
            progress.advance(1, note=self._note())
            validates = state.step % every == 0 or state.step == config.steps
            if validates:
                self._validate(on_validation, reporter)
            due = validates or time.monotonic() - last_saved > CHECKPOINT_SECONDS or interrupted()
            if checkpoints is not None and due:
                self._save(checkpoints)
                last_saved = time.monotonic()
            if interrupted():
                return

    @torch.inference_mode()
    def validation_loss(self) -> float:
        """Return the mean squared error of the velocity on the validation photos, without Corrupt's noise or flips.

        Times are spread evenly over their distribution, and times and noise are the same in every validation.
        """
        self.network.eval()
        n = len(self.val)
        rng = generator(self.config.seed, "validation")
        shares = (rng.permutation(n) + 0.5) / n
        times = torch.tensor([_time(NormalDist().inv_cdf(share)) for share in shares], dtype=torch.float32)
        noise = torch.from_numpy(rng.standard_normal((n, 3, *self.val.pixels.shape[1:3]), np.float32))
        total = 0.0
        for start in range(0, n, _VALIDATION_BATCH):
            rows = slice(start, start + _VALIDATION_BATCH)
            images = to_network(self.val.pixels[rows])
            withhold = torch.zeros(len(images), dtype=torch.bool)
            loss = self._loss(images, noise[rows], times[rows], self.val_inputs[rows], withhold)
            total += float(loss) * len(images)
        self.network.train()
        return total / n

    def _step(self) -> float:
        state, config = self.state, self.config
        epoch, rows = self._batch(state.step)
        rng = generator(config.seed, "step", state.step)
        n = len(rows)
        flips, shares, withhold = rng.random(n) < 0.5, rng.standard_normal(n), rng.random(n) < config.drop
        torch.manual_seed(int(rng.integers(2**62)))
        images = to_network(self.train.pixels[rows])
        images = torch.where(torch.from_numpy(flips)[:, None, None, None], images.flip(3), images)
        inputs = self.pipeline.transform(
            self.train.rows.embeddings[rows],
            modality=self.train.rows.modality,
            training=True,
            keys=[self.train.rows.keys[row] for row in rows],
            items=[self.train.rows.items[row] for row in rows],
            seed=config.seed,
            epoch=epoch,
        )
        times = torch.tensor([_time(share) for share in shares], dtype=torch.float32)
        noise = torch.randn(images.shape)
        loss = self._loss(images, noise, times, torch.from_numpy(inputs), torch.from_numpy(withhold))
        rise = max(1, min(config.warmup, config.steps // 10))
        set_learning_rate(self.optimizer, config.learning_rate * warmup(state.step, config.steps, rise))
        self.optimizer.zero_grad()
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        value = float(loss.detach())
        if math.isfinite(value):
            self.optimizer.step()
            self._average()
        return value

    def _loss(self, images: Tensor, noise: Tensor, times: Tensor, inputs: Tensor, withhold: Tensor) -> Tensor:
        """Return the mean squared error of the predicted velocity ``noise - image``."""
        device = self.compute.device
        images, noise, times = images.to(device), noise.to(device), times.to(device)
        t = times[:, None, None, None]
        with autocast(self.compute), self._attention():
            velocity = self.network((1 - t) * images + t * noise, times, inputs.to(device), withhold.to(device))
        return F.mse_loss(velocity.float(), noise - images)

    def _attention(self) -> AbstractContextManager[None]:
        """Return the context in which attention is computed.

        On a CPU in bf16, the backward pass of torch's fused attention is slow where there are few positions: without
        it, a step of size ``tiny`` takes 14 % less time. For 256 positions (size ``small``) it is the faster one.
        """
        network = self.network.config
        level = network.attention.index(True) if True in network.attention else 0
        positions = (network.pixels // network.patch // 2**level) ** 2
        few = self.compute.device_type == "cpu" and self.compute.precision == "bf16" and positions <= _FEW_POSITIONS
        return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()

    def _batch(self, step: int) -> tuple[int, Indices]:
        """Return the epoch of a step, and the rows of its batch: each epoch has every photo once, but for a rest."""
        per_epoch = len(self.train) // self.batch_size
        epoch, number = divmod(step, per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, generator(self.config.seed, "order", epoch).permutation(len(self.train))
        return epoch, self._order[1][number * self.batch_size : (number + 1) * self.batch_size]

    def _average(self) -> None:
        """Move the averaged weights towards those of this step, faster in the first steps (as Polyak averaging)."""
        weights, average = self.network.state_dict(), self.state.average
        if not average:
            average.update({name: value.clone() for name, value in weights.items()})
            return
        weight = 1 - min(self.config.ema, self.state.step / (self.state.step + 9))
        names = list(weights)
        torch._foreach_lerp_([average[name] for name in names], [weights[name] for name in names], weight)

    def _validate(self, on_validation: Callable[[ImageNetwork, int], object], reporter: Reporter) -> None:
        state = self.state
        current = copy.deepcopy(self.network.state_dict())
        self.network.load_state_dict(state.average)
        loss = self.validation_loss()
        state.validations.append((state.step, loss))
        reporter.scalar("loss/validation", loss, state.step)
        if loss < state.best_val_loss:
            state.best_val_loss, state.best = loss, copy.deepcopy(self.network.state_dict())
        self.network.eval()
        on_validation(self.network, state.step)
        self.network.load_state_dict(current)
        self.network.train()

    def _stop_at(self, loss: float, reporter: Reporter) -> None:
        """Stop at a loss that is not a number: the best checkpoint is kept, if there is one."""
        where = f"The training loss became {loss} in step {self.state.step + 1:,}"
        if not self.state.best:
            raise GeneratorError(f"{where}.", remedy="Lower it with --set learning_rate=1e-4, or use --precision fp32.")
        kept = next(step for step, value in self.state.validations if value == self.state.best_val_loss)
        reporter.message(f"{where}; training stops, and the checkpoint of step {kept:,} is kept.")

    def _trace(self, loss: float, reporter: Reporter) -> None:
        state = self.state
        total, count = state.traced
        state.traced = (total + loss, count + 1)
        if state.step % TRACE_STEPS and state.step != self.config.steps:
            return
        value = state.traced[0] / state.traced[1]
        state.trace.append((state.step, value))
        state.traced = (0.0, 0)
        reporter.scalar("loss/training", value, state.step)
        reporter.scalar("learning rate", self.optimizer.param_groups[0]["lr"], state.step)
        reporter.scalar("images per second", self._rate(), state.step)

    @cached_property
    def identity(self) -> str:
        """A digest of all that the run depends on, taken while the network has its initial weights."""
        fitted = self.pipeline.record()["tensors"]
        plain = [asdict(self.network.config), asdict(self.config), self.pipeline.config(), fitted]
        digest = hashlib.sha256(json.dumps([*plain, self.compute.precision], sort_keys=True, default=str).encode())
        for photos in (self.train, self.val):
            hash_strings(digest, photos.rows.keys)
            hash_rows(digest, photos.rows.embeddings)
            hash_rows(digest, photos.pixels)
        return digest.hexdigest()

    def _save(self, checkpoints: CheckpointDir) -> None:
        state = self.state
        tensors = {"model": self.network.state_dict(), "best": state.best, "average": state.average}
        checkpoints.save(state.step, self.identity, state.position(), tensors, self.optimizer)

    def _resume(self, checkpoints: CheckpointDir, reporter: Reporter) -> None:
        found = checkpoints.resume(self.identity, self.optimizer, reporter)
        if found is None:
            return
        position, groups = found
        self.network.load_state_dict(groups["model"])
        best, average = (
            {name: value.to(self.compute.device) for name, value in groups.get(group, {}).items()}
            for group in ("best", "average")
        )
        self.state = TrainingState.restore(position, best, average)
        step, steps = self.state.step, self.config.steps
        reporter.message(f"Continuing the run saved in {checkpoints.path} at step {step:,} of {steps:,}.")

    def _kept(self, checkpoints: CheckpointDir | None) -> str:
        """Return what is kept of the run if it is interrupted now."""
        return NOTHING_KEPT if checkpoints is None else checkpoints.after_interrupt(self.config.steps)

    def _rate(self) -> float:
        return self.state.step * self.batch_size / max(self.state.seconds, 1e-9)

    def _note(self) -> str:
        state = self.state
        total, count = state.traced
        loss = total / count if count else state.trace[-1][1]
        val = f", val {state.validations[-1][1]:.4f}" if state.validations else ""
        return f"loss {loss:.4f}{val}, {self._rate():,.0f} images/s"


def to_network(pixels: Pixels) -> Tensor:
    """Return pixels (n, height, width, 3) as the network takes them: float32 (n, 3, height, width), -1 to 1.

    Contiguous: the layout of the pixels (channels last) would stay that of all layers, whose group norms take three
    times as long in it on a CPU.
    """
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)


def _time(normal: float) -> float:
    """Return the time of a standard normal number: logit-normal, which favours the middle of the way."""
    return 1 / (1 + math.exp(-normal))
