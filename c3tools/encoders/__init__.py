"""Contrastive models (open_clip): embeddings of images and texts."""

from __future__ import annotations

from .encoder import Encoder
from .loading import load_encoder, resolve_encoder
from .networks import DEFAULT_MODEL, Network, load_network
from .preprocessing import ImagePreprocessor

__all__ = [
    "DEFAULT_MODEL",
    "Encoder",
    "ImagePreprocessor",
    "Network",
    "load_encoder",
    "load_network",
    "resolve_encoder",
]
