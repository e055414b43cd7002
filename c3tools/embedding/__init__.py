"""Corpus and encoder → store: `embed`, its plan, its shards and its summary."""

from __future__ import annotations

from .run import embed, embed_corpus
from .summary import EmbedSummary

__all__ = ["EmbedSummary", "embed", "embed_corpus"]
