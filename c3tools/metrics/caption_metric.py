"""The base of caption metrics: what a metric is given, and the scores that it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from ..arrays import Array, Floats, Indices
from .ptb_tokenizer import tokenize


@dataclass(frozen=True)
class EncodedImages:
    """Images as an encoder sees them, for metrics that compare captions with images.

    Attributes:
        rows: row of ``embeddings`` by image key.
        embeddings: (n, d).
        encode_texts: returns embeddings (m, d) of m texts, by the same encoder.
    """

    rows: Mapping[str, int]
    embeddings: Floats
    encode_texts: Callable[[Sequence[str]], Floats]


@dataclass(frozen=True)
class CaptionSet:
    """Captions with their references.

    Attributes:
        captions: one by image key.
        references: at least one that is not blank, by image key.
        images: the images; None if no metric needs them.
    """

    captions: Mapping[str, str]
    references: Mapping[str, Sequence[str]]
    images: EncodedImages | None = None

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the n images, in order."""
        return list(self.captions)

    @cached_property
    def hypotheses(self) -> dict[str, list[str]]:
        """The caption of each image in tokens, in a list of one, as pycocoevalcap takes it."""
        return {key: [tokenize(caption)] for key, caption in self.captions.items()}

    @cached_property
    def targets(self) -> dict[str, list[str]]:
        """The references of each image in tokens."""
        return {
            key: [tokenize(text) for text in self.references[key] if text.strip()]
            for key in self.captions
        }


class Score(ABC):
    """A score of n captions.

    Attributes:
        value: over all captions, in percent.
    """

    value: float

    @abstractmethod
    def resampled(self, rows: Indices) -> float:
        """Return the score over ``rows``, counting repeated rows repeatedly.

        Where repeated captions change the score in itself, as that of diversity, use `MeanScore`
        with jackknife values.
        """

    @abstractmethod
    def image_values(self) -> Array:
        """Return a value per image, float64 (n,).

        Their mean is the score, and varies over images as it does.
        """


@dataclass(frozen=True, eq=False)
class MeanScore(Score):
    """A score that is the mean over images, or changes with images as their mean does.

    METEOR pools statistics, so its value is not the mean; it is shifted by the change of the mean.

    Attributes:
        value: over all captions, in percent.
        per_image: float64 (n,), in percent.
    """

    value: float
    per_image: Array

    @classmethod
    def of(cls, per_image: Array) -> MeanScore:
        """Return the mean of scores of images."""
        return cls(float(per_image.mean()), per_image)

    def resampled(self, rows: Indices) -> float:
        """Return the score over ``rows``."""
        return float(self.value + (self.per_image[rows].mean() - self.per_image.mean()))

    def image_values(self) -> Array:
        """Return the scores of the images."""
        return np.asarray(self.value + (self.per_image - self.per_image.mean()))


class CaptionMetric(ABC):
    """A way to score captions, with one or more scores.

    A new metric is a subclass and a row in `c3tools.metrics.caption_scores`, or an entry point of
    another package (`c3tools.plugins`). Its scores are in percent.

    Attributes:
        name: as ``--metrics`` takes it.
        shown: the names of the scores that tables of ablations show; a metric without any adds
            nothing to them.
        needs: what it needs beside c3tools and pycocoevalcap, for users; empty if nothing.
        needs_images: whether it compares captions with images.
    """

    name: ClassVar[str]
    shown: ClassVar[tuple[str, ...]]
    needs: ClassVar[str] = ""
    needs_images: ClassVar[bool] = False

    def missing(self) -> str | None:
        """Return what it lacks on this machine, in one line; None if nothing."""
        return None

    @abstractmethod
    def score(self, captions: CaptionSet) -> dict[str, Score]:
        """Return the scores by name.

        Raises:
            MetricError: if they cannot be computed.
            MissingExtraError: if a package is not installed.
        """

    def notes(self, captions: CaptionSet) -> list[str]:
        """Return what a reader of the scores should know."""
        return []
