"""`c3 ablate`: the table of captions; its data, and the training, captioning and scoring of one
cell.

Methods with the same training share a decoder: CapDec trains as C2_2 does, and DeCap as C1; MAGIC,
ZeroCap and ESPER share a language model.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from .. import devices
from ..arrays import Mask
from ..captioning.captioner import Captioner
from ..captioning.config import UNCONDITIONAL, Size, load_size
from ..captioning.esper import ESPER_TRAINING, EsperTask
from ..captioning.evaluate_captions import (
    images_with_references,
    require_captions,
    store_references,
)
from ..captioning.generation import GenerationConfig, GenerationOptions
from ..captioning.steering import load_text_encoder
from ..captioning.train_captioner import DecoderTask, fit, training_rows
from ..choices import DecoderSize, PositiveInt, Precision, checked
from ..devices import Compute
from ..encoders import Encoder
from ..errors import C3Error, MetricError, TransformError
from ..io.artifact import digest_of
from ..lists import as_list
from ..metrics.caption_scores import DEFAULT_METRICS, require_metrics, score_captions
from ..metrics.retrieval import nearest
from ..moments import Moments, unit_rows
from ..reporter import SILENT, Reporter, counted
from ..store import Rows, Store
from ..store.leaks import notes_on_leaks
from ..training.loop import CheckpointDir
from ..transforms import Pipeline, preset
from ..transforms.fitting import (
    MIN_ROWS_OF_A_MEAN,
    fitting_moments,
    load_command,
    moments_of,
)
from ..transforms.sigma import PAIRS
from .baselines import SOURCES, Learned, Scored, ask_with_captions, draw, nearest_captions
from .bench import TableBench, chosen_methods, chosen_sigmas, command_of, make_table
from .cells import Cell, Run, Training
from .methods import METHODS, PUBLISHED, Method
from .table import Ablation

_SAME_PHOTO = 0.999  # cosine; another backend or precision changes an embedding by less
_EXAMPLES = 60
_KEPT_DIGITS = 4  # of the values of images, in percent
_TOGETHER = {"zerocap": 1, "magic": 16}  # images that are captioned at a time


@checked
def ablate(
    store: Store | str | Path = "c3-store",
    *,
    methods: str | Sequence[str] = "C1,C2_1,C2_2,C3",
    seeds: PositiveInt = 3,
    sigma: Sequence[float | str] | float | str = (0.1,),
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
        methods: Methods to compare, comma-separated, or all.
        seeds: Number of seeds per method: 0, 1, 2, ...
        sigma: Standard deviation of the noise, per dimension: a number, auto (derived from the
            captions), or pairs (from the cosine of at least 10 images with their captions, as in c3
            train-decoder).
        output: The folder for results, table.md and table.html.
        split: The split whose images are captioned and scored, or all.
        test_store: Caption and score the images of this store, to test in another domain.
        size: Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra hf).
        set: See `train_captioner`.
        epochs: See `train_captioner`.
        beams: See `caption_images`.
        metrics: Metrics to compute, for example CIDEr,METEOR,SPICE. By default BLEU, ROUGE-L and
            CIDEr, and METEOR where there is Java.
        jobs: Trainings that run at the same time. Each gets a share of the cores, or its own GPU.
        device: See `connect_heads`.
        precision: See `embed`.
        reporter: Shows messages and progress.

    Raises:
        C3Error: if a method or a setting is unknown, or settings contradict each other.
        DecoderError: if there are too few captions.
        MetricError: if the split has no images with captions.
        StoreError: if texts or images are missing.
        OutputError: if ``output`` contains other files, or another run is writing to it.
    """
    set = as_list(set)
    metrics = as_list(metrics)
    names = chosen_methods(methods, METHODS)
    sigmas = chosen_sigmas(sigma)
    if split == "val" and PAIRS in sigmas:
        raise C3Error(
            f"--sigma {PAIRS} uses the val split, so the table cannot be scored on that split."
        )
    command = command_of(
        "ablate",
        ablate,
        store,
        {
            "methods": ",".join(names),
            "seeds": seeds,
            "sigma": sigma,
            "split": split,
            "test_store": test_store,
            "size": size,
            "set": set,
            "epochs": epochs,
            "beams": beams,
            "metrics": None if metrics is None else ",".join(metrics),
            "jobs": jobs,
            "device": device,
            "precision": precision,
        },
    )

    def read(opened: Store) -> CaptionBench:
        return CaptionBench.read(
            opened,
            methods=names,
            split=split,
            test_store=test_store,
            settings=DecoderSettings(size, tuple(set), epochs),
            beams=beams,
            metrics=metrics,
            compute=devices.pick(device, precision),
            reporter=reporter,
        )

    return make_table(
        store,
        read,
        names,
        sigmas,
        noised="text",
        seeds=seeds,
        folder=Path(output),
        jobs=jobs,
        command=command,
        reporter=reporter,
    )


