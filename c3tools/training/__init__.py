"""The parts that every training shares: checkpoints to continue from, the optimiser and its schedule, named sizes."""

from __future__ import annotations

from .checkpoints import NOTHING_KEPT, CheckpointDir, interrupts_held
from .optimization import adamw, warmup
from .sizes import load_named_size

__all__ = ["NOTHING_KEPT", "CheckpointDir", "adamw", "interrupts_held", "load_named_size", "warmup"]
