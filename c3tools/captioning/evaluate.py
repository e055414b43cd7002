"""Evaluation of captions: those of a decoder or a file, compared with human captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import devices
from ..choices import EncoderPrecision, Steer
from ..corpus.splits import STANDARD
from ..encoders import Encoder, resolve_encoder
from ..errors import MetricError, StoreError
from ..metrics.caption_metric import EncodedImages
from ..metrics.captions import (
    DEFAULT_METRICS,
    CaptionScores,
    require_metrics,
    score_captions,
)
from ..metrics.significance import Ends, bootstrap_interval, compare
from ..reporter import SILENT, Reporter, counted
from ..store import Rows, Store
from ..store.rows import positions
from ..tables import Table
from ..transforms import Pipeline
from .captioner import Captioner
from .generation import GenerationOptions
from .references import align_keys, read_predictions, read_references

Texts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set of captions.

    Attributes:
        captions: the scored captions by image key.
        scores: by metric, in percent.
        intervals: 95 % bootstrap intervals over images, by metric.
        details: the scores per image.
        differences: comparison with other captions of the same images, by metric; empty if there
            are none.
        notes: what a reader should know.
        left_out: keys of the captions that were not scored.
    """

    captions: dict[str, str]
    scores: dict[str, float]
    intervals: dict[str, Ends]
    details: CaptionScores
    differences: dict[str, dict[str, float]]
    notes: list[str]
    left_out: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `c3 evaluate --json` writes."""
        content = {
            "n": len(self.captions),
            "scores": self.scores,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "notes": self.notes,
            "left_out": self.left_out,
            "captions": [
                {"key": key, "caption": caption} for key, caption in self.captions.items()
            ],
        }
        if self.differences:
            content["differences"] = self.differences
        return content

    def table(self) -> Table:
        """Return the scores as a table, one row per metric."""
        columns = [
            "score",
            "%",
            "95 % interval",
            *(["difference", "p"] if self.differences else []),
        ]
        rows = []
        for name, value in self.scores.items():
            interval, change = self.intervals.get(name), self.differences.get(name)
            row = [name, f"{value:.1f}", "{:.1f} – {:.1f}".format(*interval) if interval else ""]
            if change:
                row.append("{difference:+.1f} ({low:+.1f} – {high:+.1f})".format_map(change))
                row.append(f"{change['p_value']:.3f}")
            rows.append(row + [""] * (len(columns) - len(row)))
        return Table(columns, rows, title=counted(len(self.captions), "caption"))


def evaluate_captions(
    store: Store | str | Path = "c3-store",
    *,
    captions: Mapping[str, str] | str | Path | None = None,
    references: Texts | str | Path | None = None,
    against: Mapping[str, str] | str | Path | None = None,
    decoder: Captioner | str | Path | None = None,
    split: str = "test",
    modality: str | None = None,
    beams: int | None = None,
    length_penalty: float = 0.7,
    top_p: float | None = None,
    temperature: float = 1.0,
    steer: Steer | None = None,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
    resamples: int = 1000,
    device: str | None = None,
    backend: str = "auto",
    precision: EncoderPrecision = "auto",
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Caption the images of a store from their embeddings and score the captions, or score given
    captions. Videos and sounds are captioned alike.

    Args:
        store: See `embed`.
        captions: Score the captions in this file (of c3 caption --json, CSV, or COCO's JSON)
            instead of new ones.
        references: Compare with the captions in this file (jsonl, csv, COCO's JSON) instead of
            those of the store.
        against: A second file of captions of the same images; tests whether the difference is
            significant.
        decoder: See `caption_images`.
        split: The split to score: train, val, test or all.
        modality: The modality to caption: image, video, audio. By default image, or the only one
            beside text.
        beams: See `caption_images`.
        length_penalty: See `caption_images`.
        top_p: See `caption_images`.
        temperature: Sampling temperature.
        steer: See `caption_images`.
        seed: Seed for all random numbers.
        metrics: Metrics to compute, for example CIDEr,METEOR,SPICE. c3 info lists all. By default
            BLEU, ROUGE-L and CIDEr.
        resamples: Number of bootstrap resamples for the intervals; 0: no intervals.
        device: See `connect_heads`.
        backend: See `embed`.
        precision: See `embed`.
        reporter: Shows messages and progress.

    Raises:
        StoreError: if the store is missing, or has no images or no captions.
        DecoderError: if there is no decoder, or it was trained on another model or dimension.
        MetricError: for an unknown metric, if there is nothing to score, or if references are
            missing (their keys are listed).
        MissingExtraError: if pycocoevalcap is not installed.
    """
    metric_names = DEFAULT_METRICS if metrics is None else tuple(metrics)
    needing_images = [one.name for one in require_metrics(metric_names) if one.needs_images]
    if captions is None:
        if not isinstance(decoder, Captioner):
            decoder = Captioner.load(decoder, devices.pick(device, "fp32").device)
        generation = decoder.generation(
            GenerationOptions(
                beams=beams,
                length_penalty=length_penalty,
                top_p=top_p,
                temperature=temperature,
                steer=steer,
                seed=seed,
            )
        )
    if isinstance(references, str | Path):
        references = read_references(references)
    encoder: Encoder | None = None
    opened: Any = None  # if it is needed
    exported = None
    if captions is None or references is None or needing_images:
        opened = Store.open(store, reporter=reporter)
        modality = modality or captioned_modality(opened)
        exported = Pipeline.of_export(opened)
        if exported and (steer or needing_images):
            options = [*needing_images, "--steer"] if steer else needing_images
            raise MetricError(
                f"{' and '.join(options)} compare images with texts as the encoder gives them, but "
                f"the rows of the export {opened.path} went through {exported[0].name}.",
                remedy="Use the store that was exported.",
            )
        if references is None:
            require_captions(opened)
        if needing_images or (steer and captions is None):
            encoder = resolve_encoder(
                recorded=opened.info.model,
                device=device,
                backend=backend,
                precision=precision,
                reporter=reporter,
            )
    known: Texts = references if references is not None else store_references(opened)
    left_out: list[str] = []
    if captions is not None:
        own = read_predictions(captions)
    else:
        assert isinstance(decoder, Captioner) and modality
        decoder.check_model(opened.info.model, opened.info.dim)
        images, left_out = images_with_references(
            opened, split, known, modality=modality, exact=references is None
        )
        if opened.split_note and split in STANDARD:
            reporter.message(opened.split_note)
        writer = decoder.after(*exported) if exported else decoder
        texts = writer.caption(
            embeddings=images.embeddings,
            modality=modality,
            keys=images.keys,
            encoder=encoder,
            generation=generation,
        )
        own = dict(zip(images.keys, texts, strict=True))
    images_to_score = None
    if encoder is not None and needing_images and modality:
        images_to_score = _encoded_images(opened, modality, encoder)
    details = score_captions(
        own, align_keys(own, known), metrics=metric_names, images=images_to_score
    )
    scored, differences, notes = details.corpus if resamples else (), {}, [*details.notes]
    intervals = {name: bootstrap_interval(details, name, resamples=resamples) for name in scored}
    if left_out:
        said = counted(
            len(left_out),
            f"{modality} without reference captions is",
            f"{modality}s without reference captions are",
        )
        notes.append(f"{said} left out; the first is {left_out[0]}.")
    if against is not None:
        others = read_predictions(against)
        other = score_captions(
            others, align_keys(others, known), metrics=metric_names, images=images_to_score
        )
        differences = {
            name: compare(other, details, name) for name in details.corpus if name in other.corpus
        }
    return Evaluation(own, details.corpus, intervals, details, differences, notes, left_out)


