"""One training run: its settings and state, and its log, record and model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..corpus.splits import STANDARD, describe_rule
from ..errors import ConnectError, telling_what_is_kept
from ..io.files import MALFORMED, read_json, write_json_atomically, write_text_atomically
from ..io.outputs import Output, previous_folder, replacing, written_at
from ..pages.figures import save_figure
from ..reporter import Reporter, counted
from ..tables import Table
from ..training.checkpoints import CheckpointDir
from ..training.sizes import require_valid
from .geometry import LogPoint, geometry_figure, measure
from .inputs import EmbedRows, PairInputs
from .losses import KINDS, LogitScale
from .processes import RunContext

RECORD_FILE = "connect.json"
LOG_FILE, FIGURE_FILE, CARD_FILE = "geometry.json", "geometry.svg", "README.md"
FINISHED, EARLY, DIVERGED, COLLAPSED = "finished", "stopped early", "diverged", "collapsed"
_SCORES = ("split", "direction", "recall@1", "recall@5", "recall@10", "gap", "paired cosine", "unpaired")


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

    def asked(self, train_split: str, precision: str) -> dict[str, Any]:
        """Return the settings of a run other than its model and data, as JSON values by name."""
        return {**asdict(self), "scale": str(self.scale), "train_split": train_split, "precision": precision}


@dataclass
class ConnectOutput(Output):
    """The folder of trained heads or of a trained model."""

    @classmethod
    def of(cls, folder: Path, kind: str, model_file: str, overwrite: bool) -> ConnectOutput:
        """Return the folder of a training; the record, the model or the log of a collapsed run show that it is one."""
        return cls(folder, kind, (RECORD_FILE, model_file, LOG_FILE), overwrite, previous_folder(folder))

    @contextmanager
    def claimed(self, checkpoints: CheckpointDir, run: RunContext, asked: Mapping[str, Any]) -> Iterator[None]:
        """Keep other runs off the folder while the block runs, and refuse to replace what may not be replaced.

        The main process does it for all.

        Raises:
            OutputError: if another run writes to it, or it contains another result or other files.
        """
        if not run.is_main_process:
            self.asked = asked
            yield
            return
        with checkpoints.locked(self.folder):
            self.ask(asked, self._read)
            yield

    @contextmanager
    def written(
        self, state: RunState, names: tuple[str, str], checkpoints: CheckpointDir, reporter: Reporter
    ) -> Iterator[Path]:
        """Yield a folder for the result, which gets the log and replaces the former result when the block ends."""
        with (
            telling_what_is_kept(
                lambda: "The training is finished and saved; run the same command again to write the result."
            ),
            replacing(self.folder, keep=self.replaces) as new,
        ):
            state.write_log(new, names)
            yield new
        checkpoints.clear()
        if self.replaces:
            reporter.message(f"The former {self.kind} was kept as {self.kept}.")

    def _read(self) -> tuple[Mapping[str, Any], str] | None:
        """Return the record and the description of the finished training in the folder, or None if there is none."""
        path = self.folder / RECORD_FILE
        if not path.is_file() and not (self.folder / self.files[1]).is_file():
            return None  # the log of a run that collapsed
        try:
            record = read_json(path)["record"]
            facts = [f"{record['pairs']['train']:,} pairs", f"{record['outcome']} {written_at(path)}"]
            if val := record["scores"].get("val"):  # a corpus may have no val split
                recall = val["recall"].items()
                scores = [f"{way.replace('_to_', ' to ')} {100 * values['recall@1']:.1f} %" for way, values in recall]
                facts.append(f"recall@1 on val {' and '.join(scores)}")
            return record, ", ".join(facts)
        except (OSError, *MALFORMED):
            return {}, "the record of its training is missing"


@dataclass
class RunState:
    """The position and the log of a run.

    Attributes:
        step: optimiser steps done.
        log: points so far.
        best: index of the best of them.
        stuck: consecutive points at which the loss is that of chance and pairs are no nearer than other rows.
        seconds: of training.
        loss_sum: over the batches since the last point.
        loss_count: number of these batches.
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

    def to_dict(self, names: tuple[str, str]) -> dict[str, Any]:
        """Return the state as JSON values, the two modalities by name."""
        return {**vars(self), "log": [point.to_dict(names) for point in self.log]}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> RunState:
        """Read what `to_dict` returned."""
        return cls(**{**value, "log": [LogPoint.from_dict(point) for point in value["log"]]})

    def write_log(self, output: Path, names: tuple[str, str]) -> None:
        """Write the log of the geometry as a table and as a figure."""
        kept = self.best_point.step
        points = [point.to_dict(names) for point in self.log]
        write_json_atomically(output / LOG_FILE, {"kept_step": kept, "points": points})
        save_figure(geometry_figure(self.log, names, kept), output / FIGURE_FILE)


