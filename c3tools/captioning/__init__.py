"""Captions from embeddings: decoders, their training, generation, evaluation, and the methods to compare with."""

from __future__ import annotations

from .baselines.clipre import nearest, nearest_captions
from .baselines.magic import TextEncoder
from .caption import Captions, caption_images
from .captioner import Captioner
from .config import SIZES, DecoderConfig, LanguageModelSize, Size, TrainingConfig, load_size, training_config
from .evaluate import Evaluation, evaluate_captions
from .generation import GenerationConfig, generate
from .model import CaptionDecoder, Decoder
from .tokenizer import CaptionTokenizer
from .train import train_captioner
from .training import CaptionTask, fit_captioner

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
