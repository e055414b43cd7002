"""The contrastive loss, the terms that close the gap, and their gradient over a batch of any size.

With unit rows a_i, b_j (n, d), z_ij = s a_i . b_j and s the logit scale (the inverse temperature), the loss is the mean
over i of -log softmax_j(z_ij)[i], and of the same for columns, averaged (Radford et al., 2021). Besides, ``close_gap``
times (Grassucci et al., ICLR 2026)

    mean over i of |a_i - b_i|^2 + log mean over i != j of exp(-2 |c_i - c_j|^2)

draws pairs together, and spreads their centroids c_i, the unit vectors along a_i + b_i.

Entries of one item that are not its own pair (a second caption of an image, the same sentence under two images) are
false negatives: they are left out of both.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrays import Indices, Matrix
from ..devices import Compute
from ..errors import ConnectError
from ..seeds import generator
from .pairs import Inputs

_MAX_LOGIT_SCALE = 100.0  # of a learned scale, as in CLIP
_LEARNED_FROM = 1 / 0.07
_EMBED_ROWS = 128


def parse_scale(text: str) -> tuple[float, bool]:
    """Return the value of a logit scale, and whether it is learned: ``100``, ``learned`` (from 14.3), ``learned:20``.

    Raises:
        ConnectError: for anything else.
    """
    head, _, tail = text.partition(":")
    learned = head == "learned"
    try:
        value = float((tail or _LEARNED_FROM) if learned else text)
        if 0 < value < (_MAX_LOGIT_SCALE if learned else math.inf):
            return value, learned
    except ValueError:
        pass
    raise ConnectError(
        f"{text!r} is not a logit scale.",
        remedy=f"For example 100, learned, or learned:20 (below {_MAX_LOGIT_SCALE:g}).",
    )


class ContrastiveLoss(nn.Module):
    """The loss, with its logit scale (kept as a logarithm).

    Args:
        scale: see `parse_scale`.
        close_gap: weight of the terms that close the gap.
    """

    log_scale: Tensor

    def __init__(self, scale: str, close_gap: float = 0.0) -> None:
        super().__init__()
        value, learned = parse_scale(scale)
        self.close_gap, self.limit = close_gap, math.log(_MAX_LOGIT_SCALE) if learned else math.inf  # of log_scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(value)), requires_grad=learned)

    @property
    def logit_scale(self) -> float:
        """The present logit scale."""
        return math.exp(float(self.log_scale.detach()))

    def forward(self, first: Tensor, second: Tensor, same: Tensor) -> Tensor:
        """Return the loss of pairs of unit rows (n, d), of which ``same`` (n, n) tells those of one item."""
        logits = self.log_scale.exp() * (first @ second.T)  # (n, n)
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same & ~own, -torch.inf)
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


def same_items(ids: Tensor) -> Tensor:
    """Return which entries (i, j) join rows of one item, by the ids of both sides (2, n): bool (n, n)."""
    return (ids[:, :, None] == ids[:, None]).any(dim=0)


class TwoTowers(nn.Module):
    """Two modules that map the inputs of two sides into one space.

    Normalisation layers with running statistics stay as they are: a batch in chunks has no statistics of its own.
    """

    def __init__(self, first: nn.Module, second: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.sides, self.compute = nn.ModuleList([first, second]), compute
        self.to(compute.device)

    def train(self, mode: bool = True) -> TwoTowers:
        """Set training mode, except for batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def project(self, inputs: Tensor, side: int) -> Tensor:
        """Return float32 rows (n, d), not normalised, for inputs of side 0 or 1."""
        compute = self.compute
        with torch.autocast(compute.device_type, dtype=compute.dtype, enabled=compute.precision != "fp32"):
            rows: Tensor = self.sides[side](inputs.to(compute.device))
        return rows.float()

    def embed(self, inputs: Tensor, side: int) -> Tensor:
        """Return unit rows (n, d), normalised in float32 at any precision."""
        return F.normalize(self.project(inputs, side), dim=1)

    @torch.inference_mode()
    def embed_rows(self, inputs: Inputs, side: int, numbers: Indices) -> Matrix:
        """Return unit rows (n, d) of one side by the present weights; leaves the towers in evaluation mode."""
        self.eval()
        starts = range(0, len(numbers), _EMBED_ROWS)
        parts = [self.embed(inputs.rows(numbers[i : i + _EMBED_ROWS]), side).cpu().numpy() for i in starts]
        return np.concatenate(parts)


def contrastive_backward(
    towers: TwoTowers,
    loss: ContrastiveLoss,
    inputs: tuple[Tensor, Tensor],
    same: Tensor,
    *,
    chunk: int | None = None,
    scope: tuple[int, ...] = (0,),
) -> float:
    """Add the gradient of the loss of one batch to the weights, and return the contrastive loss.

    The loss joins every pair of the batch with every other, so its gradient cannot be added up from smaller batches. It
    can be split in two (gradient caching; Gao et al., RepL4NLP 2021): embed the batch in chunks without keeping
    activations, take the gradient of the loss with respect to the embeddings, then embed each chunk again and pass its
    part of that gradient on to the weights. What is random in a forward pass is drawn from the chunk's own seed, so
    that both passes agree.

    Args:
        towers: in training mode.
        loss: gets its gradient too.
        inputs: of both sides, (n, ...) each, row by row a pair.
        same: bool (n, n), see `same_items`.
        chunk: pairs embedded at a time with their activations; all by default.
        scope: numbers that what is random depends on, such as (seed, step).
    """
    size = len(inputs[0])
    parts = [slice(start, start + (chunk or size)) for start in range(0, size, chunk or size)]
    whole = len(parts) == 1

    def embed(side: int, place: int) -> Tensor:
        with torch.random.fork_rng():
            drawn = generator(scope[0], "step", *scope[1:], 0, side, place).integers(2**62)
            torch.manual_seed(int(drawn))
            return towers.embed(inputs[side][parts[place]], side)

    with torch.set_grad_enabled(whole):
        kept = [[embed(side, place) for place in range(len(parts))] for side in range(2)]
    first, second = leaves = [torch.cat(rows).detach().requires_grad_() for rows in kept]
    same = same.to(first.device)
    value = loss(first, second, same)
    (value + loss.gap_terms(first, second, same) if loss.close_gap else value).backward()
    for place, part in enumerate(parts):
        for side, leaf in enumerate(leaves):
            rows = kept[side][place] if whole else embed(side, place)
            assert leaf.grad is not None
            if rows.requires_grad:  # a frozen tower has no gradient to pass on
                rows.backward(leaf.grad[part])
    return float(value.detach())
