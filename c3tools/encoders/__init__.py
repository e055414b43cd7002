"""Contrastive models (open_clip): embeddings of images and texts."""

from __future__ import annotations

from .encoder import Encoder, ImagePreprocessor, open_image, to_numpy
from .loading import Network, load_encoder, load_network, resolve_encoder
from .models import DEFAULT_MODEL, ModelName

__all__ = [
    "DEFAULT_MODEL",
    "Encoder",
    "ImagePreprocessor",
    "ModelName",
    "Network",
    "load_encoder",
    "load_network",
    "open_image",
    "resolve_encoder",
    "to_numpy",
]
