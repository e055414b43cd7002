"""The gradient of a contrastive loss over a batch that may be too large for memory or for one process.

The loss joins every pair of the batch with every other, so its gradient cannot be added up from smaller batches. It
can be split in two (gradient caching; Gao et al., RepL4NLP 2021): embed the batch in chunks without keeping
activations, take the gradient of the loss with respect to the embeddings, then embed each chunk again and pass its
part of that gradient on to the weights. What is random in a forward pass is drawn from the chunk's own seed, so that
both passes agree. With several processes, each embeds its share of the batch, all compute the loss of the whole, and
the gradients of the weights are added: the same as one process on the same batch, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrays import Indices, Matrix
from ..devices import Compute
from ..seeds import generator
from . import processes
from .losses import ContrastiveLoss
from .pairs import Inputs

_EMBED_ROWS = 128


class TwoTowers(nn.Module):
    """Two modules that map the inputs of two sides into one space.

    Normalisation layers with running statistics stay as they are: a batch in chunks has no statistics of its own.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def train(self, mode: bool = True) -> TwoTowers:
        """Set training mode, except for batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def embed(self, inputs: Tensor, side: int, compute: Compute) -> Tensor:
        """Return unit rows, float32 (n, d), for inputs of side 0 or 1; normalised in float32 at any precision."""
        return F.normalize(self.project(inputs, side, compute), dim=1)

    def project(self, inputs: Tensor, side: int, compute: Compute) -> Tensor:
        """Return what `embed` returns, not normalised."""
        tower = self.second if side else self.first
        with torch.autocast(compute.device_type, dtype=compute.dtype, enabled=compute.precision != "fp32"):
            rows: Tensor = tower(inputs.to(compute.device))
        return rows.float()

    @torch.inference_mode()
    def embed_rows(self, inputs: Inputs, side: int, numbers: Indices, compute: Compute) -> Matrix:
        """Return unit rows (n, d) of one side by the present weights; leaves the towers in evaluation mode."""
        self.eval()
        parts = [
            self.embed(inputs.rows(numbers[start : start + _EMBED_ROWS]), side, compute).cpu().numpy()
            for start in range(0, len(numbers), _EMBED_ROWS)
        ]
        return np.concatenate(parts)


def contrastive_backward(
    towers: TwoTowers,
    loss: ContrastiveLoss,
    inputs: tuple[Tensor, Tensor],
    same: Tensor,
    compute: Compute,
    *,
    chunk: int | None = None,
    scope: tuple[int, ...] = (0,),
) -> float:
    """Add the gradient of the loss of one batch to the weights, and return the contrastive loss.

    Args:
        towers: in training mode.
        loss: gets its gradient too.
        inputs: of both sides, (k, ...) each: this process' share of the batch, row by row a pair.
        same: bool (n, n), see `losses.same_items`; n is k times the number of processes.
        compute: device and precision.
        chunk: pairs embedded at a time with their activations; all by default.
        scope: numbers that what is random depends on, such as (seed, step).
    """
    size = len(inputs[0])
    parts = [slice(start, min(start + (chunk or size), size)) for start in range(0, size, chunk or size)]
    whole = len(parts) == 1

    def embed(side: int, place: int) -> Tensor:
        with _seeded(scope, processes.rank(), side, place):
            return towers.embed(inputs[side][parts[place]], side, compute)

    with torch.set_grad_enabled(whole):
        kept = [[embed(side, place) for place in range(len(parts))] for side in range(2)]
    leaves = [processes.gather_rows(torch.cat(rows).detach()).requires_grad_() for rows in kept]
    same = same.to(compute.device)
    value = loss(leaves[0], leaves[1], same)
    (value + loss.gap_terms(leaves[0], leaves[1], same) if loss.close_gap else value).backward()
    mine = processes.rank() * size
    for place, part in enumerate(parts):
        for side in range(2):
            rows = kept[side][place] if whole else embed(side, place)
            gradient = leaves[side].grad
            assert gradient is not None
            if rows.requires_grad:  # a frozen tower has no gradient to pass on
                rows.backward(gradient[mine + part.start : mine + part.stop])
    processes.add_gradients(p for p in towers.parameters() if p.requires_grad)
    processes.add_gradients(loss.parameters(), mean=True)
    return float(value.detach())


@contextmanager
def _seeded(scope: tuple[int, ...], *place: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(int(generator(scope[0], "step", *scope[1:], *place).integers(2**62)))
        yield
