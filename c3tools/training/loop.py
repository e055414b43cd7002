"""The training loop of captioners, generators, heads, towers and ESPER's mapper.

A `Task` knows what one step and one validation are; `train` does the rest: the learning rate, the
averaged weights, the best weights, patience, progress and scalars, and the states from which a run
that was killed continues exactly. For that, everything random in a step has to depend on the seed
and the number of the step alone.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..arrays import Indices
from ..errors import C3Error, OutputError, note_on_interrupt
from ..interrupts import interrupts_held
from ..io.artifact import Target
from ..io.files import MALFORMED, remove_leftovers, write_atomically
from ..reporter import SILENT, Progress, Reporter
from ..seeds import generator

NOTHING_KEPT = "Nothing of this training run was kept; run the same command again to restart it."
_KEPT_STATES = 2
_OPTIMIZER = "optimizer/"
SAVE_SECONDS = 30.0
_STEPS_PER_SAVE = 20  # time of steps, in times of saving: a state of gigabytes is saved less often
TRACE_STEPS = 25
Start = Literal["skip", "report", "keep"]
T = TypeVar("T")
FINISHED = "finished"
EARLY = "stopped early"
DIVERGED = "diverged"


@dataclass(frozen=True)
class TrainingPlan:
    """Length, learning rate and validations of a training.

    Attributes:
        steps: optimiser steps of the whole run.
        learning_rate: peak of the schedule: linear over ``rise`` steps, then down to zero.
        validate_every: steps between two validations; the last step is always followed by one.
        rise: steps of the warm-up.
        decay: ``cosine`` or ``linear``.
        clip_norm: gradients are scaled down to this norm; 0 leaves them.
        ema: decay per step of an exponential moving average of the weights, which is then validated
            and kept; 0 for none.
        patience: stop after so many validations without a better one; 0 never stops early.
        start: ``report`` validates the initial weights too, ``keep`` also keeps them if no later
            ones are better.
        steps_per_epoch: for the progress; 0 where epochs are not shown.
    """

    steps: int
    learning_rate: float
    validate_every: int
    rise: int
    decay: str = "cosine"
    clip_norm: float = 0.0
    ema: float = 0.0
    patience: int = 0
    start: Start = "skip"
    steps_per_epoch: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.rise:
            return self.learning_rate * ((step + 1) / self.rise)
        done = (step - self.rise) / (self.steps - self.rise)
        if self.decay == "linear":
            return self.learning_rate * (1 - done)
        return self.learning_rate * (0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Validation:
    """One validation, and the training since the one before.

    Attributes:
        step: after which it was made; 0 for the initial weights.
        val_loss: what the weights are chosen by; lower is better.
        facts: what else the task measured, as JSON values.
        train_loss: mean since the last validation.
        count: what the steps since then learned from, in the task's unit.
        seconds: that these steps took.
    """

    step: int
    val_loss: float
    facts: dict[str, Any]
    train_loss: float
    count: int
    seconds: float


@dataclass
class TrainingRun:
    """State of a training after ``step`` steps, as JSON values.

    Attributes:
        step: optimiser steps done.
        start: validation of the initial weights, if there was one.
        history: all later validations.
        kept: the validation whose weights are kept.
        trace: (step, mean training loss since the last entry), every `TRACE_STEPS` steps.
        outcome: `FINISHED`, `EARLY` or `DIVERGED`; empty while it runs.
        seconds, loss_sum, count: of the steps since the last validation.
        traced: sum of losses and of their counts since the last entry of ``trace``.
    """

    step: int = 0
    start: Validation | None = None
    history: list[Validation] = field(default_factory=list)
    kept: Validation | None = None
    trace: list[tuple[int, float]] = field(default_factory=list)
    outcome: str = ""
    seconds: float = 0.0
    loss_sum: float = 0.0
    count: int = 0
    traced: tuple[float, int] = (0.0, 0)


class CheckpointDir:
    """The folder that one training run is saved in, beside the folder that it will write.

    It contains the last two states, each one safetensors file that was renamed into place: tensors
    (weights, best weights, the moments of the optimiser) and, in the header, the position in the
    run.

    Args:
        path: the folder.
        overwrite: drop a run of other settings or data that is saved there, rather than refuse.
    """

    def __init__(self, path: Path, *, overwrite: bool = True) -> None:
        self.path = path
        self._overwrite = overwrite
        self._saved_step: int | None = None

    def save(
        self,
        identity: str,
        position: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Write a state. The last two states are kept, older ones are removed.

        Args:
            identity: a digest of all that the run depends on.
            position: ``step``, and what else a run needs to continue, as JSON values.
            tensors: by group (such as ``now`` and ``best``) and name.
            optimizer: its moments are saved too.
        """
        groups = dict(tensors)
        for number, moments in optimizer.state_dict()["state"].items():
            groups[f"{_OPTIMIZER}{number}"] = moments
        flat = {}
        for group, named_tensors in groups.items():
            for name, tensor in named_tensors.items():
                flat[f"{group}/{name}"] = tensor.detach().cpu().contiguous()
        header = json.dumps({"identity": identity, "position": position})
        path = self.path / f"state-{position['step']:08d}.safetensors"
        content = save(flat, metadata={"c3": header})
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        self._saved_step = position["step"]
        for old in self._states()[_KEPT_STATES:]:  # the newest come first
            old.unlink()

    def resume(
        self, identity: str, optimizer: torch.optim.Optimizer, reporter: Reporter = SILENT
    ) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
        """Read the last readable state of the same run; its moments go into ``optimizer``.

        Returns:
            The position, and the tensors by group and name; None if there is no state to continue
            from.

        Raises:
            OutputError: if the run that is saved has other settings or data, and is not to be
                dropped.
        """
        for path in self._states():  # the newest come first
            try:
                header, groups = _read_state(path)
                position = header["position"]
                is_same_run = header["identity"] == identity
            except (SafetensorError, OSError, *MALFORMED) as error:
                reporter.message(
                    f"The saved state {path} is truncated or damaged ({error}); the previous one "
                    f"is used."
                )
                continue

            # The newest that can be read decides: another run is refused or discarded
            if not is_same_run:
                if not self._overwrite:
                    raise OutputError(
                        f"{self.path} contains a training run that was interrupted at step "
                        f"{position['step']:,} and has other settings or data.",
                        remedy="To continue that run, repeat its command. Otherwise choose another "
                        "folder with --output, or discard it with --overwrite.",
                    )
                reporter.message(
                    f"The run saved in {self.path} has other settings or data; it is discarded."
                )
                self.clear()
                return None

            # The moments of the optimiser go back to it, the other groups to the caller
            moments = {}
            for group in [name for name in groups if name.startswith(_OPTIMIZER)]:
                moments[int(group.removeprefix(_OPTIMIZER))] = groups.pop(group)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
            self._saved_step = position["step"]
            return position, groups
        return None

    def clear(self) -> None:
        """Remove the states, and the folder if nothing else is in it."""
        for state in self._states():
            state.unlink()
        self._saved_step = None
        with suppress(OSError):  # something else is in it, or it is not there
            self.path.rmdir()

    def kept(self, total: int) -> str:
        """Return what is kept of a run of ``total`` steps that is interrupted now, in words."""
        if self._saved_step is None:
            return NOTHING_KEPT
        return (
            f"The training is saved at step {self._saved_step:,} of {total:,}; run the same "
            f"command again to continue."
        )

    def _states(self) -> list[Path]:
        if self.path.is_dir():
            remove_leftovers(self.path)
        return sorted(self.path.glob("state-*.safetensors"), reverse=True)


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Read a saved state: its header, and its tensors by group and name."""
    groups: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads((file.metadata() or {})["c3"])
        for key in file.keys():  # noqa: SIM118 - no mapping
            group, _, name = key.rpartition("/")
            groups.setdefault(group, {})[name] = file.get_tensor(key)
    return header, groups


class Task(ABC):
    """A training to run: one step, one validation, and the settings of both. A subclass sets the
    attributes.

    Attributes:
        module: its parameters that require a gradient are trained, saved and kept.
        optimizer: over these parameters; see `adamw`.
        plan: see `TrainingPlan`.
        identity: a digest of all that the run depends on: settings, data, initial weights.
        unit: what a step counts, for the rate: ``tokens``.
        error: raised if the loss is not finite before any weights could be kept.
        remedy: of this error.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    plan: TrainingPlan
    identity: str
    unit: str = "items"
    error: type[C3Error] = C3Error
    remedy: str = "Lower the learning rate, or use --precision fp32."

    @abstractmethod
    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Take one step, counted from 0.

        Args:
            number: of the step; the batch and everything random depend on it and on the seed alone.
            update: takes a loss, or the value of one whose gradients are already in the parameters;
                moves the weights and returns the value. Called once, or for each of several passes
                over a batch.

        Returns:
            The loss to report, and how many items (see ``unit``) it is the mean of.
        """

    @abstractmethod
    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return a loss by which weights are chosen, and facts for the record; ``module`` has the
        weights to measure.

        It is in evaluation mode, and nothing needs a gradient. A loss that is not finite ends the
        run.
        """

    @staticmethod
    @lru_cache(maxsize=1)
    def order(n: int, seed: int, *scope: int | str) -> Indices:
        """Return the numbers below ``n`` in an order that depends on the seed, and whatever else is
        in ``scope``.
        """
        return generator(seed, *scope).permutation(n)

    def note(self, latest: Validation) -> str:
        """Return the last validation in words, for the progress."""
        return f"val {latest.val_loss:.3f}"


