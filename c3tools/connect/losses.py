"""The two contrastive losses, the logit scale they share, and the terms that close the gap.

With unit rows a_i, b_j (n, d), z_ij = s a_i . b_j and s the logit scale (the inverse temperature):

    infonce    mean over i of -log softmax_j(z_ij)[i], and of the same for columns, averaged (Radford et al., 2021)
    sigmoid    -1/n sum_ij log sigmoid(y_ij (z_ij + bias)), y_ij = 1 for pairs and -1 for others (Zhai et al., 2023)

Besides, ``close_gap`` times (Grassucci et al., ICLR 2026)

    mean over i of |a_i - b_i|^2 + log mean over i != j of exp(-2 |c_i - c_j|^2)

draws pairs together, and spreads their centroids c_i, the unit vectors along a_i + b_i.

Entries of one item that are not its own pair (a second caption of an image, the same sentence under two images) are
false negatives: they are left out of both sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConnectError

KINDS = ("infonce", "sigmoid")
MAX_LOGIT_SCALE = 100.0
LEARNED_FROM = 1 / 0.07
_SIGMOID_BIAS = -10.0


@dataclass(frozen=True)
class LogitScale:
    """The course of the logit scale through the training.

    Attributes:
        start: its value at the first step.
        end: at the last step, in equal ratios over the steps; None if it stays, or is learned.
        learned: whether it is a parameter.
        limit: it is never larger; CLIP's 100 by default.
    """

    start: float = LEARNED_FROM
    end: float | None = None
    learned: bool = False
    limit: float = MAX_LOGIT_SCALE

    def __post_init__(self) -> None:
        for value in (self.start, self.end, self.limit):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConnectError(f"A logit scale must be a number above 0, not {value}.", remedy="For example 100.")
        highest = max(self.start, self.end or 0)
        if highest > self.limit:
            raise ConnectError(
                f"The logit scale {highest:g} is above the limit of {self.limit:g}.",
                remedy=f"Use at most {self.limit:g}, or raise the limit with --max-logit-scale.",
            )
        if self.learned and self.end is not None:
            raise ConnectError("A logit scale is either learned or scheduled, but not both.")

    @classmethod
    def parse(cls, text: str, limit: float = MAX_LOGIT_SCALE) -> LogitScale:
        """Read ``100`` (fixed), ``learned`` (a parameter, from 14.3), ``learned:20`` or ``14:100`` (rising).

        Raises:
            ConnectError: for anything else, or a scale beyond the limit.
        """
        head, colon, tail = text.partition(":")
        try:
            if head == "learned":
                return cls(float(tail) if colon else min(LEARNED_FROM, limit), learned=True, limit=limit)
            return cls(float(head), float(tail) if colon else None, limit=limit)
        except ValueError:
            raise ConnectError(
                f"{text!r} is not a logit scale.", remedy="For example 100, learned, learned:20, or 14:100 (scheduled)."
            ) from None

    def __str__(self) -> str:
        if self.learned:
            return f"learned:{self.start:g}"
        return f"{self.start:g}" if self.end is None else f"{self.start:g}:{self.end:g}"


class ContrastiveLoss(nn.Module):
    """Either loss, with its logit scale (kept as a logarithm) and, for the sigmoid loss, its bias.

    Args:
        kind: a key of `KINDS`.
        scale: see `LogitScale`.
        close_gap: weight of the terms that close the gap.
    """

    log_scale: Tensor
    bias: Tensor | None

    def __init__(self, kind: str = "infonce", scale: LogitScale | None = None, close_gap: float = 0.0) -> None:
        super().__init__()
        self.close_gap = close_gap
        if kind not in KINDS:
            raise ConnectError(f"There is no loss {kind!r}.", remedy=f"Choose from {', '.join(KINDS)}.")
        self.kind = kind
        self.scale = scale or LogitScale()
        start = torch.tensor(math.log(self.scale.start))
        if self.scale.learned:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)
        self.bias = nn.Parameter(torch.tensor(_SIGMOID_BIAS)) if kind == "sigmoid" else None

    @property
    def logit_scale(self) -> float:
        """The present logit scale."""
        return math.exp(float(self.log_scale.detach()))

    @property
    def clamped(self) -> bool:
        """True if a learned scale is at its limit."""
        return self.scale.learned and float(self.log_scale.detach()) >= math.log(self.scale.limit) - 1e-6

    @torch.no_grad()
    def move_scale(self, progress: float) -> None:
        """Set a scheduled scale for ``progress`` in [0, 1]; keep a learned one within its limit."""
        if self.scale.learned:
            self.log_scale.clamp_(max=math.log(self.scale.limit))
        elif self.scale.end is not None:
            low, high = math.log(self.scale.start), math.log(self.scale.end)
            self.log_scale.fill_(low + progress * (high - low))

    def forward(self, first: Tensor, second: Tensor, same: Tensor | None = None) -> Tensor:
        """Return the loss of pairs of unit rows (n, d).

        Args:
            first: row i belongs to row i of ``second``.
            second: likewise.
            same: bool (n, n), true if the entry is a false negative or the pair itself; None for no false ones.
        """
        logits = self.log_scale.exp() * (first @ second.T)  # (n, n)
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        false = torch.zeros_like(own) if same is None else same & ~own
        if self.bias is not None:
            signed = torch.where(own, 1.0, -1.0) * (logits + self.bias)
            return -F.logsigmoid(signed).masked_fill(false, 0.0).sum() / len(logits)
        logits = logits.masked_fill(false, -torch.inf)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def gap_terms(self, first: Tensor, second: Tensor, same: Tensor) -> Tensor:
        """Return ``close_gap`` times the two terms that close the gap; the arguments are those of `forward`."""
        centroids = F.normalize(first + second, dim=1)
        near = (-4 + 4 * (centroids @ centroids.T)).exp()  # exp(-2 |c_i - c_j|^2) of unit rows
        others = ~(same | same.T)
        others.fill_diagonal_(False)
        spread = near[others].mean().log() if others.any() else near.new_zeros(())
        return self.close_gap * ((first - second).square().sum(dim=1).mean() + spread)

    def of_chance(self, n: float) -> float:
        """Return the loss in a batch with ``n`` entries in a row if all cosines are equal, where a collapsed run stays.

        ``log n`` for infonce; for the sigmoid loss, with the best bias, n times the entropy of a share of 1/n.
        """
        if self.kind == "infonce":
            return math.log(n)
        return math.log(n) - (n - 1) * math.log1p(-1 / n) if n > 1 else 0.0


def same_items(first_ids: Tensor, second_ids: Tensor) -> Tensor:
    """Return which entries (i, j) join rows of one item, by the ids of either side: bool (n, n)."""
    return (first_ids[:, None] == first_ids[None]) | (second_ids[:, None] == second_ids[None])
