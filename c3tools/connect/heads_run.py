"""`c3 connect heads`: two heads on frozen features, trained and written with their log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..devices import Compute
from ..seeds import generator
from .card import heads_card
from .features import PairedFeatures
from .geometry import measure
from .gradients import TwoTowers
from .heads import ConnectedHeads, Head, HeadShape
from .pairs import FeatureInputs, Pairs
from .run import CARD_FILE, Display, distributed, scores_of, silent, train_towers, write_text
from .settings import TrainingSettings

_SAMPLED_ROWS = 1024


def connect_heads(
    sides: PairedFeatures,
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
    with distributed(compute, progress, say) as session:
        train_rows, val_rows = sides.training_rows(train_split)
        for note in sides.notes:
            session.say(note)
        train, val = sides.pairs(train_rows), sides.pairs(val_rows)
        heads = new_heads(train, shape, settings.seed)
        trained, _ = train_towers(TwoTowers(*heads), train, val, settings, output, sides.names, session, asdict(shape))
        features = {name: values.shape[1] for name, values in zip(sides.names, sides.features, strict=True)}
        record = {"modalities": list(sides.names), "features": features, **trained}
        connected = ConnectedHeads(dict(zip(sides.names, heads, strict=True)), shape, record)
        record["scores"] = {
            role: _scores(connected, sides, role)
            for role in ("val", "test")
            if len(np.unique(sides.owner[sides.rows_of(role)])) > 1
        }
        if session.is_main_process:
            connected.save(output)
            write_text(output / CARD_FILE, heads_card(connected))
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


def _scores(heads: ConnectedHeads, sides: PairedFeatures, role: str) -> dict[str, Any]:
    rows = sides.rows_of(role)
    items = np.unique(sides.owner[rows])
    first, second = (
        heads.embed(name, features[numbers])
        for name, features, numbers in zip(sides.names, sides.features, (items, rows), strict=True)
    )
    return scores_of(measure(first, second, np.searchsorted(items, sides.owner[rows])), sides.names)
