"""Images from embeddings: generators, their training, and adapters to pre-trained ones (the extra ``images``)."""

from __future__ import annotations

from .evaluate import ImageEvaluation, evaluate_images
from .generation import GeneratedImage, GeneratedImages, generate
from .generator import Generator, ImageGenerator
from .model import SIZES, ImageNetwork, NetworkConfig, Size, TrainingConfig, load_size, sample
from .photos import Photos, read_photos
from .pretrained import PretrainedGenerator
from .scorer import ImageScorer
from .train import fit_generator, train_generator
from .training import Trainer

__all__ = [
    "SIZES",
    "GeneratedImage",
    "GeneratedImages",
    "Generator",
    "ImageEvaluation",
    "ImageGenerator",
    "ImageNetwork",
    "ImageScorer",
    "NetworkConfig",
    "Photos",
    "PretrainedGenerator",
    "Size",
    "Trainer",
    "TrainingConfig",
    "evaluate_images",
    "fit_generator",
    "generate",
    "load_size",
    "read_photos",
    "sample",
    "train_generator",
]
