"""Scores with their uncertainty: captions, retrieval, and the bootstrap."""

from __future__ import annotations

from .captions import METRICS, CaptionScores, score_captions
from .significance import Comparison, Interval, bootstrap_interval, compare, mean_and_std
from .tokenizer import tokenize

__all__ = [
    "METRICS",
    "CaptionScores",
    "Comparison",
    "Interval",
    "bootstrap_interval",
    "compare",
    "mean_and_std",
    "score_captions",
    "tokenize",
]
