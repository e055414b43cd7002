"""The table for captions: its data, and the training, captioning and scoring of one cell.

Methods with the same training share a decoder: CapDec trains as C2_2 does, and DeCap as C1; MAGIC, ZeroCap and ESPER
share a language model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..captioning import Captioner, GenerationConfig, fit_captioner, load_size, nearest, nearest_captions
from ..captioning import training_config as chosen_training
from ..captioning.baselines.esper import ESPER_TRAINING
from ..captioning.baselines.steering import ENCODER_REMEDY, describe_cost
from ..captioning.config import UNCONDITIONAL
from ..captioning.evaluate import require_captions, store_references, with_references
from ..captioning.train import captions_of_images, training_captions
from ..captioning.training import fit_esper
from ..devices import Compute
from ..encoders import Encoder
from ..errors import DecoderError, MetricError
from ..io.artifact import digest_of
from ..metrics.captions import score_captions
from ..moments import Moments
from ..reporter import Reporter, counted
from ..seeds import generator
from ..store import Rows, Store
from ..training.checkpoints import CheckpointDir
from ..transforms import Pipeline, preset
from .methods import METHODS, Cell, Method, Training
from .table import Ablation, Run

PSEUDO_CAPTIONS = 5
_EXAMPLES = 60
_KEPT_DIGITS = 4  # of the values of images, in percent


@dataclass(frozen=True)
class CaptionData:
    """Rows that a table is computed from; embeddings are L2-normalised.

    Attributes:
        train: training captions with their text embeddings.
        val: other captions with their text embeddings, to choose checkpoints on.
        images: the images to caption.
        references: captions that people wrote, by the keys of ``images``; others are not used.
        moments: of both modalities over training data; the image mean must not come from the scored images.
        train_images: images of training and validation captions, for the methods that learn from images; else None.
        choice: the data with the images, references and ``described`` that sigma is chosen on; None for none.
        described: the text embedding (d,) of one caption of each of ``images``, by its key, for the oracle.
        foreign: whether ``images`` are of another store, in which the same key names another image.
    """

    train: Rows
    val: Rows
    images: Rows
    references: Mapping[str, Sequence[str]]
    moments: Mapping[str, Moments]
    train_images: Rows | None = None
    choice: CaptionData | None = None
    described: Mapping[str, npt.NDArray[np.float32]] | None = None
    foreign: bool = False

    def sample(self, fraction: float) -> CaptionData:
        """Return the data with the captions of a share of the training images (see `Rows.sample`), and these images.

        Images that are scored are not learned from; images of validation captions stay.
        """
        train = self.train if fraction == 1 else self.train.sample(fraction)
        if self.train_images is None:
            return replace(self, train=train)
        scored = set() if self.foreign else set(self.images.keys)
        wanted = (set(train.items) - scored) | set(self.val.items)
        kept = np.array([key in wanted for key in self.train_images.keys], dtype=bool)
        return replace(self, train=train, train_images=self.train_images.select(kept))

    def fit(self, name: str, sigma: float, train_on: str = "text") -> Pipeline:
        """Return a preset fitted on the training captions and the moments."""
        pipeline = preset(name, sigma=sigma, train_on=train_on)
        known: dict[str, Any] = {}
        if pipeline.needs_rows:
            known = {"rows": {"text": self.train.embeddings}, "items": {"text": self.train.items}}
        return pipeline.fit(self.moments, **known, provenance={"split": "train"})

    def learned_from(self, learns_from: str) -> tuple[Rows, Rows]:
        """Return the rows to learn from and to validate on: texts, real pairs, pseudo pairs, or images.

        Pseudo pairs are training images, each with the captions nearest to it, whichever image these describe. The
        checkpoint is chosen on pseudo pairs of held-out images: the method has no others, and a decoder that reads
        images says little about texts.

        Raises:
            DecoderError: if images are needed and there are none.
        """
        if learns_from in ("text", "captions"):
            return self.train, self.val
        images = self.train_images
        if images is None or not len(images):
            raise DecoderError(
                "This method needs training images, but there are none.",
                remedy="Embed images of the train split, or leave out paired, ESPER and WS-ClipCap.",
            )
        if learns_from == "pairs":
            return captions_of_images(images, self.train), captions_of_images(images, self.val)
        held_out = frozenset(self.val.items)
        held = np.array([key in held_out for key in images.keys], dtype=bool)
        if held.all() or not held.any():
            raise DecoderError(
                "ESPER and WS-ClipCap need images for training and for validation, but there are "
                f"{int((~held).sum())} and {int(held.sum())}."
            )
        own, others = images.select(~held), images.select(held)
        if learns_from == "images":
            return own, others
        return _pseudo_pairs(own, self.train), _pseudo_pairs(others, self.train)

    def asked_with(self, modality: str) -> npt.NDArray[np.float32]:
        """Return the embeddings (n, d) that captions are made from: of the images, or of one caption of each.

        Raises:
            DecoderError: if an image has no caption.
        """
        if modality == "image":
            return self.images.embeddings
        described = self.described or {}
        missing = [key for key in self.images.keys if key not in described]
        if missing:
            raise DecoderError(
                f"The oracle reads a caption of each scored image, and {counted(len(missing), 'image')} have none, "
                f"{missing[0]} first.",
                remedy="Embed the captions of these images, or leave out oracle.",
            )
        return np.stack([described[key] for key in self.images.keys])


def caption_data(
    store: Store, split: str = "test", *, choose: bool = False, test_store: Store | None = None
) -> tuple[CaptionData, list[str]]:
    """Read the rows of a table: train and val captions, the images of ``split`` with their captions.

    Args:
        store: holds texts, and the images unless these are in ``test_store``.
        split: the images that are captioned and scored; ``all`` for all.
        choose: whether the images of the val split are captioned too, to choose sigma on.
        test_store: holds the images that are captioned and scored, with their captions: another domain.

    Returns:
        The data, and notes for the user.

    Raises:
        StoreError: if texts or images are missing, or the stores are of different models.
        DecoderError: if there are too few captions.
        MetricError: if the split has no images with captions.
    """
    train, val, notes = training_captions(store)
    own = store.load("image") if test_store is None or "image" in store.modalities else None
    moments = {modality: store.fitting_moments(modality) for modality in ("image", "text")}
    scored = store if test_store is None else test_store
    if test_store is not None:
        store.info.require_same_model(
            test_store.info.model, own=f"The store {store.path}", theirs=f"the store {test_store.path}"
        )
        require_captions(test_store)
        if not moments["image"].n:
            moments["image"] = test_store.fitting_moments("image")
            notes.append(
                f"There is no image mean in {store.path}; it is that of the train images of {test_store.path}."
            )
    foreign = scored.path.resolve() != store.path.resolve()

    def part(of: Store, split: str) -> tuple[dict[str, Any], int]:
        references = store_references(of)
        images, left_out = with_references(of.load("image", split), references)
        if not len(images):
            raise MetricError(
                f"The store {of.path} has no images with captions in the split {split!r}.",
                remedy=f"Choose another with --split. The splits of images are {of.list_splits('image')}.",
            )
        return {"images": images, "references": references, "described": _first_captions(of, images.keys)}, len(
            left_out
        )

    shown, left_out = part(scored, split)
    if left_out:
        without = "no reference captions and"
        said = counted(left_out, f"image has {without} is", f"images have {without} are")
        notes.append(f"{said} left out.")
    data = CaptionData(train, val, moments=moments, train_images=own, foreign=foreign, **shown).sample(1.0)
    return replace(data, choice=replace(data, **part(store, "val")[0])) if choose else data, notes


def _first_captions(store: Store, keys: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the embedding (d,) of the first caption of each image."""
    texts, wanted = store.load("text"), frozenset(keys)
    found: dict[str, npt.NDArray[np.float32]] = {}
    for row, (item, caption) in enumerate(zip(texts.items, texts.captions, strict=True)):
        if item in wanted and item not in found and caption and caption.strip():
            found[item] = texts.embeddings[row]
    return found


