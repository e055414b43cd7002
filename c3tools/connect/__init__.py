"""Connect: contrastive training of two towers, or of two small heads on frozen features."""

from __future__ import annotations

from .heads import ConnectedHeads, apply_heads, connect_heads
from .pairs import PairedFeatures, read_features
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
