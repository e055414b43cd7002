"""`c3 train-decoder`: from a store of embeddings and captions to a decoder folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..devices import Compute
from ..errors import DecoderError
from ..store import Store
from ..transforms import Pipeline, preset
from ..transforms.fitting import fit_moments
from ..transforms.sigma import auto_sigma
from .captioner import Captioner
from .config import Size, TrainingConfig, size
from .fitting import CaptionRows, Progress, fit_captioner, silent, training_config
from .runs import RunFolder
from .training import Recorder
from .training_rows import TextRows, image_rows, share_of, split_texts

AUTO = "auto"
DEFAULT_PRESET = "c3"
MONITORS = ("text", "cross-modal")
CURVES_FILE = "curves.png"
_MIN_STEPS = 600
_MAX_STRETCHED_EPOCHS = 60
_PATIENCE = 5
_FINE_TUNING = 0.1  # of the size's learning rate: the weights are good already


@dataclass(frozen=True)
class DecoderSettings:
    """What `train_decoder` depends on beside the store.

    Attributes:
        preset: the pipeline, a key of `c3tools.transforms.PRESETS`; None for ``c3``, or for that of ``start``.
        sigma: noise per dimension, or ``auto``: from the captions of one image (`auto_sigma`); None for ``auto``, for
            that of ``start``, or, where pairs are learned from scratch, for none.
        size: of the decoder, a key of `c3tools.captioning.SIZES`.
        changes: settings of the size that are changed, ``name=value``.
        epochs: passes over the captions; the size's own when None.
        train_split: the split to learn from.
        train_fraction: share of its images (by a stable hash of their keys) whose captions are used.
        patience: epochs without a better validation loss before training stops; None for the default.
        monitor: what the checkpoint is chosen on: ``text``, the noise-free loss of other captions from their own
            embeddings (the method may not look at pairs), or ``cross-modal``, their loss from their images.
        start: the folder of a decoder to continue from, with its pipeline.
        pairs: share of the training images (drawn by the seed) to learn from as pairs, image to caption; None to
            learn from texts.
        seed: of everything random.
    """

    preset: str | None = None
    sigma: float | str | None = None
    size: str = "small"
    changes: tuple[str, ...] = ()
    epochs: int | None = None
    train_split: str = "train"
    train_fraction: float = 1.0
    patience: int | None = None
    monitor: str = "text"
    start: Path | None = None
    pairs: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.sigma, str) and self.sigma != AUTO:
            raise DecoderError(f"sigma is a number or {AUTO!r}, not {self.sigma!r}.", remedy="For example --sigma 0.1.")
        if isinstance(self.sigma, float | int) and not (self.sigma >= 0 and math.isfinite(self.sigma)):
            raise DecoderError(f"sigma must be 0 or more, not {self.sigma}.", remedy="For example --sigma 0.1.")
        if self.start is not None and not (self.preset is None and self.sigma is None):
            raise DecoderError(
                "The transform, with its sigma, is that of the decoder to continue from; it cannot be changed.",
                remedy="Leave out --preset and --sigma, or train a new decoder without --from.",
            )
        if not 0 < self.train_fraction <= 1:
            raise DecoderError(f"The train fraction must be above 0 and at most 1, not {self.train_fraction}.")
        if self.pairs is not None and not 0 < self.pairs <= 1:
            raise DecoderError(f"The share of pairs must be above 0 and at most 1, not {self.pairs}.")
        if self.monitor not in MONITORS:
            raise DecoderError(f"There is no monitor {self.monitor!r}.", remedy=f"Choose from {', '.join(MONITORS)}.")
        if self.epochs is not None and self.epochs < 1:
            raise DecoderError(f"The number of epochs must be at least 1, not {self.epochs}.")


def train_decoder(
    store: Store,
    output: Path,
    settings: DecoderSettings | None = None,
    *,
    compute: Compute | None = None,
    recorder: Recorder | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda message: None,
) -> Captioner:
    """Train a decoder on the text embeddings of a store and write it to the folder ``output``.

    With ``settings.pairs`` it learns from images instead: on top of a decoder trained on texts (``settings.start``),
    the low-data regime of the paper, with that decoder's noise; or from scratch, without noise unless sigma is given.
    A run that was interrupted is continued by the same call: its state is kept in a folder beside ``output`` until
    the decoder is written.

    Args:
        store: holds text embeddings with their captions.
        output: the decoder's folder; a decoder that is there is kept as ``<output>.previous``.
        settings: see `DecoderSettings`.
        compute: device and precision; the best there is when None.
        recorder: told of the losses.
        progress: opens the display of the training.
        say: told what the user should know, one line at a time.

    Raises:
        StoreError: if the store has no texts, or no images where they are needed.
        DecoderError: if there are too few captions, the settings make no sense, or the decoder to continue from
            is of another model.
    """
    settings = settings or DecoderSettings()
    start = _start(settings, store)
    train, val, notes = split_texts(store, settings.train_split)
    if settings.train_fraction < 1:
        train = train.select(share_of(train.owners, settings.train_fraction))
        notes.append(f"Using {len(train.rows):,} captions: {settings.train_fraction:.0%} of the images.")
    learned, validated = train.rows, val.rows
    if settings.pairs is not None:
        learned, validated, note = _pairs(store, train, val, settings)
        notes.append(note)
    elif settings.monitor == "cross-modal":
        validated = image_rows(store, val)
        notes.append(f"The checkpoint is chosen on {len(validated):,} captions from the embeddings of their images.")
    for note in notes:
        say(note)
    pipeline, sigma = _pipeline(settings, store, train, start, say)
    run = RunFolder(output.with_name(f".{output.name}.run"))
    record = {"model": dict(store.info.model), "sigma": sigma, "notes": notes}
    if settings.pairs is not None:
        record["pairs"] = settings.pairs
    if settings.start is not None:
        record["from"] = str(settings.start)
    captioner = fit_captioner(
        learned,
        validated,
        pipeline,
        size_name=settings.size if start is None else str(start.record.get("size", settings.size)),
        changes=settings.changes,
        training=plan(settings, len(learned), start),
        compute=compute,
        record=record,
        start=start,
        run=run,
        recorder=recorder,
        progress=progress,
        say=say,
        label=f"Training {pipeline.name}",
    )
    captioner.save(output)
    draw_curves(captioner, output)
    run.clear()
    return captioner


def draw_curves(captioner: Captioner, folder: Path) -> None:
    """Write the course of the training as a figure beside the decoder."""
    from ..pages.figures import save_figure
    from .curves import training_curves

    save_figure(training_curves(captioner.record), folder / CURVES_FILE)


def plan(settings: DecoderSettings, captions: int, start: Captioner | None = None) -> TrainingConfig:
    """The training settings for a corpus of this many captions: a small one gets more epochs, and stops early.

    A decoder that training continues from is trained at a lower rate than a new one.

    Raises:
        DecoderError: if a setting is unknown, or one of the architecture is changed where it is given.
    """
    name = settings.size if start is None else str(start.record.get("size", settings.size))
    chosen = size(name, settings.changes)
    if start is not None:
        if replace(chosen, training=size(name).training) != size(name):
            raise DecoderError("The architecture is that of the decoder to continue from; it cannot be changed.")
        if not any(change.startswith("learning_rate=") for change in settings.changes):
            rate = _FINE_TUNING * chosen.training.learning_rate
            chosen = replace(chosen, training=replace(chosen.training, learning_rate=rate))
    own = chosen.training
    epochs = settings.epochs
    patience = own.patience if settings.patience is None else settings.patience
    if epochs is None and isinstance(chosen, Size):
        steps = math.ceil(max(captions, 1) / own.batch_size)
        epochs = max(own.epochs, min(_MAX_STRETCHED_EPOCHS, math.ceil(_MIN_STEPS / steps)))
        if settings.patience is None and epochs > own.epochs:
            patience = _PATIENCE
    return training_config(chosen, seed=settings.seed, epochs=epochs, patience=patience)


def _start(settings: DecoderSettings, store: Store) -> Captioner | None:
    if settings.start is None:
        return None
    start = Captioner.load(settings.start)
    start.check_model(store.info.model, store.info.dim)
    return start


def _pipeline(
    settings: DecoderSettings, store: Store, train: TextRows, start: Captioner | None, say: Callable[[str], None]
) -> tuple[Pipeline, float]:
    """The fitted pipeline and its sigma: those of the decoder to continue from, else the preset's."""
    if start is not None:
        return start.pipeline, float(start.record.get("sigma", 0.0))
    name = settings.preset or DEFAULT_PRESET
    pipeline, sigma = preset(name, sigma=0.0), 0.0
    if pipeline.noisy and (settings.pairs is None or settings.sigma is not None):
        sigma = _sigma(settings, store, train, say)
        pipeline = preset(name, sigma=sigma)
    return pipeline.fit(store, split=settings.train_split), sigma


