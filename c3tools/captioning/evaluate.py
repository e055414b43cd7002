"""`c3 evaluate`: captions of a decoder, or of a file, scored against what people wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..encoders import Encoder
from ..errors import MetricError
from ..metrics import CaptionScores, Comparison, Interval, bootstrap_interval, compare, score_captions
from ..metrics.captions import PROMPT, clip_score, ref_clip_score
from ..metrics.files import align_keys
from ..store import Store
from .captioner import Captioner
from .generation import GenerationConfig, TextEncoder

_NAMED_KEYS = 5


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set of captions.

    Attributes:
        captions: the scored captions by image key.
        scores: by metric, in percent.
        intervals: 95 % bootstrap intervals over images, by metric.
        details: the scores per image, for comparisons.
        notes: what a reader should know.
        left_out: keys of the captions that were not scored.
    """

    captions: dict[str, str]
    scores: dict[str, float]
    intervals: dict[str, Interval]
    details: CaptionScores
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What `c3 evaluate --json` writes."""
        return {
            "n": len(self.captions),
            "scores": self.scores,
            "intervals": {name: [interval.low, interval.high] for name, interval in self.intervals.items()},
            "notes": self.notes,
            "left_out": self.left_out,
            "captions": [{"key": key, "caption": caption} for key, caption in self.captions.items()],
        }


def evaluate_captions(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    java: Sequence[str] = (),
    resamples: int = 1000,
) -> Evaluation:
    """Score captions against references, whose keys may be named differently (see `align_keys`).

    Raises:
        MetricError: if there is nothing to score, or references are missing (their keys are listed).
        MissingExtraError: if pycocoevalcap is not installed.
    """
    details = score_captions(captions, align_keys(captions, references), java=java)
    intervals = {}
    if resamples:
        intervals = {name: bootstrap_interval(details, name, resamples=resamples) for name in details.corpus}
    return Evaluation(dict(captions), dict(details.corpus), intervals, details, list(details.notes))


def caption_store(
    store: Store,
    captioner: Captioner,
    *,
    split: str = "test",
    generation: GenerationConfig | None = None,
    encoder: TextEncoder | None = None,
) -> dict[str, str]:
    """Captions of the store's images of one split, from their stored embeddings.

    Raises:
        StoreError: if the store has no images.
        DecoderError: if the decoder was trained on another model or dimension.
        MetricError: if the split has no images.
    """
    captioner.check_model(store.info.model, store.info.dim)
    images = store.load("image", split=split)
    if not len(images):
        there = ", ".join(f"{name}: {m.n:,}" for name, m in sorted(store.moments_by_split("image").items()))
        raise MetricError(
            f"The store {store.path} has no images in the split {split!r}; it has {there or 'none'}.",
            remedy="Name another with --split, or `--split all`.",
        )
    written = captioner.caption(images.embeddings, keys=images.keys, generation=generation, encoder=encoder)
    return dict(zip(images.keys, written, strict=True))


def store_references(store: Store) -> dict[str, list[str]]:
    """The captions of each image of the store, in order."""
    references: dict[str, list[str]] = {}
    columns = ["caption", "image_key"]
    for batch in store.batches("text", columns=columns):
        for caption, owner in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
            if owner is not None and caption and caption.strip():
                references.setdefault(owner, []).append(caption)
    return references


def with_references(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], list[str]]:
    """Only the captions of images that people described, and the keys of the others."""
    kept = {key: caption for key, caption in captions.items() if references.get(key)}
    return kept, [key for key in captions if key not in kept]


def note_on(left_out: Sequence[str]) -> str:
    """What to say about images without references."""
    named = ", ".join(left_out[:_NAMED_KEYS]) + (", …" if len(left_out) > _NAMED_KEYS else "")
    return f"{len(left_out):,} images have no captions to score against and are left out: {named}."


def clip_scores(
    store: Store, encoder: Encoder, captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """CLIPScore and RefCLIPScore, in percent, by the store's encoder and its stored image embeddings.

    Raises:
        StoreError: if the encoder is not the store's.
        MetricError: if an image is not in the store.
    """
    store.info.require_same_model(encoder.identity, own=f"The store {store.path}", theirs="the encoder")
    images = store.load("image")
    position = {key: row for row, key in enumerate(images.keys)}
    missing = [key for key in captions if key not in position]
    if missing:
        raise MetricError(f"CLIPScore needs the images: {len(missing)} are not in the store, {missing[0]} first.")
    keys = list(captions)
    aligned = align_keys(keys, references)
    pictures = images.embeddings[[position[key] for key in keys]]
    written = encoder.encode_texts([PROMPT + captions[key] for key in keys])
    owners = np.array([row for row, key in enumerate(keys) for _ in aligned[key]], dtype=np.int64)
    described = encoder.encode_texts([PROMPT + text for key in keys for text in aligned[key]])
    return {
        "CLIPScore": float(clip_score(pictures, written).mean()),
        "RefCLIPScore": float(ref_clip_score(pictures, written, described, owners).mean()),
    }


def compare_evaluations(first: Evaluation, second: Evaluation) -> dict[str, Comparison]:
    """Paired bootstrap of second - first, by metric.

    Raises:
        MetricError: if they are not of the same images.
    """
    shared = [name for name in second.scores if name in first.details.corpus and name in second.details.corpus]
    return {name: compare(first.details, second.details, name) for name in shared}


def differences_to_json(differences: Mapping[str, Comparison]) -> dict[str, Any]:
    """The comparison's part of what `c3 evaluate --json` writes; empty where nothing was compared."""
    return {"differences": {name: asdict(change) for name, change in differences.items()}} if differences else {}
