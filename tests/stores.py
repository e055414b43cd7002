"""A small whole store with every kind of file, and what tests do to it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from c3tools.store import Failure, Shard, Store, StoreInfo, create_store, write_failures, write_shard
from c3tools.store.means import load_means, save_means

from .conftest import MODEL, store_files, unit_rows

DIM = 12
FAILURE = Failure("broken", "photos/broken.jpg", "decode", "OSError", "image file is truncated")


def whole_store(path: Path, *, images: int = 30, part_rows: int = 10, dtype: str = "float16") -> Store:
    """Images in three shards, two texts each, splits, a failure, and moments taken from elsewhere."""
    info = StoreInfo(dict(MODEL), DIM, dtype=dtype, preprocessing={"size": [32, 32]}, precision="fp32")
    create_store(path, info)
    keys = [f"img{i:03d}" for i in range(images)]
    splits = ["val" if i % 5 == 4 else "train" for i in range(images)]
    image_rows, text_rows = unit_rows(images, DIM, 1), unit_rows(2 * images, DIM, 2)
    for part, start in enumerate(range(0, images, part_rows)):
        rows = range(start, min(start + part_rows, images))
        columns = {
            "key": [keys[i] for i in rows],
            "path": [f"photos/{keys[i]}.jpg" for i in rows],
            "width": [640 + i for i in rows],
            "height": [480] * len(rows),
            "size": [10_000 + i for i in rows],
            "split": [splits[i] for i in rows],
        }
        failures = [FAILURE] if part == 1 else []
        timings = {"decoding": 0.125, "total": 1.5}
        write_shard(path, info, Shard("image", part, image_rows[list(rows)], columns, failures, timings))
        pairs = [(i, j) for i in rows for j in (0, 1)]
        columns = {
            "key": [f"{keys[i]}#{j}" for i, j in pairs],
            "caption": [f"caption {j} of image {i}" for i, j in pairs],
            "image_key": [keys[i] for i, _ in pairs],
            "split": [splits[i] for i, _ in pairs],
        }
        write_shard(path, info, Shard("text", part, text_rows[[2 * i + j for i, j in pairs]], columns))
    store = Store.open(path)
    write_failures(path, store.failures())
    save_means(store, path.parent / "elsewhere.safetensors")
    load_means(store, path.parent / "elsewhere.safetensors")
    return store


@contextmanager
def one_byte_changed(file: Path, position: int, flip: int) -> Iterator[None]:
    """The byte at ``position`` combined with ``flip`` (not 0) by exclusive or, while the block runs."""
    content = file.read_bytes()
    file.write_bytes(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
    try:
        yield
    finally:
        file.write_bytes(content)


def corruptions(path: Path, count: int, seed: int) -> Iterator[tuple[Path, int, int]]:
    """``count`` random (file, position, flip), every file as often as any other, in turn."""
    draw = random.Random(seed)
    files = store_files(path)
    for number in range(count):
        file = files[number % len(files)]
        yield file, draw.randrange(file.stat().st_size), draw.randrange(1, 256)
