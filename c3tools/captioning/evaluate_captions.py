"""Evaluation of captions, from a decoder or a file, against human captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import devices
from ..choices import EncoderPrecision, NonNegativeInt, PositiveInt, Steer, checked
from ..corpus.splits import ALL, split_order
from ..encoders import Encoder, resolve_encoder
from ..errors import MetricError, StoreError
from ..lists import as_list, positions
from ..metrics.caption_metric import EncodedImages
from ..metrics.caption_scores import (
    DEFAULT_METRICS,
    CaptionScores,
    require_metrics,
    score_captions,
)
from ..metrics.significance import Difference, Ends, bootstrap_interval, compare
from ..reporter import SILENT, Reporter, counted
from ..result_table import Table
from ..seeds import generator
from ..store import Rows, Store
from ..store.leaks import notes_on_leaks
from ..transforms import Pipeline
from ..transforms.space import Space
from .captioner import Captioner, notes_on_empty_captions
from .generation import GenerationOptions
from .references import align_keys, read_predictions, read_references

Texts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set of captions.

    Attributes:
        captions: the scored captions by image key.
        scores: by metric, in percent.
        intervals: 95% bootstrap intervals over images, by metric.
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
    differences: dict[str, Difference]
    notes: list[str]
    left_out: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `c3 evaluate-captions --json` writes."""
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
            content["differences"] = {name: asdict(one) for name, one in self.differences.items()}
        return content

    def table(self) -> Table:
        """Return the scores as a table, one row per metric."""
        columns = ["score", "%", "95% interval"]
        if self.differences:
            columns += ["difference", "p"]
        rows = []
        for name, value in self.scores.items():
            row = [name, f"{value:.1f}"]
            if name in self.intervals:
                low, high = self.intervals[name]
                row.append(f"{low:.1f} – {high:.1f}")
            else:
                row.append("")
            if name in self.differences:
                change = self.differences[name]
                row.append(f"{change.difference:+.1f} ({change.low:+.1f} – {change.high:+.1f})")
                row.append(f"{change.p_value:.3f}")
            elif self.differences:
                row += ["", ""]
            rows.append(row)
        return Table(columns, rows, title=counted(len(self.captions), "caption"))