@dataclass(frozen=True)
class DecoderSettings:
    """Settings of a decoder and its training, as `c3tools.train_captioner` takes them."""

    size: str
    set: tuple[str, ...] = ()
    epochs: int | None = None


@dataclass
class CaptionBench(TableBench):
    """The data and the settings that all cells of captions share.

    Attributes:
        store: that the decoders learn from.
        learned: the rows that they learn from.
        scored: the images to caption.
        settings: of the decoders.
        generation: how captions are generated.
        metrics: names of the metrics to compute.
        encoder: of the embeddings' model; needed by MAGIC, ZeroCap and ESPER.
        compute: device and precision.
        evaluate: the command that scores a decoder as the cells are scored.
    """

    store: Store
    learned: Learned
    scored: Scored
    settings: DecoderSettings
    generation: GenerationConfig
    metrics: Sequence[str]
    encoder: Encoder | None
    compute: Compute
    evaluate: Sequence[str]

    methods: ClassVar[Mapping[str, Method]] = METHODS
    models_folder: ClassVar[str] = "decoders"

    @classmethod
    def read(
        cls,
        store: Store,
        *,
        methods: Sequence[str],
        split: str,
        test_store: Store | str | Path | None,
        settings: DecoderSettings,
        beams: int | None,
        metrics: Sequence[str] | None,
        compute: Compute,
        reporter: Reporter,
    ) -> Self:
        """Read the rows of a table: train and val captions, the images of ``split`` with their
        captions.

        The arguments are those of `ablate`.

        Raises:
            StoreError: if texts or images are missing, or the stores are of different models.
            DecoderError: if there are too few captions.
            MetricError: if the split has no images with captions.
        """
        available_metrics, notes_on_metrics = _available_metrics(metrics)
        encoder = None
        asking = [name for name in methods if METHODS[name].needs_encoder]
        if asking:
            encoder = load_text_encoder(
                store.info.model,
                ", ".join(asking),
                device=str(compute.device),
                precision=compute.precision,
                reporter=reporter,
            )
        train, val, notes = training_rows(store)
        notes += notes_on_metrics
        exported = Pipeline.of_export(store)
        if exported:
            notes.append(
                f"The rows of {store.path} went through {exported[0].name}; the methods begin "
                f"with them."
            )
        scored_store = _open_test_store(store, test_store, reporter)
        moments = dict(fitting_moments(store).moments)
        if scored_store is not store and "image" not in moments:
            moments["image"] = moments_of(scored_store, "image")
            notes.append(
                f"{store.path} has no image mean; it is that of the train images of "
                f"{scored_store.path}."
            )
        _require_means(store, moments)
        references = store_references(scored_store)
        images, left_out = images_with_references(scored_store, split, references)
        if left_out:
            notes.append(f"Left out: {counted(len(left_out), 'image')} without reference captions.")
        _require_oracle_captions(methods, images, references)

        is_same_store = scored_store.path.resolve() == store.path.resolve()
        if is_same_store:
            notes += notes_on_leaks(store, ["image"], split)
        learned_images = None
        if "image" in store.modalities:
            learned_images = store.load("image")
            learned_items = {*train.items, *val.items}
            seen = learned_items.intersection(images.keys) if is_same_store else frozenset()
            if seen:
                notes.append(
                    f"The captions of {len(seen):,} scored images are trained on, or checkpoints "
                    f"are chosen on them."
                )
            # images that are scored are not learned from
            unscored = learned_items - (seen - {*val.items})
            learned_images = learned_images.select(np.isin(learned_images.keys, [*unscored]))
        learned = Learned(train, val, learned_images, moments)
        if not is_same_store:
            was_learned = _learned_photos(images, references, learned)
            if was_learned.all():
                raise MetricError(
                    f"All {counted(len(images), 'image')} of {scored_store.path} in the split "
                    f"{split!r} were trained on: they are in {store.path} too.",
                    remedy="Choose another split with --split, or another store.",
                )
            if was_learned.any():
                count = counted(int(was_learned.sum()), "image")
                notes.append(
                    f"Left out: {count} of {scored_store.path} that training in {store.path} has "
                    f"seen."
                )
            images = images.select(~was_learned)
        for note in notes:
            reporter.message(note)
        evaluate = ["c3", "evaluate", "--store", str(scored_store.path), "--split", split]
        if beams is not None:
            evaluate += ["--beams", str(beams)]
        is_built_in = isinstance(load_size(settings.size, settings.set), Size)
        return cls(
            store=store,
            learned=learned,
            scored=Scored(images, references, _first_captions(scored_store, images)),
            settings=settings,
            generation=GenerationOptions(beams).config(built_in=is_built_in),
            metrics=available_metrics,
            encoder=encoder,
            compute=compute,
            evaluate=evaluate,
        )

    def fit_pipeline(self, name: str, sigma: float, train_on: str = "text") -> Pipeline:
        """Return a preset fitted on the training captions and the moments."""
        rows = {"text": self.learned.train.embeddings}
        items = {"text": self.learned.train.items}
        pipeline = preset(name, sigma=sigma, train_on=train_on)
        provenance = {"split": "train"}
        return pipeline.fit(self.learned.moments, rows, items=items, provenance=provenance)

    def for_training(self) -> Self:
        """Return the bench without what only captioning needs."""
        return replace(self, encoder=None)

    @cached_property
    def learning_digest(self) -> str:
        """A digest of all that a trained decoder depends on, except its training."""
        learned = self.learned
        size = load_size(self.settings.size, self.settings.set, epochs=self.settings.epochs)
        texts = [
            part
            for rows in (learned.train, learned.val)
            for part in (rows.captions, rows.embeddings)
        ]
        return digest_of(
            [asdict(size), self.compute.precision],
            *texts,
            () if learned.images is None else learned.images.embeddings,
            *(learned.moments[name].mean for name in sorted(learned.moments)),
        )

    @cached_property
    def scoring_digest(self) -> str:
        """A digest of all else that captions and their scores depend on."""
        rows = self.scored.rows
        references = [[*self.scored.references[key]] for key in rows.keys]
        return digest_of(
            self.generation,
            rows.keys,
            rows.embeddings,
            references,
            self.scored.described,
            [*self.metrics],
        )

    def load(self, folder: Path) -> Captioner:
        """Load a decoder that was kept."""
        return Captioner.load(folder)

    def train(
        self,
        training: Training,
        start: Captioner | None,
        checkpoints: CheckpointDir,
        reporter: Reporter,
    ) -> Captioner:
        """Train a decoder; ``start`` is the language model of ESPER."""
        rows = SOURCES[training.learns_from](self.learned)
        task: DecoderTask | EsperTask
        if start is not None:
            assert self.encoder is not None
            settings = replace(ESPER_TRAINING, seed=training.seed)
            task = EsperTask(
                rows.train, rows.val, start, self.encoder, settings, self.compute.device
            )
            record: dict[str, object] = {"language_model_seconds": _training_seconds(start)}
        else:
            changes = self.settings.set
            if training.learns_from == "captions":
                changes = (*UNCONDITIONAL, *changes)
            size = load_size(
                self.settings.size, changes, epochs=self.settings.epochs, seed=training.seed
            )
            pipeline = self.fit_pipeline(training.preset, training.sigma, rows.train.modality)
            task = DecoderTask(rows.train, rows.val, pipeline, size, self.compute)
            record = {
                "sigma": training.sigma,
                "size": self.settings.size,
                "changes": list(changes),
            }
        return fit(
            task, record=record, checkpoints=checkpoints, label=training.label, reporter=reporter
        )

    def score(self, cell: Cell, model: Captioner | None, reporter: Reporter) -> Run:
        """Caption the images, and score the captions."""
        method = METHODS[cell.method]
        scored = self.scored
        if method.asked_with == "text":
            scored = ask_with_captions(scored)
        if method.images is not None:
            scored = draw(scored, method.images)
        if model is None:
            captions = nearest_captions(scored.rows.embeddings, self.learned)
        else:
            inference = method.inference or str(method.training)
            model = replace(model, pipeline=self.fit_pipeline(inference, cell.sigma))
            captions = self._write(cell, model, scored, reporter)
        outputs = dict(zip(scored.rows.keys, captions, strict=True))
        scores = score_captions(outputs, scored.references, metrics=self.metrics)
        order = np.argsort(np.array(scores.keys), kind="stable")
        values = {}
        for name in scores.corpus:
            values[name] = scores.image_values(name)[order].round(_KEPT_DIGITS).tolist()
        return Run(
            method=cell.method,
            seed=cell.seed,
            sigma=cell.sigma,
            scores=scores.corpus,
            outputs=outputs,
            images=len(outputs),
            values=values,
            best_val_loss=None if model is None else model.record["best_val_loss"],
            parameters=0 if model is None else model.decoder.count_parameters(),
            training_seconds=0.0 if model is None else _training_seconds(model),
            command=self._command(cell),
        )

    def _write(
        self, cell: Cell, captioner: Captioner, scored: Scored, reporter: Reporter
    ) -> list[str]:
        """Return a caption of each row, some rows at a time where the encoder steers."""
        steer = METHODS[cell.method].steer
        generation = self.generation
        if steer is not None:
            generation = GenerationOptions(steer=steer).config()
        count = len(scored.rows)
        block = _TOGETHER.get(steer or "", count)
        captions: list[str] = []
        with reporter.progress(f"{cell.label}: captions", count) as progress:
            for first in range(0, count, block):
                rows = scored.rows.select(np.arange(first, min(first + block, count)))
                captions += captioner.caption(
                    embeddings=rows.embeddings,
                    modality=rows.modality,
                    keys=rows.keys,
                    encoder=self.encoder,
                    generation=generation,
                )
                progress.advance(len(rows))
        return captions

    def _command(self, cell: Cell) -> str:
        """Return the commands that train and score the decoder of a cell, if there are such."""
        method = METHODS[cell.method]
        is_plain = method.learns_from == "texts" and method.asked_with == "image"
        if method.training is None or method.inference is not None or not is_plain:
            return ""
        train = ["c3", "train-decoder", "--store", str(self.store.path)]
        train += ["--preset", method.training, "--seed", str(cell.seed)]
        if method.noisy:
            train += ["--sigma", f"{cell.sigma:.10g}"]
        train += ["--size", self.settings.size]
        for change in self.settings.set:
            train += ["--set", change]
        if self.settings.epochs is not None:
            train += ["--epochs", str(self.settings.epochs)]
        return f"{shlex.join(train)} && {shlex.join(self.evaluate)}"

    def table(self, runs: Sequence[Run], command: str = "") -> Ablation:
        """Return the table of runs."""
        rows = self.scored.rows
        title = f"{counted(len(rows), 'image')}, "
        title += counted(len(self.learned.train), "training caption")
        examples = {key: (key, self.scored.references[key][0]) for key in rows.keys[:_EXAMPLES]}
        return Ablation(runs, title=title, examples=examples, facts=[PUBLISHED], command=command)


