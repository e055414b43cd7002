"""The built-in decoder in numpy, for captioning on a CPU: importing torch takes longer than writing a caption.

The same weights and the same operations as `c3tools.captioning.model`, one position at a time; training needs torch.

Shapes: B captions, S = positions in this call, W width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from ..arrays import Floats, Indices
from .config import DecoderConfig
from .tokenizer import END_ID, PAD_ID

_EPSILON = 1e-5  # of torch's layer norm
# erf by formula 7.1.26 of Abramowitz and Stegun, whose largest error is 1.5e-7
_ERF_RATE, _ERF = 0.3275911, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


class NumpyDecoder:
    """The built-in decoder, for generation alone.

    Args:
        config: the architecture.
        weights: of `CaptionDecoder`, by their names in its state dict.

    Raises:
        KeyError: if a weight is missing.
        ValueError: if a weight has another shape, or is not of the decoder.
    """

    pad_id, end_id = PAD_ID, END_ID

    def __init__(self, config: DecoderConfig, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
        self.config = config
        shapes = _shapes(config)
        self.weights = {name: np.asarray(weights[name], dtype=np.float32) for name in shapes}
        for name in weights:
            if name not in shapes or self.weights[name].shape != shapes[name]:
                expected = shapes.get(name, "no such weight")
                raise ValueError(f"{name} has shape {weights[name].shape}, but the architecture has {expected}")

    def start(self, inputs: Floats) -> tuple[NumpyScores, NumpyCache]:
        """Run the prefix of embeddings (B, d): the scores of the first token, and the cache."""
        config = self.config
        cache = NumpyCache.of(config, len(inputs))
        if config.prefix_length:
            hidden = np.tanh(self._linear(inputs * np.float32(math.sqrt(config.dim)), "prefix.0"))
            prefix = self._linear(hidden, "prefix.2").reshape(len(inputs), config.prefix_length, config.width)
        else:  # a language model begins with the end-of-text token
            prefix = np.broadcast_to(self.weights["tokens.weight"][self.end_id], (len(inputs), 1, config.width))
        return self._scores(prefix, cache), cache

    def extend(self, tokens: Indices, cache: NumpyCache) -> NumpyScores:
        """Run tokens (B,) and extend the cache: the scores of the next token."""
        return self._scores(self.weights["tokens.weight"][tokens][:, None], cache)

    def select(self, cache: NumpyCache, rows: Indices) -> None:
        """Keep, repeat or reorder rows of the cache: int64 (any number,)."""
        cache.keys, cache.values = cache.keys[:, rows], cache.values[:, rows]

    def count_parameters(self) -> int:
        """Return the number of weights."""
        return sum(weight.size for weight in self.weights.values())

    def save_weights(self, path: Path, dtype: str = "float32") -> None:
        """Write the weights as safetensors, as float32 or float16."""
        save_file({name: weight.astype(dtype) for name, weight in self.weights.items()}, path)

    def _scores(self, x: Floats, cache: NumpyCache) -> NumpyScores:
        """Run positions (B, S, W), and return the scores of the token after the last one."""
        x = x + self.weights["positions"][cache.length : cache.length + x.shape[1]]
        for layer in range(self.config.layers):
            block = f"blocks.{layer}"
            x = x + self._attend(self._norm(x, f"{block}.norm1"), cache, layer)
            wide = self._linear(self._norm(x, f"{block}.norm2"), f"{block}.up")
            x = x + self._linear(gelu(wide), f"{block}.down")
        cache.length += x.shape[1]
        scores = self._norm(x[:, -1], "norm") @ self.weights["tokens.weight"].T  # (B, V)
        scores[:, self.pad_id] = -np.inf  # it is never trained, so its score means nothing
        return NumpyScores(scores)

    def _attend(self, x: Floats, cache: NumpyCache, layer: int) -> Floats:
        """Map (B, S, W) to (B, S, W) by causal self-attention."""
        B, S, W = x.shape
        heads = self.config.heads
        qkv = self._linear(x, f"blocks.{layer}.attention.qkv").reshape(B, S, 3, heads, W // heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # 3 x (B, H, S, W / H)
        end = cache.length + S
        cache.keys[layer, :, :, cache.length : end] = k
        cache.values[layer, :, :, cache.length : end] = v
        keys, values = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
        scores = (q * np.float32((W // heads) ** -0.5)) @ keys.swapaxes(-1, -2)  # (B, H, S, all so far)
        if S > 1:  # only the prefix is run at once
            scores += np.triu(np.full((S, S), -np.inf, np.float32), 1)
        y = np.exp(_log_softmax(scores)) @ values  # (B, H, S, W / H)
        return self._linear(y.swapaxes(1, 2).reshape(B, S, W), f"blocks.{layer}.attention.out")

    def _linear(self, x: Floats, name: str) -> Floats:
        weight = self.weights[f"{name}.weight"]
        # as one matrix: numpy would multiply the matrices of a stack one by one
        flat = x.reshape(-1, weight.shape[1]) @ weight.T + self.weights[f"{name}.bias"]
        return flat.reshape(*x.shape[:-1], len(weight))

    def _norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        centred /= np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(_EPSILON))
        normed: Floats = centred * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return normed


@dataclass
class NumpyCache:
    """Keys and values of the positions computed so far.

    Attributes:
        keys, values: (layers, B, H, longest, W / H).
        length: how many positions are filled.
    """

    keys: Floats
    values: Floats
    length: int = 0

    @classmethod
    def of(cls, config: DecoderConfig, batch: int) -> NumpyCache:
        """Return an empty cache for so many captions."""
        shape = (config.layers, batch, config.heads, config.positions, config.width // config.heads)
        return cls(np.empty(shape, np.float32), np.empty(shape, np.float32))


@dataclass
class NumpyScores:
    """Scores of the next token; see `c3tools.captioning.generation.Scores`.

    Attributes:
        values: float32 (B, V).
    """

    values: Floats

    def best(self) -> Indices:
        """Return the token (B,) with the highest score."""
        tokens: Indices = self.values.argmax(axis=-1)
        return tokens

    def sample(self, uniform: Floats, top_p: float, temperature: float) -> Indices:
        """Return a token (B,) of the nucleus."""
        likely = np.exp(_log_softmax(self.values.astype(np.float64) / temperature))
        order = np.argsort(-likely, axis=-1, kind="stable")
        likely = np.take_along_axis(likely, order, axis=-1)
        cumulative = likely.cumsum(axis=-1)  # (B, V)
        kept = cumulative - likely < top_p  # the first token is always kept
        target = uniform * (likely * kept).sum(axis=-1)  # (B,)
        choice = np.minimum((cumulative <= target[:, None]).sum(axis=-1), kept.sum(axis=-1) - 1)
        chosen: Indices = np.take_along_axis(order, choice[:, None], axis=-1)[:, 0]
        return chosen

    def extend(self, totals: Floats, count: int) -> tuple[Floats, Indices]:
        """Return the best extensions of hypotheses."""
        likely = _log_softmax(self.values).reshape(*totals.shape, -1)  # (n, K, V)
        total = (likely + totals[:, :, None].astype(np.float32)).reshape(len(totals), -1)  # (n, K * V)
        flat = np.sort(np.argpartition(-total, count - 1, axis=-1)[:, :count], axis=-1)
        found = np.take_along_axis(total, flat, axis=-1)
        order = np.argsort(-found, axis=-1, kind="stable")
        return np.take_along_axis(found, order, axis=-1), np.take_along_axis(flat, order, axis=-1)


def gelu(x: Floats) -> Floats:
    """Return x times the normal distribution function of x, to 2e-7 times x."""
    scaled = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(_ERF_RATE) * scaled)
    series = np.full_like(t, _ERF[0])
    for factor in _ERF[1:]:
        series = series * t + np.float32(factor)
    tail = series * t * np.exp(-scaled * scaled) / 2  # of the distribution, beyond |x|
    value: Floats = x * np.where(x < 0, tail, 1 - tail)
    return value


def _log_softmax(x: Floats) -> Floats:
    shifted = x - x.max(axis=-1, keepdims=True)
    logarithms: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logarithms


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight."""
    W, hidden = config.width, config.width * max(1, config.prefix_length // 2)
    layers = {"prefix.0": (hidden, config.dim), "prefix.2": (config.prefix_length * W, hidden)}
    layers = layers if config.prefix_length else {}
    norms = ["norm"]
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        layers |= {f"{block}.attention.qkv": (3 * W, W), f"{block}.attention.out": (W, W)}
        layers |= {f"{block}.up": (4 * W, W), f"{block}.down": (W, 4 * W)}
        norms += [f"{block}.norm1", f"{block}.norm2"]
    shapes: dict[str, tuple[int, ...]] = {
        "tokens.weight": (config.vocab_size, W),
        "positions": (config.positions, W),
    }
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {f"{name}.{part}": (W,) for name in norms for part in ("weight", "bias")}
