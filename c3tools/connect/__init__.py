"""Connect: contrastive training of two towers, or of two small heads on frozen features."""

from __future__ import annotations

from .geometry import Geometry, LogPoint, geometry_figure, measure
from .gradients import TwoTowers, contrastive_backward
from .heads import ConnectedHeads, Head, HeadShape, apply_heads, connect_heads
from .inputs import PairedFeatures, PairInputs, read_features
from .losses import ContrastiveLoss, LogitScale, same_items
from .processes import is_main_process
from .run import SCORE_COLUMNS, TrainingSettings, score_rows
from .towers import ConnectedTowers, connect_towers
from .training import Trainer

__all__ = [
    "SCORE_COLUMNS",
    "ConnectedHeads",
    "ConnectedTowers",
    "ContrastiveLoss",
    "Geometry",
    "Head",
    "HeadShape",
    "LogPoint",
    "LogitScale",
    "PairInputs",
    "PairedFeatures",
    "Trainer",
    "TrainingSettings",
    "TwoTowers",
    "apply_heads",
    "connect_heads",
    "connect_towers",
    "contrastive_backward",
    "geometry_figure",
    "is_main_process",
    "measure",
    "read_features",
    "same_items",
    "score_rows",
]
