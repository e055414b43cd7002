"""The caption nearest to each image, after a saved pipeline closed the modality gap; and rows to
train a decoder on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c3tools import Pipeline

__all__ = ["nearest_captions", "write_rows"]


def nearest_captions(
    pipeline_folder: Path,
    images: npt.NDArray[np.floating],
    texts: npt.NDArray[np.floating],
    captions: Sequence[str],
) -> list[str]:
    """One caption per image.

    Args:
        pipeline_folder: what `c3 export` or `Pipeline.save` wrote.
        images: (n, d) image embeddings.
        texts: (m, d) embeddings of the captions.
        captions: m texts.
    """
    pipeline = Pipeline.load(pipeline_folder)
    scores = (
        pipeline.transform(images, modality="image") @ pipeline.transform(texts, modality="text").T
    )
    return [captions[row] for row in scores.argmax(axis=1)]


def write_rows(
    folder: Path,
    pipeline_folder: Path,
    texts: npt.NDArray[np.floating],
    captions: Sequence[str],
    splits: Sequence[str],
) -> None:
    """Write transformed captions for `c3 train-decoder --store FOLDER`, with the pipeline that
    transformed them.

    Args:
        folder: to write to; it is made.
        pipeline_folder: what `c3 export` or `Pipeline.save` wrote.
        texts: (m, d) embeddings of the captions.
        captions: m texts.
        splits: m names: train, val or test.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pipeline = Pipeline.load(pipeline_folder)
    pipeline.save(folder)
    (folder / "text").mkdir()
    columns = {
        "key": [f"caption-{row}" for row in range(len(captions))],
        "embedding": list(pipeline.transform(texts, modality="text")),
        "caption": list(captions),
        "split": list(splits),
    }
    pq.write_table(pa.table(columns), folder / "text" / "part-00000.parquet")
