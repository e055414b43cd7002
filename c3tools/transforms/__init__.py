"""Collapse, Corrupt and the rest: ordered, fitted, saved pipelines, applied with numpy alone.

Importing this package loads numpy and safetensors and nothing heavier, so that another project can use a
fitted pipeline as a step of its own.
"""

from __future__ import annotations

from .centring import Collapse, GapShift, Normalize, ProjectOutGap, Standardize, Whiten
from .mapping import MemoryProjection, Procrustes, ReAlign, RidgeMap
from .noise import AdaptiveNoise, CovarianceNoise, GaussianNoise, SpanNoise
from .pipeline import STEPS, OrderWarning, Pipeline
from .presets import PRESETS, preset
from .sigma import PUBLISHED_SIGMA, parse_sigma
from .steps import Step

__all__ = [
    "PRESETS",
    "PUBLISHED_SIGMA",
    "STEPS",
    "AdaptiveNoise",
    "Collapse",
    "CovarianceNoise",
    "GapShift",
    "GaussianNoise",
    "MemoryProjection",
    "Normalize",
    "OrderWarning",
    "Pipeline",
    "Procrustes",
    "ProjectOutGap",
    "ReAlign",
    "RidgeMap",
    "SpanNoise",
    "Standardize",
    "Step",
    "Whiten",
    "parse_sigma",
    "preset",
]
