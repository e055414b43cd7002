"""The loop of contrastive training, the same for heads on features and for whole towers.

Everything random in a step depends on (seed, step) alone, so that a run that was killed continues exactly. The
checkpoint is the point of the log with the highest recall@1 (mean of both directions) among the validation pairs.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import Indices
from ..devices import Compute
from ..errors import ConnectError, telling_what_is_kept
from ..io.outputs import Output
from ..reporter import SILENT, Progress, Reporter, counted
from ..training.checkpoints import NOTHING_KEPT, CheckpointDir, interrupts_held
from ..training.optimization import adamw, set_learning_rate, warmup
from . import processes
from .geometry import LogPoint, measure
from .gradients import TwoTowers, contrastive_backward
from .inputs import PairInputs
from .losses import ContrastiveLoss, same_items
from .run import COLLAPSED, DIVERGED, EARLY, FINISHED, RunState, TrainingSettings, training_record

SAVE_SECONDS = 60.0
_BETAS = 0.9, 0.98
_STUCK_POINTS = 3
_STUCK_LOSS = 0.02  # from the loss of chance, as a share of it
_STUCK_COSINE = 0.01
_SAMPLED_ROWS = 1024

Batch = tuple[tuple[Tensor, Tensor], Tensor]


def train_towers(
    towers: TwoTowers,
    train: PairInputs,
    val: PairInputs,
    settings: TrainingSettings,
    output: Output,
    checkpoints: CheckpointDir,
    names: tuple[str, str],
    run: processes.RunContext,
    load: Callable[[], object],
    *identity: object,
) -> tuple[dict[str, Any], ContrastiveLoss, RunState] | None:
    """Train two towers and leave the best weights in them.

    Args:
        towers: their parameters that require a gradient are trained.
        train: pairs to learn from.
        val: pairs to choose the checkpoint by.
        settings: of the training.
        output: where the result is going to be written.
        checkpoints: where the run is saved, and continued from.
        names: of the two modalities.
        run: device, precision and reporter of the training.
        load: reads the result that is in ``output``, and raises a `C3Error` if it is damaged.
        identity: JSON values that the run depends on beside the arguments.

    Returns:
        The record of the run, the loss with its logit scale, and the state with the log; None if the result is there.

    Raises:
        ConnectError: if there are too few pairs, or the run collapsed.
        OutputError: if a result of other data is there, or a run of other settings, and may not be replaced.
    """
    trainer = Trainer(towers, train, val, settings, run.compute, names=names, reporter=run.reporter)
    settings = trainer.settings
    depends_on = [asdict(settings), run.compute.precision, names, *identity]
    digest = _fingerprint(train, val, depends_on)
    if processes.from_main(output.is_done(digest, load) if run.is_main_process else False):
        if run.is_main_process:
            checkpoints.clear()  # the run was killed after it had written the result
        run.reporter.message(f"{output.folder} already contains this {output.kind}; there is nothing to do.")
        return None
    state = trainer.run(checkpoints, digest)
    if state.outcome == COLLAPSED:
        written = "Nothing was written"
        if run.is_main_process:
            checkpoints.clear()
            if not output.replaces:
                state.write_log(output.folder, names)
                written += f" except the log in {output.folder}"
        raise ConnectError(
            f"The training collapsed: after {counted(state.step, 'step')} the loss is {state.log[-1].loss:.3f}, no "
            f"better than chance in batches of {settings.batch_size} ({state.chance:.3f}), and pairs are no closer "
            f"than unrelated rows. {written}.",
            remedy="Lower --learning-rate, start at a lower --logit-scale, and check that the rows of a pair belong "
            "together.",
        )
    record = training_record(state, settings, train, val)
    return {**record, "asked": dict(output.asked), "identity": digest}, trainer.loss, state


class Trainer:
    """A training of two towers on pairs; for the arguments see `train_towers`.

    Raises:
        ConnectError: if there are too few pairs.
    """

    def __init__(
        self,
        towers: TwoTowers,
        train: PairInputs,
        val: PairInputs,
        settings: TrainingSettings,
        compute: Compute,
        *,
        names: tuple[str, str] = ("image", "text"),
        reporter: Reporter = SILENT,
    ) -> None:
        for purpose, pairs in (("training", train), ("validation", val)):
            distinct = min(len(np.unique(ids.numpy())) for ids in pairs.ids(np.arange(len(pairs))))
            if distinct < 2:
                raise ConnectError(
                    f"There are {len(pairs):,} {purpose} pairs of {names[0]} and {names[1]}, from {distinct} different "
                    "items; contrastive training needs at least 2.",
                    remedy="Add more pairs, and check that their keys match.",
                )
        if len(train) < settings.batch_size:
            reporter.message(
                f"There are {len(train):,} training pairs, fewer than a batch of {settings.batch_size:,}, so every "
                "batch contains all of them."
            )
            settings = replace(settings, batch_size=len(train) - len(train) % processes.world())
        if settings.batch_size % processes.world():
            raise ConnectError(
                f"A batch of {settings.batch_size} pairs cannot be divided among {processes.world()} processes.",
                remedy="Use a batch size that is a multiple of their number.",
            )
        self.towers = towers.to(compute.device)
        self.loss = ContrastiveLoss(settings.loss, settings.scale, settings.close_gap).to(compute.device)
        self.train, self.val = train, val
        self.settings = settings
        self.compute = compute
        self.names = names
        self.reporter = reporter
        self.state = RunState()
        self.steps_per_epoch = len(train) // settings.batch_size
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.every = min(settings.log_every or self.steps_per_epoch, self.total_steps)
        self._weights = {name: p for name, p in towers.named_parameters() if p.requires_grad}
        self._weights |= {f"loss.{name}": p for name, p in self.loss.named_parameters()}
        self._best = self._copy_weights()
        self.optimizer = adamw(
            self._weights.values(),
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=_BETAS,
        )
        self._reported_clamp = False
        self._batches: tuple[int, list[Indices]] = (-1, [])
        self._loader = ThreadPoolExecutor(1)
        self._loading: Future[Batch] | None = None

    def run(self, checkpoints: CheckpointDir | None = None, identity: str = "") -> RunState:
        """Train to the end and leave the best weights in the towers.

        Args:
            checkpoints: where the run is saved, and continued from.
            identity: a digest of all that the run depends on.

        Raises:
            ConnectError: if the embeddings are no numbers from the start.
        """
        if checkpoints is not None:
            self._resume(checkpoints, identity)
        alone = processes.world() == 1  # several would have to stop at the same step
        try:
            with (
                telling_what_is_kept(lambda: self._kept(checkpoints)),
                self.reporter.progress("Connecting", self.total_steps) as progress,
                interrupts_held() if alone else nullcontext(lambda: False) as interrupted,
            ):
                self._run_steps(progress, checkpoints, identity, interrupted)
        finally:
            self._loader.shutdown(cancel_futures=True)
        self._restore_best()
        self._report_outcome()
        return self.state

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: linear warm-up, then cosine to zero."""
        rise = max(1, round(self.settings.warmup * self.total_steps))
        return self.settings.learning_rate * warmup(step, self.total_steps, rise)

    def _run_steps(
        self, progress: Progress, checkpoints: CheckpointDir | None, identity: str, interrupted: Callable[[], bool]
    ) -> None:
        progress.resume(self.state.step, self._note())
        if not self.state.log and not self._add_point(None):
            raise ConnectError(
                "The embeddings of the validation pairs contain NaN or infinity before the first step.",
                remedy="Check the inputs and the weights for NaN, infinity and very large values.",
            )
        saved = time.monotonic()
        while not self.state.outcome:
            start = time.monotonic()
            self._step()
            self.state.seconds += time.monotonic() - start
            if self.state.step % self.every == 0 or self.state.step == self.total_steps:
                self._evaluate()
            progress.advance(1, self._note())
            due = time.monotonic() - saved > SAVE_SECONDS or bool(self.state.outcome) or interrupted()
            if checkpoints is not None and due and processes.rank() == 0:
                self._save(checkpoints, identity)
                saved = time.monotonic()
            if interrupted():
                return

    def _load(self, step: int) -> Batch:
        """Return the inputs of this process in a step, and `same_items` of the whole batch, bool (n, n).

        This runs in a thread while the previous step is computed.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._batches[0] != epoch:
            self._batches = epoch, self.train.batches(self.settings.batch_size, self.settings.seed, epoch)
        batch = self._batches[1][place]
        size = len(batch) // processes.world()
        mine = batch[processes.rank() * size :][:size]
        inputs = (
            self.train.first.rows(self.train.first_rows[mine], epoch),
            self.train.second.rows(self.train.second_rows[mine], epoch),
        )
        return inputs, same_items(*self.train.ids(batch))

    def _step(self) -> None:
        state, step = self.state, self.state.step
        inputs, same = (self._loading or self._loader.submit(self._load, step)).result()
        self._loading = self._loader.submit(self._load, step + 1) if step + 1 < self.total_steps else None
        false_negatives = (int(same.sum()) - len(same)) // 2
        state.repeated += false_negatives > 0
        state.false_negatives += false_negatives
        state.false_since += false_negatives
        set_learning_rate(self.optimizer, self.learning_rate(step))
        self.towers.train()
        self.loss.move_scale(step / max(1, self.total_steps - 1))
        self.optimizer.zero_grad()
        scope = (self.settings.seed, step)
        value = contrastive_backward(
            self.towers, self.loss, inputs, same, self.compute, chunk=self.settings.chunk, scope=scope
        )
        state.step += 1
        if not math.isfinite(value):
            state.outcome = DIVERGED
            return
        self.optimizer.step()
        self.loss.move_scale(step / max(1, self.total_steps - 1))
        state.loss_sum += value
        state.loss_count += 1

    def _evaluate(self) -> None:
        state = self.state
        if state.outcome:
            return
        mean = state.loss_sum / state.loss_count
        # every pair of pairs that is left out is one entry less in two rows
        n = self.settings.batch_size
        state.chance = self.loss.of_chance(n - 2 * state.false_since / (n * state.loss_count))
        state.loss_sum, state.loss_count, state.false_since = 0.0, 0, 0
        if not self._add_point(mean):
            state.outcome = DIVERGED
            return
        point = state.log[-1]
        if point.geometry.recall_at_1 > state.best_point.geometry.recall_at_1 or len(state.log) == 2:
            state.best = len(state.log) - 1
            self._best = self._copy_weights()
        apart = point.geometry.paired_cosine - point.geometry.unpaired_cosine
        stuck = abs(mean / state.chance - 1) < _STUCK_LOSS and apart < _STUCK_COSINE
        state.stuck = state.stuck + 1 if stuck else 0
        lowest = min(p.loss for p in state.log if p.loss is not None)
        if mean > lowest + state.chance:
            state.outcome = DIVERGED
        elif state.stuck >= _STUCK_POINTS:
            state.outcome = COLLAPSED
        elif state.step == self.total_steps:
            state.outcome = FINISHED
        elif self.settings.patience and len(state.log) - 1 - state.best >= self.settings.patience:
            state.outcome = EARLY
        if self.loss.clamped and not self._reported_clamp:
            self._reported_clamp = True
            limit = f"{self.loss.scale.limit:g}"
            self.reporter.message(f"The learned logit scale has reached its limit of {limit} and stays there.")

    def _add_point(self, loss: float | None) -> bool:
        """Measure the validation pairs; return False if the embeddings have become NaN or infinite."""
        first, second, items = self.val.embed(partial(self.towers.embed_rows, compute=self.compute))
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            return False
        self.state.log.append(
            LogPoint(
                step=self.state.step,
                epoch=self.state.step // self.steps_per_epoch,
                loss=loss,
                logit_scale=self.loss.logit_scale,
                seconds=round(self.state.seconds, 1),
                geometry=measure(first, second, items),
            )
        )
        return True

    def _kept(self, checkpoints: CheckpointDir | None) -> str:
        """Return a sentence that says what is kept if the run is interrupted now."""
        if processes.rank():
            return "The main process prints what was kept."
        return NOTHING_KEPT if checkpoints is None else checkpoints.after_interrupt(self.total_steps)

    def _note(self) -> str:
        if not self.state.log:
            return ""
        geometry = self.state.log[-1].geometry
        return f"recall@1 {geometry.recall_at_1:.3f}, gap {geometry.gap:.2f}"

    def _copy_weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def _restore_best(self) -> None:
        for name, value in self._weights.items():
            value.copy_(self._best[name])
        self.loss.log_scale.fill_(math.log(self.state.best_point.logit_scale))  # a scheduled one is no weight
        self.towers.eval()

    def _save(self, checkpoints: CheckpointDir, identity: str) -> None:
        tensors: dict[str, dict[str, Tensor]] = {"now": {**self._weights}, "best": self._best}
        checkpoints.save(self.state.step, identity, self.state.to_dict(self.names), tensors, self.optimizer)

    @torch.no_grad()
    def _resume(self, checkpoints: CheckpointDir, identity: str) -> None:
        found = checkpoints.resume(identity, self.optimizer, self.reporter)
        if found is None:
            return
        position, tensors = found
        self.state = RunState.from_dict(position)
        for name, value in tensors["now"].items():
            self._weights[name].copy_(value)
        self._best = tensors["best"]
        at = f"at step {self.state.step:,} of {self.total_steps:,}"
        self.reporter.message(f"Continuing the run saved in {checkpoints.path} {at}.")

    def _report_outcome(self) -> None:
        state, message = self.state, self.reporter.message
        if state.repeated:
            average = state.false_negatives / state.step
            message(
                f"In {state.repeated:,} of {state.step:,} batches an item occurred more than once ({average:.1f} "
                "times on average); these entries were not used as negatives."
            )
        if state.outcome == DIVERGED:
            message(
                f"The loss diverged at step {state.step:,}; the weights of step {state.best_point.step:,} are "
                "kept. A lower --learning-rate or a longer --warmup may help."
            )
        elif state.outcome == EARLY:
            message(f"Stopped at step {state.step:,}: {self.settings.patience} log entries without a better recall@1.")
        chance = 1 / len(self.val.item_rows)
        if state.outcome in (FINISHED, EARLY) and state.best_point.geometry.recall_at_1 <= 3 * chance:
            message(
                "Retrieval among the validation pairs is near chance. Check that the rows of a pair belong together."
            )


def _fingerprint(train: PairInputs, val: PairInputs, depends_on: object) -> str:
    """Return a digest of pairs, of a sample of their inputs, and of JSON values."""
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode())
    for pairs in (train, val):
        for rows, inputs in ((pairs.first_rows, pairs.first), (pairs.second_rows, pairs.second)):
            digest.update(np.ascontiguousarray(rows).tobytes())
            digest.update(inputs.rows(rows[:: max(1, len(rows) // _SAMPLED_ROWS)]).numpy().tobytes())
    return digest.hexdigest()