def _require_means(store: Store, moments: Mapping[str, Moments]) -> None:
    """Refuse a store without a mean of each modality, which Collapse subtracts."""
    for name in ("image", "text"):
        if name not in moments or not moments[name].n:
            raise TransformError(
                f"An ablation compares methods with Collapse, but {store.path} has fewer than "
                f"{MIN_ROWS_OF_A_MEAN} {name} rows in the train split, too few for a mean.",
                remedy=f"Embed more, or load moments: {load_command(store)}.",
            )


def _open_test_store(
    store: Store, test_store: Store | str | Path | None, reporter: Reporter
) -> Store:
    """Return the store whose images are scored: another domain, or the same."""
    if test_store is None:
        return store
    opened = Store.open(test_store, reporter=reporter)
    store.info.require_same_model(
        opened.info.model, own=f"The store {store.path}", theirs=f"the store {opened.path}"
    )
    require_captions(opened)
    return opened


def _require_oracle_captions(
    methods: Sequence[str], images: Rows, references: Mapping[str, Sequence[str]]
) -> None:
    if "oracle" in methods and not any(len({*references[key]}) > 1 for key in images.keys):
        raise MetricError(
            "The oracle reads one caption of an image, and the others score it; but no image "
            "has two.",
            remedy="Leave out the oracle.",
        )


