"""The optimiser and its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def adamw(
    parameters: Iterable[Tensor],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool | None = None,
) -> torch.optim.AdamW:
    """Return AdamW over the parameters that require a gradient; only matrices decay, not biases, gains or scales."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def warmup(step: int, total: int, rise: int, decay: str = "cosine") -> float:
    """Return the share of the peak learning rate at a step: linear from 0 over ``rise`` steps, then down to 0.

    Args:
        step: counted from 0.
        total: steps of the whole run.
        rise: steps of the warm-up, at least 1.
        decay: ``cosine`` or ``linear``.
    """
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, total - rise)
    return 1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every group of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value
