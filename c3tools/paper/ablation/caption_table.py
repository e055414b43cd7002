"""`c3 ablate-captions`: the table of captions. Its cells are calls of `train_captioner` and
`evaluate_captions`.

Methods with the same training share a decoder: CapDec trains as C2_2 does, and DeCap as C1; MAGIC,
ZeroCap and ESPER share a language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ... import devices
from ...arrays import Array, Mask
from ...captioning.captioner import Captioner
from ...captioning.config import load_size
from ...captioning.evaluate_captions import (
    evaluate_captions,
    images_with_references,
    require_captions,
    store_references,
)
from ...captioning.steering import load_text_encoder
from ...captioning.train_captioner import train_captioner, training_rows
from ...choices import DecoderSize, PositiveInt, Precision, checked
from ...encoders import Encoder
from ...errors import C3Error, MetricError, TransformError
from ...io.artifact import digest_of
from ...lists import as_list
from ...metrics.caption_scores import DEFAULT_METRICS, require_metrics
from ...metrics.retrieval import nearest
from ...moments import Moments, unit_rows
from ...reporter import SILENT, Reporter, counted
from ...store import Rows, Store
from ...store.leaks import notes_on_leaks
from ...transforms import Pipeline, preset
from ...transforms.fitting import (
    MIN_ROWS_OF_A_MEAN,
    fitting_moments,
    load_command,
    moments_of,
)
from ...transforms.sigma import PAIRS
from .cells import (
    Bench,
    Cell,
    MethodRun,
    chosen_methods,
    chosen_sigmas,
    command_of,
    content_digest,
    run_table,
    table_folder,
)
from .methods import METHODS, PUBLISHED, Method
from .table import Ablation

_SAME_PHOTO = 0.999  # cosine; another backend or precision changes an embedding by less
_EXAMPLES = 60
_KEPT_DIGITS = 4  # of the values of images, in percent
_OF_IMAGES = ("images", "pairs", "pseudo pairs")  # what a method learns from


@checked
def ablate_captions(
    store: Store | str | Path = "c3-store",
    *,
    methods: str | Sequence[str] = "C1,C2_1,C2_2,C3",
    seeds: PositiveInt = 3,
    sigma: Sequence[float | str] | float | str = ("auto",),
    output: str | Path = "c3-ablation",
    split: str = "test",
    test_store: Store | str | Path | None = None,
    size: DecoderSize = "small",
    set: Sequence[str] = (),
    epochs: PositiveInt | None = None,
    beams: PositiveInt | None = None,
    metrics: Sequence[str] | None = None,
    jobs: PositiveInt = 1,
    device: str | None = None,
    precision: Precision = "auto",
    reporter: Reporter = SILENT,
) -> Ablation:
    """Compare methods: train and score each with several seeds, and print one table in percent.

    Finished results and trained decoders are kept. Run the same command again to continue, or add
    methods, seeds, sigmas or other decoding options (such as ``beams``).

    Args:
        store: See `embed`.
        methods: Methods to compare, comma-separated, or all. The JSON or YAML file of a pipeline is
            also a method; it uses the sigma in the file.
        seeds: Number of training runs per method, with the seeds 0, 1, 2, ...
        sigma: Standard deviation of the noise, per dimension: a number, auto, or pairs, as in c3
            train-decoder.
        output: The folder for the results and their tables, table.md and table.html.
        split: The split whose images are captioned and scored, or all.
        test_store: Caption and score the images of this store instead, to test on another domain.
        size: Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra `hf`).
        set: See `train_captioner`.
        epochs: See `train_captioner`.
        beams: See `caption_images`.
        metrics: Metrics to compute, for example CIDEr,METEOR,SPICE. By default BLEU, ROUGE-L and
            CIDEr, and METEOR if Java is installed.
        jobs: Number of training runs at the same time. Each gets a share of the CPU cores, or its
            own GPU.
        device: See `connect_heads`.
        precision: See `connect_heads`.
        reporter: Shows messages and progress.

    Raises:
        C3Error: if a method or a setting is unknown, or settings contradict each other.
        DecoderError: if there are too few captions.
        MetricError: if the split has no images with captions.
        StoreError: if texts or images are missing.
        OutputError: if ``output`` contains other files, or another run is writing to it.
    """
    set = as_list(set)
    chosen = chosen_methods(methods, METHODS)
    methods = list(chosen)
    sigmas = chosen_sigmas(sigma)
    if PAIRS in sigmas and split in ("val", "all"):
        learned_store = Store.open(store)
        scored_store = learned_store if test_store is None else Store.open(test_store)
        if scored_store.path.resolve() == learned_store.path.resolve():
            raise C3Error(
                f"--sigma {PAIRS} uses the val split, so the table cannot be scored on it.",
                remedy="Choose --split test, or another store with --test-store.",
            )
    metrics = as_list(metrics)
    # The options as they are now: `store` is another object below
    command = command_of("ablate-captions", ablate_captions, locals())
    scored_metrics, notes_on_metrics = _available_metrics(metrics)
    compute = devices.pick(device, precision)
    size_settings = load_size(size, set, epochs=epochs)
    with table_folder(output) as folder:
        store = Store.open(store, reporter=reporter)
        data = CaptionData.read(store, chosen, split, test_store, reporter=reporter)
        for note in notes_on_metrics:
            reporter.message(note)

        # Load the encoder before anything is trained: it may be missing
        needing_encoder = [name for name, method in chosen.items() if method.needs_encoder]
        encoder = None
        if needing_encoder:
            encoder = load_text_encoder(
                store.info.model,
                ", ".join(needing_encoder),
                device=device,
                precision=precision,
                reporter=reporter,
            )

        # Train and score a cell for each method, seed and sigma
        scoring: dict[str, Any] = {"beams": beams, "metrics": scored_metrics}
        bench = Bench(
            folder=folder,
            models="decoders",
            methods=chosen,
            store=store,
            verb=train_captioner,
            options={"size": size, "set": set, "epochs": epochs, "precision": compute.precision},
            device=compute.device,
            fit=data.fit,
            learned=digest_of(asdict(size_settings), content_digest(store), data.image_mean),
            scored=digest_of(content_digest(data.scored_store), split, *scoring.values()),
            score=partial(data.score, **scoring, encoder=encoder),
        )
        runs = run_table(
            bench, methods, sigmas, noised="text", seeds=seeds, jobs=jobs, reporter=reporter
        )

        # Put them in a table, with captions of the first images
        images = data.images
        title = f"{counted(len(images), 'image')}, {counted(len(data.train), 'training caption')}"
        examples = {key: (key, data.references[key][0]) for key in images.keys[:_EXAMPLES]}
        table = Ablation(
            runs,
            title=title,
            examples=examples,
            facts=[PUBLISHED],
            command=command,
            methods=chosen,
        )
        table.save(folder)
    return table


@dataclass(frozen=True)
class CaptionData:
    """The captions that decoders learn from, and the images that they caption.

    Attributes:
        methods: of the table, by name.
        store: that decoders learn from.
        train: its training captions.
        moments: of both modalities, which pipelines are fitted on.
        scored_store: of the scored images; another domain, or ``store``.
        split: of the scored images.
        images: the scored images.
        references: captions that people wrote, by image key.
        seen: keys of images of the split that training has seen; they are not scored.
    """

    methods: Mapping[str, Method]
    store: Store
    train: Rows
    moments: Mapping[str, Moments]
    scored_store: Store
    split: str
    images: Rows
    references: Mapping[str, Sequence[str]]
    seen: Sequence[str]

    @classmethod
    def read(
        cls,
        store: Store,
        methods: Mapping[str, Method],
        split: str,
        test_store: Store | str | Path | None,
        *,
        reporter: Reporter = SILENT,
    ) -> CaptionData:
        """Read the data of a table; the arguments are those of `ablate_captions`.

        Raises:
            StoreError: if the store is an export, texts or images are missing, or the stores are of
                different models.
            DecoderError: if there are too few captions.
            MetricError: if the split has no images with captions, or they were learned from.
            TransformError: if the store has no means.
        """
        # The captions that are learned from
        store.info.require_raw(store.path)
        train, val, notes = training_rows(store)
        moments = dict(fitting_moments(store).moments)

        # The store of the images that are scored. A store of texts alone takes its image mean
        scored_store = store
        if test_store is not None:
            scored_store = Store.open(test_store, reporter=reporter)
            store.info.require_same_model(
                scored_store.info.model,
                own=f"The store {store.path}",
                theirs=f"the store {scored_store.path}",
            )
            scored_store.info.require_raw(scored_store.path)
            require_captions(scored_store)
        is_same_store = scored_store.path.resolve() == store.path.resolve()
        if not is_same_store and "image" not in moments:
            moments["image"] = moments_of(scored_store, "image")
            notes.append(
                f"{store.path} has no image mean; the mean comes from the train images of "
                f"{scored_store.path}."
            )
        _require_means(store, moments)

        # The images of the split that have captions
        references = store_references(scored_store)
        images, without_references = images_with_references(scored_store, split, references)
        if without_references:
            number = counted(len(without_references), "image")
            notes.append(f"Left out: {number} without reference captions.")

        # Nothing may learn from what is scored: in the same store the splits keep them apart, in
        # another one images that training has seen are left out
        seen: list[str] = []
        if is_same_store:
            learning_from_images = [
                name for name, method in methods.items() if method.learns_from in _OF_IMAGES
            ]
            if learning_from_images and split in ("train", "all"):
                raise MetricError(
                    f"{', '.join(learning_from_images)} would learn from images of the split "
                    f"{split!r}, which are scored.",
                    remedy="Choose another split with --split, or leave out these methods.",
                )
            if split in ("train", "val", "all"):
                notes.append(
                    "Captions of scored images are used for training or for choosing checkpoints."
                )
            notes += notes_on_leaks(store, ["image"], split)
        else:
            is_seen = _learned_photos(images, references, store, [train, val])
            seen = images.select(is_seen).keys
            images = images.select(~is_seen)
            if not len(images):
                raise MetricError(
                    f"All {counted(len(seen), 'image')} of {scored_store.path} in the split "
                    f"{split!r} were trained on, because they are also in {store.path}.",
                    remedy="Choose another split with --split, or another store.",
                )
            if seen:
                notes.append(
                    f"Left out: {counted(len(seen), 'image')} of {scored_store.path} that were "
                    f"used for training in {store.path}."
                )

        has_two_captions = any(len({*references[key]}) > 1 for key in images.keys)
        if "oracle" in methods and not has_two_captions:
            raise MetricError(
                "The oracle reads one caption of an image and is scored with the others, but no "
                "image has two captions.",
                remedy="Leave out the oracle.",
            )
        for note in notes:
            reporter.message(note)
        return cls(
            methods=methods,
            store=store,
            train=train,
            moments=moments,
            scored_store=scored_store,
            split=split,
            images=images,
            references=references,
            seen=seen,
        )

    @property
    def image_mean(self) -> Array:
        """The image mean, which may be that of the scored store."""
        return self.moments["image"].mean

    def fit(self, name: str, sigma: float | None) -> Pipeline:
        """Return a preset fitted as `train_captioner` does, or with the image mean of the scored
        store if the store has none.
        """
        unfitted = preset(name, sigma=sigma)
        if "image" in fitting_moments(self.store).moments:
            return unfitted.fit(self.store)
        texts = self.store.load("text", "train")
        rows = {"text": texts.embeddings}
        return unfitted.fit(self.moments, rows, items={"text": texts.items})

    def score(
        self,
        cell: Cell,
        models: Sequence[Captioner],
        reporter: Reporter,
        *,
        beams: int | None,
        metrics: Sequence[str],
        encoder: Encoder | None,
    ) -> MethodRun:
        """Caption the images with the last decoder that a cell trained, and score the captions."""
        # Of a method without training, take the nearest captions; the oracle reads a text of each
        # image in its place
        method = self.methods[cell.method]
        evaluate = partial(
            evaluate_captions,
            self.scored_store,
            metrics=metrics,
            encoder=encoder,
            resamples=0,
            reporter=reporter,
        )
        if not models:
            evaluation = evaluate(captions=self.nearest_captions(), references=self.references)
        elif method.asked_with == "text":
            texts, references = self.texts_of_images()
            captions = models[-1].caption(
                embeddings=texts.embeddings, modality="text", keys=texts.keys, beams=beams
            )
            evaluation = evaluate(
                captions=dict(zip(texts.keys, captions, strict=True)), references=references
            )
        else:
            pipeline = None
            if method.inference is not None:
                pipeline = self.fit(method.inference, cell.sigma)
            evaluation = evaluate(
                decoder=models[-1],
                pipeline=pipeline,
                split=self.split,
                without=self.seen,
                beams=None if "steer" in method.evaluate else beams,
                **method.evaluate,
            )

        # Keep the values of the images in the order of their keys, which is that of every cell
        details = evaluation.details
        by_key = np.argsort(np.array(details.keys), kind="stable")
        values = {}
        for name in details.corpus:
            values[name] = details.image_values(name)[by_key].round(_KEPT_DIGITS).tolist()
        epochs = [epoch for model in models for epoch in model.record["history"]]
        return MethodRun(
            method=cell.method,
            seed=cell.seed,
            sigma=cell.sigma,
            scores=evaluation.scores,
            outputs=evaluation.captions,
            images=len(evaluation.captions),
            values=values,
            recipe_sigma=0.0 if cell.sigma or not models else models[-1].record["sigma"],
            best_val_loss=models[-1].record["best_val_loss"] if models else None,
            parameters=models[-1].decoder.count_parameters() if models else 0,
            training_seconds=sum(float(epoch["seconds"]) for epoch in epochs),
        )

    def nearest_captions(self) -> dict[str, str]:
        """Return the nearest training caption of each image by its key (CLIPRe)."""
        rows, _ = nearest(self.images.embeddings, unit_rows(self.train.embeddings), 1)
        captions = [self.train.captions[row] for row in rows[:, 0]]
        return dict(zip(self.images.keys, captions, strict=True))

    def texts_of_images(self) -> tuple[Rows, dict[str, list[str]]]:
        """Return the first caption of each image, which the oracle reads in its place, and by image
        key the captions that differ from it. Images that have none of these are left out.
        """
        texts = self.scored_store.load("text")
        first_row: dict[str, int] = {}
        for row, item in enumerate(texts.items):
            if texts.captions[row].strip():
                first_row.setdefault(item, row)
        other_captions = {}
        for key in self.images.keys:
            first, *others = self.references[key]
            differing = [caption for caption in others if caption != first]
            if differing:
                other_captions[key] = differing
        embeddings = texts.embeddings[[first_row[key] for key in other_captions]]
        return Rows.of("text", [*other_captions], embeddings), other_captions


def _require_means(store: Store, moments: Mapping[str, Moments]) -> None:
    """Refuse a store without a mean of each modality, which Collapse subtracts."""
    for name in ("image", "text"):
        if name not in moments or not moments[name].n:
            raise TransformError(
                f"An ablation compares methods that use Collapse, but {store.path} has fewer than "
                f"{MIN_ROWS_OF_A_MEAN} {name} rows in the train split, too few for a mean.",
                remedy=f"Embed more rows, or load moments: {load_command(store)}.",
            )


def _learned_photos(
    images: Rows,
    references: Mapping[str, Sequence[str]],
    store: Store,
    learned_texts: Sequence[Rows],
) -> Mask:
    """Return which images of another store training has seen, bool (n,).

    Stores may number their images alike, so keys alone do not tell. An image was seen if its
    embedding is that of a learned image. Where captions were learned without their image, it was
    seen if one of its captions is among those of the same key.
    """
    learned_items = {item for texts in learned_texts for item in texts.items}
    learned_images = None
    has_image = set[str]()
    if "image" in store.modalities:
        learned_images = store.load("image")
        learned_images = learned_images.select(np.isin(learned_images.keys, [*learned_items]))
        has_image.update(learned_images.keys)
    learned_captions = set[tuple[str, str]]()
    for texts in learned_texts:
        for item, text in zip(texts.items, texts.captions, strict=True):
            if item not in has_image:
                learned_captions.add((item, text))
    seen = np.array(
        [any((key, text) in learned_captions for text in references[key]) for key in images.keys]
    )
    if learned_images is not None and len(learned_images):
        _, cosines = nearest(unit_rows(images.embeddings), unit_rows(learned_images.embeddings), 1)
        seen |= cosines[:, 0] > _SAME_PHOTO
    return seen


def _available_metrics(names: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the metrics that can be computed here, and notes on those that cannot.

    Args:
        names: None for the usual ones, and METEOR without a note where there is no Java.

    Raises:
        MetricError: for an unknown name, or a metric that needs an encoder.
    """
    wanted = require_metrics((*DEFAULT_METRICS, "METEOR") if names is None else names)
    available = []
    notes = []
    for metric in wanted:
        if metric.needs_images:
            raise MetricError(
                f"{metric.name} needs {metric.needs}, so ablations do not compute it.",
                remedy="Leave it out, and use `c3 evaluate-captions`.",
            )
        what_is_missing = metric.missing()
        if what_is_missing is None:
            available.append(metric.name)
        elif names is not None:
            notes.append(f"{metric.name} is left out: {what_is_missing}")
    return available, notes
