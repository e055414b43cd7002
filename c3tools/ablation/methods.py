"""The methods of the table: training, captioning and scoring of each with each seed, from rows in memory.

All results are computed here. Decoders with the same training are trained once and shared (CapDec trains as C2_2 does,
and DeCap as C1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..captioning import (
    Captioner,
    GenerationConfig,
    TrainingConfig,
    fit_captioner,
    load_size,
    nearest,
    nearest_captions,
    training_config,
)
from ..captioning.training_rows import captions_of_images
from ..devices import Compute, pick
from ..encoders import Encoder
from ..errors import DecoderError, MetricError
from ..metrics.captions import score_captions
from ..moments import Moments
from ..reporter import SILENT, Reporter
from ..store import Rows
from ..training.checkpoints import CheckpointDir
from ..transforms import Pipeline, preset
from .trainings import Training, train_ahead

PSEUDO_CAPTIONS = 5


@dataclass(frozen=True)
class Method:
    """A method of the table.

    Attributes:
        training: preset of the pipeline that training inputs go through; None if nothing is trained.
        inference: preset of the pipeline that images go through.
        learns_from: ``text`` (each caption from its own embedding), ``pairs`` (from its image's embedding), or
            ``pseudo-pairs`` (each training image with the captions nearest to it).
        noisy: whether sigma matters.
        summary: one line.
    """

    training: str | None
    inference: str
    learns_from: str
    noisy: bool
    summary: str


METHODS: Mapping[str, Method] = {
    "C1": Method("c1", "c1", "text", False, "Connect alone"),
    "C2_1": Method("c2-collapse", "c2-collapse", "text", False, "Connect, Collapse"),
    "C2_2": Method("c2-corrupt", "c2-corrupt", "text", True, "Connect, Corrupt"),
    "C3": Method("c3", "c3", "text", True, "Connect, Collapse, Corrupt"),
    "CapDec": Method("c2-corrupt", "capdec", "text", True, "noise on training texts (Nukrai et al., 2022)"),
    "LAFITE": Method("lafite", "lafite", "text", False, "noise of 0.75 of each vector (Zhou et al., 2022)"),
    "TOMCap": Method("tomcap", "tomcap", "text", True, "texts moved to the moments of images, noise (2026)"),
    "DeCap": Method("c1", "decap", "text", False, "images projected on a memory of texts (Li et al., 2023)"),
    "CLIPRe": Method(None, "c1", "text", False, "the nearest training caption (Su et al., 2022)"),
    "WS-ClipCap": Method("c1", "c1", "pseudo-pairs", False, "training images with their nearest captions"),
    "WS-ClipCap-Multi": Method("c2-corrupt", "c2-corrupt", "pseudo-pairs", True, "like paired, with noise"),
    "paired": Method("c1", "c1", "pairs", False, "trained on real pairs: the upper bound"),
}
ABLATION = ("C1", "C2_1", "C2_2", "C3")


@dataclass(frozen=True)
class AblationData:
    """Rows that a table is computed from; embeddings are L2-normalised.

    Attributes:
        train: training captions with their text embeddings.
        val: other captions with their text embeddings, to choose checkpoints on.
        images: the images to caption.
        references: captions that people wrote, by image key; others than those of ``images`` are not used.
        moments: of both modalities over training data; the image mean must not come from the scored images.
        train_images: images of training and validation captions, for the methods that learn from images; else None.
        choice: other images that every method captions too, to choose sigma on; None for none.
    """

    train: Rows
    val: Rows
    images: Rows
    references: Mapping[str, Sequence[str]]
    moments: Mapping[str, Moments]
    train_images: Rows | None = None
    choice: Rows | None = None

    def sample(self, fraction: float) -> AblationData:
        """Return the data with the captions of a share of the training images (see `Rows.sample`), and these images.

        Images that are scored are not learned from; images of validation captions stay.
        """
        train = self.train if fraction == 1 else self.train.sample(fraction)
        if self.train_images is None:
            return replace(self, train=train)
        wanted = (set(train.items) - set(self.images.keys)) | set(self.val.items)
        kept = np.array([key in wanted for key in self.train_images.keys], dtype=bool)
        return replace(self, train=train, train_images=self.train_images.select(kept))


@dataclass(frozen=True)
class AblationRun:
    """One cell of the table: a training, its captions and their scores.

    Attributes:
        method: a key of `METHODS`.
        seed: of the training.
        sigma: standard deviation of the noise per dimension; 0 if there is none.
        scores: in percent, by metric.
        captions: by image key.
        best_val_loss: the loss that the checkpoint was chosen by; None if nothing was trained.
        history: the epochs.
        seconds: wall-clock, training included.
        train_fraction: share of the training images whose captions were used.
        sigma_from: ``given``, ``auto`` (a rule) or ``best`` (chosen on the val split).
        choice_scores: of the images that sigma is chosen on.
    """

    method: str
    seed: int
    sigma: float
    scores: dict[str, float]
    captions: dict[str, str]
    best_val_loss: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    train_fraction: float = 1.0
    sigma_from: str = "given"
    choice_scores: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `c3 ablate --json` writes."""
        return {
            "method": self.method,
            "seed": self.seed,
            "sigma": self.sigma,
            "sigma_from": self.sigma_from,
            "train_fraction": self.train_fraction,
            "scores": self.scores,
            "val_scores": self.choice_scores,
            "best_val_loss": self.best_val_loss,
            "seconds": round(self.seconds, 1),
        }


def run_ablation(
    data: AblationData,
    methods: Sequence[str] = ABLATION,
    *,
    seeds: Sequence[int] = (0,),
    sigma: float = 0.1,
    size: str = "tiny",
    set: Sequence[str] = (),
    epochs: int | None = None,
    generation: GenerationConfig | None = None,
    encoder: Encoder | None = None,
    compute: Compute | None = None,
    decoders: Path | None = None,
    reporter: Reporter = SILENT,
) -> Iterator[AblationRun]:
    """Train, caption and score each method with each seed; yield each cell as soon as it is there.

    Args:
        data: captions, embeddings, images, references.
        methods: keys of `METHODS`.
        seeds: one training of each method per seed.
        sigma: standard deviation of the noise per dimension, for the methods that have it.
        size, set, epochs: of the decoder and its training, as `c3tools.captioning.train_captioner` takes them.
        generation: how captions are generated; greedy when None.
        encoder: of the embeddings' model; needed by ``magic`` alone.
        compute: device and precision; the fastest available when None.
        decoders: folder in which trained decoders are kept and looked for; None keeps none.
        reporter: shows messages, and the progress of each training.

    Raises:
        DecoderError: if a method or a size is unknown, or training data is missing that a method needs.
        MetricError: if there is no image to caption, or references are missing.
    """
    check_methods(methods)
    if not len(data.images):
        raise MetricError(
            "There are no images to caption and score.", remedy="Add at least one image with reference captions."
        )
    image_sets = [data.images] if data.choice is None else [data.images, data.choice]
    config = training_config(load_size(size, set), epochs=epochs)
    for seed in seeds:
        trained: dict[Path, Captioner] = {}
        for name in methods:
            method, started = METHODS[name], time.perf_counter()
            strength = sigma if method.noisy else 0.0
            captioner = None
            if method.training is not None:
                training = _training(name, seed, sigma, decoders or Path())
                if training.folder not in trained:
                    options: dict[str, Any] = {"size": size, "set": set, "config": config, "keep": decoders is not None}
                    trained[training.folder] = _train(data, training, compute, reporter, **options)
                captioner = trained[training.folder]
            caption = _caption_function(data, method, strength, captioner, generation, encoder)
            captions = [dict(zip(images.keys, caption(images), strict=True)) for images in image_sets]
            scores = [score_captions(texts, data.references).corpus for texts in captions]
            yield AblationRun(
                name,
                seed,
                strength,
                scores[0],
                captions[0],
                None if captioner is None else captioner.record["best_val_loss"],
                [] if captioner is None else captioner.record["history"],
                time.perf_counter() - started,
                choice_scores=scores[1] if len(scores) > 1 else {},
            )


def check_methods(methods: Sequence[str]) -> None:
    """Refuse unknown names.

    Raises:
        DecoderError: with the known ones.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise DecoderError(f"There is no method {', '.join(unknown)}.", remedy=f"Choose from {', '.join(METHODS)}.")


def fit_preset(data: AblationData, name: str, sigma: float, train_on: str = "text") -> Pipeline:
    """Return a preset fitted on the training captions and the moments."""
    pipeline = preset(name, sigma=sigma, train_on=train_on)
    rows = {"text": data.train.embeddings} if pipeline.needs_rows else None
    return pipeline.fit(data.moments, rows, provenance={"split": "train"})


def training_rows(data: AblationData, learns_from: str) -> tuple[Rows, Rows]:
    """Return the rows to learn from and to validate on: texts, real pairs, or pseudo pairs.

    Pseudo pairs are training images, each with the captions nearest to it, whichever image these describe. The
    checkpoint is chosen on pseudo pairs of held-out images: the method has no others, and a decoder that reads images
    says little about texts.

    Raises:
        DecoderError: if images are needed and there are none.
    """
    if learns_from == "text":
        return data.train, data.val
    images = data.train_images
    if images is None or not len(images):
        raise DecoderError(
            "This method needs training images, but there are none.",
            remedy="Embed images of the train split, or leave out paired and WS-ClipCap.",
        )
    if learns_from == "pairs":
        return captions_of_images(images, data.train), captions_of_images(images, data.val)
    held_out = frozenset(data.val.items)
    held = np.array([key in held_out for key in images.keys], dtype=bool)
    if held.all() or not held.any():
        raise DecoderError(
            f"WS-ClipCap needs images for training and for validation, but there are {int((~held).sum())} and "
            f"{int(held.sum())}."
        )
    return _pseudo_pairs(images.select(~held), data.train), _pseudo_pairs(images.select(held), data.train)


def train_decoders(
    data: AblationData,
    cells: Iterable[tuple[str, int, float]],
    decoders: Path,
    *,
    jobs: int,
    size: str = "tiny",
    set: Sequence[str] = (),
    epochs: int | None = None,
    compute: Compute | None = None,
    reporter: Reporter = SILENT,
) -> None:
    """Train the decoders of several cells at a time, and keep them where `run_ablation` looks for them.

    Args:
        data, size, set, epochs, compute: as `run_ablation` takes them.
        cells: method, seed and sigma of each.
        decoders: folder of the trained decoders.
        jobs: how many are trained at a time (see `train_ahead`).
        reporter: shows the progress of all together.

    Raises:
        DecoderError: as `run_ablation`.
    """
    config = training_config(load_size(size, set), epochs=epochs)
    trainings = [
        _training(name, seed, sigma, decoders) for name, seed, sigma in cells if METHODS[name].training is not None
    ]
    steps = config.epochs * math.ceil(len(data.train) / config.batch_size)
    learned = replace(data, images=data.images.select(np.zeros(0, np.int64)), references={}, choice=None)
    train = partial(_train, learned, size=size, set=set, config=config, keep=True)
    train_ahead(train, trainings, steps, jobs=jobs, compute=compute or pick(), reporter=reporter)


def _training(name: str, seed: int, sigma: float, decoders: Path) -> Training:
    method = METHODS[name]
    strength = sigma if method.noisy else 0.0
    return Training.of(f"{name}, seed {seed}", str(method.training), method.learns_from, strength, seed, decoders)


def _train(
    data: AblationData,
    training: Training,
    compute: Compute | None,
    reporter: Reporter,
    *,
    size: str,
    set: Sequence[str],
    config: TrainingConfig,
    keep: bool,
) -> Captioner:
    """Return the decoder that is kept in the folder of the training; else train it and, if asked to, keep it there."""
    folder = training.folder if keep else None
    if folder is not None:
        with suppress(DecoderError):  # missing, or cut short: trained (again)
            return Captioner.load(folder)
    train, val = training_rows(data, training.learns_from)
    pipeline = fit_preset(data, training.preset, training.sigma, train_on=train.modality)
    checkpoints = None if folder is None else CheckpointDir(folder.with_name(f"{folder.name}.training"))
    captioner = fit_captioner(
        train,
        val,
        pipeline,
        record={"sigma": training.sigma},
        checkpoints=checkpoints,
        size=size,
        set=set,
        training=replace(config, seed=training.seed),
        compute=compute,
        label=training.label,
        reporter=reporter,
    )
    if folder is not None and checkpoints is not None:
        captioner.save(folder)
        checkpoints.clear()
    return captioner


def _pseudo_pairs(images: Rows, texts: Rows) -> Rows:
    found = nearest(images.embeddings, texts.embeddings, min(PSEUDO_CAPTIONS, len(texts)))
    count = found.shape[1]
    return Rows.of(
        "image",
        [f"{key}#{rank}" for key in images.keys for rank in range(count)],
        images.embeddings.repeat(count, axis=0),
        caption=[texts.captions[row] for row in found.ravel()],
    )


def _caption_function(
    data: AblationData,
    method: Method,
    sigma: float,
    captioner: Captioner | None,
    generation: GenerationConfig | None,
    encoder: Encoder | None,
) -> Callable[[Rows], list[str]]:
    """Return what captions images by a method: its trained decoder, or the nearest training caption."""
    if captioner is None:
        return lambda images: nearest_captions(images.embeddings, data.train)
    own = replace(captioner, pipeline=fit_preset(data, method.inference, sigma))
    return lambda images: own.caption(
        embeddings=images.embeddings, keys=images.keys, encoder=encoder, generation=generation
    )
