"""Captions from embeddings: decoders, their training, generation, evaluation, and the methods to compare with."""

from __future__ import annotations

from .caption import Captions, caption_images
from .captioner import Captioner
from .clipre import nearest
from .config import SIZES, DecoderConfig, LanguageModelSize, Size, TrainingConfig, load_size, training_config
from .evaluate import Evaluation, evaluate_captions
from .generation import GenerationConfig, generate
from .model import CaptionDecoder, Decoder
from .tokenizer import CaptionTokenizer
from .train import DecoderTask, fit, train_captioner

__all__ = [
    "SIZES",
    "CaptionDecoder",
    "CaptionTokenizer",
    "Captioner",
    "Captions",
    "Decoder",
    "DecoderConfig",
    "DecoderTask",
    "Evaluation",
    "GenerationConfig",
    "LanguageModelSize",
    "Size",
    "TrainingConfig",
    "caption_images",
    "evaluate_captions",
    "fit",
    "generate",
    "load_size",
    "nearest",
    "train_captioner",
    "training_config",
]
