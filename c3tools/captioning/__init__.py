"""Captions from embeddings: decoders, their training, generation, evaluation, and the methods to compare with."""

from __future__ import annotations

from .baselines.clipre import nearest, nearest_captions
from .baselines.steering import TextEncoder
from .caption import Captions, caption_images
from .captioner import Captioner
from .config import SIZES, DecoderConfig, LanguageModelSize, Size, TrainingConfig, load_size, training_config
from .evaluate import Evaluation, evaluate_captions
from .generation import GenerationConfig, generate
from .language_model import Decoder
from .model import CaptionDecoder
from .tokenizer import CaptionTokenizer
from .train import CaptionTask, fit_captioner, fit_esper, train_captioner

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
    "fit_esper",
    "generate",
    "load_size",
    "nearest",
    "nearest_captions",
    "train_captioner",
    "training_config",
]
