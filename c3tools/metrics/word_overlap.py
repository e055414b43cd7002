"""BLEU, ROUGE-L and CIDEr, by the pure-Python scorers of pycocoevalcap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Indices
from ..errors import optional_module
from .caption_metric import CaptionMetric, CaptionSet, MeanScore, Score

_ORDERS = (1, 2, 3, 4)


class Bleu(CaptionMetric):
    """BLEU-1 to 4 (Papineni et al., 2002), which pool counts over the corpus."""

    name = "BLEU"
    shown = ("BLEU-4",)

    def score(self, captions: CaptionSet) -> dict[str, Score]:
        """Return the four scores, from the counts of each image."""
        counts = _bleu_counts(captions)
        return {f"BLEU-{order}": BleuScore(counts, order) for order in _ORDERS}


class RougeL(CaptionMetric):
    """ROUGE-L (Lin, 2004)."""

    name = "ROUGE-L"
    shown = ("ROUGE-L",)

    def score(self, captions: CaptionSet) -> dict[str, Score]:
        """Return the mean over images."""
        scorer = _pycocoevalcap("rouge.rouge", "Rouge")()
        _, values = scorer.compute_score(captions.targets, captions.hypotheses)
        return {self.name: MeanScore.of(100 * values)}


class Cider(CaptionMetric):
    """CIDEr-D (Vedantam et al., 2015), which papers on COCO call CIDEr.

    Document frequencies are those of the given references.
    """

    name = "CIDEr"
    shown = ("CIDEr",)

    def score(self, captions: CaptionSet) -> dict[str, Score]:
        """Return the mean over images, times 100: the scorer's scale is already 10 cosines."""
        scorer = _pycocoevalcap("cider.cider", "Cider")()
        _, values = scorer.compute_score(captions.targets, captions.hypotheses)
        return {self.name: MeanScore.of(100 * values)}

    def notes(self, captions: CaptionSet) -> list[str]:
        """Explain the score of a single image."""
        if len(captions.keys) > 1:
            return []
        return [
            "CIDEr gives more weight to words that occur for few images, so with a single image it "
            "is always 0."
        ]


@dataclass(frozen=True, eq=False)
class BleuScore(Score):
    """BLEU up to one order.

    Attributes:
        counts: float64 (n, 10): caption length, closest reference length, then matches and n-grams
            for n = 1 to 4. BLEU of any subset follows from the column sums.
        order: the longest n-grams, 1 to 4.
    """

    counts: Array
    order: int

    @property
    def value(self) -> float:  # type: ignore[override]
        """The score over all captions, in percent."""
        return float(self._of(self.counts.sum(axis=0)))

    def resampled(self, rows: Indices) -> float:
        """Return the score over ``rows``."""
        return float(self._of(self.counts[rows].sum(axis=0)))

    def image_values(self) -> Array:
        """Return the changes of the score when one image is left out, n - 1 times.

        That is the jackknife of Tukey (1958).
        """
        without_one = self._of(self.counts.sum(axis=0) - self.counts)
        values = -(len(self.counts) - 1) * without_one
        return np.asarray(self.value + (values - values.mean()))

    def _of(self, counts: Array) -> Array:
        """Return BLEU in percent (...) of summed counts (..., 10)."""
        length = counts[..., 0]
        reference_length = counts[..., 1]
        matches = counts[..., 2::2]
        ngrams = counts[..., 3::2]
        # the same guards against 0 / 0 as pycocoevalcap's
        logs = np.log((matches + 1e-15) / (ngrams + 1e-9))
        precisions = np.exp(np.cumsum(logs, axis=-1) / np.array(_ORDERS))
        ratio = (length + 1e-15) / (reference_length + 1e-9)
        penalty = np.exp(np.minimum(1 - 1 / ratio, 0))
        scores = 100 * precisions * penalty[..., None]
        return np.asarray(scores[..., self.order - 1])


def _bleu_counts(captions: CaptionSet) -> Array:
    """Return the counts of each image, as `BleuScore` takes them."""
    cook_refs = _pycocoevalcap("bleu.bleu_scorer", "cook_refs")
    cook_test = _pycocoevalcap("bleu.bleu_scorer", "cook_test")
    rows = []
    for key, (hypothesis,) in captions.hypotheses.items():
        cooked = cook_test(hypothesis, cook_refs(captions.targets[key]))
        length = cooked["testlen"]
        _, closest = min((abs(reference - length), reference) for reference in cooked["reflen"])
        row = [length, closest]
        for matches, ngrams in zip(cooked["correct"], cooked["guess"], strict=True):
            row += [matches, ngrams]
        rows.append(row)
    return np.array(rows, dtype=np.float64)


def _pycocoevalcap(module: str, name: str) -> Callable[..., Any]:
    imported = optional_module(
        f"pycocoevalcap.{module}", "pycocoevalcap", extra="eval", purpose="Scoring captions"
    )
    return getattr(imported, name)  # type: ignore[no-any-return]
