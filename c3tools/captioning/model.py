"""The base of all caption decoders, and the built-in one: a small Transformer behind an MLP prefix.

An embedding becomes P prefix positions by a two-layer MLP (the mapping of ClipCap and of C3, in small); the
Transformer continues them with the tokens of a caption and an end-of-text token. Token embeddings are tied to
the output layer, positions are learned, blocks are pre-norm (GPT-2). Captions are padded on the right, so causal
attention alone keeps padding away from real tokens, and no mask is needed. With P = 0 it is a language model of
captions: it reads no embedding, and begins with the end-of-text token.

Shapes: B captions, T tokens, P prefix positions, S = positions in this call, W width, H heads, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import DecoderConfig
from .tokenizer import END_ID, PAD_ID

_START_SPREAD = 0.1  # of a new mapper's output around what a language model begins with


class DecoderBase(nn.Module):
    """The part that the built-in decoder and language models behind a mapper share.

    Attributes:
        pad_id: fills captions on the right, and stands for words that training hides; never generated.
        end_id: the end-of-text token.
    """

    pad_id: int
    end_id: int

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def count_parameters(self) -> int:
        """Return the number of weights; tied ones are counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def digest(self) -> str:
        """Return a SHA-256 of the weights."""
        found = hashlib.sha256()
        for name, value in self.state_dict().items():
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def allowed(model: DecoderBase, logits: Tensor) -> Tensor:
    """Return the scores (B, V) in float32 with padding ruled out: it is never trained, so its score means nothing."""
    scores = logits.float()
    if model.pad_id < scores.shape[1]:
        scores[:, model.pad_id] = -torch.inf
    return scores


class _KeyValueCache:
    """Keys and values of the positions computed so far, one pair of buffers per block."""

    def __init__(self, config: DecoderConfig, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, batch, config.heads, config.positions, config.width // config.heads)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, B, H, P + T, W / H)
        self.values = torch.empty(shape, dtype=dtype, device=device)  # (L, B, H, P + T, W / H)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values (B, H, S, W / H) of one block; return those of all positions so far."""
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep or repeat the given rows of the batch (finished captions leave, beams are reordered)."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]

    def tensors(self) -> list[Tensor]:
        """Return the keys and the values of each block in turn."""
        pairs = zip(self.keys, self.values, strict=True)
        return [part[:, :, : self.length] for pair in pairs for part in pair]


class _DifferentiableCache(_KeyValueCache):
    """A cache of given keys and values that is read, and not written to, so that gradients pass through it."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.keys, self.values = torch.stack(tensors[::2]), torch.stack(tensors[1::2])
        self.length = self.keys.shape[3]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of one block with those of the positions at hand."""
        return torch.cat([self.keys[layer], key], dim=2), torch.cat([self.values[layer], value], dim=2)


class _Attention(nn.Module):
    """Causal multi-head self-attention, with or without a cache."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, cache: _KeyValueCache | None, layer: int) -> Tensor:
        """Map (B, S, W) to (B, S, W)."""
        B, S, W = x.shape
        qkv = self.qkv(x).view(B, S, 3, self.heads, W // self.heads)  # (B, S, 3, H, W / H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, H, S, W / H)
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # (B, H, all so far, W / H)
        # written out: for sequences this short, batched products are 4x faster in bf16 than torch's fused kernels
        scores = (q * (W // self.heads) ** -0.5) @ k.transpose(-1, -2)  # (B, H, S, all so far)
        if S > 1:  # the whole sequence, or the whole prefix; a single new position sees everything
            scores = scores + torch.full((S, S), -torch.inf, dtype=scores.dtype, device=x.device).triu(1)
        y = scores.softmax(dim=-1) @ v  # (B, H, S, W / H)
        joined: Tensor = self.out(y.transpose(1, 2).reshape(B, S, W))  # (B, S, W)
        return joined


class _Block(nn.Module):
    """One pre-norm Transformer block."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = _Attention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: _KeyValueCache | None, layer: int) -> Tensor:
        """Map (B, S, W) to (B, S, W)."""
        x = x + self.dropout(self.attention(self.norm1(x), cache, layer))  # (B, S, W)
        y: Tensor = self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))  # (B, S, W)
        return x + y


