"""The two towers of a model as torch modules, texts without their padding, and the backend torch
that runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arrays import Matrix
from ..devices import Compute
from ..errors import is_out_of_memory
from .encoder import Modality
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


class TorchBackend:
    """The towers as torch modules: any model, on any device, in any precision.

    Args:
        model: open_clip's module, which is changed: moved to the device, in the precision.
        preprocess: knows size, mean and standard deviation of the pixels.
        compute: device and precision.
        trims: whether texts come without their padding.
    """

    name = "torch"

    def __init__(
        self, model: nn.Module, preprocess: ImagePreprocessor, compute: Compute, trims: bool
    ) -> None:
        self.compute = compute
        self.ahead = 0 if compute.device_type == "cpu" else 1
        model = model.to(compute.device, compute.dtype)
        if compute.device_type in ("cpu", "cuda"):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._forward: dict[str, nn.Module] = {
            "image": ImageTower(model, preprocess, compute.dtype),
            "text": TextTower(model, trims=trims),
        }
        self._limits: dict[str, int] = {}  # largest batch that fits into memory, once one did not

    def submit(self, modality: Modality, batch: Any) -> Callable[[], Matrix]:
        """Compute a batch; on a GPU without waiting for it. Where it does not fit into memory it is
        run in halves.
        """
        tensor = torch.as_tensor(batch)
        if self.compute.device_type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()  # the copy to the GPU then runs in the background
        features = self._features(modality, tensor)
        return lambda: features.cpu().numpy()

    def _features(self, modality: Modality, batch: Tensor) -> Tensor:
        """Return unit vectors, float32 (n, d), on the device.

        If a batch does not fit into memory, this batch and those that follow are run in halves.
        """
        limit = self._limits.get(modality, len(batch))
        if len(batch) > limit:
            return torch.cat([self._features(modality, part) for part in torch.split(batch, limit)])
        try:
            with torch.inference_mode():
                rows = self._forward[modality](batch.to(self.compute.device, non_blocking=True))
                return nn.functional.normalize(rows.float(), dim=-1)
        except RuntimeError as error:  # of CUDA, of MPS and of CPUs
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        self._limits[modality] = len(batch) // 2
        return self._features(modality, batch)


def _plain_attention(
    own: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    need_weights: bool = False,
    attn_mask: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Compute as `nn.MultiheadAttention` with ``batch_first``; key and value are the query, (n,
    length, width).
    """
    n, length, width = query.shape
    heads = nn.functional.linear(query, own.in_proj_weight, own.in_proj_bias)
    heads = heads.view(n, length, 3, own.num_heads, width // own.num_heads)
    q, k, v = heads.permute(2, 0, 3, 1, 4)  # (n, heads, length, width / heads) each
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    return own.out_proj(mixed.transpose(1, 2).reshape(n, length, width)), None


def use_plain_attention(module: nn.Module) -> None:
    """Let the attentions in ``module`` compute in operations that can be converted: tracing fixes
    sizes in torch's.
    """
    for part in module.modules():
        if (
            isinstance(part, nn.MultiheadAttention)
            and part.batch_first
            and part.in_proj_weight is not None
            and part.bias_k is None
        ):
            part.forward = partial(_plain_attention, part)  # type: ignore[method-assign]


def trimmed_forward(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return text features (n, d) from tokens (n, length) cut to any length that contains every
    end-of-text token.

    Only for models that `can_trim` accepts.
    """
    tower = _tower(model)
    length = tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype)  # (n, length, width)
    x = x + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    # the layer norm acts on each position alone, so it may come after the pooling
    # gathered: tracing would fix the n of torch.arange(n)
    ends = end_positions(model, tokens)[:, None, None]
    pooled = x.gather(1, ends.expand(-1, 1, x.shape[2])).squeeze(1)  # (n, width)
    pooled = tower.ln_final(pooled)
    projection = tower.text_projection
    # (n, d)
    features: Tensor = (
        projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    )
    return features


def end_positions(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the position (n,) of the end-of-text token of each row of tokens (n, length)."""
    end = end_token(model)
    return (tokens if end is None else (tokens == end).int()).argmax(dim=-1)


def end_token(model: nn.Module) -> int | None:
    """Return the id of the end-of-text token; None if it is the largest."""
    tower = _tower(model)
    return (
        int(getattr(tower, "eos_id", getattr(tower, "text_eos_id", -1)))
        if _pool_type(tower) == "eos"
        else None
    )


def can_trim(model: nn.Module, tokenizer: Any) -> bool:
    """Return whether cutting the context leaves the features unchanged: by structure, then by
    measurement on a probe.

    In a causal tower read at the end-of-text token nothing after that token is seen, so the context
    can be cut to the longest text of a batch. Towers that pool over all positions, attend in both
    directions, or were trained to see padding (SigLIP) are run at their full context.
    """
    tower = _tower(model)
    parts = (
        "transformer",
        "token_embedding",
        "positional_embedding",
        "ln_final",
        "text_projection",
        "attn_mask",
    )
    structure = (
        all(getattr(tower, part, None) is not None for part in parts)
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
