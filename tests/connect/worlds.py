"""Paired features that two heads can connect: a shared latent seen through two random maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from c3tools.arrays import Indices, Matrix
from c3tools.connect.training_pairs import ArrayInputs, PairInputs
from tests.conftest import write_jsonl


def views(
    items: int, per_item: int = 1, dims: tuple[int, int] = (20, 12)
) -> tuple[Matrix, Matrix, Indices]:
    """Return features of ``items`` images (n, 20), of ``per_item`` texts each (n * per_item, 12),
    and their images."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(items, 8))
    item_index = np.repeat(np.arange(items), per_item)
    first = latent @ rng.normal(size=(8, dims[0])) + 0.1 * rng.normal(size=(items, dims[0]))
    second = latent[item_index] @ rng.normal(size=(8, dims[1])) + 0.1 * rng.normal(
        size=(len(item_index), dims[1])
    )
    return first.astype(np.float32), second.astype(np.float32), item_index


def some_pairs(first: Matrix, second: Matrix, item_index: Indices, rows: Indices) -> PairInputs:
    """Return the pairs of these rows of ``second``, in which nothing but the items is repeated."""
    return PairInputs(
        inputs=(ArrayInputs(first), ArrayInputs(second)),
        rows=np.stack([item_index[rows], rows]),
        ids=np.stack([item_index[rows], rows]),
        items=item_index[rows].astype(str).astype(object),
        splits=np.full(len(rows), "train", object),
    )


def write_files(folder: Path = Path(), items: int = 120, per_item: int = 2) -> dict[str, Any]:
    """Write two files of features and their table; return the arguments of `read_features` that
    name them."""
    first, second, item_index = views(items, per_item)
    names = {
        "image": "image.npy",
        "text": "text.npy",
        "meta": "meta.jsonl",
        "text_meta": "texts.jsonl",
    }
    files = {name: folder / file for name, file in names.items()}
    np.save(files["image"], first)
    np.save(files["text"], second)
    splits = np.repeat(["train", "val", "test"], np.multiply([14, 3, 3], items // 20)).tolist()
    photos = [f"photo{item:03d}.jpg" for item in range(items)]
    write_jsonl(
        files["meta"],
        *({"image": photo, "split": split} for photo, split in zip(photos, splits, strict=True)),
    )
    texts = (
        {"image": photos[item], "caption": f"caption {row}"} for row, item in enumerate(item_index)
    )
    write_jsonl(files["text_meta"], *texts)
    return files
