"""Methods × seeds in one table, for captions and for images."""

from __future__ import annotations

from .captions import CaptionData, CaptionTask
from .cells import run_cells
from .images import ImageTask
from .methods import ABLATION, IMAGE_METHODS, METHODS, Cell
from .run import ablate, ablate_images
from .table import Ablation, Run

__all__ = [
    "ABLATION",
    "IMAGE_METHODS",
    "METHODS",
    "Ablation",
    "CaptionData",
    "CaptionTask",
    "Cell",
    "ImageTask",
    "Run",
    "ablate",
    "ablate_images",
    "run_cells",
]
