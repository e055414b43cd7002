"""The loop of contrastive training, the same for heads on features and for whole towers.

Everything random in a step depends on (seed, step) alone, so that a run that was killed continues exactly. The
checkpoint is the point of the log with the highest recall@1 (mean of both directions) among the validation pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..devices import Compute
from ..errors import ConnectError
from ..reporter import SilentTracker, Tracker
from . import processes
from .geometry import LogPoint, measure
from .gradients import TwoTowers, contrastive_backward
from .losses import ContrastiveLoss, same_items
from .pairs import Indices, Pairs
from .settings import TrainingSettings
from .state import RunFolder

FINISHED, EARLY, DIVERGED, COLLAPSED = "finished", "stopped early", "diverged", "collapsed"
SAVE_SECONDS = 60.0
_STUCK_POINTS = 3
_STUCK_LOSS = 0.02  # from the loss of chance, as a share of it
_STUCK_COSINE = 0.01


class Batch(NamedTuple):
    """One step's share of this process.

    Attributes:
        inputs: of both sides, row by row a pair.
        same: bool (n, n) of the whole batch, see `same_items`.
        false_negatives: how many pairs of pairs are of one item.
    """

    inputs: tuple[Tensor, Tensor]
    same: Tensor
    false_negatives: int


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: optimiser steps done.
        log: points so far.
        best: index of the best of them.
        stuck: consecutive points at which the loss is that of chance and pairs are no nearer than other rows.
        seconds: of training.
        loss_sum: over the batches since the last point.
        loss_count: how many these are.
        false_since: false negatives in them.
        chance: the loss of equal cosines in batches like these.
        repeated: batches in which an item came more than once.
        false_negatives: pairs of pairs that were left out for that.
        outcome: how it ended, or an empty string.
    """

    step: int = 0
    log: list[LogPoint] = field(default_factory=list)
    best: int = 0
    stuck: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    false_since: int = 0
    chance: float = 0.0
    repeated: int = 0
    false_negatives: int = 0
    outcome: str = ""

    @property
    def best_point(self) -> LogPoint:
        """The point of the log whose weights are kept."""
        return self.log[self.best]


