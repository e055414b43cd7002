"""`c3 connect`: contrastive training from pairs, and what its result makes of more of them."""

from __future__ import annotations

from .apply import apply_heads
from .columns import Sides, sides_of_files, sides_of_stores
from .heads import connect_heads

__all__ = ["Sides", "apply_heads", "connect_heads", "sides_of_files", "sides_of_stores"]
