"""The two towers of a model as torch modules, from pixels and tokens to unit vectors; texts without their padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .preprocessing import ImagePreprocessor

_PROBE = ("a dog", "two people ride bicycles along a river in the evening sun", "snow on a hill")
_TOLERANCE = 1e-4


class ImageTower(nn.Module):
    """Unit vectors, float32 (n, d), of pixels, uint8 (n, height, width, 3)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocess: ImagePreprocessor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        device = next(model.parameters()).device
        shape = (1, 1, 1, 3)
        self.register_buffer("mean", torch.tensor(preprocess.mean, device=device).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std, device=device).view(shape), persistent=False)

    def scale(self, pixels: Tensor) -> Tensor:
        """Return the input of the model, (n, 3, height, width)."""
        x = pixels.float().div_(255).sub_(self.mean).div_(self.std)  # (n, height, width, 3)
        # a view as (n, 3, height, width) of this memory is channels_last already
        return x.permute(0, 3, 1, 2).to(self.dtype)

    def features(self, pixels: Tensor) -> Tensor:
        """Return features (n, d), not normalised."""
        return self.model.encode_image(self.scale(pixels))  # type: ignore[operator,no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the vectors, normalised in float32 in any precision of the model."""
        return nn.functional.normalize(self.features(pixels).float(), dim=-1)


class TextTower(nn.Module):
    """Unit vectors, float32 (n, d), of tokens, int64 (n, length)."""

    def __init__(self, model: nn.Module, *, trims: bool) -> None:
        super().__init__()
        self.model = model
        self.trims = trims

    def features(self, tokens: Tensor) -> Tensor:
        """Return features (n, d), not normalised."""
        if self.trims:
            return trimmed_forward(self.model, tokens)
        return self.model.encode_text(tokens)  # type: ignore[operator,no-any-return]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors; if the tower trims, the length may be any that contains every end-of-text token."""
        return nn.functional.normalize(self.features(tokens).float(), dim=-1)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself, in operations that can be converted.

    Args:
        attention: one that `is_plain`.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.project_in = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.project_out = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Compute as `nn.MultiheadAttention` with ``batch_first``; key and value are the query, (n, length, width)."""
        n, length, width = query.shape
        heads = self.project_in(query).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (n, heads, length, width / heads) each
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.project_out(mixed.transpose(1, 2).reshape(n, length, width)), None


def is_plain(attention: nn.MultiheadAttention) -> bool:
    """Return whether `SelfAttention` can take the place of an attention."""
    return attention.batch_first and attention.in_proj_weight is not None and attention.bias_k is None


def use_plain_attention(module: nn.Module) -> None:
    """Replace the attentions below ``module`` by `SelfAttention`, in place: tracing fixes sizes in those of torch."""
    for name, child in module.named_children():
        if isinstance(child, nn.MultiheadAttention) and is_plain(child):
            setattr(module, name, SelfAttention(child))
        else:
            use_plain_attention(child)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def trimmed_forward(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return text features (n, d) from tokens (n, length) cut to any length that contains every end-of-text token.

    Only for models that `can_trim` accepts.
    """
    tower = _tower(model)
    length = tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype)  # (n, length, width)
    x = x + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    # the layer norm acts on each position alone, so it may come after the pooling
    ends = end_positions(model, tokens)[:, None, None]  # gathered: tracing would fix the n of torch.arange(n)
    pooled = x.gather(1, ends.expand(-1, 1, x.shape[2])).squeeze(1)  # (n, width)
    pooled = tower.ln_final(pooled)
    projection = tower.text_projection
    if projection is None:
        return torch.as_tensor(pooled)
    features: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection  # (n, d)
    return features


def end_positions(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the position (n,) of the end-of-text token of each row of tokens (n, length)."""
    end = end_token(model)
    return (tokens if end is None else (tokens == end).int()).argmax(dim=-1)


def end_token(model: nn.Module) -> int | None:
    """Return the id of the end-of-text token; None if it is the largest."""
    tower = _tower(model)
    return int(getattr(tower, "eos_id", getattr(tower, "text_eos_id", -1))) if _pool_type(tower) == "eos" else None


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