@checked
def evaluate_captions(
    store: Store | str | Path = "c3-store",
    *,
    captions: Mapping[str, str] | str | Path | None = None,
    references: Texts | str | Path | None = None,
    against: Mapping[str, str] | str | Path | None = None,
    decoder: Captioner | str | Path | None = None,
    pipeline: Pipeline | None = None,
    split: str = "test",
    limit: PositiveInt | None = None,
    without: Collection[str] = (),
    modality: str | None = None,
    beams: PositiveInt | None = None,
    length_penalty: float = 0.7,
    top_p: float | None = None,
    temperature: float = 1.0,
    steer: Steer | None = None,
    encoder: Encoder | None = None,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
    resamples: NonNegativeInt = 1000,
    device: str | None = None,
    backend: str = "auto",
    precision: EncoderPrecision = "auto",
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Caption the images of a store from their embeddings and score the captions, or score given
    captions. Videos and audio files are captioned in the same way.

    Args:
        store: See `embed`.
        captions: Score the captions in this file (the output of c3 caption --json, any table, or
            COCO's JSON) instead of new ones.
        references: Compare with the captions in this file (any table, or COCO's or Karpathy's
            JSON) instead of the store's.
        against: A second file of captions for the same images, to test whether the scores differ
            significantly.
        decoder: See `caption_images`.
        pipeline: A fitted pipeline to use instead of the decoder's own.
        split: The split to score, such as val, or all.
        limit: Caption only this many images, drawn at random. Every decoder gets the same images.
        without: Keys of images to skip.
        modality: The modality to caption: image, video or audio. By default image, or the only
            modality besides text.
        beams: See `caption_images`.
        length_penalty: See `caption_images`.
        top_p: See `caption_images`.
        temperature: Sampling temperature.
        steer: See `caption_images`.
        encoder: Of the store's model, for ``steer`` and for metrics that compare captions with
            images; loaded by default.
        seed: Seed for all random numbers.
        metrics: Metrics to compute, for example CIDEr,METEOR,SPICE. c3 info lists all. By default
            BLEU, ROUGE-L and CIDEr.
        resamples: Number of bootstrap resamples for the intervals; 0 for no intervals.
        device: See `connect_heads`.
        backend: See `embed`.
        precision: See `embed`.
        reporter: Shows messages and progress.

    Raises:
        StoreError: if the store is missing, or has no images or no captions.
        DecoderError: if there is no decoder, or it was trained on another dimension.
        TransformError: if it was trained on another model, or rows of an export went through
            another pipeline than the decoder's, or have noise.
        MetricError: for an unknown metric, if there is nothing to score, if no caption has a
            reference (their keys are listed), or if ``against`` has no caption of a scored image.
        UnusedOptionError: if an option has no effect with another.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    metric_names = DEFAULT_METRICS if metrics is None else as_list(metrics)
    image_metrics = [metric.name for metric in require_metrics(metric_names) if metric.needs_images]
    if isinstance(references, str | Path):
        references = read_references(references)
    load_encoder = partial(
        resolve_encoder,
        encoder,
        device=device,
        backend=backend,
        precision=precision,
        reporter=reporter,
    )
    images: _Images | None = None
    if captions is not None:
        # Captions are given: a store is needed only for references, or for images to compare with
        if references is None or image_metrics:
            images = _open_images(
                store, modality, references, image_metrics, load_encoder, reporter
            )
        known_references = _references(references, images)
        predictions = read_predictions(captions)
        aligned = align_keys(predictions, known_references)
        # If none has a reference, all are kept, and `score_captions` refuses them
        scored_captions = {key: predictions[key] for key in aligned} or predictions
        left_out = [key for key in predictions if key not in scored_captions]
        notes = _notes_on_coverage(
            scored_captions, left_out, known_references, images if references is None else None
        )
    else:
        # The decoder writes captions of the images in the split that have references
        if not isinstance(decoder, Captioner):
            decoder = Captioner.load(decoder, devices.pick(device, "fp32").device)
        if pipeline is not None:
            decoder = replace(decoder, pipeline=pipeline)
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
        compared_with_images = [*image_metrics, "--steer"] if steer else image_metrics
        images = _open_images(
            store, modality, references, compared_with_images, load_encoder, reporter
        )
        known_references = _references(references, images)
        path = decoder.space.path_from(Space.of(images.store), [images.modality])
        decoder.check_dim(images.store.info.dim)
        rows, left_out = images_with_references(
            images.store,
            split,
            known_references,
            modality=images.modality,
            exact=references is None,
            limit=limit,
            without=without,
        )
        texts = replace(decoder, pipeline=path).caption(
            embeddings=rows.embeddings,
            modality=images.modality,
            keys=rows.keys,
            encoder=images.encoder,
            generation=generation,
            reporter=reporter,
        )
        scored_captions = dict(zip(rows.keys, texts, strict=True))
        notes = notes_on_empty_captions(texts)
        if left_out:
            number = counted(
                len(left_out),
                f"{images.modality} without reference captions is",
                f"{images.modality}s without reference captions are",
            )
            notes.append(f"{number} left out; the first is {left_out[0]}.")
        notes += notes_on_leaks(images.store, [images.modality], split)

    score = partial(
        score_captions,
        references=align_keys(scored_captions, known_references),
        metrics=metric_names,
        images=images.encoded(scored_captions) if images and image_metrics else None,
    )
    details = score(scored_captions)
    notes += details.notes
    differences: dict[str, Difference] = {}
    if against is not None:
        other_captions, more_notes = _captions_to_compare(against, scored_captions)
        notes += more_notes
        other_details = score(other_captions)
        differences = {
            name: compare(other_details, details, name)
            for name in details.corpus
            if name in other_details.corpus
        }
    intervals: dict[str, Ends] = {}
    if resamples:
        intervals = {
            name: bootstrap_interval(details, name, resamples=resamples) for name in details.corpus
        }
    return Evaluation(
        captions=scored_captions,
        scores=details.corpus,
        intervals=intervals,
        details=details,
        differences=differences,
        notes=notes,
        left_out=left_out,
    )


@dataclass(frozen=True)
class _Images:
    """The store that has the scored images.

    Attributes:
        store: open.
        modality: of the rows that are captioned.
        encoder: of the rows; None if nothing is compared with them.
    """

    store: Store
    modality: str
    encoder: Encoder | None

    def encoded(self, keys: Iterable[str]) -> EncodedImages:
        """Return the stored embeddings, with the encoder that made them, and their rows by these
        keys.

        Raises:
            StoreError: if another encoder made them.
        """
        assert self.encoder is not None
        self.store.info.require_same_model(
            self.encoder.identity, own=f"The store {self.store.path}", theirs="the encoder"
        )
        rows = self.store.load(self.modality)
        row_of_key = align_keys(keys, positions(rows.keys))
        return EncodedImages(row_of_key, rows.embeddings, self.encoder.encode_texts)


def _open_images(
    store: Store | str | Path,
    modality: str | None,
    references: Texts | None,
    comparing: Sequence[str],
    load_encoder: Callable[..., Encoder],
    reporter: Reporter,
) -> _Images:
    """Open the store of the images, and load the encoder of its rows if that is asked for.

    Args:
        store: see `evaluate_captions`.
        modality: likewise.
        references: None if they are the captions of the store.
        comparing: the metrics and options that compare texts with the images.
        load_encoder: as `resolve_encoder`; called if anything is compared with the images.
        reporter: shows messages.

    Raises:
        StoreError: if the store is missing, lacks captions that are needed, or is an export whose
            rows cannot be compared with texts.
    """
    opened = Store.open(store, reporter=reporter)
    modality = modality or captioned_modality(opened)
    if comparing:
        opened.info.require_raw(
            opened.path,
            f"Use the store that was exported: {' and '.join(comparing)} compare unchanged "
            f"embeddings of images and texts.",
        )
    if references is None:
        require_captions(opened)
    encoder = load_encoder(recorded=opened.info.model) if comparing else None
    return _Images(opened, modality, encoder)


def _references(references: Texts | None, images: _Images | None) -> Texts:
    """Return the given references, or those of the store of the images."""
    if references is not None:
        return references
    assert images is not None
    return store_references(images.store)


def _notes_on_coverage(
    captions: Mapping[str, str], left_out: Sequence[str], references: Texts, images: _Images | None
) -> list[str]:
    """Return notes on which images the captions of a file are of; with the store that the
    references are of, also of which splits.
    """
    image_count = counted(len(references), "image")
    coverage = f"Scored captions of {len(captions):,} of the {image_count} with references"
    if images is not None and images.modality in images.store.modalities:
        rows = images.store.load(images.modality)
        split_of_image = dict(zip(rows.keys, rows.splits, strict=True))
        splits = Counter(align_keys(captions, split_of_image).values())
        listed = [f"{split} ({splits[split]:,})" for split in sorted(splits, key=split_order)]
        coverage += f": {', '.join(listed)}"
    notes = [f"{coverage}."]
    if left_out:
        caption_count = counted(len(captions) + len(left_out), "caption")
        notes.append(
            f"{len(left_out):,} of {caption_count} do not refer to an image with references, and "
            f"are left out; the first is {left_out[0]}."
        )
    return notes


def _captions_to_compare(
    against: Mapping[str, str] | str | Path, captions: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return the other captions of the scored images, in their order and by their keys; and a note
    if there are more.

    Raises:
        MetricError: if one is missing.
    """
    predictions = read_predictions(against)
    aligned = align_keys(captions, predictions)
    missing = [key for key in captions if key not in aligned]
    if missing:
        raise MetricError(
            f"The captions of --against lack {len(missing):,} of the "
            f"{counted(len(captions), 'scored image')}; the first is {missing[0]}.",
            remedy="Compare captions of the same images.",
        )
    notes: list[str] = []
    if len(predictions) > len(captions):
        more = counted(len(predictions) - len(captions), "caption")
        notes.append(f"{more} of --against belong to images that are not scored, and are left out.")
    return aligned, notes


def require_captions(store: Store) -> None:
    """Refuse a store without captions, by a look at the first text that has one.

    Raises:
        StoreError: if the store has no texts, or none of them has a caption.
    """
    if "text" in store.modalities:
        for batch in store.batches("text", ["caption"]):
            if any(batch.column("caption").to_pylist()):
                return
    rows = [f"{store.count(name):,} {name} rows" for name in store.modalities]
    raise StoreError(
        f"The store {store.path} has no captions in text rows; it has "
        f"{', '.join(rows) or 'no rows'}.",
        remedy="Embed images with their captions (`c3 embed PATH`), or import the texts with a "
        "table that has a caption column (`c3 import --text FILE --meta FILE`) into a new store.",
    )


def captioned_modality(store: Store) -> str:
    """Return the modality that captions are made for: image if the store has images, or the only
    one beside text.
    """
    media = [name for name in store.modalities if name != "text"]
    if "image" not in media and len(media) == 1:
        return media[0]
    return "image"


def store_references(store: Store) -> dict[str, list[str]]:
    """Return the captions of each image of the store, in order."""
    references: dict[str, list[str]] = {}
    for batch in store.batches("text", ["caption", "image_key"], split=ALL):
        captions = batch.column("caption").to_pylist()
        image_keys = batch.column("image_key").to_pylist()
        for caption, image_key in zip(captions, image_keys, strict=True):
            if image_key is not None and caption and caption.strip():
                references.setdefault(image_key, []).append(caption)
    return references


def images_with_references(
    store: Store,
    split: str,
    references: Texts,
    *,
    modality: str = "image",
    exact: bool = True,
    limit: int | None = None,
    without: Collection[str] = (),
) -> tuple[Rows, list[str]]:
    """Return the images of a split that have a reference caption, and the keys of those that have
    none.

    Args:
        store: of the images.
        split: ``all`` for all.
        references: captions by key of their image.
        modality: of the rows, if they are not images.
        exact: whether they name the images exactly, as captions of the store do.
        limit, without: see `evaluate_captions`.

    Raises:
        MetricError: if no image has one.
    """
    images = store.load(modality, split=split)
    if not exact:
        references = align_keys(images.keys, references)
    has_reference = np.zeros(len(images), dtype=bool)
    for row, key in enumerate(images.keys):
        has_reference[row] = any(text.strip() for text in references.get(key, ()))
    rows = np.flatnonzero(has_reference & ~np.isin(images.keys, [*without]))
    if not len(rows):
        first = f" The first {modality} is {images.keys[0]!r}." if len(images) else ""
        raise MetricError(
            f"No {modality} of the store {store.path} in the split {split!r} has a reference "
            f"caption. The splits of {modality} rows are {store.list_splits(modality)}.{first}",
            remedy="Choose another split with --split, or references that use the store's image "
            "keys.",
        )
    if limit is not None and len(rows) > limit:
        order = generator(0, "scored images").permutation(len(rows))
        rows = np.sort(rows[order[:limit]])
    return images.select(rows), images.select(~has_reference).keys
