"""A small store of synthetic image and text embeddings with a modality gap, for command tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from c3tools.store import Shard, StoreInfo, create_store, write_shard

DIM = 16
MODEL = {"name": "synthetic", "weights_sha256": "0" * 64}
Matrix = npt.NDArray[np.float32]


def unit(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_vectors(n: int = 90, seed: int = 0, dim: int = DIM) -> tuple[Matrix, Matrix]:
    """Images (n, d) and texts (2 n, d), unit rows; texts 2 i and 2 i + 1 belong to image i."""
    rng = np.random.default_rng(seed)
    shared, gap = rng.normal(size=(n, dim)), rng.normal(size=dim)
    images = unit(shared + gap + 0.1 * rng.normal(size=(n, dim)))
    texts = unit(np.repeat(shared, 2, axis=0) - gap + 0.1 * rng.normal(size=(2 * n, dim)))
    return images.astype(np.float32), texts.astype(np.float32)


def make_store(path: Path, n: int = 90, *, parts: int = 3, dtype: str = "float16", normalised: bool = True) -> Path:
    """A store with splits train (two thirds) and test, in several shards."""
    images, texts = make_vectors(n)
    if not normalised:
        images, texts = images * 3, texts * np.linspace(0.5, 2, len(texts), dtype=np.float32)[:, None]
    info = StoreInfo(dict(MODEL), DIM, dtype=dtype, normalised=normalised)
    create_store(path, info)
    keys = [f"img{i:03d}" for i in range(n)]
    splits = ["train" if i % 3 else "test" for i in range(n)]
    for part, rows in enumerate(np.array_split(np.arange(n), parts)):
        columns = {
            "key": [keys[i] for i in rows],
            "path": [f"{keys[i]}.jpg" for i in rows],
            "split": [splits[i] for i in rows],
        }
        write_shard(path, info, Shard("image", part, images[rows], columns))
        pairs = [(i, j) for i in rows for j in (0, 1)]
        columns = {
            "key": [f"{keys[i]}#{j}" for i, j in pairs],
            "caption": [f"caption {j} of image {i}" for i, j in pairs],
            "image_key": [keys[i] for i, _ in pairs],
            "split": [splits[i] for i, _ in pairs],
        }
        write_shard(path, info, Shard("text", part, texts[[2 * i + j for i, j in pairs]], columns))
    return path
