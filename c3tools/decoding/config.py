"""What a decoder is (its architecture) and how it was trained: plain data, saved as JSON beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import DecoderError


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of the built-in decoder.

    Attributes:
        dim: dimension d of the embeddings it reads.
        vocab_size: number V of tokens, padding and end-of-text included.
        width: dimension W of the residual stream.
        layers: number of Transformer blocks.
        heads: attention heads per block; divides ``width``.
        prefix_length: number P of positions that the embedding is mapped to.
        max_tokens: longest caption in tokens, the end-of-text token included.
        dropout: dropout probability on embeddings and on the output of each sub-layer.
    """

    dim: int
    vocab_size: int
    width: int = 256
    layers: int = 4
    heads: int = 4
    prefix_length: int = 4
    max_tokens: int = 40
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise DecoderError(
                f"A decoder of width {self.width} cannot have {self.heads} heads of equal width.",
                remedy="Choose a number of heads that divides the width.",
            )


@dataclass(frozen=True)
class Size:
    """A named size of the decoder, with the settings it trains well at.

    Attributes:
        width: of the residual stream.
        layers: Transformer blocks.
        heads: attention heads.
        prefix_length: prefix positions.
        vocab_size: tokens, at most.
        epochs: passes over the captions.
        learning_rate: peak.
        batch_size: captions per step.
        dropout: dropout probability.
        word_dropout: see `TrainingConfig`.
    """

    width: int
    layers: int
    heads: int
    prefix_length: int
    vocab_size: int
    epochs: int
    learning_rate: float
    batch_size: int = 64
    dropout: float = 0.0
    word_dropout: float = 0.1

    def config(self, dim: int, vocab_size: int, max_tokens: int = 40) -> DecoderConfig:
        """The architecture for embeddings of ``dim`` dimensions and a tokenizer of ``vocab_size`` tokens."""
        return DecoderConfig(
            dim=dim,
            vocab_size=vocab_size,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            prefix_length=self.prefix_length,
            max_tokens=max_tokens,
            dropout=self.dropout,
        )


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "tiny": Size(192, 2, 3, 2, 2048, epochs=5, learning_rate=2e-3),
        "small": Size(256, 3, 4, 4, 4096, epochs=6, learning_rate=1.5e-3),
        "base": Size(512, 6, 8, 10, 8192, epochs=10, learning_rate=6e-4, dropout=0.1),
    }
)


def size(name: str) -> Size:
    """A size by name.

    Raises:
        DecoderError: if there is none of that name.
    """
    if name not in SIZES:
        raise DecoderError(f"There is no decoder size {name!r}.", remedy=f"Choose from {', '.join(SIZES)}.")
    return SIZES[name]
