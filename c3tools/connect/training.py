"""The contrastive training of two towers, the same for heads on features and for whole models.

Everything random in a step depends on (seed, step) alone, so that a run that was killed continues exactly. The
checkpoint is the point of the log with the highest recall@1 (mean of both directions) among the validation pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import Indices
from ..corpus.splits import STANDARD, describe_rule
from ..devices import Compute
from ..errors import ConnectError
from ..io.artifact import CARD_FILE, Kind, Target, claimed, digest_of, write_result
from ..io.files import write_json_atomically, write_text_atomically
from ..pages.figures import save_figure
from ..reporter import SILENT, Reporter, counted
from ..tables import Table
from ..training.checkpoints import CheckpointDir
from ..training.loop import DIVERGED, EARLY, FINISHED, Plan, Run, Task, Validation, adamw, train
from ..training.sizes import require_valid
from .geometry import geometry_figure, measure
from .gradients import TwoTowers, contrastive_backward
from .losses import KINDS, ContrastiveLoss, LogitScale, same_items
from .pairs import PairInputs
from .processes import from_main, joined, rank, world

RECORD_FILE, LOG_FILE, FIGURE_FILE = "connect.json", "geometry.json", "geometry.svg"
COLLAPSED = "collapsed"
_BETAS = 0.9, 0.98
_STUCK_POINTS = 3
_STUCK_LOSS = 0.02  # from the loss of chance, as a share of it
_STUCK_COSINE = 0.01
_SAMPLED_ROWS = 1024
_SCORES = ("split", "direction", "recall@1", "recall@5", "recall@10", "gap", "paired cosine", "unpaired")

Batch = tuple[tuple[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the training of any two towers.

    Attributes:
        loss: ``infonce`` or ``sigmoid``.
        scale: see `LogitScale`.
        close_gap: weight of the terms that close the gap; 0 for the contrastive loss alone.
        batch_size: pairs per step, over all processes.
        chunk: pairs embedded at a time (gradient caching), or None for the whole batch.
        epochs: passes over the pairs, at most.
        learning_rate: peak of the schedule: linear warm-up, then cosine to zero.
        weight_decay: AdamW's, on matrices only.
        warmup: share of all steps spent warming up.
        log_every: steps between two points of the log; None for once an epoch.
        patience: stop after so many points without a better recall@1; 0 never stops early.
        train_split: the split to train on.
        seed: for all random numbers.
    """

    loss: str = "infonce"
    scale: LogitScale = field(default_factory=LogitScale)
    close_gap: float = 0.0
    batch_size: int = 512
    chunk: int | None = None
    epochs: int = 20
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    log_every: int | None = None
    patience: int = 5
    train_split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in KINDS:
            raise ConnectError(f"There is no loss {self.loss!r}.", remedy=f"Choose from {', '.join(KINDS)}.")
        if self.batch_size < 2:
            raise ConnectError(
                f"A batch of {self.batch_size} contains no negatives.", remedy="Use a batch of at least 2 pairs."
            )
        require_valid(
            self,
            positive=("epochs", "learning_rate"),
            not_negative=("close_gap", "weight_decay", "patience"),
            shares=("warmup",),
            error=ConnectError,
        )
        for name in ("chunk", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConnectError(f"{name} must be at least 1, not {value}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "scale": str(self.scale)}


class PairTask(Task):
    """The training of two towers on pairs.

    Args:
        towers: their parameters that require a gradient are trained.
        train: pairs to learn from.
        val: pairs to choose the checkpoint by.
        settings: of the training.
        compute: device and precision.
        names: of the two modalities.
        made_from: JSON values that the run depends on beside these.
        reporter: gets messages.

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
        train: PairInputs,
        val: PairInputs,
        settings: TrainingSettings,
        compute: Compute,
        *,
        names: tuple[str, str] = ("image", "text"),
        made_from: object = None,
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
            settings = replace(settings, batch_size=len(train) - len(train) % world())
        if settings.batch_size % world():
            raise ConnectError(
                f"A batch of {settings.batch_size} pairs cannot be divided among {world()} processes.",
                remedy="Use a batch size that is a multiple of their number.",
            )
        self.towers = towers.to(compute.device)
        self.loss = ContrastiveLoss(settings.loss, settings.scale, settings.close_gap).to(compute.device)
        self.module = nn.ModuleDict({"towers": self.towers, "loss": self.loss})
        self.train, self.val, self.settings, self.compute, self.names = train, val, settings, compute, names
        self.reporter = reporter
        self.counters = {"batches": 0, "repeated": 0, "false_negatives": 0, "recent_batches": 0, "recent": 0}
        self.steps_per_epoch = len(train) // settings.batch_size
        steps = settings.epochs * self.steps_per_epoch
        self.plan = Plan(
            steps,
            settings.learning_rate,
            min(settings.log_every or self.steps_per_epoch, steps),
            rise=max(1, round(settings.warmup * steps)),
            patience=settings.patience,
            start="report",
        )
        self.optimizer = adamw(
            self.module.parameters(),
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=_BETAS,
        )
        parts: list[object] = [settings.to_dict(), compute.precision, names, made_from]
        for pairs in (train, val):
            for rows, inputs in ((pairs.first_rows, pairs.first), (pairs.second_rows, pairs.second)):
                parts += [rows, inputs.rows(rows[:: max(1, len(rows) // _SAMPLED_ROWS)]).numpy()]
        self.identity = digest_of(*parts)
        self._clamp_reported = False
        self._batches: tuple[int, list[Indices]] = (-1, [])
        self._loader = ThreadPoolExecutor(1)
        self._loading: Future[Batch] | None = None

    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Learn from one batch of pairs, while the next one is read."""
        inputs, same = (self._loading or self._loader.submit(self._load, number)).result()
        self._loading = self._loader.submit(self._load, number + 1) if number + 1 < self.plan.steps else None
        false_negatives = (int(same.sum()) - len(same)) // 2
        self.counters["batches"] += 1
        self.counters["repeated"] += false_negatives > 0
        self.counters["false_negatives"] += false_negatives
        self.counters["recent"] += false_negatives
        self.counters["recent_batches"] += 1
        progress = number / max(1, self.plan.steps - 1)
        self.loss.move_scale(progress)
        scope = (self.settings.seed, number)
        value = contrastive_backward(
            self.towers, self.loss, inputs, same, self.compute, chunk=self.settings.chunk, scope=scope
        )
        value = update(value)
        self.loss.move_scale(progress)
        return value, self.settings.batch_size

    def _load(self, step: int) -> Batch:
        """Return the inputs of this process in a step, and `same_items` of the whole batch, bool (n, n)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._batches[0] != epoch:
            self._batches = epoch, self.train.batches(self.settings.batch_size, self.settings.seed, epoch)
        batch = self._batches[1][place]
        size = len(batch) // world()
        mine = batch[rank() * size :][:size]
        inputs = (
            self.train.first.rows(self.train.first_rows[mine], epoch),
            self.train.second.rows(self.train.second_rows[mine], epoch),
        )
        return inputs, same_items(*self.train.ids(batch))

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return the recall@1 of the validation pairs, negative, and their geometry; NaN if embeddings have become so.

        The fact ``chance`` is the loss of equal cosines in the batches since the last validation, in which every pair
        of pairs that was left out is one entry less in two rows.
        """
        first, second, items = self.val.embed(partial(self.towers.embed_rows, compute=self.compute))
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            return math.nan, {}
        geometry = measure(first, second, items)
        n, recent = self.settings.batch_size, self.counters["recent"]
        chance = self.loss.of_chance(n - 2 * recent / (n * max(1, self.counters["recent_batches"])))
        self.counters["recent"] = self.counters["recent_batches"] = 0
        facts = {"chance": chance, "logit_scale": self.loss.logit_scale, "geometry": geometry.to_dict(self.names)}
        return -geometry.recall_at_1, facts

    def verdict(self, run: Run) -> str:
        """End a run whose loss has risen by that of chance, or whose pairs stay no nearer than other rows."""
        if self.loss.clamped and not self._clamp_reported:
            self._clamp_reported = True
            limit = f"{self.loss.scale.limit:g}"
            self.reporter.message(f"The learned logit scale has reached its limit of {limit} and stays there.")
        latest = run.history[-1]
        if latest.train_loss > min(one.train_loss for one in run.history) + latest.facts["chance"]:
            return DIVERGED
        last = run.history[-_STUCK_POINTS:]
        return COLLAPSED if len(last) == _STUCK_POINTS and all(map(_is_stuck, last)) else ""

    def note(self, latest: Validation) -> str:
        """Return recall and gap of the last validation."""
        return f"recall@1 {-latest.val_loss:.3f}, gap {latest.facts['geometry']['gap']:.2f}"

    def log(self, run: Run) -> list[dict[str, Any]]:
        """Return the log of the geometry, from the initial weights on, as JSON values."""
        points: list[dict[str, Any]] = []
        seconds = 0.0
        for one in [run.start, *run.history] if run.start else run.history:
            seconds += one.seconds
            value = {
                "step": one.step,
                "epoch": one.step // self.steps_per_epoch,
                "loss": None if math.isnan(one.train_loss) else one.train_loss,
                "logit_scale": one.facts["logit_scale"],
                "seconds": round(seconds, 1),
                **one.facts["geometry"],
            }
            points.append(value)
        return points

    def close(self) -> None:
        """End the thread that reads batches."""
        self._loader.shutdown(cancel_futures=True)


def _is_stuck(point: Validation) -> bool:
    """Return whether the loss is that of chance, and pairs are no nearer than other rows."""
    geometry, chance = point.facts["geometry"], point.facts["chance"]
    apart = geometry["paired_cosine"] - geometry["unpaired_cosine"]
    return bool(abs(point.train_loss / chance - 1) < _STUCK_LOSS and apart < _STUCK_COSINE)


@dataclass
class Prepared:
    """Models and data that a training of towers begins with.

    Attributes:
        towers: to be trained.
        pairs: all pairs.
        train: those to learn from.
        val: those to choose the checkpoint by.
        made_from: JSON values that the run depends on beside pairs and settings.
        record: about model and data, as JSON values.
        facts: about them, for the card.
    """

    towers: TwoTowers
    pairs: PairInputs
    train: PairInputs
    val: PairInputs
    made_from: object
    record: dict[str, Any]
    facts: list[tuple[str, str]] = field(default_factory=list)


def connect(
    output: Path,
    kind: Kind,
    settings: TrainingSettings,
    asked: Mapping[str, Any],
    names: tuple[str, str],
    prepare: Callable[[Compute, Reporter], Prepared],
    save: Callable[[Path, ContrastiveLoss], Mapping[str, Any]],
    load: Callable[[], object],
    *,
    usage: str,
    overwrite: bool,
    start: Path | None = None,
    device: str | None,
    precision: str,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Train two towers and write the result; return its record, or None if the result is there already.

    Args:
        output: the folder of the result.
        kind: of the result.
        settings: of the training.
        asked: further settings, as JSON values.
        names: of the two modalities.
        prepare: reads the inputs and makes the towers.
        save: writes the towers into a folder; returns what else its record has to contain.
        load: reads the result, and raises a `C3Error` if it is damaged.
        usage: the last paragraph of the card.
        overwrite: replace a result, or a run that is saved, of other settings or data.
        start: the folder of the model that the training starts from.
        device, precision: see `c3tools.devices.pick`.
        reporter: used by the main process.

    Raises:
        ConnectError: if there are too few pairs, or the training collapsed.
        OutputError: if another run is writing there, or something that is not to be replaced is there.
    """
    main = rank() == 0
    reporter = reporter if main else SILENT
    checkpoints = CheckpointDir.beside(output, overwrite=overwrite)
    with joined(device, precision) as compute:
        asked = {**settings.to_dict(), **asked, "precision": compute.precision}
        others = nullcontext(Target(output, kind, asked, overwrite, reporter))
        claim = claimed(output, kind, asked, overwrite=overwrite, start=start, reporter=reporter) if main else others
        with claim as target:
            ready = prepare(compute, reporter)
            task = PairTask(
                ready.towers,
                ready.train,
                ready.val,
                settings,
                compute,
                names=names,
                made_from=ready.made_from,
                reporter=reporter,
            )
            there = target.finished(task.identity, lambda: load() or True) if main else None
            if from_main(there is not None):
                if main:
                    checkpoints.clear()  # the run was killed after it had written the result
                target.write(lambda folder: None)
                return None
            try:
                run = train(
                    task,
                    checkpoints=checkpoints,
                    label="Connecting",
                    reporter=reporter,
                    alone=world() == 1,
                    main=main,
                )
            finally:
                task.close()
            _report(task, run, target, checkpoints)
            assert run.kept is not None
            with torch.no_grad():  # a scheduled scale is no weight
                task.loss.log_scale.fill_(math.log(run.kept.facts["logit_scale"]))
            embed = partial(task.towers.embed_rows, compute=compute)
            # rows that are split by hash are in val and test, even if another split is learned from
            apart = settings.train_split in STANDARD or describe_rule(ready.pairs.splits) is None
            parts = {split: ready.pairs.where(split) for split in ("val", "test") if apart}
            log = task.log(run)
            record = {
                **ready.record,
                "made_from": target.made_from(task.identity),
                "pairs": {"train": len(ready.train), "val": len(ready.val)},
                "settings": task.settings.to_dict(),
                "outcome": run.outcome,
                "steps": run.step,
                "kept_step": run.kept.step,
                "recall@1": -run.kept.val_loss,
                "logit_scale": run.kept.facts["logit_scale"],
                "seconds": log[-1]["seconds"],
                "false_negatives": {
                    "batches": task.counters["repeated"],
                    "entries": task.counters["false_negatives"],
                },
                "scores": {
                    split: measure(*part.embed(embed)).to_dict(names)
                    for split, part in parts.items()
                    if len(part.item_rows) > 1
                },
            }
            if main:
                content: dict[str, Any] = {"record": record}

                def save_all(folder: Path) -> None:
                    content.update(save(folder, task.loss))
                    write_log(folder, log, names, record["kept_step"])
                    write_text_atomically(folder / CARD_FILE, _card(output.name, ready.facts, record, usage))

                target.write(lambda folder: write_result(folder, kind, content, save_all, keep=target.there))
                checkpoints.clear()
    return record


def write_log(folder: Path, log: list[dict[str, Any]], names: tuple[str, str], kept_step: int) -> None:
    """Write the log of the geometry as a table and as a figure."""
    write_json_atomically(folder / LOG_FILE, {"kept_step": kept_step, "points": log})
    save_figure(geometry_figure(log, names, kept_step), folder / FIGURE_FILE)


def _report(task: PairTask, run: Run, target: Target, checkpoints: CheckpointDir) -> None:
    """Report how a training ended.

    Raises:
        ConnectError: if it collapsed; its log is written where no result is.
    """
    message, counters = task.reporter.message, task.counters
    assert run.kept is not None
    if run.outcome == COLLAPSED:
        written = "Nothing was written"
        if rank() == 0:
            checkpoints.clear()
            if not target.there:
                write_log(target.folder, task.log(run), task.names, run.kept.step)
                written += f" except the log in {target.folder}"
        last = run.history[-1]
        raise ConnectError(
            f"The training collapsed: after {counted(run.step, 'step')} the loss is {last.train_loss:.3f}, no "
            f"better than chance in batches of {task.settings.batch_size} ({last.facts['chance']:.3f}), and pairs are "
            f"no closer than unrelated rows. {written}.",
            remedy="Lower --learning-rate, start at a lower --logit-scale, and check that the rows of a pair belong "
            "together.",
        )
    if counters["repeated"]:
        message(
            f"In {counters['repeated']:,} of {counters['batches']:,} batches an item occurred more than once "
            f"({counters['false_negatives'] / counters['batches']:.1f} times on average); these entries were not used "
            "as negatives."
        )
    if run.outcome == DIVERGED:
        message(
            f"The loss diverged at step {run.step:,}; the weights of step {run.kept.step:,} are kept. A lower "
            "--learning-rate or a longer --warmup may help."
        )
    elif run.outcome == EARLY:
        message(f"Stopped at step {run.step:,}: {task.settings.patience} log entries without a better recall@1.")
    if run.outcome in (FINISHED, EARLY) and -run.kept.val_loss <= 3 / len(task.val.item_rows):
        message("Retrieval among the validation pairs is near chance. Check that the rows of a pair belong together.")


def score_table(record: Mapping[str, Any], title: str = "", *, percent: bool = True) -> Table:
    """Return the scores of a record as a table, recalls in percent or as fractions."""
    rows = []
    for split, score in record["scores"].items():
        geometry = [f"{score[name]:.3f}" for name in ("gap", "paired_cosine", "unpaired_cosine")]
        for direction, recall in score["recall"].items():
            cells = [f"{100 * value:.1f} %" if percent else f"{value:.3f}" for value in recall.values()]
            rows.append([split, direction.replace("_to_", " → "), *cells, *geometry])
    return Table(_SCORES, rows, title, left=_SCORES[:2])


def _card(title: str, facts: list[tuple[str, str]], record: dict[str, Any], usage: str) -> str:
    """Return a card in Markdown: facts about the model, its training, its scores, and how it is used."""
    settings, pairs = record["settings"], record["pairs"]
    training = (
        f"batches of {settings['batch_size']:,}, AdamW at {settings['learning_rate']:g}, seed {settings['seed']}; "
        f"{record['outcome']} after {counted(record['steps'], 'step')}, step {record['kept_step']:,} was kept; "
        f"{record['seconds']:,.0f} s"
    )
    rows = [
        *facts,
        ("pairs", f"{pairs['train']:,} for training, {pairs['val']:,} for choosing the checkpoint"),
        ("loss", f"{settings['loss']}, logit scale {settings['scale']} ({record['logit_scale']:.1f} in the end)"),
        ("training", training),
    ]
    lines = [f"# {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    lines += [f"| {' | '.join(_SCORES)} |", "|---" * len(_SCORES) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in score_table(record, percent=False).rows]
    return "\n".join([*lines, "", usage, ""])
