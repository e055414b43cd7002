"""int8 with NNCF (extra ``int8``): OpenVINO towers whose activations are scaled for the inputs of the user."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import MissingExtraError
from .base import Modality
from .openvino import read_model, write_model

_QUIET = "NNCF_CI"  # the variable under which NNCF sends no messages to its makers
# the division by the norm, and its likes, stay in float32: embeddings have unit length in any precision
_IN_FLOAT = ("Divide", "Maximum", "ReduceL2")


def require_nncf() -> None:
    """Raise a MissingExtraError that names the extra, if NNCF is not installed."""
    if not importlib.util.find_spec("nncf"):
        raise MissingExtraError("nncf", extra="int8", purpose="--precision int8")


def nncf_version() -> str:
    """Return the version of NNCF."""
    return importlib.metadata.version("nncf")


def quantize(source: Path, folder: Path, inputs: Mapping[Modality, Sequence[npt.NDArray[np.generic]]]) -> None:
    """Write the towers of one folder to another, in 8 bits where NNCF knows how.

    Args:
        source: contains converted towers in fp32, of the backend openvino.
        folder: the folder for the towers in 8 bits.
        inputs: batches for each tower, by which the activations are scaled.
    """
    # NNCF prints its progress, and its log, to standard output
    with contextlib.redirect_stdout(io.StringIO()):
        quiet = os.environ.get(_QUIET)
        os.environ[_QUIET] = "1"
        try:
            import nncf
        finally:
            del os.environ[_QUIET]
            if quiet is not None:
                os.environ[_QUIET] = quiet
        nncf.set_log_level(logging.ERROR)
        for modality, batches in inputs.items():
            quantized = nncf.quantize(
                read_model(source, modality),
                nncf.Dataset(batches),
                subset_size=len(batches),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,  # more exact for convolutions, too
                ignored_scope=nncf.IgnoredScope(types=list(_IN_FLOAT), validate=False),
            )
            write_model(quantized, folder, modality)
