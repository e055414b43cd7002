"""Caption scores in percent, as the papers print them: BLEU-1 to 4, ROUGE-L, CIDEr; METEOR and
SPICE; CLIPScore.

The first three come from pycocoevalcap's pure-Python scorers, on the tokens of
`c3tools.metrics.tokenizer`. Its CIDEr has the clipping and the length penalty of CIDEr-D (Vedantam
et al., 2015), with document frequencies from the given references; it is what papers on COCO call
CIDEr. METEOR and SPICE run in Java, on request, where Java is installed.

CLIPScore and RefCLIPScore (Hessel et al., 2021) measure how well a caption fits its image by the
embeddings of an encoder. Compare only scores of the same encoder, and do not compare decoders that
were chosen by it.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array, Floats, Indices
from ..errors import MetricError, optional_module
from ..moments import unit_rows
from .tokenizer import tokenize

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU, "ROUGE-L", "CIDEr")
JAVA_METRICS = ("METEOR", "SPICE")
PROMPT = "A photo depicts "
_NAMED_KEYS = 5
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_CLIP_SCALE = 2.5


@dataclass(frozen=True, eq=False)
class CaptionScores:
    """Scores of a set of captions.

    Attributes:
        keys: the n scored images, in order.
        corpus: score by metric, in percent.
        per_image: float64 (n,) by metric, in percent; their mean is the corpus score, except for
            BLEU, which pools counts over the corpus (sentence BLEU is not kept), and METEOR, which
            pools statistics.
        bleu_counts: float64 (n, 10): caption length, closest reference length, then matches and
            n-grams for n = 1 to 4: corpus BLEU of any subset follows from the column sums.
        notes: what a reader of the scores should know.
    """

    keys: list[str]
    corpus: dict[str, float]
    per_image: dict[str, Array]
    bleu_counts: Array
    notes: list[str]

    def resampled(self, metric: str, rows: Indices) -> float:
        """Return the corpus score of ``metric`` over ``rows``, counting repeated rows repeatedly.

        METEOR pools its statistics over the corpus, so its corpus score is shifted by the change of
        its mean over images.
        """
        if metric in BLEU:
            return float(_corpus_bleu(self.bleu_counts[rows].sum(axis=0))[BLEU.index(metric)])
        values = self.per_image[metric]
        return float(self.corpus[metric] + (values[rows].mean() - values.mean()))

    def image_values(self, metric: str) -> Array:
        """Return a value per image, float64 (n,): their mean is the corpus score, and varies over
        images as it does.

        They are the scores of the images or, for BLEU, the changes of the corpus score when one
        image is left out, n - 1 times (the jackknife of Tukey, 1958).
        """
        if metric not in BLEU:
            values = self.per_image[metric]
        else:
            without = _corpus_bleu(self.bleu_counts.sum(axis=0) - self.bleu_counts)
            values = -(len(self.keys) - 1) * without[:, BLEU.index(metric)]
        return np.asarray(self.corpus[metric] + (values - values.mean()))


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    java: Sequence[str] = (),
) -> CaptionScores:
    """Score one caption per image against its references.

    Args:
        predictions: caption by image key.
        references: the captions that people wrote, by image key; keys that were not predicted are
            ignored.
        java: which of METEOR and SPICE to add; one that cannot run here is left out, and a note
            says what is missing.

    Raises:
        MetricError: if there is nothing to score, or references are missing or empty for some keys
            (listed).
        MissingExtraError: if pycocoevalcap is not installed.
    """
    missing = [
        key for key in predictions if not any(text.strip() for text in references.get(key, ()))
    ]
    if missing:
        named = ", ".join(missing[:_NAMED_KEYS]) + (", …" if len(missing) > _NAMED_KEYS else "")
        raise MetricError(
            f"{len(missing)} of {len(predictions)} captions have no reference caption: {named}.",
            remedy="Add references for these keys, or leave these captions out.",
        )
    if not predictions:
        raise MetricError(
            "There are no captions to score.",
            remedy="Caption some images first: `c3 caption PATH`.",
        )
    keys = list(predictions)
    hypotheses = {key: [tokenize(predictions[key])] for key in keys}
    targets = {key: [tokenize(text) for text in references[key] if text.strip()] for key in keys}
    counts = _bleu_counts(hypotheses, targets)
    per_image = {
        "ROUGE-L": _pure_python("rouge.rouge", "Rouge")().compute_score(targets, hypotheses)[1]
        * 100,
        # CiderScorer's scale is already 10 times a cosine, and papers print it times 100
        "CIDEr": _pure_python("cider.cider", "Cider")().compute_score(targets, hypotheses)[1] * 100,
    }
    corpus = dict(zip(BLEU, _corpus_bleu(counts.sum(axis=0)).tolist(), strict=True))
    corpus |= {name: float(values.mean()) for name, values in per_image.items()}
    notes = []
    for name in java:
        lacking = missing_for(name)
        if lacking:
            notes.append(f"{name} was not computed: {lacking}")
        else:
            corpus[name], per_image[name] = _java_score(name, targets, hypotheses)
    if len(keys) == 1:
        notes.append(
            "CIDEr weights words by how few images have them, so with one image it is always 0."
        )
    return CaptionScores(keys, corpus, per_image, counts, notes)


def _corpus_bleu(counts: Array) -> Array:
    """Return BLEU-1 to 4 (Papineni, 2002) in percent (..., 4) from summed counts (..., 10), see
    `CaptionScores`.
    """
    length, reference_length = counts[..., 0], counts[..., 1]
    matches, ngrams = counts[..., 2::2], counts[..., 3::2]
    # the same guards against 0 / 0 as pycocoevalcap's
    logs = np.log((matches + 1e-15) / (ngrams + 1e-9))
    scores = np.exp(np.cumsum(logs, axis=-1) / np.arange(1, 5))
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    penalty = np.exp(np.minimum(1 - 1 / ratio, 0))
    return np.asarray(100 * scores * penalty[..., None])


def missing_for(name: str) -> str | None:
    """Return what METEOR or SPICE lacks on this machine, in one line; None if nothing."""
    if shutil.which("java") is None:
        return "it needs Java, but `java` is not on the PATH. Install a Java runtime (8 or newer)."
    if name == "SPICE":
        found = importlib.util.find_spec("pycocoevalcap.spice")
        folder = (
            Path(next(iter(found.submodule_search_locations or ()))) / "lib"
            if found
            else Path("lib")
        )
        absent = [jar for jar in _SPICE_MODELS if not (folder / jar).is_file()]
        if absent:
            return (
                f"the Stanford models are missing in {folder} ({', '.join(absent)}). `python -m "
                "pycocoevalcap.spice.get_stanford_models` downloads them."
            )
    return None


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

    def cosines(first: Floats, second: Floats) -> Array:
        return np.asarray(
            np.sum(
                unit_rows(first.astype(np.float64)) * unit_rows(second.astype(np.float64)), axis=1
            )
        )

    score, best = _CLIP_SCALE * np.maximum(cosines(images, captions), 0), np.zeros(len(captions))
    np.maximum.at(best, item_index, cosines(references, captions[item_index]))
    return 100 * score, 200 * score * best / np.maximum(score + best, 1e-300)


def _bleu_counts(hypotheses: Mapping[str, list[str]], targets: Mapping[str, list[str]]) -> Array:
    cook_refs, cook_test = (
        _pure_python("bleu.bleu_scorer", name) for name in ("cook_refs", "cook_test")
    )
    rows = []
    for key, (hypothesis,) in hypotheses.items():
        cooked = cook_test(hypothesis, cook_refs(targets[key]))
        length = cooked["testlen"]
        closest = min((abs(reference - length), reference) for reference in cooked["reflen"])[1]
        pairs = zip(cooked["correct"], cooked["guess"], strict=True)
        rows.append([length, closest, *(count for pair in pairs for count in pair)])
    return np.array(rows, dtype=np.float64)


def _pure_python(module: str, name: str) -> Callable[..., Any]:
    found = optional_module(
        f"pycocoevalcap.{module}", "pycocoevalcap", extra="eval", purpose="Scoring captions"
    )
    return getattr(found, name)  # type: ignore[no-any-return]


def _java_score(
    name: str, targets: Mapping[str, list[str]], hypotheses: Mapping[str, list[str]]
) -> tuple[float, Array]:
    """Return the corpus score and the scores per image (n,) of METEOR or SPICE, in percent."""
    try:
        scorer = getattr(
            importlib.import_module(f"pycocoevalcap.{name.lower()}.{name.lower()}"),
            name.capitalize(),
        )()
        try:
            corpus, values = scorer.compute_score(targets, hypotheses)
        finally:
            if name == "METEOR":
                with scorer.meteor_p as process:  # closes its pipes, and waits for its end
                    process.kill()
        if name == "SPICE":
            by_key = dict(zip(sorted(targets), values, strict=True))  # it sorts the keys
            values = [by_key[key]["All"]["f"] for key in targets]
    except Exception as error:  # the Java process can fail in many ways
        raise MetricError(
            f"{name} could not be computed: pycocoevalcap's Java program failed "
            f"({type(error).__name__}: {error}).",
            remedy="Check that `java -version` works, or leave this score out.",
        ) from error
    return 100 * float(corpus), 100 * np.asarray(values, dtype=np.float64)
