"""The table for captions: its data, and the training, captioning and scoring of one cell.

Methods with the same training share a decoder: CapDec trains as C2_2 does, and DeCap as C1; MAGIC,
ZeroCap and ESPER share a language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .. import devices
from ..arrays import Mask, Matrix
from ..captioning.captioner import Captioner
from ..captioning.config import UNCONDITIONAL, Size, load_size
from ..captioning.esper import ESPER_TRAINING, EsperTask
from ..captioning.evaluate import images_with_references, require_captions, store_references
from ..captioning.generation import GenerationConfig
from ..captioning.steering import load_text_encoder
from ..captioning.train import DecoderTask, captions_of_images, fit, training_rows
from ..devices import Compute
from ..encoders import Encoder
from ..errors import DecoderError, MetricError, TransformError
from ..io.artifact import digest_of
from ..metrics.captions import JAVA_METRICS, missing_for, score_captions
from ..metrics.retrieval import nearest
from ..moments import Moments, unit_rows
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator
from ..store import Rows, Store
from ..training.loop import CheckpointDir
from ..transforms import Pipeline, preset
from ..transforms.fitting import (
    MIN_ROWS_OF_A_MEAN,
    fitting_moments,
    load_command,
    moments_of,
)
from .methods import METHODS, PUBLISHED, Cell, Method, Training
from .table import Ablation, Run

PSEUDO_CAPTIONS = 5
_SAME_PHOTO = 0.999  # cosine; another backend or precision changes an embedding by less
_EXAMPLES = 60
_KEPT_DIGITS = 4  # of the values of images, in percent
_TOGETHER = {"zerocap": 1, "magic": 16}  # images that are captioned at a time


def _require_means(store: Store, moments: Mapping[str, Moments]) -> None:
    """Refuse a store without a mean of each modality, which Collapse subtracts."""
    for name in ("image", "text"):
        if name not in moments or not moments[name].n:
            raise TransformError(
                f"An ablation compares methods with Collapse, but {store.path} has fewer than "
                f"{MIN_ROWS_OF_A_MEAN} {name} rows in the train split, too few for a mean.",
                remedy=f"Embed more, or load moments: {load_command(store)}.",
            )


@dataclass(frozen=True)
class CaptionTask:
    """Cells of captions: the data, and the settings that all cells share. Embeddings are
    L2-normalised.

    Attributes:
        train: training captions with their text embeddings.
        val: other captions with their text embeddings, to choose checkpoints on.
        images: the images to caption.
        references: captions that people wrote, by the keys of ``images``; others are not used.
        moments: of both modalities over training data; the image mean must not come from the scored
            images.
        compute: device and precision.
        train_images: images of training and validation captions, for the methods that learn from
            images; None if the store has none.
        described: float32 (n, d), the text embedding of one caption of each of ``images``, for the
            oracle.
        size, set, epochs: of the decoder and its training, as `c3tools.captioning.train_captioner`
            takes them.
        generation: how captions are generated.
        encoder: of the embeddings' model; needed by MAGIC, ZeroCap and ESPER.
        java: of METEOR and SPICE, the scores to add.
    """

    train: Rows
    val: Rows
    images: Rows
    references: Mapping[str, Sequence[str]]
    moments: Mapping[str, Moments]
    compute: Compute
    train_images: Rows | None
    described: Matrix
    size: str
    set: Sequence[str]
    epochs: int | None
    generation: GenerationConfig
    encoder: Encoder | None
    java: Sequence[str]

    methods: ClassVar[Mapping[str, Method]] = METHODS
    kept_in: ClassVar[str] = "decoders"

    @classmethod
    def of(
        cls,
        store: Store,
        *,
        split: str = "test",
        test_store: Store | str | Path | None = None,
        methods: Sequence[str] = (),
        size: str | None = None,
        set: Sequence[str] = (),
        epochs: int | None = None,
        beams: int | None = None,
        spice: bool = False,
        device: str | None = None,
        precision: str = "auto",
        reporter: Reporter = SILENT,
        **_: Any,
    ) -> CaptionTask:
        """Read the rows of a table: train and val captions, the images of ``split`` with their
        captions.

        The arguments are those of `c3tools.ablate`.

        Raises:
            StoreError: if texts or images are missing, or the stores are of different models.
            DecoderError: if there are too few captions.
            MetricError: if the split has no images with captions.
        """
        compute, encoder = devices.pick(device, precision), None
        if asking := ", ".join(name for name in methods if METHODS[name].needs_encoder):
            encoder = load_text_encoder(
                store.info.model, asking, device=device, precision=precision, reporter=reporter
            )
        train, val, notes = training_rows(store)
        lacking = {name: missing_for(name) for name in JAVA_METRICS[: 1 + spice]}
        if reason := lacking.get("SPICE"):
            notes.append(f"SPICE is left out: {reason}")
        if exported := Pipeline.of_export(store):
            notes.append(
                f"The rows of {store.path} went through {exported[0].name}; the methods begin "
                f"with them."
            )
        moments = dict(fitting_moments(store).moments)
        scored = store
        if test_store is not None:  # another domain, in which the same key names another image
            scored = Store.open(test_store, reporter=reporter)
            store.info.require_same_model(
                scored.info.model, own=f"The store {store.path}", theirs=f"the store {scored.path}"
            )
            require_captions(scored)
            if "image" not in moments:
                moments["image"] = moments_of(scored, "image")
                notes.append(
                    f"{store.path} has no image mean; it is that of the train images of "
                    f"{scored.path}."
                )
        _require_means(store, moments)
        references = store_references(scored)
        images, left_out = images_with_references(scored, split, references)
        if left_out:
            notes.append(f"Left out: {counted(len(left_out), 'image')} without reference captions.")
        if "oracle" in methods and not any(len({*references[key]}) > 1 for key in images.keys):
            raise MetricError(
                "The oracle reads one caption of an image, and the others score it; but no image "
                "has two.",
                remedy="Leave out the oracle.",
            )
        own = None
        of_same_store = scored.path.resolve() == store.path.resolve()
        if "image" in store.modalities:
            own, learned = store.load("image"), {*train.items, *val.items}
            seen = learned.intersection(images.keys) if of_same_store else frozenset()
            if seen:
                notes.append(
                    f"The captions of {len(seen):,} scored images are trained on, or checkpoints "
                    f"are chosen on them."
                )
            # images that are scored are not learned from
            own = own.select(np.isin(own.keys, [*(learned - (seen - {*val.items}))]))
        if not of_same_store:
            was_learned = _learned_photos(images, references, [train, val], own)
            if was_learned.all():
                raise MetricError(
                    f"All {counted(len(images), 'image')} of {scored.path} in the split {split!r} "
                    f"were trained on: they are in {store.path} too.",
                    remedy="Choose another split with --split, or another store.",
                )
            if was_learned.any():
                count = counted(int(was_learned.sum()), "image")
                notes.append(
                    f"Left out: {count} of {scored.path} that training in {store.path} has seen."
                )
            images = images.select(~was_learned)
        for note in notes:
            reporter.message(note)
        texts = scored.load("text")
        first = {
            item: row
            for row, item in reversed([*enumerate(texts.items)])
            if texts.captions[row].strip()
        }
        described = texts.embeddings[[first[key] for key in images.keys]]
        data = train, val, images, references, moments, compute, own, described
        built_in = isinstance(load_size(size or "small", set), Size)
        generation = GenerationConfig.from_options(beams, built_in=built_in)
        java = [name for name in lacking if not lacking[name]]
        return cls(*data, size or "small", set, epochs, generation, encoder, java)

    def fit(self, name: str, sigma: float, train_on: str = "text") -> Pipeline:
        """Return a preset fitted on the training captions and the moments."""
        rows, items = {"text": self.train.embeddings}, {"text": self.train.items}
        pipeline = preset(name, sigma=sigma, train_on=train_on)
        return pipeline.fit(self.moments, rows, items=items, provenance={"split": "train"})

    def learned_from(self, learns_from: str) -> tuple[Rows, Rows]:
        """Return the rows to learn from and to validate on: texts, real pairs, pseudo pairs, or
        images.

        Pseudo pairs are training images, each with the captions nearest to it, whichever image
        these describe. The checkpoint is chosen on pseudo pairs of held-out images: the method has
        no others, and a decoder that reads images says little about texts.

        Raises:
            DecoderError: if images are needed and there are none.
        """
        if learns_from in ("texts", "captions"):
            return self.train, self.val
        images = self.train_images
        held_out = np.isin([] if images is None else images.keys, self.val.items)
        if images is None or held_out.all() or not held_out.any():
            raise DecoderError(
                f"This method needs images for training and for validation, but there are "
                f"{int((~held_out).sum())} and "
                f"{int(held_out.sum())}.",
                remedy="Embed images of the train split, or leave out paired, ESPER and "
                "WS-ClipCap.",
            )
        own, others = images.select(~held_out), images.select(held_out)
        if learns_from == "pairs":
            return captions_of_images(own, self.train), captions_of_images(others, self.val)
        if learns_from == "pseudo pairs":
            return _pseudo_pairs(own, self.train), _pseudo_pairs(others, self.train)
        return own, others

    def learner(self) -> CaptionTask:
        """Return the task without what only captioning needs."""
        return replace(self, encoder=None)

    @cached_property
    def learned(self) -> str:
        """A digest of everything that a trained decoder depends on, except its method, sigma and
        seed.
        """
        return digest_of(
            [asdict(load_size(self.size, self.set, epochs=self.epochs)), self.compute.precision],
            *(part for rows in (self.train, self.val) for part in (rows.captions, rows.embeddings)),
            () if self.train_images is None else self.train_images.embeddings,
            *(self.moments[name].mean for name in sorted(self.moments)),
        )

    @cached_property
    def scored(self) -> str:
        """A digest of everything else that captions and their scores depend on."""
        references, java = [[*self.references[key]] for key in self.images.keys], [*self.java]
        asked = self.images.embeddings, references, self.described
        return digest_of(asdict(self.generation), self.images.keys, *asked, java)

    def load(self, folder: Path) -> Captioner:
        """Load a decoder that was kept."""
        return Captioner.load(folder)

    def fit_model(
        self,
        training: Training,
        start: Captioner | None,
        checkpoints: CheckpointDir,
        reporter: Reporter,
    ) -> Captioner:
        """Train a decoder; ``start`` is the language model of ESPER."""
        rows = self.learned_from(training.learns_from)
        options: dict[str, Any] = {
            "checkpoints": checkpoints,
            "label": training.label,
            "reporter": reporter,
        }
        if start is not None:
            assert self.encoder is not None
            record: dict[str, Any] = {"language_model_seconds": _training_seconds(start)}
            own = replace(ESPER_TRAINING, seed=training.seed)
            return fit(
                EsperTask(*rows, start, self.encoder, own, self.compute.device),
                record=record,
                **options,
            )
        changes = (*UNCONDITIONAL, *self.set) if training.learns_from == "captions" else self.set
        size = load_size(self.size, changes, epochs=self.epochs, seed=training.seed)
        pipeline = self.fit(training.preset, training.sigma, rows[0].modality)
        record = {"sigma": training.sigma, "size": self.size, "changes": list(changes)}
        return fit(DecoderTask(*rows, pipeline, size, self.compute), record=record, **options)

    def run(self, cell: Cell, captioner: Captioner | None, reporter: Reporter) -> Run:
        """Caption the images, and score the captions."""
        method, references = METHODS[cell.method], dict(self.references)
        if method.asked_with == "text":  # scored by the captions that it does not read
            for key in self.images.keys:
                references[key] = [text for text in references[key] if text != references[key][0]]
        rows = np.flatnonzero([bool(references[key]) for key in self.images.keys])
        # depends only on the number of images
        if method.images is not None and len(rows) > method.images:
            rows = rows[
                np.sort(generator(0, "scored images").permutation(len(rows))[: method.images])
            ]
        asked = (self.described if method.asked_with == "text" else self.images.embeddings)[rows]
        keys, texts = [self.images.keys[row] for row in rows], list[str]()
        if captioner is None:  # CLIPRe: the caption is the nearest training text
            texts = [
                self.train.captions[row]
                for row in nearest(asked, unit_rows(self.train.embeddings), 1)[0][:, 0]
            ]
        else:
            captioner = replace(
                captioner, pipeline=self.fit(method.inference or str(method.training), cell.sigma)
            )
            steered = (
                None if method.steer is None else GenerationConfig.from_options(steer=method.steer)
            )
            block = _TOGETHER.get(method.steer or "", len(rows))
            with reporter.progress(f"{cell.label}: captions", len(rows)) as progress:
                for part in (slice(first, first + block) for first in range(0, len(rows), block)):
                    texts += captioner.caption(
                        embeddings=asked[part],
                        modality=method.asked_with,
                        keys=keys[part],
                        encoder=self.encoder,
                        generation=steered or self.generation,
                    )
                    progress.advance(len(asked[part]))
        outputs = dict(zip(keys, texts, strict=True))
        scores = score_captions(outputs, references, java=self.java)
        order = np.argsort(np.array(scores.keys), kind="stable")
        return Run(
            *cell,
            scores.corpus,
            outputs,
            len(outputs),
            {
                name: scores.image_values(name)[order].round(_KEPT_DIGITS).tolist()
                for name in scores.corpus
            },
            best_val_loss=None if captioner is None else captioner.record["best_val_loss"],
            parameters=0 if captioner is None else captioner.decoder.count_parameters(),
            training_seconds=0.0 if captioner is None else _training_seconds(captioner),
        )

    def table(self, runs: Sequence[Run], **shown: Any) -> Ablation:
        """Return the table of runs."""
        title = (
            f"{counted(len(self.images), 'image')}, {counted(len(self.train), 'training caption')}"
        )
        examples = {key: (key, self.references[key][0]) for key in self.images.keys[:_EXAMPLES]}
        return Ablation(runs, title=title, examples=examples, facts=[PUBLISHED], **shown)


def _learned_photos(
    images: Rows,
    references: Mapping[str, Sequence[str]],
    learned_texts: Sequence[Rows],
    learned_images: Rows | None,
) -> Mask:
    """Return which images of another store training has seen, bool (n,).

    Stores may number their images alike, so keys alone do not tell. An image was seen if its
    embedding is that of a learned image. Where captions were learned without their image, it was
    seen if one of its captions is among those of the same key.
    """
    has_image = set() if learned_images is None else set(learned_images.keys)
    learned_captions = set[tuple[str, str]]()
    for rows in learned_texts:
        for item, text in zip(rows.items, rows.captions, strict=True):
            if item not in has_image:
                learned_captions.add((item, text))
    seen = np.array(
        [any((key, text) in learned_captions for text in references[key]) for key in images.keys]
    )
    if learned_images is not None and len(learned_images):
        _, cosines = nearest(unit_rows(images.embeddings), unit_rows(learned_images.embeddings), 1)
        seen |= cosines[:, 0] > _SAME_PHOTO
    return seen


def _pseudo_pairs(images: Rows, texts: Rows) -> Rows:
    found, _ = nearest(images.embeddings, unit_rows(texts.embeddings), PSEUDO_CAPTIONS)
    count = found.shape[1]
    return Rows.of(
        "image",
        [f"{key}#{rank}" for key in images.keys for rank in range(count)],
        images.embeddings.repeat(count, axis=0),
        caption=[texts.captions[row] for row in found.ravel()],
    )


def _training_seconds(captioner: Captioner) -> float:
    own = sum(float(epoch["seconds"]) for epoch in captioner.record["history"])
    return own + float(captioner.record.get("language_model_seconds", 0.0))
