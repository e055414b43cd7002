"""The parts that every training loop shares: checkpoints to continue from, the optimiser and its schedule."""

from __future__ import annotations

from .checkpoints import NOTHING_KEPT, CheckpointDir, interrupts_held
from .optimization import adamw, warmup

__all__ = ["NOTHING_KEPT", "CheckpointDir", "adamw", "interrupts_held", "warmup"]
