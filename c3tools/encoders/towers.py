"""The two towers of a model as torch modules, and texts without their padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .preprocessing import ImagePreprocessor

_PROBE = ("a dog", "two people ride bicycles along a river in the evening sun", "snow on a hill")
_TOLERANCE = 1e-4


class ImageTower(nn.Module):
    """Features (n, d), not normalised, of pixels, uint8 (n, height, width, 3)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, preprocess: ImagePreprocessor, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        device = next(model.parameters()).device
        for name in ("mean", "std"):
            value = torch.tensor(preprocess.config[name], device=device).view(1, 1, 1, 3)
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scale and encode the pixels."""
        x = pixels.float().div_(255).sub_(self.mean).div_(self.std)  # (n, height, width, 3)
        # a view as (n, 3, height, width) of this memory is channels_last already
        return self.model.encode_image(x.permute(0, 3, 1, 2).to(self.dtype))  # type: ignore[operator,no-any-return]


class TextTower(nn.Module):
    """Features (n, d), not normalised, of tokens, int64 (n, length)."""

    def __init__(self, model: nn.Module, *, trims: bool) -> None:
        super().__init__()
        self.model = model
        self.trims = trims

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode the tokens; if the tower trims, the length may be any that contains every
        end-of-text token.
        """
        if self.trims:
            return trimmed_forward(self.model, tokens)
        return self.model.encode_text(tokens)  # type: ignore[operator,no-any-return]


def _plain_attention(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    need_weights: bool = False,
    attn_mask: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Compute what `nn.MultiheadAttention` does with ``batch_first``, of a query with itself.

    Key and value are the query, (n, length, width).
    """
    n, length, width = query.shape
    heads = nn.functional.linear(query, module.in_proj_weight, module.in_proj_bias)
    heads = heads.view(n, length, 3, module.num_heads, width // module.num_heads)
    q, k, v = heads.permute(2, 0, 3, 1, 4)  # (n, heads, length, width / heads) each
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    return module.out_proj(mixed.transpose(1, 2).reshape(n, length, width)), None


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Replace the attentions in a model by operations that can be traced, and put them back.

    Tracing torch's own would fix the sizes of the example.
    """
    replaced = []
    for part in model.modules():
        if not isinstance(part, nn.MultiheadAttention):
            continue
        # `_plain_attention` computes the same
        if part.batch_first and part.in_proj_weight is not None and part.bias_k is None:
            replaced.append(part)
    for attention in replaced:
        attention.forward = partial(_plain_attention, attention)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for attention in replaced:
            del attention.forward  # the method of the class is used again


def trimmed_forward(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return text features (n, d) of tokens (n, length) without (all of) their padding.

    The length may be any that contains every end-of-text token. Only for models that `can_trim`
    accepts.
    """
    tower = _tower(model)
    length = tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype)  # (n, length, width)
    x = x + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    # Pool by gather: tracing would fix the n of torch.arange(n).
    ends = end_positions(model, tokens)[:, None, None]
    pooled = x.gather(1, ends.expand(-1, 1, x.shape[2])).squeeze(1)  # (n, width)
    # The layer norm acts on each position alone, so it may follow the pooling.
    pooled = tower.ln_final(pooled)
    projection = tower.text_projection
    is_layer = isinstance(projection, nn.Linear)
    features: Tensor = projection(pooled) if is_layer else pooled @ projection  # (n, d)
    return features


def end_positions(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the position (n,) of the end-of-text token of each row of tokens (n, length)."""
    token = end_token(model)
    if token is None:
        return tokens.argmax(dim=-1)
    return (tokens == token).int().argmax(dim=-1)


def end_token(model: nn.Module) -> int | None:
    """Return the id of the end-of-text token; None if it is the largest."""
    tower = _tower(model)
    if _pool_type(tower) != "eos":
        return None
    return int(getattr(tower, "eos_id", getattr(tower, "text_eos_id", -1)))


def can_trim(model: nn.Module, tokenizer: Any) -> bool:
    """Return whether cutting padding off leaves the features unchanged.

    In a causal tower read at the end-of-text token nothing after that token is seen, so the context
    can be cut to the longest text of a batch. Towers that pool over all positions, attend in both
    directions, or were trained to see padding (SigLIP) are run at their full context. The structure
    of the tower is checked first; then features of a probe are compared.
    """
    tower = _tower(model)
    required_parts = (
        "transformer",
        "token_embedding",
        "positional_embedding",
        "ln_final",
        "text_projection",
        "attn_mask",
    )
    knows_tower = (
        all(getattr(tower, part, None) is not None for part in required_parts)
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "use_pad_mask", False)
        and _pool_type(tower) in ("argmax", "eos")
    )
    if not knows_tower:
        return False
    device = next(tower.parameters()).device
    tokens = torch.as_tensor(tokenizer(list(_PROBE))).to(device)
    with torch.inference_mode():
        whole = nn.functional.normalize(model.encode_text(tokens).float(), dim=-1)  # type: ignore[operator]
        cut = tokens[:, : int(end_positions(model, tokens).max()) + 1]
        trimmed = nn.functional.normalize(trimmed_forward(model, cut).float(), dim=-1)
    return bool((whole - trimmed).abs().max() < _TOLERANCE)


def _tower(model: nn.Module) -> Any:
    """Return the text tower; older models of open_clip are it themselves."""
    return getattr(model, "text", model)


def _pool_type(tower: Any) -> str:
    """Return the name of how a text tower pools its positions; empty if it has none."""
    return str(getattr(tower, "pool_type", getattr(tower, "text_pool_type", "")))
