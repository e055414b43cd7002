"""`c3 ablate` on a store: cells that are finished are kept, so that the table can be continued and extended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..decoding import GenerationConfig, Progress, silent
from ..devices import Compute
from ..errors import MetricError
from ..seeds import stable_fraction
from ..store import Store
from ..store.files import write_json_atomically
from .ablate import ABLATION, METHODS, AblationData, AblationRun, check_methods, run_ablation
from .evaluate import store_references
from .fitting import fit_moments
from .train_decoder import split_texts


@dataclass(frozen=True)
class TableSettings:
    """What `ablate_store` computes.

    Attributes:
        methods: keys of `METHODS`.
        seeds: one cell each.
        sigmas: one cell each, for the methods that have noise.
        size: of the decoder.
        epochs: passes over the captions; the size's own when None.
        split: the images that are captioned and scored.
        train_fraction: share of the training images whose captions are used.
        generation: how captions are written.
    """

    methods: tuple[str, ...] = ABLATION
    seeds: tuple[int, ...] = (0, 1, 2)
    sigmas: tuple[float, ...] = (0.1,)
    size: str = "small"
    epochs: int | None = None
    split: str = "test"
    train_fraction: float = 1.0
    generation: GenerationConfig = field(default_factory=GenerationConfig)


def store_data(
    store: Store, *, split: str = "test", train_fraction: float = 1.0, say: Callable[[str], None] = lambda message: None
) -> AblationData:
    """What the table is computed from: train captions, val captions, the images of ``split`` with their captions.

    Raises:
        StoreError: if texts or images are missing.
        DecoderError: if there are too few captions.
        MetricError: if the split has no images with captions.
    """
    train, val, notes = split_texts(store)
    if train_fraction < 1:
        kept = [stable_fraction(owner, salt="train fraction") < train_fraction for owner in train.owners]
        train = train.select(np.array(kept, dtype=bool))
    images = store.load("image", split=split)
    known = store_references(store)
    rows = [row for row, key in enumerate(images.keys) if key in known]
    if not rows:
        raise MetricError(
            f"The store {store.path} has no images with captions in the split {split!r}.",
            remedy="Name another with --split.",
        )
    if len(rows) < len(images):
        notes.append(f"{len(images) - len(rows):,} images have no captions to score against and are left out.")
    keys = [images.keys[row] for row in rows]
    overlap = set(train.owners) & set(keys)
    if overlap:
        notes.append(f"{len(overlap):,} of the scored images have their captions among the training captions.")
    for note in notes:
        say(note)
    others = store.load("image")
    wanted = (set(train.owners) | set(val.owners)) - set(keys)
    return AblationData(
        train.rows,
        val.rows,
        images.embeddings[rows],
        keys,
        {key: known[key] for key in keys},
        {modality: fit_moments(store, modality, "train") for modality in store.modalities},
        {key: row for key, row in zip(others.keys, others.embeddings, strict=True) if key in wanted},
        train.owners,
        val.owners,
    )


def ablate_store(
    store: Store,
    settings: TableSettings,
    folder: Path,
    *,
    compute: Compute | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda message: None,
) -> Iterator[AblationRun]:
    """All cells of the table, those that are finished from ``folder``, the others computed and written there.

    Raises:
        DecoderError, MetricError, StoreError: see `run_ablation` and `store_data`.
    """
    check_methods(settings.methods)
    data = store_data(store, split=settings.split, train_fraction=settings.train_fraction, say=say)
    identity = _identity(data, settings)
    for seed in settings.seeds:
        for number, sigma in enumerate(settings.sigmas):
            pending = []
            for method in settings.methods:
                if not METHODS[method].noisy and number > 0:
                    continue
                run = _read_cell(_cell(folder, method, seed, sigma), identity)
                if run is None:
                    pending.append(method)
                else:
                    say(f"{method}, seed {seed}: finished before")
                    yield run
            for run in run_ablation(
                data,
                pending,
                seeds=(seed,),
                sigma=sigma,
                size_name=settings.size,
                epochs=settings.epochs,
                generation=settings.generation,
                compute=compute,
                progress=progress,
            ):
                content = {"identity": identity, "run": asdict(run)}
                write_json_atomically(_cell(folder, run.method, seed, sigma), content)
                yield run


def _cell(folder: Path, method: str, seed: int, sigma: float) -> Path:
    strength = sigma if METHODS[method].noisy else 0.0
    return folder / "cells" / f"{method}-sigma{strength:g}-seed{seed}.json"


def _read_cell(path: Path, identity: str) -> AblationRun | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return AblationRun(**content["run"]) if content["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _identity(data: AblationData, settings: TableSettings) -> str:
    """A digest of all that a cell depends on beside method, seed and sigma."""
    plain: dict[str, Any] = {
        "size": settings.size,
        "epochs": settings.epochs,
        "generation": asdict(settings.generation),
        "captions": [data.train.captions, data.val.captions],
        "references": {key: list(texts) for key, texts in data.references.items()},
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for array in (data.train.embeddings, data.val.embeddings, data.images):
        digest.update(np.ascontiguousarray(array).tobytes())
    for _, moments in sorted(data.moments.items()):
        digest.update(moments.mean.tobytes())
    return digest.hexdigest()


def table_rows(runs: Sequence[AblationRun]) -> list[dict[str, Any]]:
    """One row per (method, sigma): mean and sample standard deviation over seeds, by metric."""
    groups: dict[tuple[str, float], list[AblationRun]] = {}
    for run in runs:
        groups.setdefault((run.method, run.sigma), []).append(run)
    rows = []
    for (method, sigma), members in groups.items():
        scores = {}
        for name in members[0].scores:
            values = np.array([run.scores[name] for run in members])
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
            scores[name] = {"mean": float(values.mean()), "std": spread}
        rows.append({"method": method, "sigma": sigma, "seeds": len(members), "scores": scores})
    return rows


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    names = list(rows[0]["scores"]) if rows else []
    lines = [
        "| method | sigma | seeds | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for row in rows:
        cells = [cell_text(row["scores"][name]) for name in names]
        sigma = f"{row['sigma']:g}" if METHODS[row["method"]].noisy else "–"
        lines.append(f"| {row['method']} | {sigma} | {row['seeds']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell_text(score: dict[str, float | None]) -> str:
    """``mean ± std``, or the mean alone where there is one seed."""
    spread = "" if score["std"] is None else f" ± {score['std']:.1f}"
    return f"{score['mean']:.1f}{spread}"
