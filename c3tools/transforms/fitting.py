"""Fitting a pipeline on the train split of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TransformError
from ..executors import Executor
from ..moments import Moments
from ..store import Store, embedding_matrix, split_mask
from . import operations
from .operations import Rows
from .pipeline import Pipeline
from .presets import preset

MAX_FIT_ROWS = 500_000


def fit_on_store(
    pipeline: Pipeline,
    store: Store,
    *,
    split: str = "train",
    max_rows: int = MAX_FIT_ROWS,
    executor: Executor | None = None,
) -> Pipeline:
    """Fit ``pipeline`` on the embeddings of one split of ``store``; returns the pipeline itself.

    Moments that `c3 means --load` took from another corpus stand in for the store's own. Steps that need moments
    alone are fitted without reading a row; those that need rows (or pairs: each text with its image, by key) get
    the first ``max_rows`` of the split. An ``executor`` merges the moments of the shards, to the same bits.

    Raises:
        StoreError: if the store cannot be read.
        TransformError: if what a step needs is not in the store.
    """
    borrowed, _ = store.external_moments()
    modalities = dict.fromkeys([*store.modalities, *borrowed])
    moments = {modality: fit_moments(store, modality, split, executor) for modality in modalities}
    rows: dict[str, Rows] = {}
    if pipeline.needs_pairs:
        rows = paired_rows(store, split=split, max_rows=max_rows)
    elif pipeline.needs_rows:
        rows = {modality: _first_rows(store, modality, split, max_rows)[1] for modality in store.modalities}
    provenance: dict[str, Any] = {"model": store.info.model, "split": split}
    if borrowed:
        provenance["source"] = f"loaded moments ({', '.join(borrowed)}), else store"
    if rows:
        provenance["rows"] = {modality: len(value) for modality, value in rows.items()}
    return pipeline.fit(moments, {k: v for k, v in rows.items() if len(v)}, provenance=provenance)


def open_pipeline(
    name: str,
    path: Path | None = None,
    *,
    sigma: float | None = None,
    train_on: str = "text",
    infer_on: str = "image",
) -> Pipeline:
    """A preset by name, or a pipeline from ``path``: a fitted one from a folder, an unfitted one from a file.

    Raises:
        TransformError: if there is no such preset or pipeline.
    """
    if path is None:
        return preset(name, sigma=sigma, train_on=train_on, infer_on=infer_on)
    if path.is_dir() or path.name == "transform.json":
        return Pipeline.load(path)
    return Pipeline.from_config(path)


def fit_moments(store: Store, modality: str, split: str, executor: Executor | None = None) -> Moments:
    """Moments of the L2-normalised embeddings of one split.

    Moments taken from another corpus (`c3 means --load`) come first. A store of normalised embeddings has its own;
    for another, the rows are read once, in blocks.
    """
    if store.info.normalised or modality in store.external_moments()[0]:
        return store.fitting_moments(modality, split, executor)
    total = Moments.empty(store.info.dim)
    for batch in store.batches(modality):
        chosen = split_mask(batch, split)
        block = embedding_matrix(batch)[chosen]
        if len(block):
            total = total.merge(Moments.from_rows(operations.apply(operations.Unit(), block)))
    return total


def paired_rows(store: Store, *, split: str = "train", max_rows: int = MAX_FIT_ROWS) -> dict[str, Rows]:
    """Image and text rows that belong together by key, one pair per text; at most ``max_rows`` pairs.

    Raises:
        TransformError: if the store has no pairs in the split.
    """
    image_keys, images = _first_rows(store, "image", split, max_rows)
    position = {key: row for row, key in enumerate(image_keys)}
    texts = store.load("text", split=split)
    owners = texts.column("image_key")
    pairs = [(position[owner], row) for row, owner in enumerate(owners) if owner in position][:max_rows]
    if not pairs:
        raise TransformError(
            f"The store {store.path} has no pairs of images and texts in the split {split!r}.",
            remedy="Use a pipeline that needs no pairs, or embed images together with their captions.",
        )
    image_rows, text_rows = np.array(pairs).T
    return {"image": images[image_rows], "text": texts.embeddings[text_rows]}


def _first_rows(store: Store, modality: str, split: str, max_rows: int) -> tuple[list[str], Rows]:
    keys: list[str] = []
    blocks: list[Rows] = [np.empty((0, store.info.dim), np.float32)]
    for batch in store.batches(modality):
        chosen = split_mask(batch, split)
        block = embedding_matrix(batch)[chosen][: max_rows - len(keys)]
        keys += [key for key, take in zip(batch.column("key").to_pylist(), chosen, strict=True) if take][: len(block)]
        blocks.append(block)
        if len(keys) >= max_rows:
            break
    return keys, np.concatenate(blocks)
