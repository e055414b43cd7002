"""Paired features that two heads can connect: a shared latent seen through two random maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from c3tools.connect import FeatureInputs, Pairs


def views(items: int, per_item: int = 1, dims: tuple[int, int] = (20, 12), shared: int = 8, seed: int = 0):
    """Features of ``items`` images (n, 20) and of ``per_item`` texts each (n * per_item, 12)."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(items, shared))
    owner = np.repeat(np.arange(items), per_item)
    first = latent @ rng.normal(size=(shared, dims[0])) + 0.1 * rng.normal(size=(items, dims[0]))
    second = latent[owner] @ rng.normal(size=(shared, dims[1])) + 0.1 * rng.normal(size=(len(owner), dims[1]))
    return first.astype(np.float32), second.astype(np.float32), owner


def some_pairs(first: np.ndarray, second: np.ndarray, owner: np.ndarray, rows: np.ndarray) -> Pairs:
    """The pairs of these rows of ``second``, nothing repeated but the items."""
    ids = np.arange(len(first)), np.arange(len(second))
    return Pairs(FeatureInputs(first), FeatureInputs(second), owner[rows], rows, *ids)


def write_files(folder: Path, items: int = 120, per_item: int = 2, *, splits: bool = True) -> list[str]:
    """Two files of features with their table; gives the options of `c3 connect` that name them."""
    first, second, owner = views(items, per_item)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "image.npy", first)
    np.save(folder / "text.npy", second)
    lines = []
    for item in range(items):
        rows = np.flatnonzero(owner == item).tolist()
        row = {"image": f"photo{item:03d}.jpg", "captions": [f"caption {row}" for row in rows], "text_rows": rows}
        if splits:
            row["split"] = "train" if item < 0.7 * items else "val" if item < 0.85 * items else "test"
        lines.append(json.dumps(row))
    (folder / "meta.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = {"--image": "image.npy", "--text": "text.npy", "--meta": "meta.jsonl"}
    return [part for option, name in files.items() for part in (option, str(folder / name))]
