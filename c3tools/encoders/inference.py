"""Running the towers of a model: batch sizes, texts without their padding, products of 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# beyond these a GPU gains nothing, and images in flight cost memory; a CPU is as fast with few, which stay in its cache
LARGEST = {"image": 256, "text": 1024}
ON_CPU = {"image": 32, "text": 128}
# a batch is full up to these sizes, and proportionally smaller for larger inputs
_USUAL_PIXELS = 224 * 224
USUAL_TEXT_LENGTH = 16  # tokens
_SHARE_OF_MEMORY = 0.5
_PROBES = (4, 8)

_PROBE = ("a dog", "two people ride bicycles along a river in the evening sun", "snow on a hill")
_TOLERANCE = 1e-4

_LEVELS = 127
_SMALLEST_SCALE = 1e-12
_BLOCK = 400  # rows at a time, so that intermediate results stay in the cache


def find_batch_size(
    modality: str, device: torch.device, run: Callable[[str, int], None], pixels: int = _USUAL_PIXELS
) -> int:
    """Return the batch size of ``modality`` on ``device``.

    It decides the last bits of the result, so it follows from the model and the device alone, never from a clock.

    On a CUDA GPU the largest power of two whose activations take at most half of the card's memory, from two small
    runs, at most `LARGEST`; on other devices a constant, for images of more than 224 x 224 a smaller one.

    Args:
        run: runs the model on n dummy inputs, called with the modality and n.
        pixels: height times width of the images that the model takes.
    """
    if device.type != "cuda":
        most = ON_CPU[modality]
        return largest_batch(pixels, most * _USUAL_PIXELS, most) if modality == "image" else most
    few, more = (_peak_memory(device, lambda n=n: run(modality, n)) for n in _PROBES)  # type: ignore[misc]
    return largest_batch(
        max(1, (more - few) // (_PROBES[1] - _PROBES[0])),
        int(_SHARE_OF_MEMORY * torch.cuda.get_device_properties(device).total_memory),
        LARGEST[modality],
    )


def largest_batch(per_input: int, available: int, largest: int) -> int:
    """Return the largest power of two, at least 1 and at most ``largest``, whose inputs fit into ``available``."""
    fit = max(1, min(largest, available // per_input))
    return 1 << (fit.bit_length() - 1)


def _peak_memory(device: torch.device, run: Callable[[], None]) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def trimmed_forward(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return text features (n, d) from tokens (n, length) cut to any length that holds every end-of-text token.

    Only for models that `can_trim` accepts.
    """
    tower = _tower(model)
    length = tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype)  # (n, length, width)
    x = x + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    # the layer norm acts on each position alone, so it may come after the pooling
    pooled = x[torch.arange(len(x), device=x.device), end_positions(model, tokens)]  # (n, width)
    pooled = tower.ln_final(pooled)
    projection = tower.text_projection
    if projection is None:
        return torch.as_tensor(pooled)
    features: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection  # (n, d)
    return features


def end_positions(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the position (n,) of the end-of-text token of each row of tokens (n, length)."""
    tower = _tower(model)
    if _pool_type(tower) == "eos":
        eos = int(getattr(tower, "eos_id", getattr(tower, "text_eos_id", -1)))
        return (tokens == eos).int().argmax(dim=-1)
    return tokens.argmax(dim=-1)


def can_trim(model: nn.Module, tokenizer: Any) -> bool:
    """Return whether cutting the context leaves the features unchanged: by structure, then by measurement on a probe.

    In a causal tower read at the end-of-text token nothing after that token is seen, so the context can be cut to the
    longest text of a batch. Towers that pool over all positions, attend in both directions, or were trained to see
    padding (SigLIP) are run at their full context.
    """
    tower = _tower(model)
    structure = (
        all(hasattr(tower, name) for name in ("transformer", "token_embedding", "positional_embedding", "ln_final"))
        and hasattr(tower, "text_projection")
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "use_pad_mask", False)
        and _pool_type(tower) in ("argmax", "eos")
    )
    if not structure:
        return False
    device = next(tower.parameters()).device
    tokens = tokenizer(list(_PROBE)).to(device)
    with torch.inference_mode():
        whole = nn.functional.normalize(model.encode_text(tokens).float(), dim=-1)  # type: ignore[operator]
        cut = tokens[:, : int(end_positions(model, tokens).max()) + 1]
        trimmed = nn.functional.normalize(trimmed_forward(model, cut).float(), dim=-1)
    return bool((whole - trimmed).abs().max() < _TOLERANCE)


def _tower(model: nn.Module) -> Any:
    return getattr(model, "text", model)


def _pool_type(tower: Any) -> str:
    return str(getattr(tower, "pool_type", getattr(tower, "text_pool_type", "")))


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
        """Compute as `nn.MultiheadAttention` with ``batch_first``; key and value are the query, (n, length, width)."""
        n, length, width = query.shape
        heads = self.project_in(query).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (n, heads, length, width / heads) each
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.project_out(mixed.transpose(1, 2).reshape(n, length, width)), None


def use_int8(module: nn.Module) -> int:
    """Replace the linear layers and self-attentions below ``module``, in place; return how many there were.

    Convolutions, norms and attention weights stay in float32.
    """
    replaced = 0
    for name, child in module.named_children():
        if isinstance(child, nn.MultiheadAttention) and _is_plain(child):
            setattr(module, name, Int8SelfAttention(child))
        elif isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child.weight, child.bias))
        else:
            replaced += use_int8(child)
            continue
        replaced += 1
    return replaced


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    return attention.batch_first and attention.in_proj_weight is not None and attention.bias_k is None
