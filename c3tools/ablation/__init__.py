"""Methods × seeds in one table."""

from __future__ import annotations

from .cells import AblationRun, run_ablation, train_decoders
from .data import AblationData
from .image_table import IMAGE_METHODS, ImageAblation, ImageRun
from .images import ablate_images
from .methods import ABLATION, METHODS
from .run import ablate
from .table import Ablation

__all__ = [
    "ABLATION",
    "IMAGE_METHODS",
    "METHODS",
    "Ablation",
    "AblationData",
    "AblationRun",
    "ImageAblation",
    "ImageRun",
    "ablate",
    "ablate_images",
    "run_ablation",
    "train_decoders",
]
