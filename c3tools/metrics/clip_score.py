"""CLIPScore and RefCLIPScore (Hessel et al., 2021): how well a caption fits its image.

They are computed from the embeddings of an encoder. Compare only scores of the same encoder, and do
not compare decoders that were chosen by it.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Array, Floats, Indices
from ..errors import MetricError
from ..moments import unit_rows
from .caption_metric import CaptionMetric, CaptionSet, MeanScore, Score

PROMPT = "A photo depicts "
_SCALE = 2.5


class ClipScore(CaptionMetric):
    """CLIPScore and RefCLIPScore."""

    name = "CLIPScore"
    shown = ("CLIPScore", "RefCLIPScore")
    needs = "the encoder of the store"
    needs_images = True

    def score(self, captions: CaptionSet) -> dict[str, Score]:
        """Encode captions and references, and compare them with the images.

        Raises:
            MetricError: if images are missing.
        """
        # Refuse captions without the embedding of their image
        images = captions.images
        if images is None:
            raise MetricError(
                f"{self.name} needs the embeddings of the images, which were not given.",
                remedy="Use `c3 evaluate-captions` with the store of the images, or leave this "
                "score out.",
            )
        absent = [key for key in captions.keys if key not in images.rows]
        if absent:
            raise MetricError(
                f"CLIPScore needs the images, but {len(absent)} are not in the store, for example "
                f"{absent[0]}."
            )

        # Encode the captions, and the references of all images one after another
        image_embeddings = images.embeddings[[images.rows[key] for key in captions.keys]]
        prompted_captions = [PROMPT + caption for caption in captions.captions.values()]
        prompted_references: list[str] = []
        item_index: list[int] = []
        for row, key in enumerate(captions.keys):
            prompted_references += [PROMPT + text for text in captions.references[key]]
            item_index += [row] * len(captions.references[key])
        clip_score, ref_clip_score = clip_scores(
            image_embeddings,
            images.encode_texts(prompted_captions),
            images.encode_texts(prompted_references),
            np.array(item_index),
        )
        return {
            "CLIPScore": MeanScore.of(clip_score),
            "RefCLIPScore": MeanScore.of(ref_clip_score),
        }


def clip_scores(
    images: Floats, captions: Floats, references: Floats, item_index: Indices
) -> tuple[Array, Array]:
    """Return CLIPScore and RefCLIPScore (n,) each, in percent.

    The first is 2.5 times the cosine of image and caption if that is positive, else 0; the second
    the harmonic mean of it and the best cosine of the caption with a reference.

    Args:
        images: embeddings (n, d).
        captions: embeddings (n, d) of ``PROMPT + caption``.
        references: embeddings (m, d) of all references, prompted alike.
        item_index: int64 (m,), the row of the image that each reference describes.
    """
    clip_score = _SCALE * np.maximum(_cosines(images, captions), 0)
    best = np.zeros(len(captions))
    np.maximum.at(best, item_index, _cosines(references, captions[item_index]))
    total = np.maximum(clip_score + best, 1e-300)  # where both are 0, so is their mean
    return 100 * clip_score, 200 * clip_score * best / total


def _cosines(first: Floats, second: Floats) -> Array:
    """Return the cosine of each row (n, d) with that of the same number, float64 (n,)."""
    products = unit_rows(first.astype(np.float64)) * unit_rows(second.astype(np.float64))
    return np.asarray(products.sum(axis=1))
