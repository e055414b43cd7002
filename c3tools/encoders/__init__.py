"""Connect: embeddings of images and texts from a contrastive model (open_clip)."""

from __future__ import annotations

from .encoder import Encoder, to_numpy
from .images import ImagePreprocessor, open_image
from .loading import Network, load_encoder, load_network, load_recorded_encoder, resolve_encoder
from .names import DEFAULT_MODEL, ModelName

__all__ = [
    "DEFAULT_MODEL",
    "Encoder",
    "ImagePreprocessor",
    "ModelName",
    "Network",
    "load_encoder",
    "load_network",
    "load_recorded_encoder",
    "open_image",
    "resolve_encoder",
    "to_numpy",
]