def training_record(state: RunState, settings: TrainingSettings, train: PairInputs, val: PairInputs) -> dict[str, Any]:
    """Return data, settings and outcome of a finished run as JSON values."""
    return {
        "pairs": {"train": len(train), "val": len(val)},
        "settings": {**asdict(settings), "scale": str(settings.scale)},
        "outcome": state.outcome,
        "steps": state.step,
        "kept_step": state.best_point.step,
        "logit_scale": state.best_point.logit_scale,
        "seconds": round(state.seconds, 1),
        "false_negatives": {"batches": state.repeated, "entries": state.false_negatives},
    }


def score_splits(pairs: PairInputs, embed: EmbedRows, names: tuple[str, str], train_split: str) -> dict[str, Any]:
    """Measure the splits val and test as JSON values; a split of a single item is left out.

    None is measured where rows are split by hash and another split is learned from: its rows are in them.
    """
    apart = train_split in STANDARD or describe_rule(pairs.splits) is None
    parts = {split: pairs.where(split) for split in ("val", "test") if apart}
    return {
        split: measure(*part.embed(embed)).to_dict(names) for split, part in parts.items() if len(part.item_rows) > 1
    }


def score_table(record: dict[str, Any], title: str = "", *, percent: bool = True) -> Table:
    """Return the scores of a record as a table, recalls in percent or as fractions."""
    rows = []
    for split, score in record["scores"].items():
        geometry = [f"{score[name]:.3f}" for name in ("gap", "paired_cosine", "unpaired_cosine")]
        for direction, recall in score["recall"].items():
            cells = [f"{100 * value:.1f} %" if percent else f"{value:.3f}" for value in recall.values()]
            rows.append([split, direction.replace("_to_", " → "), *cells, *geometry])
    return Table(_SCORES, rows, title, left=_SCORES[:2])


def write_card(output: Path, title: str, facts: list[tuple[str, str]], record: dict[str, Any], usage: str) -> None:
    """Write a card in Markdown: facts about the model, its training, its scores, and how it is used."""
    settings = record["settings"]
    training = [
        ("pairs", f"{record['pairs']['train']:,} for training, {record['pairs']['val']:,} for choosing the checkpoint"),
        ("loss", f"{settings['loss']}, logit scale {settings['scale']} ({record['logit_scale']:.1f} in the end)"),
        (
            "training",
            f"batches of {settings['batch_size']:,}, AdamW at {settings['learning_rate']:g}, seed {settings['seed']}; "
            f"{record['outcome']} after {counted(record['steps'], 'step')}, step {record['kept_step']:,} was kept; "
            f"{record['seconds']:,.0f} s",
        ),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in [*facts, *training])]
    scores = [f"| {' | '.join(_SCORES)} |", "|---" * len(_SCORES) + "|"]
    scores += [f"| {' | '.join(row)} |" for row in score_table(record, percent=False).rows]
    text = "\n".join([f"# {title}", "", *table, "", *scores, "", usage, ""])
    write_text_atomically(output / CARD_FILE, text)
