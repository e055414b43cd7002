"""The parts that every training loop shares: checkpoints to continue from, the optimiser and its schedule."""

from __future__ import annotations

from .checkpoints import CheckpointDir
from .optimization import adamw, warmup

__all__ = ["CheckpointDir", "adamw", "warmup"]