class Trainer:
    """Trains two towers on pairs.

    Args:
        towers: what is trained: their parameters that require a gradient.
        train: pairs to learn from.
        val: pairs to choose the checkpoint by.
        settings: see `TrainingSettings`.
        compute: device and precision.
        names: of the two modalities.
        say: told what the user should know, one line at a time.

    Raises:
        ConnectError: if there are too few pairs.
    """

    def __init__(
        self,
        towers: TwoTowers,
        train: Pairs,
        val: Pairs,
        settings: TrainingSettings,
        compute: Compute,
        *,
        names: tuple[str, str] = ("image", "text"),
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        _check(train, val, names)
        if len(train) < settings.batch_size:
            say(
                f"There are {len(train):,} training pairs, fewer than a batch of {settings.batch_size:,}: "
                "every batch has all of them."
            )
            settings = replace(settings, batch_size=len(train) - len(train) % processes.world())
        if settings.batch_size % processes.world():
            raise ConnectError(
                f"A batch of {settings.batch_size} pairs cannot be shared by {processes.world()} processes.",
                remedy="Choose a batch size that is a multiple of their number.",
            )
        self.towers = towers.to(compute.device)
        self.loss = ContrastiveLoss(settings.loss, settings.scale).to(compute.device)
        self.train, self.val = train, val
        self.settings = settings
        self.compute = compute
        self.names = names
        self.say = say
        self.progress = Progress()
        self.steps_per_epoch = len(train) // settings.batch_size
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.every = min(settings.log_every or self.steps_per_epoch, self.total_steps)
        self._weights = {name: p for name, p in towers.named_parameters() if p.requires_grad}
        self._weights |= {f"loss.{name}": p for name, p in self.loss.named_parameters()}
        self._best = self._copied()
        decayed = [p for p in self._weights.values() if p.ndim > 1]
        others = [p for p in self._weights.values() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
        self._told: set[str] = set()
        self._batches: tuple[int, list[Indices]] = (-1, [])
        self._loader = ThreadPoolExecutor(1)
        self._loading: Future[Batch] | None = None

    def run(self, folder: RunFolder | None = None, identity: str = "", tracker: Tracker | None = None) -> Progress:
        """Train to the end, leave the best weights in the towers, and say how it went.

        Args:
            folder: where the run is saved, and continued from.
            identity: a digest of all that the run depends on.
            tracker: told about steps done.

        Raises:
            ConnectError: if the embeddings are no numbers from the start.
        """
        tracker = tracker or SilentTracker()
        if folder is not None:
            self._resume(folder, identity)
        tracker.advance(self.progress.step, self._note())
        if not self.progress.log and not self._add_point(None):
            raise ConnectError(
                "The embeddings of the validation pairs are no numbers before the first step.",
                remedy="Look for NaN, infinity or very large values in the inputs or the weights.",
            )
        saved = time.monotonic()
        while not self.progress.outcome:
            start = time.monotonic()
            self._step()
            self.progress.seconds += time.monotonic() - start
            if self.progress.step % self.every == 0 or self.progress.step == self.total_steps:
                self._evaluate()
            tracker.advance(1, self._note())
            due = time.monotonic() - saved > SAVE_SECONDS or bool(self.progress.outcome)
            if folder is not None and due and processes.rank() == 0:
                self._save(folder, identity)
                saved = time.monotonic()
        self._loader.shutdown(cancel_futures=True)
        self._restore_best()
        self._say_outcome()
        return self.progress

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 0: linear warm-up, then cosine to zero."""
        warm = max(1, round(self.settings.warmup * self.total_steps))
        if step < warm:
            return self.settings.learning_rate * (step + 1) / warm
        share = (step - warm) / max(1, self.total_steps - warm)
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def _load(self, step: int) -> Batch:
        """What the step needs; runs in a thread, while the step before is computed."""
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
        same = same_items(*self.train.ids(batch))
        return Batch(inputs, same, (int(same.sum()) - len(batch)) // 2)

    def _step(self) -> None:
        step = self.progress.step
        batch = (self._loading or self._loader.submit(self._load, step)).result()
        self._loading = self._loader.submit(self._load, step + 1) if step + 1 < self.total_steps else None
        self.progress.repeated += batch.false_negatives > 0
        self.progress.false_negatives += batch.false_negatives
        self.progress.false_since += batch.false_negatives
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.towers.train()
        self.loss.move_scale(step / max(1, self.total_steps - 1))
        self.optimizer.zero_grad()
        scope = (self.settings.seed, step)
        value = contrastive_backward(
            self.towers, self.loss, batch.inputs, batch.same, self.compute, chunk=self.settings.chunk, scope=scope
        )
        self.progress.step += 1
        if not math.isfinite(value):
            self.progress.outcome = DIVERGED
            return
        self.optimizer.step()
        self.loss.move_scale(step / max(1, self.total_steps - 1))
        self.progress.loss_sum += value
        self.progress.loss_count += 1

    def _evaluate(self) -> None:
        progress = self.progress
        if progress.outcome:
            return
        mean = progress.loss_sum / progress.loss_count
        # every pair of pairs that is left out is one entry less in two rows
        n = self.settings.batch_size
        progress.chance = self.loss.of_chance(n - 2 * progress.false_since / (n * progress.loss_count))
        progress.loss_sum, progress.loss_count, progress.false_since = 0.0, 0, 0
        if not self._add_point(mean):
            progress.outcome = DIVERGED
            return
        point = progress.log[-1]
        if point.geometry.recall_at_1 > progress.best_point.geometry.recall_at_1 or len(progress.log) == 2:
            progress.best = len(progress.log) - 1
            self._best = self._copied()
        apart = point.geometry.paired_cosine - point.geometry.unpaired_cosine
        stuck = abs(mean / progress.chance - 1) < _STUCK_LOSS and apart < _STUCK_COSINE
        progress.stuck = progress.stuck + 1 if stuck else 0
        lowest = min(p.loss for p in progress.log if p.loss is not None)
        done = progress.step == self.total_steps
        if mean > lowest + progress.chance:
            progress.outcome = DIVERGED
        elif progress.stuck >= _STUCK_POINTS:
            progress.outcome = COLLAPSED
        elif done:
            progress.outcome = FINISHED
        elif self.settings.patience and len(progress.log) - 1 - progress.best >= self.settings.patience:
            progress.outcome = EARLY
        if self.loss.clamped:
            self._say_once(f"The learned logit scale is at its limit of {self.loss.scale.limit:g} and stays there.")

    def _add_point(self, loss: float | None) -> bool:
        """Measure the validation pairs; False if the embeddings are no numbers any more."""
        items = self.val.items
        first = self.towers.embed_rows(self.val.first, 0, items, self.compute)
        second = self.towers.embed_rows(self.val.second, 1, self.val.second_rows, self.compute)
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            return False
        owner = np.searchsorted(items, self.val.first_rows)
        self.progress.log.append(
            LogPoint(
                step=self.progress.step,
                epoch=self.progress.step // self.steps_per_epoch,
                loss=loss,
                logit_scale=self.loss.logit_scale,
                seconds=round(self.progress.seconds, 1),
                geometry=measure(first, second, owner),
            )
        )
        return True

    def _note(self) -> str:
        if not self.progress.log:
            return ""
        geometry = self.progress.log[-1].geometry
        return f"recall@1 {geometry.recall_at_1:.3f}, gap {geometry.gap:.2f}"

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def _restore_best(self) -> None:
        for name, value in self._weights.items():
            value.copy_(self._best[name])
        self.loss.log_scale.fill_(math.log(self.progress.best_point.logit_scale))  # a scheduled one is no weight
        self.towers.eval()

    def _save(self, folder: RunFolder, identity: str) -> None:
        tensors: dict[str, Tensor] = {f"now/{name}": value for name, value in self._weights.items()}
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": value for name, value in moments.items()}
        position: dict[str, Any] = dict(vars(self.progress))
        position["log"] = [point.to_json(self.names) for point in self.progress.log]
        folder.save(self.progress.step, identity, position, tensors)

    @torch.no_grad()
    def _resume(self, folder: RunFolder, identity: str) -> None:
        found = folder.resume(identity)
        for message in folder.messages:
            self.say(message)
        if found is None:
            return
        position, tensors = found
        position["log"] = [LogPoint.from_json(point) for point in position["log"]]
        self.progress = Progress(**position)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "now":
                self._weights[name].copy_(value)
            elif kind == "best":
                self._best[name] = value
            else:
                number, _, entry = name.partition("/")
                moments.setdefault(int(number), {})[entry] = value
        state = self.optimizer.state_dict()
        state["state"] = moments
        self.optimizer.load_state_dict(state)
        self.say(f"Continuing the run saved in {folder.path} at step {self.progress.step:,} of {self.total_steps:,}.")

    def _say_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self.say(message)

    def _say_outcome(self) -> None:
        progress = self.progress
        if progress.repeated:
            average = progress.false_negatives / progress.step
            self.say(
                f"In {progress.repeated:,} of {progress.step:,} batches an item came more than once ({average:.1f} "
                "times on average); these entries were not taken as negatives."
            )
        if progress.outcome == DIVERGED:
            self.say(
                f"The loss diverged at step {progress.step:,}; the weights of step {progress.best_point.step:,} are "
                "kept. A lower --learning-rate or a longer --warmup may help."
            )
        elif progress.outcome == EARLY:
            self.say(f"Stopped at step {progress.step:,}: {self.settings.patience} points without a better recall@1.")
        chance = 1 / len(self.val.items)
        if progress.outcome in (FINISHED, EARLY) and progress.best_point.geometry.recall_at_1 <= 3 * chance:
            self.say(
                "Retrieval among the validation pairs is near chance: do the rows of the two sides belong together?"
            )


def _check(train: Pairs, val: Pairs, names: tuple[str, str]) -> None:
    for what, pairs, least in (("training", train, 2), ("validation", val, 2)):
        distinct = min(pairs.distinct) if len(pairs) else 0
        if distinct < least:
            raise ConnectError(
                f"There are {len(pairs):,} {what} pairs of {names[0]} and {names[1]}, of {distinct} different items; "
                f"contrastive training needs {least} or more.",
                remedy="Give more pairs, and check that their keys match.",
            )