def train(
    task: Task,
    *,
    checkpoints: CheckpointDir | None = None,
    label: str = "Training",
    reporter: Reporter = SILENT,
) -> TrainingRun:
    """Train to the end, or until patience runs out, and leave the best weights in ``task.module``.

    Args:
        task: what is trained.
        checkpoints: where the run is saved after each validation and every `SAVE_SECONDS`, or less
            often if saving takes long; a run that is saved there with the same identity is
            continued.
        label: what the progress is called.
        reporter: shows the progress, and records losses, learning rate and rate.

    Raises:
        C3Error: ``task.error``, if the loss is not finite before any weights could be kept.
        OutputError: if a run of other settings is saved there that is not to be dropped.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the step at hand is done and the run is
            saved.
    """
    loop = _Loop(task, checkpoints, reporter)
    loop.resume()
    devices = {parameter.device for parameter in task.module.parameters() if parameter.is_cuda}

    def describe_saved_run() -> str:
        return NOTHING_KEPT if checkpoints is None else checkpoints.kept(task.plan.steps)

    with (
        note_on_interrupt(describe_saved_run),
        reporter.progress(label, task.plan.steps) as progress,
        torch.random.fork_rng(devices=list(devices)),
        interrupts_held() as interrupted,
    ):
        progress.resume(loop.run.step)
        loop.go(progress, interrupted)
    loop.set_weights(loop.best)
    task.module.eval()
    return loop.run