def _pseudo_pairs(images: Rows, texts: Rows) -> Rows:
    found = nearest(images.embeddings, texts.embeddings, min(PSEUDO_CAPTIONS, len(texts)))
    count = found.shape[1]
    return Rows.of(
        "image",
        [f"{key}#{rank}" for key in images.keys for rank in range(count)],
        images.embeddings.repeat(count, axis=0),
        caption=[texts.captions[row] for row in found.ravel()],
    )


@dataclass(frozen=True)
class CaptionTask:
    """Cells of captions.

    Attributes:
        data: rows to learn from, and images to caption.
        compute: device and precision.
        size, set, epochs: of the decoder and its training, as `c3tools.captioning.train_captioner` takes them.
        generation: how captions are generated.
        encoder: of the embeddings' model; needed by MAGIC, ZeroCap and ESPER.
    """

    data: CaptionData
    compute: Compute
    size: str = "small"
    set: Sequence[str] = ()
    epochs: int | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    encoder: Encoder | None = None

    methods: ClassVar[Mapping[str, Method]] = METHODS
    kept_in: ClassVar[str] = "decoders"

    def sample(self, fraction: float) -> CaptionTask:
        """Return the task with the captions of a share of the training images."""
        return replace(self, data=self.data.sample(fraction))

    def overlaps(self) -> list[str]:
        """Return notes on scored images whose captions are learned from, or chosen on."""
        scored = frozenset[str]() if self.data.foreign else frozenset(self.data.images.keys)
        notes = []
        if overlap := scored.intersection(self.data.train.items):
            notes.append(f"The captions of {len(overlap):,} scored images are among the training captions.")
        if scored.intersection(self.data.val.items):
            notes.append("The captions of the scored images are among those that the checkpoints are chosen on.")
        return notes

    def learner(self) -> CaptionTask:
        """Return the task without what only captioning needs."""
        nothing = self.data.images.select(np.zeros(0, np.int64))
        data = replace(self.data, images=nothing, references={}, choice=None, described=None)
        return replace(self, data=data, encoder=None)

    @cached_property
    def learned(self) -> str:
        """A digest of everything that a trained decoder depends on, except its method, sigma and seed."""
        chosen, data = load_size(self.size, self.set), self.data
        images = () if data.train_images is None else data.train_images.embeddings
        return digest_of(
            asdict(replace(chosen, training=chosen_training(chosen, epochs=self.epochs))),
            self.compute.precision,
            [list(data.train.captions), list(data.val.captions)],
            data.train.embeddings,
            data.val.embeddings,
            images,
            *(data.moments[name].mean for name in sorted(data.moments)),
        )

    @cached_property
    def scored(self) -> str:
        """A digest of everything else that a cell depends on, except how captions are generated."""
        images = self.data.images
        return digest_of({key: list(self.data.references[key]) for key in images.keys}, images.embeddings)

    def made_from(self, cell: Cell) -> list[object]:
        """Return everything that a cell depends on, beside its method, sigma and seed."""
        return [self.learned, self.scored, asdict(self._generation(cell.method))]

    def _generation(self, method: str) -> GenerationConfig:
        steer = METHODS[method].steer
        return self.generation if steer is None else GenerationConfig.from_options(steer=steer)

    def training(self, cell: Cell) -> Training | None:
        """Return the training of a cell; None if nothing is trained."""
        method = METHODS[cell.method]
        if method.training is None:
            return None
        start = None
        if method.learns_from == "images":
            start = Training(f"language model, seed {cell.seed}", "c1", "captions", 0.0, cell.seed)
        return Training(cell.label, method.training, method.learns_from, cell.sigma, cell.seed, start)

    def steps(self) -> int:
        """Return about how many steps one training has."""
        config = chosen_training(load_size(self.size, self.set), epochs=self.epochs)
        return config.epochs * -(-len(self.data.train) // config.batch_size)

    def load(self, folder: Path) -> Captioner:
        """Load a decoder that was kept."""
        return Captioner.load(folder)

    def train(
        self, training: Training, start: Captioner | None, checkpoints: CheckpointDir | None, reporter: Reporter
    ) -> Captioner:
        """Train a decoder; ``start`` is the language model of ESPER."""
        train, val = self.data.learned_from(training.learns_from)
        options: dict[str, Any] = {"checkpoints": checkpoints, "compute": self.compute, "reporter": reporter}
        if start is not None:
            if self.encoder is None:
                raise DecoderError(
                    "ESPER needs an encoder, which rewards captions, but none was given.", remedy=ENCODER_REMEDY
                )
            record = {"language_model_seconds": _training_seconds(start)}
            config = replace(ESPER_TRAINING, seed=training.seed)
            options |= {"training": config, "record": record, "label": training.label}
            return fit_esper(train, val, start, self.encoder, **options)
        changes = (*UNCONDITIONAL, *self.set) if training.learns_from == "captions" else self.set
        pipeline = self.data.fit(training.preset, training.sigma, train.modality)
        return fit_captioner(
            train,
            val,
            pipeline,
            size=self.size,
            set=changes,
            training=chosen_training(load_size(self.size, changes), epochs=self.epochs, seed=training.seed),
            record={"sigma": training.sigma},
            label=training.label,
            **options,
        )

    def run(self, cell: Cell, captioner: Captioner | None, reporter: Reporter) -> Run:
        """Caption the images, and those that sigma is chosen on, and score the captions."""
        started, method = time.perf_counter(), METHODS[cell.method]
        if captioner is not None:
            pipeline = self.data.fit(method.inference or str(method.training), cell.sigma)
            captioner = replace(captioner, pipeline=pipeline)
        if method.needs_encoder and self.encoder is None:
            raise DecoderError(
                f"{cell.method} needs an encoder, which it asks at every word, but none was given.",
                remedy=ENCODER_REMEDY,
            )
        generation, captions, scores = self._generation(cell.method), [], []
        for part in [self.data, *([self.data.choice] if self.data.choice is not None and method.noisy else [])]:
            images, most = part.images, method.images
            if most is not None and len(images) > most:  # a sample that depends only on the number of images
                images = images.select(np.sort(generator(0, "scored images").permutation(len(images))[:most]))
            if captioner is None:
                texts = nearest_captions(images.embeddings, part.train)
            else:
                if method.steer is not None and self.encoder is not None:
                    cost = describe_cost(generation, self.encoder, len(images))
                    reporter.message(f"{cell.method}: {cost}")
                asked, texts = replace(part, images=images).asked_with(method.asked_with), []
                block = {"zerocap": 1, "magic": 16}.get(method.steer or "", len(images))
                with reporter.progress(f"{cell.label}: captions", len(images)) as progress:
                    for first in range(0, len(images), block):
                        rows = slice(first, first + block)
                        own = images.keys[rows] if method.steer is None else None
                        options: dict[str, Any] = {"modality": method.asked_with, "keys": own, "encoder": self.encoder}
                        texts += captioner.caption(embeddings=asked[rows], generation=generation, **options)
                        progress.advance(len(asked[rows]))
            captions.append(dict(zip(images.keys, texts, strict=True)))
            scores.append(score_captions(captions[-1], part.references))
        order = np.argsort(np.array(scores[0].keys), kind="stable")
        return Run(
            *cell,
            scores[0].corpus,
            captions[0],
            len(captions[0]),
            {name: scores[0].image_values(name)[order].round(_KEPT_DIGITS).tolist() for name in scores[0].corpus},
            choice_scores=scores[1].corpus if len(scores) > 1 else {},
            best_val_loss=None if captioner is None else captioner.record["best_val_loss"],
            parameters=0 if captioner is None else captioner.decoder.count_parameters(),
            training_seconds=0.0 if captioner is None else _training_seconds(captioner),
            seconds=time.perf_counter() - started,
        )

    def lacks(self, cell: Cell, run: Run) -> bool:
        """Return whether a finished cell has no scores to choose sigma by, although they are needed."""
        return self.data.choice is not None and METHODS[cell.method].noisy and not run.choice_scores

    def table(self, runs: Sequence[Run], **shown: Any) -> Ablation:
        """Return the table of runs."""
        images, data = self.data.images, self.data
        title = f"{counted(len(images), 'image')}, {counted(len(data.train), 'training caption')}"
        first = {key: (key, next(iter(data.references.get(key, ())), "")) for key in list(images.keys)[:_EXAMPLES]}
        return Ablation(runs, title=title, examples=first, **shown)


def _training_seconds(captioner: Captioner) -> float:
    own = sum(float(epoch["seconds"]) for epoch in captioner.record["history"])
    return own + float(captioner.record.get("language_model_seconds", 0.0))
