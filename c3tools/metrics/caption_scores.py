"""Scores of captions in percent, as the papers print them, by the metrics in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..arrays import Array, Indices
from ..errors import MetricError
from ..lists import as_list
from ..plugins import load_plugin, plugins
from ..reporter import counted
from .caption_metric import CaptionMetric, CaptionSet, EncodedImages, Score
from .clip_score import ClipScore
from .java_metrics import Meteor, Spice
from .word_overlap import Bleu, Cider, RougeL

METRICS: dict[str, CaptionMetric] = {
    metric.name: metric for metric in (Bleu(), RougeL(), Cider(), Meteor(), Spice(), ClipScore())
}
DEFAULT_METRICS = ("BLEU", "ROUGE-L", "CIDEr")
_NAMED_KEYS = 5


@dataclass(frozen=True, eq=False)
class CaptionScores:
    """Scores of a set of captions.

    Attributes:
        keys: the n scored images, in order.
        scores: by name.
        notes: what a reader of the scores should know.
    """

    keys: list[str]
    scores: dict[str, Score]
    notes: list[str]

    @property
    def corpus(self) -> dict[str, float]:
        """The scores over all captions by name, in percent."""
        return {name: score.value for name, score in self.scores.items()}

    def resampled(self, name: str, rows: Indices) -> float:
        """Return a score over ``rows``, counting repeated rows repeatedly."""
        return self.scores[name].resampled(rows)

    def image_values(self, name: str) -> Array:
        """Return a value per image of a score, float64 (n,); see `Score.image_values`."""
        return self.scores[name].image_values()


def caption_metrics() -> dict[str, CaptionMetric]:
    """Return the metrics by name: those of `METRICS`, then those that other packages add.

    Raises:
        C3Error: if one of another package cannot be loaded.
    """
    metrics = dict(METRICS)
    for entry in plugins("c3tools.metrics").values():
        metric = load_plugin(entry, CaptionMetric)()  # type: ignore[type-abstract]
        metrics.setdefault(metric.name, metric)  # what c3tools has itself stays
    return metrics


def require_metrics(names: Sequence[str]) -> list[CaptionMetric]:
    """Return the metrics of these names, in any case of letters.

    Raises:
        MetricError: for an unknown name, or none.
    """
    names = as_list(names)
    metrics = caption_metrics()
    by_name = {name.lower(): metric for name, metric in metrics.items()}
    unknown = [name for name in names if name.lower() not in by_name]
    if unknown:
        raise MetricError(
            f"There is no metric {unknown[0]!r}.", remedy=f"Choose from {', '.join(metrics)}."
        )
    if not names:
        raise MetricError("No metric was given.", remedy=f"Choose from {', '.join(metrics)}.")
    return list(dict.fromkeys(by_name[name.lower()] for name in names))


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    images: EncodedImages | None = None,
) -> CaptionScores:
    """Score one caption per image against its references.

    Args:
        predictions: caption by image key.
        references: the captions that people wrote, by image key; keys that were not predicted are
            ignored.
        metrics: names in `caption_metrics`, in any case of letters. One that cannot run here is
            left out, and a note says what is missing.
        images: the images, for metrics that need them.

    Raises:
        MetricError: for an unknown metric, if there is nothing to score, or if references are
            missing or empty for some keys (listed).
        MissingExtraError: if pycocoevalcap is not installed.

    Example:
        >>> from c3tools.metrics.caption_scores import score_captions
        >>> references = {"photo": ["a dog runs on the beach", "a brown dog by the sea"]}
        >>> scores = score_captions({"photo": "a dog on the beach"}, references)
        >>> print(f"{scores.corpus['BLEU-1']:.1f}")  # 100 exp(1 - 6/5), for one word too few
        81.9
    """
    # Refuse captions without references, and no captions
    selected = require_metrics(metrics)
    without_references = [
        key for key in predictions if not any(text.strip() for text in references.get(key, ()))
    ]
    if without_references:
        first_keys = ", ".join(without_references[:_NAMED_KEYS])
        if len(without_references) > _NAMED_KEYS:
            first_keys += ", …"
        raise MetricError(
            f"{len(without_references)} of {len(predictions)} captions have no reference caption: "
            f"{first_keys}.",
            remedy="Add references for these keys, or leave these captions out.",
        )
    if not predictions:
        raise MetricError(
            "There are no captions to score.",
            remedy="Caption some images first: `c3 caption PATH`.",
        )

    # Empty captions are scored too, but somebody should know
    captions = CaptionSet(predictions, references, images)
    scores: dict[str, Score] = {}
    notes: list[str] = []
    empty_keys = [key for key, caption in predictions.items() if not caption.strip()]
    if empty_keys:
        of_all = f"of {len(predictions):,} captions"
        how_many = counted(len(empty_keys), f"{of_all} is empty", f"{of_all} are empty")
        notes.append(f"{how_many}; the first is {empty_keys[0]}.")

    # Compute the metrics that can run here
    for metric in selected:
        what_is_missing = metric.missing()
        if what_is_missing:
            notes.append(f"{metric.name} was not computed: {what_is_missing}")
            continue
        scores |= metric.score(captions)
        notes += metric.notes(captions)
    return CaptionScores(captions.keys, scores, notes)
