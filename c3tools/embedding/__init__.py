"""`c3 embed`: corpus → encoder → store."""

from __future__ import annotations

from .options import EmbedOptions
from .run import embed
from .summary import EmbedSummary, ModalitySummary

__all__ = ["EmbedOptions", "EmbedSummary", "ModalitySummary", "embed"]
