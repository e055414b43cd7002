"""The built-in caption decoder: architecture, training, generation; the retrieval baseline."""

from __future__ import annotations

from .captioner import Captioner
from .config import SIZES, DecoderConfig, Size, size
from .fitting import CaptionRows, Progress, fit_captioner, silent, training_config
from .generation import GenerationConfig, generate
from .model import CaptionDecoder
from .retrieval import NearestCaption, nearest
from .runs import RunFolder
from .tokenizer import CaptionTokenizer
from .training import Epoch, Trainer, TrainingConfig

__all__ = [
    "SIZES",
    "CaptionDecoder",
    "CaptionRows",
    "CaptionTokenizer",
    "Captioner",
    "DecoderConfig",
    "Epoch",
    "GenerationConfig",
    "NearestCaption",
    "Progress",
    "RunFolder",
    "Size",
    "Trainer",
    "TrainingConfig",
    "fit_captioner",
    "generate",
    "nearest",
    "silent",
    "size",
    "training_config",
]
