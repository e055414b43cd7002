"""The paper's table: methods × seeds, each trained on the same captions and scored on the same images.

`run_ablation` is a function of arrays; `store_data` reads them from a store. Every method is run, none is copied:
decoders of one training recipe are trained once and shared (CapDec trains as C2_2 does, DeCap as C1).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..decoding import (
    Captioner,
    CaptionRows,
    GenerationConfig,
    NearestCaption,
    Progress,
    TrainingConfig,
    fit_captioner,
    nearest,
    silent,
    size,
    training_config,
)
from ..devices import Compute
from ..errors import DecoderError, MetricError
from ..metrics import score_captions
from ..moments import Moments
from ..transforms import Pipeline, preset

FloatArray = npt.NDArray[np.float32]
PSEUDO_CAPTIONS = 5


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        training: preset of the pipeline that training inputs go through; None where nothing is trained.
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
    "DeCap": Method("c1", "decap", "text", False, "images projected on a memory of texts (Li et al., 2023)"),
    "CLIPRe": Method(None, "c1", "text", False, "the nearest training caption (Su et al., 2022)"),
    "WS-ClipCap": Method("c1", "c1", "pseudo-pairs", False, "training images with their nearest captions"),
    "WS-ClipCap-Multi": Method("c2-corrupt", "c2-corrupt", "pseudo-pairs", True, "the same, with noise"),
    "paired": Method("c1", "c1", "pairs", False, "trained on real pairs: the upper bound"),
}
ABLATION = ("C1", "C2_1", "C2_2", "C3")


@dataclass(frozen=True)
class AblationData:
    """What a table is computed from; embeddings are float32, L2-normalised.

    Attributes:
        train: training captions with their text embeddings.
        val: other captions with their text embeddings, to choose checkpoints on.
        images: embeddings (n, d) of the images to caption, in the order of ``image_keys``.
        image_keys: their keys.
        references: what people wrote about each.
        moments: of both modalities over training data; the image mean must not come from the scored images.
        train_images: image embeddings by key, for the methods that learn from images; else empty.
        train_owners: for each training caption the key of its image.
        val_owners: the same for the validation captions.
    """

    train: CaptionRows
    val: CaptionRows
    images: FloatArray
    image_keys: Sequence[str]
    references: Mapping[str, Sequence[str]]
    moments: Mapping[str, Moments]
    train_images: Mapping[str, FloatArray] = field(default_factory=dict)
    train_owners: Sequence[str] = ()
    val_owners: Sequence[str] = ()


@dataclass(frozen=True)
class AblationRun:
    """One cell of the table: scores in percent by metric, captions by image key."""

    method: str
    seed: int
    sigma: float
    scores: dict[str, float]
    captions: dict[str, str]
    best_val_loss: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What `c3 ablate --json` writes of it."""
        return {
            "method": self.method,
            "seed": self.seed,
            "sigma": self.sigma,
            "scores": self.scores,
            "best_val_loss": self.best_val_loss,
            "seconds": round(self.seconds, 1),
        }


