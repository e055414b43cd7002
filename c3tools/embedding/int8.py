"""The int8 model of a store. It depends on its calibration inputs, so the store keeps it for later runs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from ..corpus import Corpus, ImageItem, ImageReader
from ..encoders import Calibration, Encoder
from ..encoders.openvino_backend import INT8_FILES, OpenVINOBackend
from ..errors import StoreError
from ..io.files import write_atomically
from ..store import StoreInfo

MODEL_FOLDER = ".encoder"  # in the store; the digest of the model is in store.json


def calibration_for(corpus: Corpus, folder: Path, recorded: StoreInfo | None, precision: str) -> Calibration | None:
    """Return what int8 is calibrated on: the first inputs of the corpus, or the model that the store has already."""
    if precision not in ("auto", "int8"):
        return None
    if recorded is not None and recorded.precision == "int8":
        return Calibration(kept=folder / MODEL_FOLDER, sha256=recorded.extra.get("int8"))
    return Calibration(_contents(corpus.images), (item.caption for item in corpus.texts))


def keep_int8_model(folder: Path, encoder: Encoder, recorded: StoreInfo | None) -> dict[str, str]:
    """Copy the calibrated model into the store, so that every later run uses it; return what store.json says of it.

    Raises:
        StoreError: if the store has another one.
    """
    backend = encoder.backend
    if encoder.compute.precision != "int8" or not isinstance(backend, OpenVINOBackend) or backend.folder is None:
        return {}
    if recorded is None:
        for name in INT8_FILES:
            write_atomically(folder / MODEL_FOLDER / name, partial(shutil.copyfile, backend.folder / name))
    elif recorded.precision == "int8" and recorded.extra.get("int8") != backend.sha256:
        raise StoreError(
            f"The int8 model of {folder} was calibrated on different inputs than this encoder.",
            remedy="Run `c3 embed` without --precision, which uses the int8 model of the store, or choose another "
            "--store.",
        )
    return {"int8": str(backend.sha256)}


def _contents(items: Iterable[ImageItem]) -> Iterator[io.BytesIO]:
    """Read images one after the other; images that cannot be read are left out."""
    with closing(ImageReader()) as reader:
        for item in items:
            with suppress(Exception):  # the run itself notes it as a failure
                yield io.BytesIO(reader.read(item))
