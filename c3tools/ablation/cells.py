"""`c3 ablate` on a store: cells that are finished are kept, so that the table can be continued and extended."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..captioning import GenerationConfig, Progress, TextEncoder, silent, size, training_config
from ..captioning.evaluate import store_references
from ..captioning.train import sigma_from_texts
from ..captioning.training_rows import TextRows, share_of, split_texts
from ..devices import Compute
from ..errors import DecoderError, MetricError
from ..io.files import write_json_atomically
from ..store import Store
from ..transforms.fitting import fit_moments
from .decoders import DecoderCache
from .run import ABLATION, METHODS, AblationData, AblationRun, ScoredImages, check_methods, run_ablation

Say = Callable[[str], None]
Sigma = float | Literal["auto", "best"]
GRID = (0.03, 0.045, 0.06, 0.08, 0.1)
_CHOOSE_BY = "CIDEr"
_NAMED_DIGITS = 12


@dataclass(frozen=True)
class TableSettings:
    """What `ablate_store` computes.

    Attributes:
        methods: keys of `METHODS`.
        seeds: one cell each.
        sigmas: one row each, for the methods that have noise: a number, ``auto`` (the rule of `c3 train-decoder`), or
            ``best``: the one of ``grid`` with the best CIDEr on the val split, for each method, by the first seed.
        grid: what ``best`` chooses from.
        size: of the decoder.
        changes: settings of the size that are changed, ``name=value``.
        epochs: passes over the captions; the size's own when None.
        split: the images that are captioned and scored.
        train_fractions: shares of the training images whose captions are used; one row each.
        generation: how captions are written.
        keep_decoders: keep the trained decoders too, so that captions can be written in another way without training.
    """

    methods: tuple[str, ...] = ABLATION
    seeds: tuple[int, ...] = (0, 1, 2)
    sigmas: tuple[Sigma, ...] = (0.1,)
    grid: tuple[float, ...] = GRID
    size: str = "small"
    changes: tuple[str, ...] = ()
    epochs: int | None = None
    split: str = "test"
    train_fractions: tuple[float, ...] = (1.0,)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    keep_decoders: bool = True

    def __post_init__(self) -> None:
        check_methods(self.methods)
        size(self.size, self.changes)
        for name in ("methods", "seeds", "sigmas", "train_fractions"):
            if not getattr(self, name):
                raise DecoderError(f"A table needs at least one of its {name.replace('_', ' ')}.")
        for fraction in self.train_fractions:
            if not 0 < fraction <= 1:
                raise DecoderError(f"The train fraction must be above 0 and at most 1, not {fraction}.")
        if self.split == "val" and "best" in self.sigmas:
            raise MetricError("Sigma is chosen on the val split, so it cannot be what the table is scored on.")


def parse_sigma(text: str) -> Sigma:
    """A number, ``auto`` or ``best``.

    Raises:
        DecoderError: for anything else.
    """
    if text in ("auto", "best"):
        return text  # type: ignore[return-value]
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value >= 0 and math.isfinite(value)):
        raise DecoderError(
            f"sigma is a number of at least 0, 'auto' or 'best', not {text!r}.", remedy="For example --sigma 0.1."
        )
    return value


def parse_grid(text: str) -> tuple[float, ...]:
    """Comma-separated numbers.

    Raises:
        DecoderError: if one is no number, or there is none.
    """
    values = [parse_sigma(part.strip()) for part in text.split(",") if part.strip()]
    if not values or any(isinstance(value, str) for value in values):
        raise DecoderError(f"The grid is a list of numbers, not {text!r}.", remedy="For example --grid 0.03,0.06,0.1.")
    return tuple(float(value) for value in values)


def store_data(
    store: Store,
    *,
    split: str = "test",
    train_fraction: float = 1.0,
    choose: bool = False,
    say: Say = lambda message: None,
) -> AblationData:
    """What the table is computed from: train captions, val captions, the images of ``split`` with their captions.

    Args:
        store: holds images and texts.
        split: the images that are captioned and scored.
        train_fraction: share of the training images whose captions are used.
        choose: whether the images of the val split are captioned too, to choose sigma on.
        say: told what the user should know.

    Raises:
        StoreError: if texts or images are missing.
        DecoderError: if there are too few captions.
        MetricError: if the split has no images with captions.
    """
    train, val, notes = split_texts(store)
    if train_fraction < 1:
        train = train.select(share_of(train.owners, train_fraction))
    known = store_references(store)
    scored, note = _scored(store, split, known)
    notes += note
    overlap = set(train.owners) & set(scored.keys)
    if overlap:
        notes.append(f"{len(overlap):,} of the scored images have their captions among the training captions.")
    if set(val.owners) & set(scored.keys):
        notes.append("The scored images have their captions among those that checkpoints are chosen on.")
    for line in notes:
        say(line)
    others = store.load("image")
    wanted = (set(train.owners) - set(scored.keys)) | set(val.owners)
    return AblationData(
        train.rows,
        val.rows,
        scored.embeddings,
        scored.keys,
        scored.references,
        {modality: fit_moments(store, modality, "train") for modality in store.modalities},
        {key: row for key, row in zip(others.keys, others.embeddings, strict=True) if key in wanted},
        train.owners,
        val.owners,
        _scored(store, "val", known)[0] if choose else None,
    )


def ablate_store(
    store: Store,
    settings: TableSettings,
    folder: Path,
    *,
    encoder: TextEncoder | None = None,
    compute: Compute | None = None,
    progress: Progress = silent,
    say: Say = lambda message: None,
) -> Iterator[AblationRun]:
    """All runs of the table, those that are finished from ``folder``, the others computed and written there.

    Where sigma is chosen, what it was chosen by is written to ``sigma.json`` in ``folder``.

    Raises:
        DecoderError, MetricError, StoreError: see `run_ablation` and `store_data`.
    """
    choose = "best" in settings.sigmas
    for fraction in settings.train_fractions:
        data = store_data(store, split=settings.split, train_fraction=fraction, choose=choose, say=say)
        options: dict[str, Any] = {"encoder": encoder, "compute": compute, "progress": progress}
        cells = _Cells(folder, data, settings, fraction, options, say)
        for source, strengths in _strengths(store, cells):
            for seed in settings.seeds:
                for run in cells.runs(strengths, seed):
                    yield replace(run, sigma_from=source, train_fraction=fraction)


def _strengths(store: Store, cells: _Cells) -> Iterator[tuple[str, dict[str, float]]]:
    """Where sigma comes from, and the sigma of each method; methods without noise once."""
    settings, noiseless = cells.settings, True
    for sigma in settings.sigmas:
        methods = [name for name in settings.methods if noiseless or METHODS[name].noisy]
        if not methods:
            continue
        if sigma == "best":
            chosen = cells.choose([name for name in methods if METHODS[name].noisy])
            yield "best", {name: chosen.get(name, 0.0) for name in methods}
        elif sigma == "auto":
            train = TextRows(cells.data.train, list(cells.data.train_owners))
            value, why = sigma_from_texts(store, train, "train")
            cells.say(why)
            yield "auto", dict.fromkeys(methods, value)
        else:
            yield "given", dict.fromkeys(methods, float(sigma))
        noiseless = False


class _Cells:
    """The finished cells of one table in a folder, and what the others are computed from."""

    def __init__(
        self,
        folder: Path,
        data: AblationData,
        settings: TableSettings,
        fraction: float,
        options: dict[str, Any],
        say: Say,
    ) -> None:
        self.folder, self.data, self.settings, self.options, self.say = folder, data, settings, options, say
        self.fraction = fraction
        trained = _training_identity(data, settings)
        self.identity = _cell_identity(trained, data, settings)
        self.cells = folder / "cells" / self.identity[:_NAMED_DIGITS]
        self.decoders = DecoderCache(folder / "decoders" / trained[:_NAMED_DIGITS] if settings.keep_decoders else None)

    def runs(self, strengths: dict[str, float], seed: int) -> Iterator[AblationRun]:
        """One run per method, each at its sigma; methods of one sigma are run together and share trainings."""
        settings = self.settings
        for sigma in dict.fromkeys(strengths.values()):
            pending = []
            for method in (name for name, own in strengths.items() if own == sigma):
                run = self._read(method, seed, sigma)
                if run is None:
                    pending.append(method)
                else:
                    self.say(f"{method}, seed {seed}: finished before")
                    yield run
            for run in run_ablation(
                self.data,
                pending,
                seeds=(seed,),
                sigma=sigma,
                size_name=settings.size,
                changes=settings.changes,
                epochs=settings.epochs,
                generation=settings.generation,
                decoders=self.decoders,
                say=self.say,
                **self.options,
            ):
                content = {"identity": self.identity, "run": asdict(run)}
                write_json_atomically(self._path(run.method, seed, sigma), content)
                yield run

    def choose(self, methods: Sequence[str]) -> dict[str, float]:
        """The sigma of the grid with the best score on the val split, for each method, by the first seed."""
        tried: dict[str, dict[float, float]] = {name: {} for name in methods}
        for sigma in self.settings.grid:
            for run in self.runs(dict.fromkeys(methods, sigma), self.settings.seeds[0]):
                tried[run.method][sigma] = run.choice_scores[_CHOOSE_BY]
        chosen = {name: max(scores, key=scores.__getitem__) for name, scores in tried.items()}
        for name, scores in tried.items():
            listed = ", ".join(f"{sigma:g}: {score:.1f}" for sigma, score in scores.items())
            self.say(f"{name}: sigma {chosen[name]:g} is best on the val split ({_CHOOSE_BY} by sigma {listed})")
        name = "sigma.json" if self.fraction == 1 else f"sigma-fraction{self.fraction:g}.json"
        plain = {name: {f"{sigma:g}": score for sigma, score in scores.items()} for name, scores in tried.items()}
        write_json_atomically(self.folder / name, {"split": "val", "metric": _CHOOSE_BY, "scores": plain})
        return chosen

    def _path(self, method: str, seed: int, sigma: float) -> Path:
        strength = sigma if METHODS[method].noisy else 0.0
        return self.cells / f"{method}-sigma{strength:g}-seed{seed}.json"

    def _read(self, method: str, seed: int, sigma: float) -> AblationRun | None:
        try:
            content = json.loads(self._path(method, seed, sigma).read_text(encoding="utf-8"))
            run = AblationRun(**content["run"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if content["identity"] != self.identity or (self.data.choice is not None and not run.choice_scores):
            return None
        return run


def _scored(store: Store, split: str, known: dict[str, list[str]]) -> tuple[ScoredImages, list[str]]:
    images = store.load("image", split=split)
    rows = [row for row, key in enumerate(images.keys) if key in known]
    if not rows:
        raise MetricError(
            f"The store {store.path} has no images with captions in the split {split!r}.",
            remedy="Name another with --split.",
        )
    notes = []
    if len(rows) < len(images):
        notes.append(f"{len(images) - len(rows):,} images have no captions to score against and are left out.")
    keys = [images.keys[row] for row in rows]
    return ScoredImages(images.embeddings[rows], keys, {key: known[key] for key in keys}), notes


def _training_identity(data: AblationData, settings: TableSettings) -> str:
    """A digest of all that a trained decoder depends on beside its `TrainingKey`."""
    chosen = size(settings.size, settings.changes)
    training = training_config(chosen, epochs=settings.epochs)
    plain: dict[str, Any] = {
        "size": asdict(replace(chosen, training=training)),
        "captions": [data.train.captions, data.val.captions],
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for array in (data.train.embeddings, data.val.embeddings, *data.train_images.values()):
        digest.update(np.ascontiguousarray(array).tobytes())
    for _, moments in sorted(data.moments.items()):
        digest.update(moments.mean.tobytes())
    return digest.hexdigest()


def _cell_identity(trained: str, data: AblationData, settings: TableSettings) -> str:
    """A digest of all that a cell depends on beside method, seed and sigma."""
    plain: dict[str, Any] = {
        "trained": trained,
        "generation": asdict(settings.generation),
        "references": {key: list(texts) for key, texts in data.references.items()},
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(data.images).tobytes())
    return digest.hexdigest()
