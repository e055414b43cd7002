"""The base of all caption decoders, and the built-in one: a small Transformer behind an MLP prefix.

An embedding becomes P prefix positions by a two-layer MLP (the mapping of ClipCap and of C3, in
small); the Transformer continues them with the tokens of a caption and an end-of-text token. Token
embeddings are tied to the output layer, positions are learned, blocks are pre-norm (GPT-2).
Captions are padded on the right, so causal attention alone keeps padding away from real tokens, and
no mask is needed. With P = 0 it is a language model of captions: it reads no embedding, and begins
with the end-of-text token.

Shapes: B captions, T tokens, P prefix positions, S = positions in this call, W width, H heads, V
vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders.networks import weights_sha256
from .config import DecoderConfig, LanguageModelConfig
from .tokenizer import END_ID, PAD_ID

_START_SPREAD = 0.1  # of a new mapper's output around what a language model begins with


class Decoder(nn.Module, ABC):
    """The part that the built-in decoder and language models behind a mapper share.

    Attributes:
        config: its architecture.
        pad_id: fills captions on the right, and stands for words that training hides; never
            generated.
        end_id: the end-of-text token.
    """

    config: DecoderConfig | LanguageModelConfig
    pad_id: int
    end_id: int

    @abstractmethod
    def map_prefix(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (B, d) by the MLP to (B, P * W)."""

    @abstractmethod
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed tokens (B, T) as (B, T, W)."""

    @abstractmethod
    def predict(self, x: Tensor, first: int, cache: Any = None) -> tuple[Tensor, Tensor]:
        """Run inputs (B, S, W) behind those of the cache: scores (B, S', V) and hidden states (B,
        S', W).

        Args:
            x: prefix positions and embedded tokens.
            first: the first position to return.
            cache: is extended by these positions; None if there is nothing before them.
        """

    @abstractmethod
    def new_cache(self) -> Any:
        """Return an empty cache, with the methods of the DynamicCache of transformers."""

    @abstractmethod
    def copy_behind_mapper(self, length: int) -> tuple[Decoder, nn.Sequential]:
        """Return a copy of a language model behind a new mapper to so many positions, and the
        mapper.
        """

    def behind_prefix(self, length: int) -> Decoder:
        """Return a copy of a language model behind a new mapper to so many positions, which alone
        is to be trained.

        The mapper starts near what the language model begins with, the end-of-text token, at every
        position.
        """
        decoder, mapper = self.copy_behind_mapper(length)
        end = torch.tensor([self.end_id], device=self.device)
        start = self.embed_tokens(end)[0].detach()  # (W,)
        last_layer: Any = mapper[-1]
        last_layer.weight.data *= _START_SPREAD
        last_layer.bias.data = start.repeat(length).to(last_layer.bias.device)
        decoder.requires_grad_(False)
        mapper.requires_grad_()
        return decoder

    def embed_prefix(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (B, d) to prefix positions (B, P, W), or for a language model to what it
        begins with.
        """
        length = self.config.prefix_length
        if length:
            return self.map_prefix(embeddings).view(len(embeddings), length, -1)
        ends = torch.full((len(embeddings), 1), self.end_id, device=embeddings.device)
        return self.embed_tokens(ends)

    def forward(
        self, embeddings: Tensor, tokens: Tensor, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the scores that predict each token (teacher forcing), and the hidden states they
        are made from.

        Args:
            embeddings: (B, d), transformed as the decoder's pipeline says.
            tokens: int64 (B, T), right-padded, each caption ending in the end-of-text token.
            seen: the tokens that the decoder reads, ``tokens`` by default; training hides some.

        Returns:
            (B, T, V) and (B, T, W): entry t predicts ``tokens[:, t]`` from the embedding and
            ``tokens[:, :t]``.
        """
        prefix = self.embed_prefix(embeddings)  # (B, P, W)
        shown = tokens if seen is None else seen
        x = torch.cat([prefix, self.embed_tokens(shown[:, :-1])], dim=1)  # (B, P + T - 1, W)
        return self.predict(x, prefix.shape[1] - 1)

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Run the prefix of embeddings (B, d): scores of the first token (B, V), the hidden state
        (B, W), the cache.
        """
        cache = self.new_cache()
        logits, hidden = self.predict(self.embed_prefix(embeddings), -1, cache)
        return logits[:, 0], hidden[:, 0], cache

    def decode_step(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Run ``tokens`` (B,) and extend the cache: scores of the next token (B, V), hidden states
        (B, W).
        """
        logits, hidden = self.predict(self.embed_tokens(tokens[:, None]), 0, cache)
        return logits[:, 0], hidden[:, 0]

    def allowed(self, logits: Tensor) -> Tensor:
        """Return scores (..., V) in float32 with padding ruled out: it is never trained, so its
        score means nothing.
        """
        scores = logits.float()
        if self.pad_id < scores.shape[-1]:
            scores[..., self.pad_id] = -torch.inf
        return scores

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def count_parameters(self) -> int:
        """Return the number of weights; tied ones are counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def digest(self) -> str:
        """Return a SHA-256 of the weights."""
        return weights_sha256(self)


class _KeyValueCache(list[tuple[Tensor, Tensor]]):
    """Keys and values (B, H, S, W / H) of the positions so far, by block; its methods are those of
    DynamicCache.
    """

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append those of one block's new positions, and return those of all."""
        if layer == len(self):
            self.append((keys, values))
        else:
            earlier_keys, earlier_values = self[layer]
            all_keys = torch.cat([earlier_keys, keys], dim=2)
            all_values = torch.cat([earlier_values, values], dim=2)
            self[layer] = (all_keys, all_values)
        return self[layer]

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep or repeat the given rows of the batch (finished captions leave, beams are
        reordered).
        """
        self[:] = [
            (keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self
        ]


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
            k, v = cache.update(k, v, layer)  # (B, H, all so far, W / H)
        # written out: for sequences this short, batched products are 4x faster in bf16 than torch's
        # fused kernels
        scores = (q * (W // self.heads) ** -0.5) @ k.transpose(-1, -2)  # (B, H, S, all so far)
        if S > 1:  # the whole sequence, or the whole prefix; a single new position sees everything
            mask = torch.full((S, S), -torch.inf, dtype=scores.dtype, device=x.device)
            scores = scores + mask.triu(1)
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
        activations = F.gelu(self.up(self.norm2(x)))  # (B, S, 4 W)
        y: Tensor = self.dropout(self.down(activations))  # (B, S, W)
        return x + y


class CaptionDecoder(Decoder):
    """Built-in decoder; see the module's docstring."""

    config: DecoderConfig
    pad_id = PAD_ID
    end_id = END_ID

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.prefix_length:
            hidden = config.width * max(1, config.prefix_length // 2)
            filled = config.prefix_length * config.width
            self.prefix = nn.Sequential(
                nn.Linear(config.dim, hidden), nn.Tanh(), nn.Linear(hidden, filled)
            )
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        longest = max(1, config.prefix_length) + config.max_tokens
        self.positions = nn.Parameter(torch.empty(longest, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.tokens.weight, std=1 / math.sqrt(self.config.width))
        nn.init.normal_(self.positions, std=1 / math.sqrt(self.config.width))
        # keeps the residual stream's scale at any depth
        residual = 1 / math.sqrt(2 * self.config.layers)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "down.weight")):
                parameter.data *= residual

    def map_prefix(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (B, d) by the MLP to (B, P * W)."""
        # unit vectors have entries of about 1 / sqrt(d); the first layer wants entries of about 1
        return self.prefix(embeddings * math.sqrt(self.config.dim))  # type: ignore[no-any-return]

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed tokens (B, T) as (B, T, W)."""
        return self.tokens(tokens)  # type: ignore[no-any-return]

    def predict(
        self, x: Tensor, first: int, cache: _KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run blocks, final norm and the output layer, whose weights are the tied token
        embeddings.
        """
        start = cache[0][0].shape[2] if cache else 0
        x = self.dropout(x + self.positions[start : start + x.shape[1]])  # (B, S, W)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)  # (B, S, W)
        hidden: Tensor = self.norm(x)[:, first:]  # (B, S', W)
        return F.linear(hidden, self.tokens.weight), hidden

    def new_cache(self) -> _KeyValueCache:
        """Return an empty cache."""
        return _KeyValueCache()

    def copy_behind_mapper(self, length: int) -> tuple[CaptionDecoder, nn.Sequential]:
        """Return a copy behind a new mapper; see `behind_prefix`."""
        decoder = CaptionDecoder(replace(self.config, prefix_length=length))
        # The mapper keeps its initial weights. There are more positions than before
        weights = {**decoder.state_dict(), **self.state_dict()}
        weights["positions"] = decoder.positions
        decoder.load_state_dict(weights)
        # The last position of the prefix is where the language model begins
        first_positions = self.positions.data[:1].repeat(length - 1, 1)
        decoder.positions.data = torch.cat([first_positions, self.positions.data])
        return decoder, decoder.prefix
