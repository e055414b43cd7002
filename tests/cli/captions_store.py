"""A store of toy captions and images for the commands that train decoders, caption and score."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from c3tools.store import Shard, Store, StoreInfo, create_store, write_shard

from ..captioning.conftest import DIM, World, make_world

TOY = {"name": "toy-model", "weights_sha256": "1" * 64}


def make_captions_store(path: Path, *, splits: bool = True, noise: float = 0.02) -> tuple[Store, World]:
    """80 images with two captions each: train 56, val 8, test 16; without splits everything is train."""
    world = make_world(noise=noise)
    info = StoreInfo(dict(TOY), DIM, dtype="float32")
    create_store(path, info)
    names = list(world.images)
    split = {name: ("test" if i % 5 == 0 else "val" if i % 10 == 1 else "train") for i, name in enumerate(names)}
    if not splits:
        split = dict.fromkeys(names, "train")
    columns = {
        "key": names,
        "path": [f"{name}.png" for name in names],
        "width": [8] * len(names),
        "height": [8] * len(names),
        "split": [split[name] for name in names],
    }
    write_shard(path, info, Shard("image", 0, np.stack([world.images[name] for name in names]), columns))
    columns = {
        "key": list(world.texts.keys),
        "caption": list(world.texts.captions),
        "image_key": list(world.owners),
        "split": [split[owner] for owner in world.owners],
    }
    write_shard(path, info, Shard("text", 0, world.texts.embeddings, columns))
    return Store.open(path), world