def require_captions(store: Store) -> None:
    """Refuse a store without captions, by a look at the first text that has one.

    Raises:
        StoreError: if the store has no texts, or none of them has a caption.
    """
    texts = store.batches("text", ["caption"]) if "text" in store.modalities else ()
    if any(any(batch.column("caption").to_pylist()) for batch in texts):
        return
    there = (
        ", ".join(f"{store.count(name):,} {name} rows" for name in store.modalities) or "no rows"
    )
    raise StoreError(
        f"The store {store.path} has no captions in text rows; it has {there}.",
        remedy="Embed images with their captions (`c3 embed PATH`), or import the texts with a "
        "table that has a column "
        "of captions (`c3 import --text FILE --meta FILE`) into a new store.",
    )


def captioned_modality(store: Store) -> str:
    """Return the modality that captions are made for: image if the store has images, or the only
    one beside text.
    """
    media = [name for name in store.modalities if name != "text"]
    return "image" if "image" in media or len(media) != 1 else media[0]


def store_references(store: Store) -> dict[str, list[str]]:
    """Return the captions of each image of the store, in order."""
    references: dict[str, list[str]] = {}
    columns = ["caption", "image_key"]
    for batch in store.batches("text", columns=columns):
        for caption, item in zip(
            *(batch.column(name).to_pylist() for name in columns), strict=True
        ):
            if item is not None and caption and caption.strip():
                references.setdefault(item, []).append(caption)
    return references


def images_with_references(
    store: Store, split: str, references: Texts, *, modality: str = "image", exact: bool = True
) -> tuple[Rows, list[str]]:
    """Return the images of a split that have a reference caption, and the keys of the others.

    Args:
        store: of the images.
        split: ``all`` for all.
        references: captions by key of their image.
        modality: of the rows, if they are not images.
        exact: whether they name the images exactly, as captions of the store do.

    Raises:
        MetricError: if no image has one.
    """
    images = store.load(modality, split=split)
    if not exact:
        references = align_keys(images.keys, references)
    has = np.array(
        [any(text.strip() for text in references.get(key, ())) for key in images.keys], dtype=bool
    )
    if not has.any():
        first = f" The first {modality} is {images.keys[0]!r}." if len(images) else ""
        raise MetricError(
            f"No {modality} of the store {store.path} in the split {split!r} has a reference "
            f"caption. The splits of {modality} rows are {store.list_splits(modality)}.{first}",
            remedy="Choose another split with --split, or references that name the images as the "
            "store does.",
        )
    return images.select(has), images.select(~has).keys


def _encoded_images(store: Store, modality: str, encoder: Encoder) -> EncodedImages:
    """Return the stored embeddings of the images, with the encoder that made them.

    Raises:
        StoreError: if another encoder made them.
    """
    store.info.require_same_model(
        encoder.identity, own=f"The store {store.path}", theirs="the encoder"
    )
    images = store.load(modality)
    return EncodedImages(positions(images.keys), images.embeddings, encoder.encode_texts)
