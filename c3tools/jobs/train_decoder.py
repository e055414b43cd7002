"""`c3 train-decoder`: from a store of embeddings and captions to a decoder folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..decoding import (
    Captioner,
    CaptionRows,
    Progress,
    RunFolder,
    TrainingConfig,
    fit_captioner,
    silent,
    size,
    training_config,
)
from ..devices import Compute
from ..errors import DecoderError
from ..geometry.sigma import auto_sigma
from ..seeds import stable_fraction
from ..store import Store
from ..transforms import preset
from .fitting import fit_moments, fit_on_store

AUTO = "auto"
HELD_OUT = 0.1
_MIN_STEPS = 600
_MAX_STRETCHED_EPOCHS = 60
_PATIENCE = 5


@dataclass(frozen=True)
class DecoderSettings:
    """What `train_decoder` depends on beside the store.

    Attributes:
        preset: the pipeline, a key of `c3tools.transforms.PRESETS`.
        sigma: noise per dimension, or ``auto``: from the captions of one image (`auto_sigma`).
        size: of the decoder, a key of `c3tools.decoding.SIZES`.
        epochs: passes over the captions; the size's own when None.
        train_split: the split to learn from.
        train_fraction: share of its images (by a stable hash of their keys) whose captions are used.
        patience: epochs without a better validation loss before training stops; None for the default.
        seed: of everything random.
    """

    preset: str = "c3"
    sigma: float | str = AUTO
    size: str = "small"
    epochs: int | None = None
    train_split: str = "train"
    train_fraction: float = 1.0
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.sigma, str) and self.sigma != AUTO:
            raise DecoderError(f"sigma is a number or {AUTO!r}, not {self.sigma!r}.", remedy="For example --sigma 0.1.")
        if not isinstance(self.sigma, str) and not (self.sigma >= 0 and math.isfinite(self.sigma)):
            raise DecoderError(f"sigma must be 0 or more, not {self.sigma}.", remedy="For example --sigma 0.1.")
        if not 0 < self.train_fraction <= 1:
            raise DecoderError(f"The train fraction must be above 0 and at most 1, not {self.train_fraction}.")
        if self.epochs is not None and self.epochs < 1:
            raise DecoderError(f"The number of epochs must be at least 1, not {self.epochs}.")


@dataclass(frozen=True)
class TextRows:
    """Captions of a store with their text embeddings, and what each is about."""

    rows: CaptionRows
    owners: list[str]

    def select(self, kept: npt.NDArray[np.bool_]) -> TextRows:
        """The rows where ``kept`` is true."""
        chosen = np.flatnonzero(kept)
        return TextRows(self.rows.select(chosen), [self.owners[row] for row in chosen])


def train_decoder(
    store: Store,
    output: Path,
    settings: DecoderSettings | None = None,
    *,
    compute: Compute | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda message: None,
) -> Captioner:
    """Train a decoder on the text embeddings of a store and write it to the folder ``output``.

    A run that was interrupted is continued by the same call: its state is kept in a folder beside ``output`` until
    the decoder is written.

    Args:
        store: holds text embeddings with their captions.
        output: the decoder's folder; a decoder that is there is kept as ``<output>.previous``.
        settings: see `DecoderSettings`.
        compute: device and precision; the best there is when None.
        progress: opens the display of the training.
        say: told what the user should know, one line at a time.

    Raises:
        StoreError: if the store has no texts.
        DecoderError: if there are too few captions, or the settings make no sense.
    """
    settings = settings or DecoderSettings()
    train, val, notes = split_texts(store, settings.train_split)
    if settings.train_fraction < 1:
        kept = [stable_fraction(owner, salt="train fraction") < settings.train_fraction for owner in train.owners]
        train = train.select(np.array(kept, dtype=bool))
        notes.append(f"Using {len(train.rows):,} captions: {settings.train_fraction:.0%} of the images.")
    for note in notes:
        say(note)
    pipeline = preset(settings.preset, sigma=0.0)
    sigma = 0.0
    if pipeline.noisy:
        sigma = _sigma(settings, store, train, say)
        pipeline = preset(settings.preset, sigma=sigma)
    fit_on_store(pipeline, store, split=settings.train_split)
    run = RunFolder(output.with_name(f".{output.name}.run"))
    training = plan(settings, len(train.rows))
    captioner = fit_captioner(
        train.rows,
        val.rows,
        pipeline,
        size_name=settings.size,
        training=training,
        compute=compute,
        record={"model": dict(store.info.model), "sigma": sigma, "notes": notes},
        run=run,
        progress=progress,
        say=say,
        label=f"Training {settings.preset}",
    )
    captioner.save(output)
    run.clear()
    return captioner


def plan(settings: DecoderSettings, captions: int) -> TrainingConfig:
    """The training settings for a corpus of this many captions: a small one gets more epochs, and stops early."""
    chosen = size(settings.size)
    epochs, patience = settings.epochs, settings.patience
    if epochs is None:
        steps = math.ceil(max(captions, 1) / chosen.batch_size)
        epochs = max(chosen.epochs, min(_MAX_STRETCHED_EPOCHS, math.ceil(_MIN_STEPS / steps)))
        if patience is None and epochs > chosen.epochs:
            patience = _PATIENCE
    config = training_config(chosen, seed=settings.seed, epochs=epochs)
    return replace(config, patience=patience or 0)


def split_texts(store: Store, train_split: str = "train") -> tuple[TextRows, TextRows, list[str]]:
    """Captions to learn from and others to validate on, and what to say about them.

    Where the store has no ``val`` split, a tenth of the training images (by a stable hash of their keys) is held
    out with all their captions.

    Raises:
        StoreError: if the store has no texts.
        DecoderError: if the split has no captions, or too few to hold some out.
    """
    train = text_rows(store, train_split)
    if not len(train.rows):
        there = ", ".join(f"{name}: {m.n:,}" for name, m in sorted(store.moments_by_split("text").items()))
        raise DecoderError(
            f"The store {store.path} has no captions in the split {train_split!r}; it has {there or 'none'}.",
            remedy="Name the split to learn from with --train-split.",
        )
    notes = []
    if train_split != "val" and store.moments("text", split="val").n:
        val = text_rows(store, "val")
    else:
        held_out = hold_out(train.owners)
        train, val = train.select(~held_out), train.select(held_out)
        notes.append(
            f"There is no val split: {len(val.rows):,} captions of {len(set(val.owners)):,} images are held out."
        )
    if not len(train.rows) or not len(val.rows):
        raise DecoderError(
            f"Training needs captions to learn from and others to validate on; the store {store.path} has "
            f"{len(train.rows) + len(val.rows)} in the split {train_split!r}, of one image or text.",
            remedy="Embed a corpus with more captions.",
        )
    return train, val, notes


def hold_out(owners: Sequence[str], share: float = HELD_OUT) -> npt.NDArray[np.bool_]:
    """Which rows to hold out: all of about ``share`` of the owners, at least one owner of two, the same everywhere."""
    ranked = sorted(set(owners), key=lambda owner: stable_fraction(owner, salt="validation"))
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    chosen = set(ranked[:count]) if count > 0 else set()
    return np.array([owner in chosen for owner in owners], dtype=bool)


def text_rows(store: Store, split: str) -> TextRows:
    """The captions of one split with their embeddings; a text without an image is its own owner."""
    loaded = store.load("text", split=split)
    owners = loaded.column("image_key") if "image_key" in loaded.table.column_names else [None] * len(loaded)
    captions = [caption or "" for caption in loaded.column("caption")]
    filled = [owner or key for owner, key in zip(owners, loaded.keys, strict=True)]
    return TextRows(CaptionRows(loaded.keys, loaded.embeddings, captions), filled)


def _sigma(settings: DecoderSettings, store: Store, train: TextRows, say: Callable[[str], None]) -> float:
    if not isinstance(settings.sigma, str):
        return float(settings.sigma)
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(train.owners))}
    owners = np.array([numbers[owner] for owner in train.owners], dtype=np.int64)
    mean = fit_moments(store, "text", settings.train_split).mean
    sigma, why = auto_sigma(train.rows.embeddings, owners, mean)
    say(f"{why[:1].upper()}{why[1:]}; --sigma sets another.")
    return sigma


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
