"""Captions from embeddings: decoders, their training, generation, evaluation, and the retrieval baseline.

Names are imported when they are first used, because captions can be made without torch, which takes seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .caption import Captions, caption_images
    from .captioner import Captioner
    from .config import SIZES, DecoderConfig, LanguageModelSize, Size, TrainingConfig, load_size, training_config
    from .evaluate import Evaluation, evaluate_captions
    from .generation import GenerationConfig, generate
    from .model import CaptionDecoder, Decoder
    from .retrieval import nearest, nearest_captions
    from .steering import TextEncoder
    from .tokenizer import CaptionTokenizer
    from .train import train_captioner
    from .training import CaptionTask, fit_captioner

_HOMES = {
    "CaptionDecoder": "model",
    "CaptionTokenizer": "tokenizer",
    "Captioner": "captioner",
    "Captions": "caption",
    "Decoder": "model",
    "DecoderConfig": "config",
    "Evaluation": "evaluate",
    "GenerationConfig": "generation",
    "LanguageModelSize": "config",
    "SIZES": "config",
    "Size": "config",
    "TextEncoder": "steering",
    "CaptionTask": "training",
    "TrainingConfig": "config",
    "caption_images": "caption",
    "evaluate_captions": "evaluate",
    "fit_captioner": "training",
    "generate": "generation",
    "load_size": "config",
    "nearest": "retrieval",
    "nearest_captions": "retrieval",
    "train_captioner": "train",
    "training_config": "config",
}

__all__ = [
    "SIZES",
    "CaptionDecoder",
    "CaptionTask",
    "CaptionTokenizer",
    "Captioner",
    "Captions",
    "Decoder",
    "DecoderConfig",
    "Evaluation",
    "GenerationConfig",
    "LanguageModelSize",
    "Size",
    "TextEncoder",
    "TrainingConfig",
    "caption_images",
    "evaluate_captions",
    "fit_captioner",
    "generate",
    "load_size",
    "nearest",
    "nearest_captions",
    "train_captioner",
    "training_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