def train_or_load(
    target: Target,
    task: Task,
    load: Callable[[Path], T],
    result: Callable[[TrainingRun, dict[str, Any]], Callable[[Path], object]],
    *,
    label: str,
) -> T:
    """Train and write the result, unless it is there already, and return what is loaded from its
    folder.

    Args:
        target: the folder of the result; the run is saved beside it.
        task: the training.
        load: reads the result, and raises a `C3Error` if it is damaged.
        result: takes the run, and the ``made_from`` of its record; returns a function that writes
            the result.
        label: what the progress is called.
    """
    checkpoints = CheckpointDir(
        target.folder.with_name(f".{target.folder.name}.run"), overwrite=target.overwrite
    )
    finished = target.finished(task.identity, load)
    if finished is None:
        run = train(task, checkpoints=checkpoints, label=label, reporter=target.reporter)
        target.write(result(run, target.made_from(task.identity)))
    checkpoints.clear()  # also those of a run that was killed after it had written the result
    return load(target.folder) if finished is None else finished


class _Loop:
    """The steps of one training.

    Attributes:
        run: the state, as `TrainingRun` describes it.
        weights: the parameters that are trained, by name.
        best: the weights of the best validation, on the CPU; empty before the first.
        average: the averaged weights; empty if there are none.
    """

    def __init__(self, task: Task, checkpoints: CheckpointDir | None, reporter: Reporter) -> None:
        self.task = task
        self.plan = task.plan
        self.reporter = reporter
        self.checkpoints = checkpoints
        self.run = TrainingRun()
        self.weights: dict[str, nn.Parameter] = {}
        for name, parameter in task.module.named_parameters():
            if parameter.requires_grad:
                self.weights[name] = parameter
        self.best: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}

    def go(self, progress: Progress, interrupted: Callable[[], bool]) -> None:
        """Train until there is an outcome, or until a signal has arrived; then the run is saved."""
        run = self.run
        plan = self.plan
        next_save = time.monotonic() + SAVE_SECONDS

        # Validate the initial weights, if they are reported or may be kept
        if plan.start != "skip" and not run.step:
            run.start = self.validate()
            if not math.isfinite(run.start.val_loss):
                self.diverged(f"The validation loss is {run.start.val_loss} before the first step")

        # Take steps, with a validation at the end of each interval. What takes long to save is
        # saved less often
        self.task.module.train()
        while not run.outcome and not interrupted():
            try:
                self.take_step()
            except FloatingPointError as error:
                self.diverged(f"The training loss became {error} in step {run.step + 1:,}")
                break
            if run.step % TRACE_STEPS == 0 or run.step == plan.steps:
                self.trace()
            progress.advance(1, self.describe())
            is_interval_over = run.step % plan.validate_every == 0 or run.step == plan.steps
            if is_interval_over:
                self.end_interval()
            started = time.monotonic()
            if is_interval_over or started > next_save or interrupted():
                self.save()
                ended = time.monotonic()
                next_save = ended + SAVE_SECONDS + _STEPS_PER_SAVE * (ended - started)

    def take_step(self) -> None:
        """Take one step of the task, and count it.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        run = self.run
        started = time.perf_counter()
        for group in self.task.optimizer.param_groups:
            group["lr"] = self.plan.rate(run.step)
        loss, count = self.task.step(run.step, self.update)
        if self.plan.ema:
            self.move_average()
        run.step += 1
        run.seconds += time.perf_counter() - started
        run.loss_sum += loss * count
        run.count += count
        traced_loss, traced_count = run.traced
        run.traced = (traced_loss + loss * count, traced_count + count)

    def trace(self) -> None:
        """Add the mean loss since the last entry to the trace, and report it."""
        run = self.run
        loss_sum, count = run.traced
        run.trace.append((run.step, loss_sum / count))
        run.traced = (0.0, 0)
        self.reporter.scalar("loss/training", loss_sum / count, run.step)
        self.reporter.scalar("learning rate", self.plan.rate(run.step - 1), run.step)
        self.reporter.scalar(f"{self.task.unit} per second", run.count / run.seconds, run.step)

    def describe(self) -> str:
        """Return where the run is, in words, for the progress."""
        run = self.run
        parts = []
        if self.plan.steps_per_epoch:
            parts.append(f"epoch {(run.step - 1) // self.plan.steps_per_epoch + 1}")
        parts.append(f"loss {run.loss_sum / run.count:.3f}")
        if run.history:
            parts.append(self.task.note(run.history[-1]))
        parts.append(f"{run.count / run.seconds:,.0f} {self.task.unit}/s")
        return ", ".join(parts)

    def update(self, loss: Tensor | float) -> float:
        """Move the weights by a loss, or by the gradients that are there; return its value.

        The value is read last, because the host waits for a GPU there.

        Raises:
            FloatingPointError: if it is not finite. The weights are lost then.
        """
        if isinstance(loss, Tensor):
            loss.backward()
        if self.plan.clip_norm:
            nn.utils.clip_grad_norm_(self.weights.values(), self.plan.clip_norm)
        self.task.optimizer.step()
        self.task.optimizer.zero_grad()
        value = float(loss.detach()) if isinstance(loss, Tensor) else loss
        if not math.isfinite(value):
            raise FloatingPointError(value)
        return value

    @torch.no_grad()
    def move_average(self) -> None:
        """Move the averaged weights towards those of this step, faster in the first steps (as
        Polyak averaging).
        """
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in self.weights.items()}
            return
        weight = 1 - min(self.plan.ema, self.run.step / (self.run.step + 9))
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), weight)

    @torch.no_grad()
    def validate(self) -> Validation:
        """Validate the (averaged) weights, and keep them if they are the best so far."""
        run = self.run

        # Measure the averaged weights, if there are some, in place of the current ones
        current: dict[str, Tensor] = {}
        if self.average:
            current = {name: value.detach().clone() for name, value in self.weights.items()}
            self.set_weights(self.average)
        self.task.module.eval()
        loss, facts = self.task.validate()
        validation = Validation(
            step=run.step,
            val_loss=loss,
            facts=facts,
            train_loss=run.loss_sum / run.count if run.count else math.nan,
            count=run.count,
            seconds=run.seconds,
        )
        # The initial weights of a plan that only reports them do not compete
        replaces_start = self.plan.start == "report" and not run.history
        if run.kept is None or loss < run.kept.val_loss or replaces_start:
            run.kept = validation
            self.best = {name: value.detach().cpu().clone() for name, value in self.weights.items()}
        if current:
            self.set_weights(current)
        self.task.module.train()
        return validation

    def end_interval(self) -> None:
        """Validate after the steps of an interval, and end the run if it is done."""
        run = self.run
        validation = self.validate()
        if not math.isfinite(validation.val_loss):
            self.diverged(f"The validation loss became {validation.val_loss} at step {run.step:,}")
            return
        run.history.append(validation)
        run.seconds = 0.0
        run.loss_sum = 0.0
        run.count = 0
        self.reporter.scalar("loss/validation", validation.val_loss, run.step)

        # Is this the last step, or have too many validations brought nothing better?
        losses = [earlier.val_loss for earlier in run.history]
        since_best = len(losses) - 1 - losses.index(min(losses))
        if run.step == self.plan.steps:
            run.outcome = FINISHED
        elif self.plan.patience and since_best >= self.plan.patience:
            run.outcome = EARLY

    def diverged(self, where: str) -> None:
        """End the run at a loss that is not finite: the best weights are kept, if there are any."""
        run = self.run
        # The initial weights of a plan that only reports them are no result
        trained = bool(run.history) or self.plan.start == "keep"
        if run.kept is None or not trained or not math.isfinite(run.kept.val_loss):
            raise self.task.error(f"{where}.", remedy=self.task.remedy)
        run.outcome = DIVERGED
        self.reporter.message(
            f"{where}; training stops, and the weights of step {run.kept.step:,} are kept."
        )
        self.save()

    @torch.no_grad()
    def set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters of these names."""
        for name, value in values.items():
            self.weights[name].copy_(value)

    def save(self) -> None:
        """Save the run, if there is a folder for it."""
        if self.checkpoints is None:
            return
        tensors: dict[str, Mapping[str, Tensor]] = {
            "now": self.weights,
            "best": self.best,
            "average": self.average,
        }
        self.checkpoints.save(self.task.identity, asdict(self.run), tensors, self.task.optimizer)

    def resume(self) -> None:
        """Continue the run that is saved, if there is one."""
        if self.checkpoints is None:
            return
        state = self.checkpoints.resume(self.task.identity, self.task.optimizer, self.reporter)
        if state is None:
            return
        position, groups = state
        self.run = msgspec.convert(position, TrainingRun)
        self.set_weights(groups["now"])
        self.best = groups.get("best", {})
        average = groups.get("average")
        if average:
            for name, parameter in self.weights.items():
                self.average[name] = average[name].to(parameter.device)
        self.reporter.message(
            f"Continuing the run saved in {self.checkpoints.path} at step {self.run.step:,} of "
            f"{self.plan.steps:,}."
        )


def adamw(
    parameters: Iterable[Tensor],
    *,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """Return AdamW over the parameters that require a gradient; only matrices decay, not biases,
    gains or scales.

    `train` sets its learning rate at every step.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=betas, fused=fused)
