"""Models of the backend OpenVINO in 8-bit integers, converted by NNCF (extra ``int8``)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays import Matrix
from ..assets.paths import PHOTOS
from ..errors import EncoderError, MissingExtraError, reason_of
from .encoder import Backend, Encoder, Modality

_CALIBRATION_INPUTS = 64  # of each modality
_LEAST_COSINE = 0.99  # of each calibration input with fp32
# These operations, such as the division by the norm, stay in float32: embeddings have unit length
# in any precision.
_IN_FLOAT = ("Divide", "Maximum", "ReduceL2")


def require_nncf() -> None:
    """Refuse to go on without NNCF.

    Raises:
        MissingExtraError: if it is not installed.
    """
    if not importlib.util.find_spec("nncf"):
        raise MissingExtraError("nncf", extra="int8", purpose="--precision int8")


def calibration_batches(exact: Encoder) -> dict[Modality, list[Any]]:
    """Return bundled photos and captions as the towers take them, each in a batch of its own."""
    photos = sorted((PHOTOS / "images").iterdir())[:_CALIBRATION_INPUTS]
    captions: list[str] = []
    for line in (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        captions += json.loads(line)["captions"]
    tokens = exact.tokenise(captions[:_CALIBRATION_INPUTS])
    return {
        "image": [exact.pixels(photo)[None] for photo in photos],
        "text": [batch for _, batch in exact.token_batches(tokens, 1)],
    }


def quantise(
    towers: Mapping[Modality, Any], batches: Mapping[Modality, list[Any]], model_name: str
) -> dict[Modality, Any]:
    """Convert towers to 8-bit integers, with their activations scaled for these inputs.

    Args:
        towers: models of OpenVINO, by modality.
        batches: inputs, by modality.
        model_name: for errors.

    Raises:
        EncoderError: if a tower cannot be converted.
    """
    quantised = {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # NNCF prints its progress, and its log
            import nncf

            nncf.set_log_level(logging.ERROR)
            for modality, inputs in batches.items():
                quantised[modality] = nncf.quantize(
                    towers[modality],
                    nncf.Dataset(inputs),
                    subset_size=len(inputs),
                    preset=nncf.QuantizationPreset.MIXED,
                    model_type=nncf.ModelType.TRANSFORMER,  # more exact for convolutions, too
                    ignored_scope=nncf.IgnoredScope(types=list(_IN_FLOAT), validate=False),
                )
    except Exception as error:  # NNCF raises errors of many kinds
        raise EncoderError(
            f"{model_name} cannot be converted to int8 ({type(error).__name__}: "
            f"{reason_of(error)}).",
            remedy="Use --precision auto.",
        ) from error
    return quantised


def require_agreement(
    exact: Backend, rounded: Backend, batches: Mapping[Modality, list[Any]], model_name: str
) -> None:
    """Refuse a model in int8 whose embeddings differ too much from those in fp32.

    Raises:
        EncoderError: with the least cosine on the calibration inputs.
    """
    for modality, inputs in batches.items():
        products = _embed(exact, modality, inputs) * _embed(rounded, modality, inputs)
        cosine = float(products.sum(axis=1).min())
        if not cosine >= _LEAST_COSINE:  # NaN is refused, too
            raise EncoderError(
                f"int8 changes the embeddings of {model_name} too much: the cosine of {modality} "
                f"embeddings with fp32 is {cosine:.4f} on the calibration inputs (limit: "
                f"{_LEAST_COSINE}).",
                remedy="Use --precision auto.",
            )


def _embed(backend: Backend, modality: Modality, batches: list[Any]) -> Matrix:
    """Return the embeddings of batches, which are computed side by side."""
    running = [backend.submit(modality, batch) for batch in batches]
    return np.concatenate([wait_for_result() for wait_for_result in running])
