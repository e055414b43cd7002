"""Collapse, Corrupt and other steps: pipelines that are fitted, saved, and applied with numpy
alone.

Importing this package loads numpy, safetensors and msgspec and no other package, so that another
project can use a fitted pipeline as a step of its own.
"""

from __future__ import annotations

from .pipeline import Pipeline
from .presets import PRESETS, open_pipeline, preset

__all__ = ["PRESETS", "Pipeline", "open_pipeline", "preset"]
