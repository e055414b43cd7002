"""Connect: contrastive training of two towers, or of two small heads on frozen features."""

from __future__ import annotations

from . import processes
from .apply import apply_heads
from .features import PairedFeatures, sides_of_files, sides_of_stores
from .geometry import Geometry, LogPoint, measure
from .gradients import TwoTowers, contrastive_backward
from .heads import ConnectedHeads, Head, HeadShape
from .heads_run import connect_heads
from .losses import ContrastiveLoss, LogitScale, same_items
from .pairs import FeatureInputs, Inputs, Pairs, ids_of, ids_of_rows
from .settings import TrainingSettings
from .state import RunFolder
from .towers_run import FULL, LIT, TowerSettings, connect_towers
from .training import COLLAPSED, DIVERGED, EARLY, FINISHED, Progress, Trainer

__all__ = [
    "COLLAPSED",
    "DIVERGED",
    "EARLY",
    "FINISHED",
    "FULL",
    "LIT",
    "ConnectedHeads",
    "ContrastiveLoss",
    "FeatureInputs",
    "Geometry",
    "Head",
    "HeadShape",
    "Inputs",
    "LogPoint",
    "LogitScale",
    "PairedFeatures",
    "Pairs",
    "Progress",
    "RunFolder",
    "TowerSettings",
    "Trainer",
    "TrainingSettings",
    "TwoTowers",
    "apply_heads",
    "connect_heads",
    "connect_towers",
    "contrastive_backward",
    "ids_of",
    "ids_of_rows",
    "measure",
    "processes",
    "same_items",
    "sides_of_files",
    "sides_of_stores",
]