class CaptionDecoder(DecoderBase):
    """Built-in decoder; see the module's docstring."""

    pad_id, end_id = PAD_ID, END_ID

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.prefix_length:
            hidden = config.width * max(1, config.prefix_length // 2)
            self.prefix = nn.Sequential(
                nn.Linear(config.dim, hidden), nn.Tanh(), nn.Linear(hidden, config.prefix_length * config.width)
            )
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.positions, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.tokens.weight, std=1 / math.sqrt(self.config.width))
        nn.init.normal_(self.positions, std=1 / math.sqrt(self.config.width))
        residual = 1 / math.sqrt(2 * self.config.layers)  # keeps the residual stream's scale at any depth
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "down.weight")):
                parameter.data *= residual

    def embed_prefix(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (B, d) to prefix positions (B, P, W), or for a language model to what it begins with."""
        if not self.config.prefix_length:
            begin = torch.full((len(embeddings), 1), self.end_id, device=embeddings.device)
            return self.tokens(begin)  # type: ignore[no-any-return] # (B, 1, W)
        # unit vectors have entries of about 1 / sqrt(d); the first layer wants entries of about 1
        x: Tensor = self.prefix(embeddings * math.sqrt(self.config.dim))  # (B, P * W)
        return x.view(len(embeddings), self.config.prefix_length, self.config.width)  # (B, P, W)

    def run(self, x: Tensor, cache: _KeyValueCache | None = None) -> Tensor:
        """Run blocks and final norm: inputs (B, S, W) to hidden states (B, S, W); extends the cache."""
        start = 0 if cache is None else cache.length
        x = self.dropout(x + self.positions[start : start + x.shape[1]])  # (B, S, W)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)  # (B, S, W)
        if cache is not None:
            cache.length += x.shape[1]
        hidden: Tensor = self.norm(x)  # (B, S, W)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the scores of the next token by the tied token embeddings: (..., W) to (..., V)."""
        return F.linear(hidden, self.tokens.weight)

    def forward(self, embeddings: Tensor, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """Compute the scores that predict each token (teacher forcing).

        Args:
            embeddings: (B, d), transformed as the decoder's pipeline says.
            tokens: int64 (B, T), right-padded, each caption ending in the end-of-text token.
            seen: the tokens that the decoder reads, ``tokens`` by default; training hides some.

        Returns:
            (B, T, V): entry t predicts ``tokens[:, t]`` from the embedding and ``tokens[:, :t]``.
        """
        return self.score(embeddings, tokens, seen)[0]

    def score(self, embeddings: Tensor, tokens: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the scores (B, T, V) as `forward` does, and the hidden states (B, T, W) that they are made from."""
        shown = tokens if seen is None else seen
        prefix = self.embed_prefix(embeddings)  # (B, P, W)
        x = torch.cat([prefix, self.tokens(shown[:, :-1])], dim=1)  # (B, P + T - 1, W)
        hidden = self.run(x)[:, prefix.shape[1] - 1 :]  # (B, T, W)
        return self.logits(hidden), hidden

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Run the prefix of embeddings (B, d): scores of the first token (B, V), the hidden state (B, W), the cache."""
        cache = _KeyValueCache(self.config, len(embeddings), embeddings.dtype, embeddings.device)
        hidden = self.run(self.embed_prefix(embeddings), cache)[:, -1]  # (B, W)
        return self.logits(hidden), hidden, cache

    def decode_step(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Run ``tokens`` (B,) and extend the cache: scores of the next token (B, V), hidden states (B, W)."""
        hidden = self.run(self.tokens(tokens[:, None]), cache)[:, 0]  # (B, W)
        return self.logits(hidden), hidden

    def cache_of(self, tensors: list[Tensor]) -> Any:
        """Return a cache of given keys and values, as its ``tensors()`` lists them; gradients pass through it."""
        return _DifferentiableCache(tensors)

    def behind_prefix(self, length: int) -> CaptionDecoder:
        """Return a copy of a language model behind a new mapper to so many positions, which alone is to be trained.

        The mapper starts near what the language model begins with, the end-of-text token, at every position.
        """
        decoder = CaptionDecoder(replace(self.config, prefix_length=length))
        decoder.load_state_dict({**decoder.state_dict(), **self.state_dict()} | {"positions": decoder.positions})
        # the last position of the prefix is where the language model begins
        decoder.positions.data = torch.cat([self.positions.data[:1].repeat(length - 1, 1), self.positions.data])
        start_at(decoder.prefix, self.tokens.weight.data[self.end_id])
        decoder.requires_grad_(False)
        decoder.prefix.requires_grad_()
        return decoder


def start_at(mapper: nn.Sequential, start: Tensor) -> None:
    """Have every position that a mapper fills start near one vector (W,)."""
    last = mapper[-1]
    assert isinstance(last, nn.Linear)
    last.weight.data *= _START_SPREAD
    last.bias.data = start.repeat(last.out_features // len(start)).to(last.bias.device)
