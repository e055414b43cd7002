"""What training and generation need of a caption decoder, whichever it is.

Shapes: B captions, T tokens, W width of the last hidden state, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Cache(Protocol):
    """What a decoder remembers of the positions it has computed."""

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows of the batch: int64 (any number,)."""


class Shape(Protocol):
    """What a decoder's configuration says at least."""

    @property
    def dim(self) -> int:
        """Dimension d of the embeddings it reads."""

    @property
    def vocab_size(self) -> int:
        """Number V of tokens that get a score."""

    @property
    def max_tokens(self) -> int:
        """Longest caption in tokens, the end-of-text token included."""


class Decoder(nn.Module):
    """The base of the built-in decoder and of language models behind a mapper.

    Attributes:
        pad_id: fills captions on the right, and stands for words that training hides; never written.
        end_id: the end-of-text token.
    """

    pad_id: int
    end_id: int

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, embeddings: Tensor, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """Teacher forcing: the scores that predict each token.

        Args:
            embeddings: (B, d), transformed as the decoder's pipeline says.
            tokens: int64 (B, T), right-padded, each caption ending in the end-of-text token.
            seen: the tokens that the decoder is shown, ``tokens`` by default; training hides some.

        Returns:
            (B, T, V): entry t predicts ``tokens[:, t]`` from the embedding and ``tokens[:, :t]``.
        """
        raise NotImplementedError

    def start(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Cache]:
        """Run the prefix of embeddings (B, d): scores of the first token (B, V), hidden state (B, W), cache."""
        raise NotImplementedError

    def following(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """Scores (B, V) of what comes after ``tokens`` (B,), and their hidden states (B, W); extends the cache."""
        raise NotImplementedError
