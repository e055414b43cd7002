"""Backends, which run a model: torch takes any; openvino and onnx are faster on CPUs."""

from __future__ import annotations

from .base import Backend, Modality, Pending
from .cache import RECORD_FILE, CachedModel, ModelCache, keep_model, same_model
from .converted import ConvertedBackend
from .onnx import OnnxBackend
from .openvino import OpenVINOBackend

BACKENDS = ("torch", "openvino", "onnx")
CONVERTED: dict[str, type[ConvertedBackend]] = {"openvino": OpenVINOBackend, "onnx": OnnxBackend}

__all__ = [
    "BACKENDS",
    "CONVERTED",
    "RECORD_FILE",
    "Backend",
    "CachedModel",
    "ConvertedBackend",
    "Modality",
    "ModelCache",
    "Pending",
    "keep_model",
    "same_model",
]
