"""`c3 connect heads`: two heads on frozen features, trained and written with their log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ...connect import (
    COLLAPSED,
    ConnectedHeads,
    FeatureInputs,
    Geometry,
    Head,
    HeadShape,
    Pairs,
    Progress,
    RunFolder,
    Trainer,
    TrainingSettings,
    TwoTowers,
    measure,
    processes,
)
from ...connect.figure import geometry_figure
from ...devices import Compute, pick
from ...errors import ConnectError
from ...pages.figures import save_figure
from ...progress import SilentTracker, Tracker
from ...seeds import generator
from ...store.files import write_atomically, write_json_atomically
from .card import heads_card
from .columns import Sides

LOG_FILE, FIGURE_FILE, CARD_FILE = "geometry.json", "geometry.svg", "README.md"
_SAMPLED_ROWS = 1024


class Display(Protocol):
    """Opens a progress display."""

    def __call__(self, label: str, total: int | None) -> AbstractContextManager[Tracker]:
        """A display of ``total`` steps under ``label``."""


def silent(label: str, total: int | None) -> AbstractContextManager[Tracker]:
    """Show nothing."""
    return nullcontext(SilentTracker())


def connect_heads(
    sides: Sides,
    output: Path,
    shape: HeadShape | None = None,
    settings: TrainingSettings | None = None,
    *,
    train_split: str = "train",
    compute: Compute | None = None,
    progress: Display = silent,
    say: Callable[[str], None] = lambda message: None,
) -> ConnectedHeads:
    """Train two heads on the features of ``sides`` and write them to the folder ``output``.

    The folder has the weights, the record, the log of the geometry as a table and as a figure, and a card. A run that
    was interrupted is continued by the same call: its state is kept beside ``output`` until the heads are written.

    Args:
        sides: see `columns`.
        output: the folder.
        shape: of the heads.
        settings: of the training.
        train_split: the split to learn from; ``val`` chooses the checkpoint, ``test`` is only scored at the end.
        compute: device and precision; the best there is when None.
        progress: opens the display of the training.
        say: told what the user should know, one line at a time.

    Raises:
        ConnectError: if there are too few pairs, or the run collapsed.
    """
    shape, settings = shape or HeadShape(), settings or TrainingSettings()
    train_rows, val_rows = sides.training_rows(train_split)
    for note in sides.notes:
        say(note)
    train, val = sides.pairs(train_rows), sides.pairs(val_rows)
    compute = compute or pick()
    heads = new_heads(train, shape, settings.seed)
    trainer = Trainer(TwoTowers(*heads), train, val, settings, compute, names=sides.names, say=say)
    run = RunFolder(output.with_name(f".{output.name}.run"))
    identity = fingerprint(train, val, asdict(shape), asdict(trainer.settings), compute.precision, *sides.names)
    with progress("Connecting", trainer.total_steps) as tracker:
        state = trainer.run(run, identity, tracker)
    record = {
        "modalities": list(sides.names),
        "features": {side.name: int(side.vectors.shape[1]) for side in (sides.first, sides.second)},
        "pairs": {"train": len(train), "val": len(val)},
        "settings": {**asdict(trainer.settings), "scale": str(trainer.settings.scale)},
        **outcome(state),
    }
    if processes.rank() > 0:
        return ConnectedHeads(dict(zip(sides.names, heads, strict=True)), shape, record)
    write_log(output, state, sides.names)
    run.clear()
    if state.outcome == COLLAPSED:
        raise collapsed(state, trainer, output)
    connected = ConnectedHeads(dict(zip(sides.names, heads, strict=True)), shape, record)
    record["scores"] = {
        role: _scores(connected, sides, role) for role in ("val", "test") if len(np.unique(sides.rows_of(role))) > 1
    }
    connected.save(output)
    card = heads_card(connected)
    write_atomically(output / CARD_FILE, lambda path: _write(path, card))
    return connected


def new_heads(train: Pairs, shape: HeadShape, seed: int) -> tuple[Head, Head]:
    """Heads fitted to the features of the training pairs, with random weights from the seed."""
    heads = []
    for side, inputs, rows in ((0, train.first, train.first_rows), (1, train.second, train.second_rows)):
        assert isinstance(inputs, FeatureInputs)
        numbers, values = np.unique(rows), inputs.values
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(seed, "head", side).integers(2**62)))
            head = Head(values.shape[1], shape)
        head.fit(values, numbers)
        if shape.cone > 0:
            own = torch.Generator().manual_seed(int(generator(seed, "cone", side).integers(2**62)))
            head.start_in_cone(inputs.rows(numbers[:_SAMPLED_ROWS]), shape.cone, own)
        heads.append(head)
    return heads[0], heads[1]


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
    n = trainer.settings.batch_size
    return ConnectError(
        f"The run collapsed: after {state.step:,} steps the loss is {last.loss:.3f}, that of chance in batches of {n} "
        f"({trainer.loss.of_chance(n):.3f}), and pairs are no nearer than other rows. Nothing was written but the log "
        f"in {output}.",
        remedy="Lower --learning-rate, start at a lower --logit-scale, and check that the rows of a pair match.",
    )


def fingerprint(train: Pairs, val: Pairs, *settings: object) -> str:
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


def _scores(heads: ConnectedHeads, sides: Sides, role: str) -> dict[str, Any]:
    rows = sides.rows_of(role)
    items = np.unique(sides.owner[rows])
    first, second = (
        heads.embed(name, features[numbers])
        for name, features, numbers in zip(sides.names, sides.features, (items, rows), strict=True)
    )
    return scores_of(measure(first, second, np.searchsorted(items, sides.owner[rows])), sides.names)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
