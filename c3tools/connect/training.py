"""The contrastive training of two towers, the same for heads on features and for whole models.

Everything random in a step depends on (seed, step) alone, so that a run that was killed continues exactly. The
checkpoint is the epoch with the highest recall@1 (mean of both directions) among the validation pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import Indices
from ..corpus.splits import STANDARD, describe_rule
from ..errors import ConnectError
from ..io.artifact import Target, digest_of, write_result
from ..io.files import write_json_atomically
from ..pages.figures import save_figure
from ..reporter import Reporter
from ..tables import Table
from ..training.checkpoints import CheckpointDir
from ..training.loop import FINISHED, Plan, Run, Task, Validation, adamw, train
from ..training.sizes import require_valid
from .geometry import geometry_figure, measure
from .losses import ContrastiveLoss, TwoTowers, contrastive_backward, parse_scale, same_items
from .pairs import PairInputs

RECORD_FILE, LOG_FILE = "connect.json", "geometry.json"
_BETAS, _WEIGHT_DECAY = (0.9, 0.98), 0.05
_WARMUP = 0.05  # of the steps
_SAMPLED_ROWS = 1024
_SCORES = ("split", "direction", "recall@1", "recall@5", "recall@10", "gap", "paired cosine", "unpaired")
T = TypeVar("T")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the training of any two towers; see the options of `connect_heads`."""

    logit_scale: str = "learned"
    close_gap: float = 0.0
    batch_size: int = 512
    chunk: int | None = None
    epochs: int = 20
    learning_rate: float = 1e-3
    patience: int = 5
    train_split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConnectError(f"A batch of {self.batch_size} contains no negatives.", remedy="Use at least 2 pairs.")
        if self.chunk is not None and self.chunk < 1:
            raise ConnectError(f"chunk must be at least 1, not {self.chunk}.")
        parse_scale(self.logit_scale)
        positive, not_negative = ("epochs", "learning_rate"), ("close_gap", "patience")
        require_valid(self, positive=positive, not_negative=not_negative, error=ConnectError)


