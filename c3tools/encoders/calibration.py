"""The calibration inputs for int8: those of the user, and bundled ones if there are too few."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Pixels
from ..assets.paths import PHOTOS
from .backends import Backend, Modality
from .encoder import Encoder

CALIBRATION_INPUTS = 64  # of each modality

Inputs = Mapping[Modality, Sequence[npt.NDArray[Any]]]


@dataclass(frozen=True)
class Calibration:
    """Inputs by which the activations of a model are scaled for int8: the first 64 images and the first 64 texts.

    Attributes:
        images: as in `Encoder.pixels`; what cannot be decoded is passed over.
        texts: captions.
        kept: the folder or URL of a model that was calibrated before; it is taken instead.
    """

    images: Iterable[Any] = ()
    texts: Iterable[str] = ()
    kept: Path | None = None

    def inputs(self, encoder: Encoder) -> Inputs:
        """Return the inputs of both towers, each a batch of its own; bundled ones are added if they are few."""
        lines = (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        bundled = (caption for line in lines for caption in json.loads(line)["captions"])
        texts = list(islice(chain(self.texts, bundled), CALIBRATION_INPUTS))
        tokens = encoder.token_batches(encoder.tokenise(texts), 1)
        return {
            "image": list(islice(self._pixels(encoder), CALIBRATION_INPUTS)),
            "text": [batch for _, batch in tokens],
        }

    def _pixels(self, encoder: Encoder) -> Iterator[Pixels]:
        for image in chain(self.images, sorted((PHOTOS / "images").iterdir())):
            with suppress(Exception):  # a decoder may raise anything on a damaged file
                yield encoder.pixels(image)[None]


def digest_of(inputs: Inputs) -> str:
    """Return the SHA-256 of calibration inputs."""
    digest = hashlib.sha256()
    for batches in inputs.values():
        for batch in batches:
            digest.update(f"{batch.dtype} {batch.shape}".encode() + batch.tobytes())
    return digest.hexdigest()


def smallest_cosine(modality: Modality, expected: Backend, got: Backend, inputs: Inputs) -> float:
    """Return the smallest cosine between the embeddings of the inputs of one modality by two backends."""
    rows = [
        np.concatenate([one for _, one in backend.run(modality, ((None, batch) for batch in inputs[modality]))])
        for backend in (expected, got)
    ]
    return float((rows[0] * rows[1]).sum(axis=1).min())
