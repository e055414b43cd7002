"""Scores of sets of images against the same real photos, and the values per photo that their intervals are from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..arrays import Array, Matrix
from ..assets.paths import COCO_CATEGORIES
from ..encoders import Encoder
from ..identity import ModelIdentity
from ..metrics.images import (
    Nearest,
    disjoint_halves,
    frechet_distance,
    frechet_influence,
    inception_influence,
    inception_score,
    kernel_distance,
    kernel_features,
    kernel_influence,
    nearest_photos,
    photo_values,
)
from ..metrics.retrieval import ranks
from ..metrics.significance import Ends, crossed_interval
from ..moments import Moments
from ..pages.render import number
from ..reporter import SILENT, Reporter
from ..store import Rows
from ..store.rows import positions
from ..store.strings import Strings
from .photos import Photos

RECALL_KS = (1, 10)
_LOGIT_SCALE = 100.0
Inception = Callable[[Sequence[Matrix]], tuple[Matrix, Matrix]]


class Measured(NamedTuple):
    """A score, and the influence on it of each generated image (n,) and of each real photo (m,)."""

    score: float
    generated: Array
    real: Array


def score_text(name: str, value: float | None) -> str:
    """Return a score with as many digits as it is worth; nothing for None."""
    return "" if value is None else number(value, decimals(name))


def decimals(name: str) -> int:
    """Return how many decimals of a score are worth printing."""
    return 3 if name.startswith(("FD", "FID")) else 1


def score_interval(name: str, values: Array) -> Ends | None:
    """Return the 95 % interval of a score over seeds and photos; see `c3tools.metrics.significance.crossed_interval`.

    Args:
        name: of the score; none but KID can be below 0.
        values: float64 (seeds, photos).

    Returns:
        Lower and upper end; None for fewer than 3 photos, and for values that are all equal.
    """
    ends = crossed_interval(values)
    if ends is None or np.ptp(values) == 0:
        return None
    return ends if name.startswith("KID") else (max(ends[0], 0.0), ends[1])


class ImageScorer:
    """Scores sets of images of one size against the same real photos, whose features are computed once.

    Args:
        reference: real photos of the scored split, at the size of the images.
        others: further real photos that nothing was trained on, for what a perfect generator would get; or None.
        encoders: whose features are used.
        conditioning: the model whose embeddings the generator was asked with.
        training: rows of the photos that were learned from, with embeddings of ``conditioning``; None for none.
        inception: pool3 features (n, 2048) and probabilities (n, 1008) of pixels, for the standard FID and IS; or None.
    """

    def __init__(
        self,
        reference: Photos,
        others: Photos | None,
        encoders: Sequence[Encoder],
        *,
        conditioning: ModelIdentity,
        training: Rows | None = None,
        inception: Inception | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        self.reference, self.others, self.encoders = reference, others, encoders
        self.conditioning, self.training, self.inception = conditioning, training, inception
        self._features: dict[tuple[str, str], Matrix] = {}
        real = {"reference": reference.pixels, "others": () if others is None else others.pixels}
        with reporter.progress("Encoding real photos", sum(map(len, real.values())) * len(encoders)) as progress:
            for encoder in encoders:
                for which, pixels in real.items():
                    features = encoder.encode_images(pixels, progress=progress)
                    self._features[encoder.identity.name, which] = features

    def score(
        self, images: Sequence[Image.Image], texts: Sequence[str] | None = None, keys: Sequence[str | None] = ()
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the scores of images, including recall if their texts are given, and a value of each per photo.

        The mean of the values (photos,) is the score. Photos are the real ones, in their order; images of other keys
        follow, and those without a key are on their own. See `c3tools.metrics.images.photo_values`.

        Args:
            images: generated images.
            texts: the text of each.
            keys: of the photo that each text is of, or None.

        Raises:
            MetricError: if there are fewer than two images.
        """
        measured: dict[str, Measured] = {}
        for encoder in self.encoders:
            features = encoder.encode_images(list(images))
            measured |= self._measure(encoder, features, self._real(encoder, "reference"))
            if texts is not None:
                measured |= self._recall(encoder, features, texts)
        if self.inception is not None:
            measured |= self._standard(self.inception, images)
        found: dict[str | int, int] = {}
        photos = [found.setdefault(key, len(found)) for key in self.reference.rows.keys]
        asked = keys or [None] * len(images)
        own = [found.setdefault(key or row, len(found)) for row, key in enumerate(asked)]
        scores = {name: each.score for name, each in measured.items()}
        values = {
            name: photo_values(each.score, ((each.generated, own), (each.real, photos)), len(found))
            for name, each in measured.items()
        }
        return scores, values

    def real(
        self, n: int, texts: Sequence[str] | None = None, keys: Sequence[str | None] = ()
    ) -> tuple[dict[str, float], int]:
        """Return the scores of real photos instead of ``n`` generated ones, and how many they are.

        They are photos of other splits; if there are too few, one half of the reference against the other. Recall is
        that of the very photos that the texts are of.
        """
        measured: dict[str, Measured] = {}
        count = 0 if self.others is None else min(n, len(self.others))
        halves = disjoint_halves(len(self.reference))
        rows = positions(self.reference.rows.keys)
        own = [rows.get(key) if key else None for key in keys]
        for encoder in self.encoders:
            reference = self._real(encoder, "reference")
            if count >= n or count >= len(halves[0]):
                measured |= self._measure(encoder, self._real(encoder, "others")[:count], reference)
            else:
                count = len(halves[0])
                measured |= self._measure(encoder, reference[halves[0]], reference[halves[1]])
            if texts is not None and own and all(row is not None for row in own):
                measured |= self._recall(encoder, reference[np.array(own, dtype=np.int64)], texts)
        return {name: each.score for name, each in measured.items()}, count

    def nearest(self, images: Sequence[Image.Image]) -> Nearest | None:
        """Return the nearest training photo of each image, by the conditioning encoder; None if it is not known."""
        encoder = next((e for e in self.encoders if e.identity.same_as(self.conditioning)), None)
        if encoder is None or self.training is None or not len(self.training):
            return None
        features = encoder.encode_images(list(images))
        return nearest_photos(features, self.training.embeddings, self._real(encoder, "reference"))

    def notes(self) -> list[str]:
        """Return what a reader of the scores should know."""
        same = [e.identity.name for e in self.encoders if e.identity.same_as(self.conditioning)]
        notes = [
            f"{name} also encoded the texts that the images were generated from; scores with another encoder are more "
            "reliable (--encoder)."
            for name in same
        ]
        notes.append(
            "KID and recall are in percent. FD depends on the number of images: compare it with the FD of real photos."
        )
        return notes

    def _real(self, encoder: Encoder, which: str) -> Matrix:
        return self._features[encoder.identity.name, which]

    def _measure(self, encoder: Encoder, features: Matrix, reference: Matrix) -> dict[str, Measured]:
        name = encoder.identity.name
        kernels = kernel_features(features), kernel_features(reference)
        of_images, of_photos = kernel_influence(*kernels)
        return {
            f"KID-{name}": Measured(100 * kernel_distance(*kernels), 100 * of_images, 100 * of_photos),
            f"FD-{name}": _frechet(features, reference),
            f"IS-{name}-coco80": _inception_score(self._probabilities(encoder, features), len(reference)),
        }

    def _standard(self, inception: Inception, images: Sequence[Image.Image]) -> dict[str, Measured]:
        (pool, probabilities), (real, _) = (
            inception(list(squares)) for squares in (map(np.asarray, images), self.reference.pixels)
        )
        return {"FID": _frechet(pool, real), "IS": _inception_score(probabilities, len(real))}

    def _probabilities(self, encoder: Encoder, features: Matrix) -> Matrix:
        """Return the probabilities (n, 80) of COCO's categories, by the encoder without further training."""
        key = encoder.identity.name, "categories"
        if key not in self._features:
            categories = COCO_CATEGORIES.read_text(encoding="utf-8").splitlines()
            self._features[key] = encoder.encode_texts([f"a photo of a {category}" for category in categories])
        logits = _LOGIT_SCALE * (features @ self._features[key].T)
        values = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(values / values.sum(axis=1, keepdims=True), dtype=np.float32)

    def _recall(self, encoder: Encoder, features: Matrix, texts: Sequence[str]) -> dict[str, Measured]:
        items = Strings(texts).numbers  # images of one text are all right for it
        found = ranks(encoder.encode_texts(list(texts)), features, items, items)
        no_influence = np.zeros(len(self.reference))
        measured = {}
        for k in [k for k in RECALL_KS if k < len(texts)] or [1]:
            hits = 100.0 * found.hits(k)
            share = float(hits.mean())
            measured[f"recall@{k}-{encoder.identity.name}"] = Measured(share, hits - share, no_influence)
        return measured


def _frechet(features: Matrix, reference: Matrix) -> Measured:
    moments = Moments.from_rows(features), Moments.from_rows(reference)
    return Measured(frechet_distance(*moments), *frechet_influence(features, reference))


def _inception_score(probabilities: Matrix, photos: int) -> Measured:
    return Measured(inception_score(probabilities), inception_influence(probabilities), np.zeros(photos))