class PairTask(Task):
    """The training of two towers on pairs.

    Args:
        towers: their parameters that require a gradient are trained.
        train_pairs: pairs to learn from.
        val_pairs: pairs to choose the checkpoint by.
        settings: of the training.
        names: of the two modalities.
        made_from: JSON values that the run depends on beside these.

    Attributes:
        settings: with the batch size that is used.
        loss: has the logit scale.

    Raises:
        ConnectError: if there are too few pairs.
    """

    unit, error = "pairs", ConnectError
    remedy = "Check the inputs and the weights for NaN, infinity and very large values."

    def __init__(
        self,
        towers: TwoTowers,
        train_pairs: PairInputs,
        val_pairs: PairInputs,
        settings: TrainingSettings,
        names: tuple[str, str] = ("image", "text"),
        made_from: object = None,
    ) -> None:
        if min(len(np.unique(ids)) for pairs in (train_pairs, val_pairs) for ids in pairs.ids) < 2:
            raise ConnectError(
                f"There are {len(train_pairs):,} training and {len(val_pairs):,} validation pairs; at least 2 of "
                "different items are needed of each.",
                remedy="Add more pairs, and check that the keys of the two modalities match.",
            )
        settings = replace(settings, batch_size=min(settings.batch_size, len(train_pairs)))
        self.towers, self.loss = towers, ContrastiveLoss(settings.logit_scale, settings.close_gap)
        self.module = nn.ModuleDict({"towers": towers, "loss": self.loss.to(towers.compute.device)})
        self.train, self.val, self.settings, self.names = train_pairs, val_pairs, settings, names
        self.steps_per_epoch = len(train_pairs) // settings.batch_size
        steps = settings.epochs * self.steps_per_epoch
        rise, patience = max(1, round(_WARMUP * steps)), settings.patience
        self.plan = Plan(steps, settings.learning_rate, self.steps_per_epoch, rise, patience=patience, start="report")
        trained = self.module.parameters()
        self.optimizer = adamw(trained, learning_rate=settings.learning_rate, weight_decay=_WEIGHT_DECAY, betas=_BETAS)
        parts: list[object] = [asdict(settings), towers.compute.precision, names, made_from]
        for pairs in (train_pairs, val_pairs):
            for rows, inputs in zip(pairs.rows, pairs.inputs, strict=True):
                parts += [rows, inputs.rows(rows[:: max(1, len(rows) // _SAMPLED_ROWS)]).numpy()]
        self.identity = digest_of(*parts)
        self._batches = -1, np.empty((0, 0), np.int64)
        self._loader = ThreadPoolExecutor(1)
        self._loading: Future[tuple[tuple[Tensor, Tensor], Tensor]] | None = None

    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Learn from one batch of pairs, while the next one is read."""
        inputs, same = (self._loading or self._loader.submit(self._load, number)).result()
        self._loading = self._loader.submit(self._load, number + 1) if number + 1 < self.plan.steps else None
        scope, chunk = (self.settings.seed, number), self.settings.chunk
        value = update(contrastive_backward(self.towers, self.loss, inputs, same, chunk=chunk, scope=scope))
        with torch.no_grad():
            self.loss.log_scale.clamp_(max=self.loss.limit)
        return value, self.settings.batch_size

    def _load(self, step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the inputs of a step, and `same_items` of them, bool (n, n)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._batches[0] != epoch:
            self._batches = epoch, self.train.batches(self.settings.batch_size, self.settings.seed, epoch)
        batch: Indices = self._batches[1][place]
        pairs = self.train
        inputs = pairs.inputs[0].rows(pairs.rows[0, batch], epoch), pairs.inputs[1].rows(pairs.rows[1, batch], epoch)
        return inputs, same_items(torch.from_numpy(pairs.ids[:, batch]))

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return the recall@1 of the validation pairs, negative, and their geometry; NaN if embeddings are."""
        first, second, items = self.val.embed(self.towers.embed_rows)
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            return math.nan, {}
        geometry = measure(first, second, items, self.names)
        forward, backward = (recall["recall@1"] for recall in geometry["recall"].values())
        return -(forward + backward) / 2, {"logit_scale": self.loss.logit_scale, **geometry}

    def note(self, latest: Validation) -> str:
        """Return recall and gap of the last validation."""
        return f"recall@1 {-latest.val_loss:.3f}, gap {latest.facts['gap']:.2f}"

    def log(self, run: Run) -> list[dict[str, Any]]:
        """Return the log of the geometry, from the initial weights on, as JSON values."""
        points = [run.start, *run.history] if run.start else run.history
        losses = (None if math.isnan(point.train_loss) else point.train_loss for point in points)
        return [{"step": one.step, "loss": loss, **one.facts} for one, loss in zip(points, losses, strict=True)]

    def close(self) -> None:
        """End the thread that reads batches."""
        self._loader.shutdown(cancel_futures=True)


def connect(
    target: Target,
    task: PairTask,
    pairs: PairInputs,
    record: Mapping[str, Any],
    *,
    save: Callable[[Path], Mapping[str, Any]],
    load: Callable[[Path], T],
    reporter: Reporter,
) -> T:
    """Train two towers and write the result, unless it is there already; return what is loaded from the folder.

    Args:
        target: the folder of the result.
        task: the training.
        pairs: all pairs, of which those of val and test are scored.
        record: about model and data, as JSON values.
        save: writes the towers into a folder; returns what else its record has to contain.
        load: reads the result, and raises a `C3Error` if it is damaged.
        reporter: gets messages and progress.
    """
    checkpoints = CheckpointDir.beside(target.folder, overwrite=target.overwrite)
    try:
        found = target.finished(task.identity, lambda: load(target.folder))
        if found is not None:
            checkpoints.clear()  # the run was killed after it had written the result
            target.write(lambda folder: None)
            return found
        run = train(task, checkpoints=checkpoints, label="Connecting", reporter=reporter)
    finally:
        task.close()
    settings, kept, log = task.settings, run.kept, task.log(run)
    assert kept is not None
    if run.outcome != FINISHED:
        reporter.message(
            f"The training {run.outcome} at step {run.step:,}; the weights of step {kept.step:,} are kept."
        )
    if -kept.val_loss <= 3 / len(task.val.item_rows):
        reporter.message(
            "Retrieval among the validation pairs is near chance. Check that the rows of a pair belong together, and "
            "try a lower --learning-rate or --logit-scale."
        )
    # rows that are split by hash are in val and test, even if another split is learned from
    apart = settings.train_split in STANDARD or describe_rule(pairs.splits) is None
    scored = {split: pairs.where(split) for split in ("val", "test") if apart}
    content: dict[str, Any] = {
        **record,
        "made_from": target.made_from(task.identity),
        "pairs": {"train": len(task.train), "val": len(task.val)},
        "settings": asdict(settings),
        "outcome": run.outcome,
        "steps": run.step,
        "kept_step": kept.step,
        "recall@1": -kept.val_loss,
        "logit_scale": kept.facts["logit_scale"],
        "seconds": round(sum(one.seconds for one in run.history), 1),
        "scores": {
            split: measure(*part.embed(task.towers.embed_rows), task.names)
            for split, part in scored.items()
            if len(part.item_rows) > 1
        },
    }
    whole = {"record": content}

    def save_all(folder: Path) -> None:
        whole.update(save(folder))
        write_json_atomically(folder / LOG_FILE, {"kept_step": kept.step, "points": log})
        save_figure(geometry_figure(log, task.names, kept.step), folder / "geometry.svg")

    target.write(lambda folder: write_result(folder, target.kind, whole, save_all, keep=target.there))
    checkpoints.clear()
    return load(target.folder)


def score_table(record: Mapping[str, Any]) -> Table:
    """Return the scores of a record as a table, recalls in percent."""
    rows = []
    for split, score in record["scores"].items():
        geometry = [f"{score[name]:.3f}" for name in ("gap", "paired_cosine", "unpaired_cosine")]
        for direction, recall in score["recall"].items():
            cells = [f"{100 * value:.1f} %" for value in recall.values()]
            rows.append([split, direction.replace("_to_", " → "), *cells, *geometry])
    return Table(_SCORES, rows, left=_SCORES[:2])
