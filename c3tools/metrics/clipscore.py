"""CLIPScore and RefCLIPScore (Hessel et al., 2021): how well a caption fits its image, by an encoder.

They depend on the encoder: compare only scores of the same one, and not decoders that were chosen by it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import MetricError
from ..moments import unit_rows

Floats = npt.NDArray[np.floating]
PROMPT = "A photo depicts "
_SCALE = 2.5


def clip_score(images: Floats, captions: Floats) -> npt.NDArray[np.float64]:
    """``100 * 2.5 * max(cos, 0)`` (n,) of image embeddings (n, d) and those of ``PROMPT + caption`` (n, d)."""
    if images.shape != captions.shape:
        raise MetricError(f"Images and captions have embeddings of shapes {images.shape} and {captions.shape}.")
    return np.asarray(100 * _SCALE * np.maximum(_cosines(images, captions), 0))


def ref_clip_score(
    images: Floats, captions: Floats, references: Floats, owners: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Harmonic mean (n,), in percent, of CLIPScore and the best cosine of the caption with a reference.

    Args:
        images: embeddings (n, d).
        captions: embeddings (n, d).
        references: embeddings (m, d) of all references, prompted alike.
        owners: int64 (m,), the row of the image that each reference describes.
    """
    best = np.zeros(len(captions))
    np.maximum.at(best, owners, _cosines(references, captions[owners]))
    score = clip_score(images, captions) / 100
    total = score + best
    return np.where(total > 0, 200 * score * best / np.where(total > 0, total, 1), 0.0)


def _cosines(first: Floats, second: Floats) -> npt.NDArray[np.float64]:
    """Return the cosine (n,) of each row of ``first`` (n, d) with the same row of ``second``."""
    return np.sum(unit_rows(first.astype(np.float64)) * unit_rows(second.astype(np.float64)), axis=1)  # type: ignore[no-any-return]
