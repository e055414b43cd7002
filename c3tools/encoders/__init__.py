"""Contrastive models (open_clip): embeddings of images and texts."""

from __future__ import annotations

from .calibration import Calibration
from .encoder import Encoder
from .loading import load_encoder, load_network, resolve_encoder
from .models import DEFAULT_MODEL, ModelName
from .preprocessing import ImagePreprocessor, open_image
from .selection import Network

__all__ = [
    "DEFAULT_MODEL",
    "Calibration",
    "Encoder",
    "ImagePreprocessor",
    "ModelName",
    "Network",
    "load_encoder",
    "load_network",
    "open_image",
    "resolve_encoder",
]
