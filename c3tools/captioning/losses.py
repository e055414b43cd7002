"""Losses of decoders: cross-entropy, the contrastive loss of MAGIC's language model, ESPER's policy gradient."""

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


def generalized_advantages(rewards: Tensor, values: Tensor, real: Tensor, smoothing: float = 0.95) -> Tensor:
    """Return the advantage of each token (B, T), without discount (GAE, Schulman et al., 2016); of padding 0.

        A_t = sum_k smoothing^k (r_(t+k) + V_(t+k+1) - V_(t+k)),  V = 0 after the last token

    Args:
        rewards: of each token (B, T).
        values: expected sum of the rewards from each token on, (B, T).
        real: bool (B, T), False for padding.
        smoothing: lambda.
    """
    advantages = torch.zeros_like(rewards)
    after = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(after)
    for t in reversed(range(rewards.shape[1])):
        after = (rewards[:, t] + following - values[:, t] + smoothing * after) * real[:, t]
        advantages[:, t] = after
        following = values[:, t] * real[:, t]
    return advantages


def clipped_policy_loss(log_p: Tensor, before: Tensor, advantages: Tensor, real: Tensor, clip: float = 0.2) -> Tensor:
    """Return the clipped objective of PPO (Schulman et al., 2017) as a loss, mean over the tokens that are no padding.

        -min(p / p_before A, clamp(p / p_before, 1 - clip, 1 + clip) A)

    Args:
        log_p: log-probability of each token (B, T).
        before: when the captions were written.
        advantages: of each token.
        real: bool (B, T), False for padding.
        clip: 0.2 in ESPER.
    """
    ratio = (log_p - before).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)[real].mean()
