"""`c3 embed`: corpus → encoder → store."""

from __future__ import annotations

from .run import EmbedOptions, embed
from .summary import EmbedSummary, ModalitySummary

__all__ = ["EmbedOptions", "EmbedSummary", "ModalitySummary", "embed"]
