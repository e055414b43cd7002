"""A training run around any two towers: its processes, its state, its log, and how it can fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..devices import Compute, pick
from ..errors import ConnectError
from ..io.files import write_atomically, write_json_atomically
from ..pages.figures import save_figure
from ..reporter import SilentTracker, Tracker
from . import processes
from .figure import geometry_figure
from .geometry import Geometry
from .gradients import TwoTowers
from .losses import ContrastiveLoss
from .pairs import Pairs
from .settings import TrainingSettings
from .state import RunFolder
from .training import COLLAPSED, Progress, Trainer

LOG_FILE, FIGURE_FILE, CARD_FILE = "geometry.json", "geometry.svg", "README.md"
_SAMPLED_ROWS = 1024


class Display(Protocol):
    """Opens a progress display."""

    def __call__(self, label: str, total: int | None) -> AbstractContextManager[Tracker]:
        """A display of ``total`` steps under ``label``."""


def silent(label: str, total: int | None) -> AbstractContextManager[Tracker]:
    """Show nothing."""
    return nullcontext(SilentTracker())


@dataclass(frozen=True)
class RunContext:
    """Where a run is computed and whom it tells; of several processes, one leads, and the others are silent."""

    compute: Compute
    progress: Display
    say: Callable[[str], None]
    is_main_process: bool


@contextmanager
def distributed(compute: Compute | None, progress: Display, say: Callable[[str], None]) -> Iterator[RunContext]:
    """Join the processes that `torchrun` started, if it did, while the block runs."""
    with processes.joined() as gpu:
        compute = compute or pick()
        if gpu is not None:
            compute = Compute(gpu, compute.precision)
        if processes.rank():
            yield RunContext(compute, silent, lambda message: None, is_main_process=False)
        else:
            yield RunContext(compute, progress, say, is_main_process=True)


def train_towers(
    towers: TwoTowers,
    train: Pairs,
    val: Pairs,
    settings: TrainingSettings,
    output: Path,
    names: tuple[str, str],
    session: RunContext,
    *identity: object,
) -> tuple[dict[str, Any], ContrastiveLoss]:
    """Train, leave the best weights in the towers, write the log into ``output``; the record of the run, and the loss.

    The state of the run is kept in a folder beside ``output``; ``identity`` is what it depends on beside the
    arguments.

    Raises:
        ConnectError: if there are too few pairs, or the run collapsed.
    """
    trainer = Trainer(towers, train, val, settings, session.compute, names=names, say=session.say)
    run = RunFolder(output.with_name(f".{output.name}.run"))
    plain = [asdict(trainer.settings), session.compute.precision, names, *identity]
    with session.progress("Connecting", trainer.total_steps) as tracker:
        state = trainer.run(run, fingerprint(train, val, plain), tracker)
    if session.is_main_process:
        write_log(output, state, names)
        run.clear()
    if state.outcome == COLLAPSED:
        raise collapsed(state, trainer, output)
    record = {
        "pairs": {"train": len(train), "val": len(val)},
        "settings": {**asdict(trainer.settings), "scale": str(trainer.settings.scale)},
        **outcome(state),
    }
    return record, trainer.loss


def outcome(state: Progress) -> dict[str, Any]:
    """How a run went, as JSON values."""
    return {
        "outcome": state.outcome,
        "steps": state.step,
        "kept_step": state.best_point.step,
        "logit_scale": state.best_point.logit_scale,
        "seconds": round(state.seconds, 1),
        "false_negatives": {"batches": state.repeated, "entries": state.false_negatives},
    }


def write_log(output: Path, state: Progress, names: tuple[str, str]) -> None:
    """The log of the geometry as a table and as a figure."""
    points = [point.to_json(names) for point in state.log]
    write_json_atomically(output / LOG_FILE, {"kept_step": state.best_point.step, "points": points})
    save_figure(geometry_figure(state.log, names, state.best_point.step), output / FIGURE_FILE)


def collapsed(state: Progress, trainer: Trainer, output: Path) -> ConnectError:
    """The error of a run whose loss stays at chance."""
    last = state.log[-1]
    return ConnectError(
        f"The run collapsed: after {state.step:,} steps the loss is {last.loss:.3f}, that of chance in batches of "
        f"{trainer.settings.batch_size} ({state.chance:.3f}), and pairs are no nearer than other rows. Nothing was "
        f"written but the log in {output}.",
        remedy="Lower --learning-rate, start at a lower --logit-scale, and check that the rows of a pair match.",
    )


def fingerprint(train: Pairs, val: Pairs, settings: object) -> str:
    """A digest of pairs, features (a sample of their rows) and settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for pairs in (train, val):
        for rows, inputs in ((pairs.first_rows, pairs.first), (pairs.second_rows, pairs.second)):
            digest.update(np.ascontiguousarray(rows).tobytes())
            digest.update(inputs.rows(rows[:: max(1, len(rows) // _SAMPLED_ROWS)]).numpy().tobytes())
    return digest.hexdigest()


def scores_of(geometry: Geometry, names: tuple[str, str]) -> dict[str, Any]:
    """The geometry of scored pairs as JSON values."""
    first, second = names
    forward, backward = geometry.recall
    return {
        "gap": geometry.gap,
        "effective_dimension": dict(zip(names, geometry.effective_dimension, strict=True)),
        "paired_cosine": geometry.paired_cosine,
        "unpaired_cosine": geometry.unpaired_cosine,
        "rmg": geometry.rmg,
        "recall": {f"{first}_to_{second}": forward, f"{second}_to_{first}": backward},
    }


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_atomically(path, lambda temporary: _fill(temporary, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
