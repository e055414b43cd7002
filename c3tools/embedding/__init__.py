"""Corpus and encoder → store: `embed`, its plan, its shards and its summary."""

from __future__ import annotations

from .run import embed, embed_corpus
from .summary import EmbedSummary, ModalitySummary

__all__ = ["EmbedSummary", "ModalitySummary", "embed", "embed_corpus"]