def _pairs(
    store: Store, train: TextRows, val: TextRows, settings: DecoderSettings
) -> tuple[CaptionRows, CaptionRows, str]:
    """Pairs to learn from and others to validate on: the same share of both, or few pairs would be no few."""
    assert settings.pairs is not None
    salt = f"pairs {settings.seed}"
    chosen = [part.select(share_of(part.owners, settings.pairs, salt)) for part in (train, val)]
    learned, validated = (image_rows(store, part) for part in chosen)
    counts = [len(set(part.owners)) for part in chosen]
    return (
        learned,
        validated,
        f"Learning from pairs: {len(learned):,} captions of {counts[0]:,} images; the checkpoint is chosen on "
        f"{len(validated):,} captions of {counts[1]:,} others.",
    )


def _sigma(settings: DecoderSettings, store: Store, train: TextRows, say: Callable[[str], None]) -> float:
    if isinstance(settings.sigma, float | int):
        return float(settings.sigma)
    sigma, why = sigma_from_texts(store, train, settings.train_split)
    say(f"{why}; --sigma sets another.")
    return sigma


def sigma_from_texts(store: Store, train: TextRows, split: str) -> tuple[float, str]:
    """Sigma by the rule of ``--sigma auto``, and a sentence on what it rests on."""
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(train.owners))}
    owners = np.array([numbers[owner] for owner in train.owners], dtype=np.int64)
    sigma, why = auto_sigma(train.rows.embeddings, owners, fit_moments(store, "text", split).mean)
    return sigma, f"{why[:1].upper()}{why[1:]}"


def summary(captioner: Captioner) -> dict[str, Any]:
    """What `c3 train-decoder --json` prints: the record, without the history's seconds."""
    return {**captioner.record, "parameters": sum(p.numel() for p in captioner.decoder.parameters())}


def parse_sigma(text: str) -> float | str:
    """A number, or ``auto``.

    Raises:
        DecoderError: for anything else.
    """
    if text == AUTO:
        return text
    try:
        return float(text)
    except ValueError:
        raise DecoderError(f"sigma is a number or {AUTO!r}, not {text!r}.", remedy="For example --sigma 0.1.") from None