def run_ablation(
    data: AblationData,
    methods: Sequence[str] = ABLATION,
    *,
    seeds: Sequence[int] = (0,),
    sigma: float = 0.1,
    size_name: str = "tiny",
    epochs: int | None = None,
    generation: GenerationConfig | None = None,
    compute: Compute | None = None,
    progress: Progress = silent,
) -> Iterator[AblationRun]:
    """Train, caption and score each method with each seed; yields each cell as soon as it is there.

    Args:
        data: captions, embeddings, images, references.
        methods: keys of `METHODS`.
        seeds: of initialisation, order, noise.
        sigma: standard deviation of the noise per dimension, for the methods that have it.
        size_name: size of the decoder, a key of ``decoding.SIZES``.
        epochs: passes over the captions; the size's own when None.
        generation: how captions are written; greedy when None.
        compute: device and precision; the best there is when None.
        progress: opens the display of each training, for example `c3tools.progress.track`.

    Raises:
        DecoderError: if a method or a size is unknown, or training data is missing that a method needs.
        MetricError: if there is no image to caption, or references are missing.
    """
    check_methods(methods)
    if not len(data.images):
        raise MetricError("There is no image to caption and score.", remedy="Give at least one image with references.")
    for seed in seeds:
        trained: dict[tuple[str, str, float], Captioner] = {}
        for name in methods:
            method = METHODS[name]
            started = time.perf_counter()
            strength = sigma if method.noisy else 0.0
            captioner = None
            if method.training is None:
                captions = NearestCaption(data.train.embeddings, data.train.captions).caption(data.images)
            else:
                recipe = (method.training, method.learns_from, strength)
                if recipe not in trained:
                    config = training_config(size(size_name), seed=seed, epochs=epochs)
                    trained[recipe] = _train(
                        data, method, strength, size_name, config, compute, progress, f"{name}, seed {seed}"
                    )
                captioner = trained[recipe]
                pipeline = _fitted(data, method.inference, strength)
                inference = Captioner(captioner.decoder, captioner.tokenizer, pipeline, captioner.record)
                captions = inference.caption(data.images, keys=data.image_keys, generation=generation)
            written = dict(zip(data.image_keys, captions, strict=True))
            scores = score_captions(written, data.references)
            yield AblationRun(
                name,
                seed,
                strength,
                scores.corpus,
                written,
                None if captioner is None else captioner.record["best_val_loss"],
                [] if captioner is None else captioner.record["history"],
                time.perf_counter() - started,
            )


def check_methods(methods: Sequence[str]) -> None:
    """Refuse unknown names.

    Raises:
        DecoderError: with the known ones.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise DecoderError(f"Unknown method {', '.join(unknown)}.", remedy=f"Choose from {', '.join(METHODS)}.")


def _train(
    data: AblationData,
    method: Method,
    sigma: float,
    size_name: str,
    config: TrainingConfig,
    compute: Compute | None,
    progress: Progress,
    label: str,
) -> Captioner:
    assert method.training is not None
    train, val = data.train, data.val
    if method.learns_from == "pairs":
        train = _image_rows(data, data.train, data.train_owners)
        val = _image_rows(data, data.val, data.val_owners)
    elif method.learns_from == "pseudo-pairs":
        train = _pseudo_pairs(data)
    return fit_captioner(
        train,
        val,
        _fitted(data, method.training, sigma, train_on=train.modality),
        size_name=size_name,
        training=config,
        compute=compute,
        record={"sigma": sigma},
        progress=progress,
        label=label,
    )


def _fitted(data: AblationData, name: str, sigma: float, train_on: str = "text") -> Pipeline:
    pipeline = preset(name, sigma=sigma, train_on=train_on)
    rows = {"text": data.train.embeddings} if pipeline.needs_rows else None
    return pipeline.fit(data.moments, rows, provenance={"split": "train"})


def _image_rows(data: AblationData, rows: CaptionRows, owners: Sequence[str]) -> CaptionRows:
    """The captions whose image is there, each with its image's embedding."""
    _need_images(data)
    if len(owners) != len(rows):
        raise DecoderError(f"There are {len(owners)} image keys for {len(rows)} captions.")
    kept = np.array([row for row, owner in enumerate(owners) if owner in data.train_images], dtype=np.int64)
    chosen = rows.select(kept)
    embeddings = np.stack([data.train_images[owners[row]] for row in kept]) if len(kept) else rows.embeddings[:0]
    return CaptionRows(chosen.keys, embeddings, chosen.captions, "image")


def _pseudo_pairs(data: AblationData) -> CaptionRows:
    """Each training image with the captions nearest to it, whoever wrote them."""
    _need_images(data)
    held_out = set(data.val_owners)
    keys = [key for key in data.train_images if key not in held_out]
    images = np.stack([data.train_images[key] for key in keys])
    found = nearest(images, data.train.embeddings, min(PSEUDO_CAPTIONS, len(data.train)))
    rows = [(image, rank, caption) for image, ranks in enumerate(found) for rank, caption in enumerate(ranks)]
    return CaptionRows(
        [f"{keys[image]}#{rank}" for image, rank, _ in rows],
        images[[image for image, _, _ in rows]],
        [data.train.captions[caption] for _, _, caption in rows],
        "image",
    )


def _need_images(data: AblationData) -> None:
    if not data.train_images:
        raise DecoderError(
            "This method learns from training images, and there are none.",
            remedy="Embed images of the train split, or leave out paired and WS-ClipCap.",
        )
