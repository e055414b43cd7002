"""The paper's table: methods × seeds, each trained on the same captions and scored on the same images.

`run_ablation` is a function of arrays; `store_data` reads them from a store. Every method is run, none is copied:
decoders of one training recipe are trained once and shared (CapDec trains as C2_2 does, DeCap as C1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..captioning import (
    Captioner,
    CaptionRows,
    GenerationConfig,
    NearestCaption,
    Progress,
    TextEncoder,
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
from .decoders import DecoderCache, TrainingKey

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
    "LAFITE": Method("lafite", "lafite", "text", False, "noise of 0.75 of each vector (Zhou et al., 2022)"),
    "DeCap": Method("c1", "decap", "text", False, "images projected on a memory of texts (Li et al., 2023)"),
    "CLIPRe": Method(None, "c1", "text", False, "the nearest training caption (Su et al., 2022)"),
    "WS-ClipCap": Method("c1", "c1", "pseudo-pairs", False, "training images with their nearest captions"),
    "WS-ClipCap-Multi": Method("c2-corrupt", "c2-corrupt", "pseudo-pairs", True, "the same, with noise"),
    "paired": Method("c1", "c1", "pairs", False, "trained on real pairs: the upper bound"),
}
ABLATION = ("C1", "C2_1", "C2_2", "C3")


@dataclass(frozen=True)
class ScoredImages:
    """Images to caption, and what people wrote about them.

    Attributes:
        embeddings: float32 (n, d).
        keys: n keys.
        references: captions by key.
    """

    embeddings: FloatArray
    keys: Sequence[str]
    references: Mapping[str, Sequence[str]]


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
        choice: other images that every method captions too, to choose sigma on; None for none.
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
    choice: ScoredImages | None = None

    @property
    def scored(self) -> ScoredImages:
        """The images of the table."""
        return ScoredImages(self.images, self.image_keys, self.references)


@dataclass(frozen=True)
class AblationRun:
    """One training with its captions.

    Attributes:
        method: a key of `METHODS`.
        seed: of the training.
        sigma: standard deviation of the noise per dimension; 0 where there is none.
        scores: in percent, by metric.
        captions: by image key.
        best_val_loss: the loss that the checkpoint was chosen by; None where nothing was trained.
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

    def to_json(self) -> dict[str, Any]:
        """What `c3 ablate --json` writes of it."""
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
    size_name: str = "tiny",
    changes: Sequence[str] = (),
    epochs: int | None = None,
    generation: GenerationConfig | None = None,
    encoder: TextEncoder | None = None,
    compute: Compute | None = None,
    decoders: DecoderCache | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda message: None,
) -> Iterator[AblationRun]:
    """Train, caption and score each method with each seed; yields each cell as soon as it is there.

    Args:
        data: captions, embeddings, images, references.
        methods: keys of `METHODS`.
        seeds: of initialisation, order, noise.
        sigma: standard deviation of the noise per dimension, for the methods that have it.
        size_name: size of the decoder, a key of ``decoding.SIZES``.
        changes: settings of the size that are changed, ``name=value``.
        epochs: passes over the captions; the size's own when None.
        generation: how captions are written; greedy when None.
        encoder: of the embeddings' model; needed by ``magic`` alone.
        compute: device and precision; the best there is when None.
        decoders: where trained decoders are kept and looked for; in memory when None.
        progress: opens the display of each training, for example `c3tools.reporter.track`.
        say: told whether an interrupted training is continued.

    Raises:
        DecoderError: if a method or a size is unknown, or training data is missing that a method needs.
        MetricError: if there is no image to caption, or references are missing.
    """
    check_methods(methods)
    if not len(data.images):
        raise MetricError("There is no image to caption and score.", remedy="Give at least one image with references.")
    sets = [data.scored] if data.choice is None else [data.scored, data.choice]
    decoders = decoders or DecoderCache()
    for seed in seeds:
        for name in methods:
            method = METHODS[name]
            started = time.perf_counter()
            strength = sigma if method.noisy else 0.0
            captioner: Captioner | None = None
            if method.training is not None:
                recipe = TrainingKey(method.training, method.learns_from, strength, seed)
                captioner = decoders.get(recipe)
                if captioner is None:
                    config = training_config(size(size_name, changes), seed=seed, epochs=epochs)
                    options = {"size_name": size_name, "changes": changes, "training": config, "compute": compute}
                    options |= {"run": decoders.run(recipe), "label": f"{name}, seed {seed}"}
                    captioner = _train(data, method, strength, progress=progress, say=say, **options)
                    decoders.put(recipe, captioner)
            write = _writer(data, method, strength, captioner, generation, encoder)
            written = [dict(zip(images.keys, write(images), strict=True)) for images in sets]
            scores = [
                score_captions(captions, images.references).corpus
                for captions, images in zip(written, sets, strict=True)
            ]
            yield AblationRun(
                name,
                seed,
                strength,
                scores[0],
                written[0],
                None if captioner is None else captioner.record["best_val_loss"],
                [] if captioner is None else captioner.record["history"],
                time.perf_counter() - started,
                choice_scores=scores[1] if len(scores) > 1 else {},
            )


def _writer(
    data: AblationData,
    method: Method,
    sigma: float,
    captioner: Captioner | None,
    generation: GenerationConfig | None,
    encoder: TextEncoder | None,
) -> Callable[[ScoredImages], list[str]]:
    """What captions images by the method: its trained decoder, or the nearest training caption."""
    if captioner is None:
        memory = NearestCaption(data.train.embeddings, data.train.captions)
        return lambda images: memory.caption(images.embeddings)
    pipeline = _fitted(data, method.inference, sigma)
    inference = Captioner(captioner.decoder, captioner.tokenizer, pipeline, captioner.record)
    return lambda images: inference.caption(images.embeddings, keys=images.keys, generation=generation, encoder=encoder)


def check_methods(methods: Sequence[str]) -> None:
    """Refuse unknown names.

    Raises:
        DecoderError: with the known ones.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise DecoderError(f"Unknown method {', '.join(unknown)}.", remedy=f"Choose from {', '.join(METHODS)}.")


def _train(data: AblationData, method: Method, sigma: float, **options: Any) -> Captioner:
    assert method.training is not None
    train, val = data.train, data.val
    if method.learns_from == "pairs":
        train = _image_rows(data, data.train, data.train_owners)
        val = _image_rows(data, data.val, data.val_owners)
    elif method.learns_from == "pseudo-pairs":
        train, val = _pseudo_pairs(data)
    pipeline = _fitted(data, method.training, sigma, train_on=train.modality)
    return fit_captioner(train, val, pipeline, record={"sigma": sigma}, **options)


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


def _pseudo_pairs(data: AblationData) -> tuple[CaptionRows, CaptionRows]:
    """Each training image with the captions nearest to it, whoever wrote them; and the same of held-out images.

    The checkpoint is chosen on pseudo pairs too: the method has no others, and a decoder that reads images says
    little about texts.
    """
    _need_images(data)
    held_out = set(data.val_owners)
    train = [key for key in data.train_images if key not in held_out]
    val = [key for key in data.train_images if key in held_out]
    if not train or not val:
        raise DecoderError(
            f"WS-ClipCap needs images to learn from and others to validate on; there are {len(train)} and {len(val)}."
        )
    return _retrieved(data, train), _retrieved(data, val)


def _retrieved(data: AblationData, keys: Sequence[str]) -> CaptionRows:
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
