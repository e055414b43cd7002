"""Caption scores without Java: BLEU-1 to 4, ROUGE-L and CIDEr, in percent, as the papers print them.

The scorers are pycocoevalcap's own pure-Python ones, on the tokens of `c3tools.metrics.tokenizer`. Its CIDEr has
the clipping and the length penalty of CIDEr-D (Vedantam et al., 2015), with document frequencies from the
references given; it is what papers on COCO call CIDEr. METEOR and SPICE run in Java, on request (`java_scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MetricError, MissingExtraError
from .java_scores import JAVA_METRICS, java_score, missing_for
from .tokenizer import tokenize_all

Floats = npt.NDArray[np.float64]
BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU, "ROUGE-L", "CIDEr")
_NAMED_KEYS = 5


@dataclass(frozen=True, eq=False)
class CaptionScores:
    """Scores of a set of captions.

    Attributes:
        keys: the n scored images, in order.
        corpus: score by metric, in percent.
        per_image: float64 (n,) by metric, in percent; their mean is the corpus score, except for BLEU, which
            pools counts over the corpus (sentence BLEU is not kept), and METEOR, which pools statistics.
        bleu_counts: float64 (n, 10): caption length, closest reference length, then matches and n-grams for
            n = 1 to 4: corpus BLEU of any subset follows from the column sums.
        notes: what a reader of the scores should know.
    """

    keys: list[str]
    corpus: dict[str, float]
    per_image: dict[str, Floats]
    bleu_counts: Floats
    notes: list[str]

    def resampled(self, metric: str, rows: npt.NDArray[np.int64]) -> float:
        """The corpus score of ``metric`` over ``rows``, repeated rows counting repeatedly.

        METEOR's pooled score is moved by as much as its mean over images is.
        """
        if metric in BLEU:
            return float(corpus_bleu(self.bleu_counts[rows].sum(axis=0))[BLEU.index(metric)])
        values = self.per_image[metric]
        return float(self.corpus[metric] + (values[rows].mean() - values.mean()))


def score_captions(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], *, java: Sequence[str] = ()
) -> CaptionScores:
    """Score one caption per image against its references.

    Args:
        predictions: caption by image key.
        references: the captions that people wrote, by image key; others than the predicted keys are not used.
        java: which of METEOR and SPICE to add; one that cannot run here is left out, and a note says what it lacks.

    Raises:
        MetricError: if there is nothing to score, references are missing or empty for some keys (listed), or a
            metric is unknown.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    unknown = [name for name in java if name not in JAVA_METRICS]
    if unknown:
        known = ", ".join((*METRICS, *JAVA_METRICS))
        raise MetricError(f"Unknown metric {unknown[0]!r}.", remedy=f"Choose from {known}.")
    missing = [key for key in predictions if not any(text.strip() for text in references.get(key, ()))]
    if missing:
        named = ", ".join(missing[:_NAMED_KEYS]) + (", …" if len(missing) > _NAMED_KEYS else "")
        raise MetricError(
            f"{len(missing)} of {len(predictions)} captions have no reference to be scored against: {named}.",
            remedy="Give references for these keys, or leave their captions out.",
        )
    if not predictions:
        raise MetricError("There is no caption to score.", remedy="Caption some images first: `c3 caption PATH`.")
    keys = list(predictions)
    hypotheses = {key: tokenize_all([predictions[key]]) for key in keys}
    targets = {key: tokenize_all([text for text in references[key] if text.strip()]) for key in keys}
    counts = _bleu_counts(hypotheses, targets)
    per_image = {
        "ROUGE-L": _pure_python("rouge.rouge", "Rouge")().compute_score(targets, hypotheses)[1] * 100,
        # CiderScorer's scale is already 10 times a cosine, and papers print it times 100
        "CIDEr": _pure_python("cider.cider", "Cider")().compute_score(targets, hypotheses)[1] * 100,
    }
    bleu = corpus_bleu(counts.sum(axis=0))
    corpus = {name: float(value) for name, value in zip(BLEU, bleu, strict=True)}
    corpus |= {name: float(values.mean()) for name, values in per_image.items()}
    notes = []
    for name in java:
        lacking = missing_for(name)
        if lacking:
            notes.append(f"{name} is left out: {lacking}")
        else:
            corpus[name], per_image[name] = java_score(name, targets, hypotheses)
    if len(keys) == 1:
        notes.append("CIDEr weighs words by how few images have them: with one image it is 0 whatever the caption.")
    return CaptionScores(keys, corpus, per_image, counts, notes)


def corpus_bleu(counts: Floats) -> Floats:
    """BLEU-1 to 4 in percent (4,) from summed counts (10,), with the closest reference length (Papineni, 2002)."""
    length, reference_length = counts[0], counts[1]
    matches, ngrams = counts[2::2], counts[3::2]
    # the same guards against 0 / 0 as pycocoevalcap's
    logs = np.log((matches + 1e-15) / (ngrams + 1e-9))
    scores = np.exp(np.cumsum(logs) / np.arange(1, 5))
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    penalty = np.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return np.asarray(100 * scores * penalty)


def _bleu_counts(hypotheses: Mapping[str, list[str]], targets: Mapping[str, list[str]]) -> Floats:
    cook_refs = _pure_python("bleu.bleu_scorer", "cook_refs")
    cook_test = _pure_python("bleu.bleu_scorer", "cook_test")
    rows = []
    for key, (hypothesis,) in hypotheses.items():
        cooked = cook_test(hypothesis, cook_refs(targets[key]))
        length = cooked["testlen"]
        closest = min((abs(reference - length), reference) for reference in cooked["reflen"])[1]
        pairs = zip(cooked["correct"], cooked["guess"], strict=True)
        rows.append([length, closest, *(count for pair in pairs for count in pair)])
    return np.array(rows, dtype=np.float64)


def _pure_python(module: str, name: str) -> Callable[..., Any]:
    import importlib

    try:
        return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        raise MissingExtraError("pycocoevalcap", extra="eval", purpose="Scoring captions") from error
