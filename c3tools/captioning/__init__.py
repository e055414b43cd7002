"""Captions from embeddings: decoders, their training, generation, evaluation, and the retrieval baseline."""

from __future__ import annotations

from .captioner import Captioner, Captions, caption_images
from .config import SIZES, DecoderConfig, LanguageModelSize, Size, TrainingConfig, load_size, training_config
from .evaluate import Evaluation, evaluate_captions
from .generation import GenerationConfig, TextEncoder, generate
from .model import CaptionDecoder, Decoder
from .retrieval import nearest, nearest_captions
from .tokenizer import CaptionTokenizer
from .train import fit_captioner, train_captioner
from .training import Epoch, Trainer

__all__ = [
    "SIZES",
    "CaptionDecoder",
    "CaptionTokenizer",
    "Captioner",
    "Captions",
    "Decoder",
    "DecoderConfig",
    "Epoch",
    "Evaluation",
    "GenerationConfig",
    "LanguageModelSize",
    "Size",
    "TextEncoder",
    "Trainer",
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
