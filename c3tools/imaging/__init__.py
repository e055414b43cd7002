"""Images from embeddings: generators, their training, and adapters to pre-trained ones (the extra ``images``)."""

from __future__ import annotations

from .evaluate import ImageEvaluation, ImageScorer, evaluate_images
from .generation import GeneratedImage, GeneratedImages, generate
from .generator import Generator, ImageGenerator
from .model import SIZES, ImageNetwork, NetworkConfig, Size, TrainingConfig, load_size, sample
from .photos import Photos, read_photos
from .pretrained import PretrainedGenerator
from .train import GeneratorTask, fit_generator, train_generator

__all__ = [
    "SIZES",
    "GeneratedImage",
    "GeneratedImages",
    "Generator",
    "GeneratorTask",
    "ImageEvaluation",
    "ImageGenerator",
    "ImageNetwork",
    "ImageScorer",
    "NetworkConfig",
    "Photos",
    "PretrainedGenerator",
    "Size",
    "TrainingConfig",
    "evaluate_images",
    "fit_generator",
    "generate",
    "load_size",
    "read_photos",
    "sample",
    "train_generator",
]
