"""The cells of the table: training, captioning and scoring of each method with each seed, from rows in memory.

All results are computed here. Decoders with the same training are trained once and shared (CapDec trains as C2_2 does,
and DeCap as C1; MAGIC, ZeroCap and ESPER share a language model).
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
    fit_captioner,
    load_size,
    nearest_captions,
    training_config,
)
from ..captioning.config import UNCONDITIONAL
from ..captioning.steering import ENCODER_REMEDY, describe_cost
from ..devices import Compute, pick
from ..encoders import Encoder
from ..errors import DecoderError, MetricError
from ..metrics.captions import CaptionScores, score_captions
from ..reporter import SILENT, Reporter
from ..seeds import generator
from ..store import Rows
from ..training.checkpoints import CheckpointDir
from .data import AblationData, captions_of, fit_preset, training_rows
from .methods import ABLATION, METHODS, Method, check_methods
from .trainings import Training, train_ahead

_STEERED = 16  # images that MAGIC captions at a time
_KEPT_DIGITS = 4  # of the values of images, in percent


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
        sigma_from: ``given``, ``auto`` or ``pairs`` (a rule), or ``best`` (chosen on the val split).
        choice_scores: of the images that sigma is chosen on.
        parameters: number of weights; 0 where nothing was trained.
        training_seconds: of the training, that of a language model included where it has one.
        image_values: by metric, a value per image in the order of the sorted keys, whose mean is the score (see
            `c3tools.metrics.captions.CaptionScores.image_values`).
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
    parameters: int = 0
    training_seconds: float = 0.0
    image_values: dict[str, list[float]] = field(default_factory=dict)

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
            "images": len(self.captions),
            "best_val_loss": self.best_val_loss,
            "checkpoint": METHODS[self.method].chosen_on,
            "parameters": self.parameters,
            "training_seconds": round(self.training_seconds, 1),
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
        encoder: of the embeddings' model; needed by MAGIC, ZeroCap and ESPER.
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
    for seed in seeds:
        trained: dict[Path, Captioner] = {}
        for name in methods:
            method, started = METHODS[name], time.perf_counter()
            strength = sigma if method.noisy else 0.0
            captioner = None
            if method.training is not None:
                training = _training(name, seed, sigma, decoders or Path())
                if training.folder not in trained:
                    options: dict[str, Any] = {"size": size, "set": set, "epochs": epochs, "keep": decoders is not None}
                    trained[training.folder] = _train(data, training, compute, reporter, encoder=encoder, **options)
                captioner = trained[training.folder]
            caption = _caption_function(data, name, strength, captioner, generation, encoder, reporter)
            parts = [replace(data, images=_scored(data.images, method))]
            parts += [data.choice] if data.choice is not None and method.noisy else []
            captions = [dict(zip(part.images.keys, caption(part), strict=True)) for part in parts]
            scores = [score_captions(texts, part.references) for texts, part in zip(captions, parts, strict=True)]
            yield AblationRun(
                name,
                seed,
                strength,
                scores[0].corpus,
                captions[0],
                None if captioner is None else captioner.record["best_val_loss"],
                [] if captioner is None else captioner.record["history"],
                time.perf_counter() - started,
                choice_scores=scores[1].corpus if len(scores) > 1 else {},
                parameters=0 if captioner is None else captioner.decoder.count_parameters(),
                training_seconds=0.0 if captioner is None else _training_seconds(captioner),
                image_values=image_values(scores[0]),
            )


def image_values(scores: CaptionScores) -> dict[str, list[float]]:
    """Return the values of `AblationRun.image_values`, as they are kept."""
    order = sorted(range(len(scores.keys)), key=scores.keys.__getitem__)
    return {name: scores.image_values(name)[order].round(_KEPT_DIGITS).tolist() for name in scores.corpus}


def _scored(images: Rows, method: Method) -> Rows:
    """Return the images that a method captions: all of them, or a sample that depends only on their number."""
    if method.images is None or len(images) <= method.images:
        return images
    return images.select(np.sort(generator(0, "scored images").permutation(len(images))[: method.images]))


def _training_seconds(captioner: Captioner) -> float:
    own = sum(float(epoch["seconds"]) for epoch in captioner.record["history"])
    return own + float(captioner.record.get("language_model_seconds", 0.0))


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

    What needs the encoder to train (ESPER) is left to `run_ablation`; its language model is not.

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
        _language_model(seed, decoders)
        if METHODS[name].learns_from == "images"
        else _training(name, seed, sigma, decoders)
        for name, seed, sigma in cells
        if METHODS[name].training is not None
    ]
    steps = config.epochs * math.ceil(len(data.train) / config.batch_size)
    nothing = data.images.select(np.zeros(0, np.int64))
    learned = replace(data, images=nothing, references={}, choice=None, described=None)
    train = partial(_train, learned, size=size, set=set, epochs=epochs, keep=True)
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
    epochs: int | None,
    keep: bool,
    encoder: Encoder | None = None,
) -> Captioner:
    """Return the decoder in the folder of the training; if there is none, train it and, on request, save it there."""
    folder = training.folder if keep else None
    if folder is not None:
        with suppress(DecoderError):  # missing, or cut short: trained (again)
            return Captioner.load(folder)
    train, val = training_rows(data, training.learns_from)
    checkpoints = None if folder is None else CheckpointDir(folder.with_name(f"{folder.name}.training"))
    options: dict[str, Any] = {"checkpoints": checkpoints, "compute": compute, "label": training.label}
    if training.learns_from == "images":
        start = _language_model(training.seed, training.folder.parent)
        language_model = _train(data, start, compute, reporter, size=size, set=set, epochs=epochs, keep=keep)
        captioner = _fit_esper(train, val, language_model, encoder, training.seed, reporter, options)
    else:
        set = (*UNCONDITIONAL, *set) if training.learns_from == "captions" else set
        config = training_config(load_size(size, set), epochs=epochs, seed=training.seed)
        options |= {"size": size, "set": set, "training": config, "record": {"sigma": training.sigma}}
        pipeline = fit_preset(data, training.preset, training.sigma, train_on=train.modality)
        captioner = fit_captioner(train, val, pipeline, reporter=reporter, **options)
    if folder is not None and checkpoints is not None:
        captioner.save(folder)
        checkpoints.clear()
    return captioner


def _language_model(seed: int, within: Path) -> Training:
    """Return the training of the language model that MAGIC, ZeroCap and ESPER share."""
    return Training.of(f"language model, seed {seed}", "c1", "captions", 0.0, seed, within)


def _fit_esper(
    train: Rows,
    val: Rows,
    language_model: Captioner,
    encoder: Encoder | None,
    seed: int,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> Captioner:
    from ..captioning.esper import ESPER_TRAINING, fit_esper

    if encoder is None:
        raise DecoderError("ESPER needs an encoder, which rewards captions, but none was given.", remedy=ENCODER_REMEDY)
    training = replace(ESPER_TRAINING, seed=seed)
    record = {"language_model_seconds": _training_seconds(language_model)}
    options = {**options, "training": training, "record": record, "reporter": reporter}
    return fit_esper(train, val, language_model, encoder, **options)


def _caption_function(
    data: AblationData,
    name: str,
    sigma: float,
    captioner: Captioner | None,
    generation: GenerationConfig | None,
    encoder: Encoder | None,
    reporter: Reporter,
) -> Callable[[AblationData], list[str]]:
    """Return the function by which a method captions images: its trained decoder, or the nearest training caption."""
    method = METHODS[name]
    if captioner is None:
        return lambda part: nearest_captions(part.images.embeddings, data.train)
    own = replace(captioner, pipeline=fit_preset(data, method.inference, sigma))
    if method.steer is not None:
        config = GenerationConfig.from_options(steer=method.steer)
        return lambda part: _steered(name, own, part.images, config, encoder, reporter)

    def caption(part: AblationData) -> list[str]:
        modality = "text" if method.reads_captions else "image"
        embeddings = captions_of(part) if method.reads_captions else part.images.embeddings
        keys = part.images.keys
        return own.caption(embeddings=embeddings, modality=modality, keys=keys, generation=generation, encoder=encoder)

    return caption


def _steered(
    name: str,
    captioner: Captioner,
    images: Rows,
    config: GenerationConfig,
    encoder: Encoder | None,
    reporter: Reporter,
) -> list[str]:
    """Caption a few images at a time, because each caption takes seconds or minutes."""
    if encoder is None:
        raise DecoderError(
            f"{name} needs an encoder, which it asks at every word, but none was given.", remedy=ENCODER_REMEDY
        )
    reporter.message(f"{name}: {describe_cost(config, encoder, len(images))}")
    captions: list[str] = []
    with reporter.progress(name, len(images)) as progress:
        rows = 1 if config.method == "zerocap" else _STEERED
        for embeddings in np.split(images.embeddings, range(rows, len(images), rows)):
            captions += captioner.write(embeddings, "image", None, encoder, config)
            progress.advance(len(embeddings))
    return captions
