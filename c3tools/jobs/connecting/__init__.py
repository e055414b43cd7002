"""`c3 connect`: contrastive training from pairs, and what its result makes of more of them."""

from __future__ import annotations

from .apply import apply_heads
from .columns import Sides, sides_of_files, sides_of_stores
from .heads import connect_heads
from .towers import FULL, LIT, TowerSettings, connect_towers

__all__ = [
    "FULL",
    "LIT",
    "Sides",
    "TowerSettings",
    "apply_heads",
    "connect_heads",
    "connect_towers",
    "sides_of_files",
    "sides_of_stores",
]
