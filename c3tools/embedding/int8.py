"""The int8 model of a store. It depends on its calibration inputs, so the store keeps it for later runs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from ..corpus import Corpus, ImageItem, ImageReader
from ..encoders import Calibration, Encoder
from ..encoders.backends import RECORD_FILE, ConvertedBackend, keep_model, same_model
from ..errors import StoreError
from ..io.locations import kind_of
from ..store import StoreInfo
from ..store.metadata import INFO_FILE

MODEL_FOLDER = ".encoder"  # in the store


def calibration_for(corpus: Corpus, folder: Path, recorded: StoreInfo | None, precision: str) -> Calibration | None:
    """Return what int8 is calibrated on: the first inputs of the corpus, or the model that the store has already."""
    if precision not in ("auto", "int8"):
        return None
    if recorded is not None and (recorded.precision == "int8" or _has_model(folder)):
        return Calibration(kept=folder / MODEL_FOLDER)
    return Calibration(_contents(corpus.images), (item.caption for item in corpus.texts))


def keep_int8_model(folder: Path, encoder: Encoder) -> None:
    """Copy the calibrated model into the store, so that every later run, here or elsewhere, takes the same.

    Raises:
        StoreError: if the store has another one.
    """
    backend = encoder.backend
    if encoder.compute.precision != "int8" or not isinstance(backend, ConvertedBackend):
        return
    kept = folder / MODEL_FOLDER
    if same_model(backend.folder, kept):
        return
    recorded = StoreInfo.load(folder) if kind_of(folder / INFO_FILE) == "file" else None
    if recorded and (recorded.precision == "int8" or _has_model(folder)):
        raise StoreError(
            f"The int8 model of {folder} was calibrated on different inputs than this encoder.",
            remedy="Run `c3 embed` without --precision, which uses the int8 model of the store, or choose another "
            "--store.",
        )
    keep_model(backend.folder, kept)


def _has_model(folder: Path) -> bool:
    return kind_of(folder / MODEL_FOLDER / RECORD_FILE) == "file"  # it is written last


def _contents(items: Iterable[ImageItem]) -> Iterator[io.BytesIO]:
    """Read images one after the other; images that cannot be read are left out."""
    with closing(ImageReader()) as reader:
        for item in items:
            with suppress(Exception):  # the run itself notes it as a failure
                yield io.BytesIO(reader.read(item))
