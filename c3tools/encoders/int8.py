"""Matrix products of an encoder in 8-bit integers, for CPUs with avx512_vnni.

Weights are scaled per output channel, activations per token while the model runs, so that an input's embedding does
not depend on what is in its batch. Sums are exact (int32); everything between the products stays in float32.
Convolutions, norms and attention weights are left as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 127
_SMALLEST_SCALE = 1e-12
_BLOCK = 400  # rows at a time: what lies between the products stays in the cache


class Int8Linear(nn.Module):
    """x W^T + b with W and x rounded to 8 bits: x per row, W per output channel, symmetric."""

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
        """Float32 (..., out) from float32 (..., in)."""
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


class Int8SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself, its four projections in 8 bits."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.project_in = Int8Linear(attention.in_proj_weight, attention.in_proj_bias)
        self.project_out = Int8Linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention` with ``batch_first``; key and value are the query, (n, length, width)."""
        n, length, width = query.shape
        heads = self.project_in(query).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (n, heads, length, width / heads) each
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.project_out(mixed.transpose(1, 2).reshape(n, length, width)), None


def use_int8(module: nn.Module) -> int:
    """Replace the linear layers and self-attentions below ``module``, in place; how many there were."""
    replaced = 0
    for name, child in module.named_children():
        if isinstance(child, nn.MultiheadAttention) and _plain(child):
            setattr(module, name, Int8SelfAttention(child))
        elif isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child.weight, child.bias))
        else:
            replaced += use_int8(child)
            continue
        replaced += 1
    return replaced


def _plain(attention: nn.MultiheadAttention) -> bool:
    return attention.batch_first and attention.in_proj_weight is not None and attention.bias_k is None
