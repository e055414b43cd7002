"""Losses of caption decoders: cross-entropy, and the contrastive loss of MAGIC's language model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor, tokens: Tensor, pad_id: int, reduction: str = "mean", label_smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy of scores (B, T, V) and tokens int64 (B, T), in nats; padding is left out."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        tokens.flatten(),
        ignore_index=pad_id,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def contrastive_loss(hidden: Tensor, real: Tensor, margin: float) -> Tensor:
    """Return the contrastive loss of SimCTG (Su et al., 2022), which keeps the hidden states of a caption apart.

        1 / (T (T - 1)) sum_i sum_(j != i) max(0, margin - 1 + cos(h_i, h_j)), mean over the captions

    Args:
        hidden: hidden states (B, T, W).
        real: bool (B, T), False for padding.
        margin: 0.5 in MAGIC.
    """
    unit = F.normalize(hidden.float(), dim=-1)
    excess = (margin - 1 + unit @ unit.transpose(1, 2)).clamp(min=0)  # (B, T, T)
    other = ~torch.eye(hidden.shape[1], dtype=torch.bool, device=hidden.device)
    pairs = real[:, :, None] & real[:, None, :] & other  # (B, T, T)
    return ((excess * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).mean()
