"""Methods × seeds in one table."""

from __future__ import annotations

from .methods import ABLATION, METHODS, AblationData, AblationRun, run_ablation
from .run import ablate
from .table import Ablation

__all__ = [
    "ABLATION",
    "METHODS",
    "Ablation",
    "AblationData",
    "AblationRun",
    "ablate",
    "run_ablation",
]
