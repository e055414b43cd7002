"""Connect: contrastive training of two towers, or of two small heads on frozen features."""

from __future__ import annotations

from .apply import apply_heads
from .features import PairedFeatures, read_features
from .heads import ConnectedHeads, connect_heads
from .towers import ConnectedTowers, connect_towers

__all__ = [
    "ConnectedHeads",
    "ConnectedTowers",
    "PairedFeatures",
    "apply_heads",
    "connect_heads",
    "connect_towers",
    "read_features",
]
