"""The caption nearest to each image, after the modality gap is closed by a saved pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c3tools import Pipeline

__all__ = ["nearest_captions"]


def nearest_captions(
    pipeline_folder: Path, images: npt.NDArray[np.floating], texts: npt.NDArray[np.floating], captions: Sequence[str]
) -> list[str]:
    """One caption per image.

    Args:
        pipeline_folder: what `c3 export` or `Pipeline.save` wrote.
        images: (n, d) image embeddings.
        texts: (m, d) embeddings of the captions.
        captions: m texts.
    """
    pipeline = Pipeline.load(pipeline_folder)
    scores = pipeline.transform(images, modality="image") @ pipeline.transform(texts, modality="text").T
    return [captions[row] for row in scores.argmax(axis=1)]
