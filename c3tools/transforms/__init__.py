"""Collapse, Corrupt and other steps: pipelines that are fitted, saved, and applied with numpy alone.

Importing this package loads numpy and safetensors and nothing heavier, so that another project can use a
fitted pipeline as a step of its own.
"""

from __future__ import annotations

from .pipeline import Pipeline
from .presets import PRESETS, open_pipeline, preset
from .sigma import PUBLISHED_SIGMA
from .steps import (
    AdaptiveNoise,
    Collapse,
    CovarianceNoise,
    FairScale,
    GapShift,
    GaussianNoise,
    MatchMoments,
    MemoryProjection,
    Normalize,
    Procrustes,
    ProjectOutGap,
    ReAlign,
    Retrieval,
    RidgeMap,
    SpanNoise,
    Standardize,
    Step,
    Whiten,
)

__all__ = [
    "PRESETS",
    "PUBLISHED_SIGMA",
    "AdaptiveNoise",
    "Collapse",
    "CovarianceNoise",
    "FairScale",
    "GapShift",
    "GaussianNoise",
    "MatchMoments",
    "MemoryProjection",
    "Normalize",
    "Pipeline",
    "Procrustes",
    "ProjectOutGap",
    "ReAlign",
    "Retrieval",
    "RidgeMap",
    "SpanNoise",
    "Standardize",
    "Step",
    "Whiten",
    "open_pipeline",
    "preset",
]
