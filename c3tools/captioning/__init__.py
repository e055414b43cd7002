"""The built-in caption decoder: architecture, training, generation; the retrieval baseline."""

from __future__ import annotations

from .captioner import Captioner
from .config import SIZES, DecoderConfig, LanguageModelSize, Size, TrainingConfig, size
from .decoder import Decoder
from .fitting import CaptionRows, Progress, fit_captioner, silent, training_config
from .generation import GenerationConfig, TextEncoder, generate
from .model import CaptionDecoder
from .retrieval import NearestCaption, nearest
from .runs import RunFolder
from .tokenizer import CaptionTokenizer
from .training import Epoch, Recorder, Trainer

__all__ = [
    "SIZES",
    "CaptionDecoder",
    "CaptionRows",
    "CaptionTokenizer",
    "Captioner",
    "Decoder",
    "DecoderConfig",
    "Epoch",
    "GenerationConfig",
    "LanguageModelSize",
    "NearestCaption",
    "Progress",
    "Recorder",
    "RunFolder",
    "Size",
    "TextEncoder",
    "Trainer",
    "TrainingConfig",
    "fit_captioner",
    "generate",
    "nearest",
    "silent",
    "size",
    "training_config",
]
