"""Contrastive models (open_clip): embeddings of images and texts."""

from __future__ import annotations

from .encoder import Encoder
from .loading import load_encoder, resolve_encoder
from .networks import DEFAULT_MODEL, Network, load_network
from .preprocessing import UNREADABLE, ImagePreprocessor, data_url, open_image, thumbnail

__all__ = [
    "DEFAULT_MODEL",
    "UNREADABLE",
    "Encoder",
    "ImagePreprocessor",
    "Network",
    "data_url",
    "load_encoder",
    "load_network",
    "open_image",
    "resolve_encoder",
    "thumbnail",
]
