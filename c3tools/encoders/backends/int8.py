"""Products of 8-bit integers in place of a model's linear layers and self-attentions, for CPUs with avx512_vnni."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .towers import SelfAttention, is_plain

_LEVELS = 127
_SMALLEST_SCALE = 1e-12
_BLOCK = 400  # rows at a time, so that intermediate results stay in the cache


class Int8Linear(nn.Module):
    """x W^T + b with W and x rounded to 8 bits: x per row, W per output channel, symmetric.

    The scale of x is its own in each row, so an input's embedding does not depend on what else is in its batch. Sums
    are exact (int32).
    """

    int8_original_dtype = torch.float32  # open_clip's towers ask their layers by this name which dtype to hand them

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scale = (weight.abs().amax(dim=1) / _LEVELS).clamp_min(_SMALLEST_SCALE)  # (out,)
        rounded = (weight / scale[:, None]).round().to(torch.int8)  # (out, in)
        # a copy, since torch multiplies wrongly by the view that .contiguous() leaves of a single column
        self.register_buffer("weight", rounded.t().clone(memory_format=torch.contiguous_format))  # (in, out)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (..., out) from float32 (..., in)."""
        rows = x.reshape(-1, x.shape[-1])  # (n, in)
        y = torch.empty(len(rows), self.weight.shape[1])  # (n, out)
        for block, result in zip(torch.split(rows, _BLOCK), torch.split(y, _BLOCK), strict=True):
            largest = torch.maximum(block.amax(dim=1, keepdim=True), -block.amin(dim=1, keepdim=True))
            scale = (largest / _LEVELS).clamp_min_(_SMALLEST_SCALE)  # (block, 1)
            products = torch._int_mm((block / scale).round_().to(torch.int8), self.weight)  # (block, out), int32
            result.copy_(products).mul_(scale).mul_(self.scale)
            if self.bias is not None:
                result.add_(self.bias)
        return y.reshape(*x.shape[:-1], -1)


def use_int8(module: nn.Module) -> int:
    """Replace the linear layers and self-attentions below ``module``, in place; return how many there were.

    Convolutions, norms and attention weights stay in float32.
    """
    replaced = 0
    for name, child in module.named_children():
        if isinstance(child, nn.MultiheadAttention) and is_plain(child):
            setattr(module, name, SelfAttention(child, Int8Linear))
        elif isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child.weight, child.bias))
        else:
            replaced += use_int8(child)
            continue
        replaced += 1
    return replaced
