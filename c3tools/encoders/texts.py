"""Texts through a text tower, without computing on padding where that is exact.

In a causal tower read at the end-of-text token nothing after that token is seen, so the context can be cut to the
longest text of a batch. Towers that pool over all positions, attend in both directions, or were trained to see
padding (SigLIP) are run at their full context. Which kind a tower is, is read from its structure and then measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PROBE = ("a dog", "two people ride bicycles along a river in the evening sun", "snow on a hill")
_TOLERANCE = 1e-4


def trimmed_forward(model: nn.Module, tokens: Tensor) -> Tensor:
    """Text features (n, d) from tokens (n, length) cut to any length that holds every end-of-text token.

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
    """Position (n,) of the end-of-text token of each row of tokens (n, length)."""
    tower = _tower(model)
    if _pool_type(tower) == "eos":
        return (tokens == _eos_id(tower)).int().argmax(dim=-1)
    return tokens.argmax(dim=-1)


def can_trim(model: nn.Module, tokenizer: Any) -> bool:
    """Whether cutting the context leaves the features as they are: by structure, then by measurement on a probe."""
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


def _eos_id(tower: Any) -> int:
    return int(getattr(tower, "eos_id", getattr(tower, "text_eos_id", -1)))