def _first_captions(store: Store, images: Rows) -> np.ndarray:
    """Return the embedding of the first caption of each image, float32 (n, d)."""
    texts = store.load("text")
    first_row: dict[str, int] = {}
    for row, item in enumerate(texts.items):
        if texts.captions[row].strip():
            first_row.setdefault(item, row)
    return texts.embeddings[[first_row[key] for key in images.keys]]


def _learned_photos(
    images: Rows, references: Mapping[str, Sequence[str]], learned: Learned
) -> Mask:
    """Return which images of another store training has seen, bool (n,).

    Stores may number their images alike, so keys alone do not tell. An image was seen if its
    embedding is that of a learned image. Where captions were learned without their image, it was
    seen if one of its captions is among those of the same key.
    """
    has_image = set() if learned.images is None else set(learned.images.keys)
    learned_captions = set[tuple[str, str]]()
    for rows in (learned.train, learned.val):
        for item, text in zip(rows.items, rows.captions, strict=True):
            if item not in has_image:
                learned_captions.add((item, text))
    seen = np.array(
        [any((key, text) in learned_captions for text in references[key]) for key in images.keys]
    )
    if learned.images is not None and len(learned.images):
        _, cosines = nearest(unit_rows(images.embeddings), unit_rows(learned.images.embeddings), 1)
        seen |= cosines[:, 0] > _SAME_PHOTO
    return seen


def _training_seconds(captioner: Captioner) -> float:
    seconds = sum(float(epoch["seconds"]) for epoch in captioner.record["history"])
    return seconds + float(captioner.record.get("language_model_seconds", 0.0))


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
                f"{metric.name} needs {metric.needs}, and is not computed in ablations.",
                remedy="Leave it out, and use `c3 evaluate`.",
            )
        lacking = metric.missing()
        if lacking is None:
            available.append(metric.name)
        elif names is not None:
            notes.append(f"{metric.name} is left out: {lacking}")
    return available, notes
