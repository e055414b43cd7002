"""Connect: contrastive training of two towers, or of two small heads on frozen features."""

from __future__ import annotations

from . import processes
from .geometry import Geometry, LogPoint, measure
from .gradients import TwoTowers, contrastive_backward
from .heads import ConnectedHeads, Head, HeadShape
from .losses import ContrastiveLoss, LogitScale, same_items
from .pairs import FeatureInputs, Inputs, Pairs, ids_of, ids_of_rows
from .settings import TrainingSettings
from .state import RunFolder
from .training import COLLAPSED, DIVERGED, EARLY, FINISHED, Progress, Trainer

__all__ = [
    "COLLAPSED",
    "DIVERGED",
    "EARLY",
    "FINISHED",
    "ConnectedHeads",
    "ContrastiveLoss",
    "FeatureInputs",
    "Geometry",
    "Head",
    "HeadShape",
    "Inputs",
    "LogPoint",
    "LogitScale",
    "Pairs",
    "Progress",
    "RunFolder",
    "Trainer",
    "TrainingSettings",
    "TwoTowers",
    "contrastive_backward",
    "ids_of",
    "ids_of_rows",
    "measure",
    "processes",
    "same_items",
]
