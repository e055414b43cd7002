"""Methods × seeds in one table."""

from __future__ import annotations

from .image_table import IMAGE_METHODS, ImageAblation, ImageRun
from .images import ablate_images
from .methods import ABLATION, METHODS, AblationData, AblationRun, run_ablation, train_decoders
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
