"""The moments of a store are those of its rows, whatever its history: the same bytes as one fold of
the rows that are used at the end."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from unittest.mock import Mock, patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from c3tools import import_embeddings, leave_out, merge_stores, split_store
from c3tools.store import Store, StoreWriter
from tests.conftest import slice_of, unit_rows
from tests.stores import colour_corpus, embed_colours

COLOURS = ["red", "blue", "lime", "tan", "navy", "gold", "pink"]
STEPS = ["embed", "update", "captions", "leave_out", "undo", "prune", "merge", "split"]


class History:
    """A store of images of one colour and their captions, and what is done to it."""

    def __init__(self, folder: Path, random: Random) -> None:
        self.folder = folder
        self.random = random
        self.store = folder / "s"
        self.corpus = folder / "c"
        self.colours: dict[str, str] = {}
        self.texts = 2
        self.embed()

    def embed(self) -> None:
        """Add one to three images with their captions."""
        for _ in range(self.random.randint(1, 3)):
            self.colours[f"i{len(self.colours):02d}"] = self.random.choice(COLOURS)
        colour_corpus(self.corpus, self.colours, self.texts)
        embed_colours(self.corpus, self.store)

    def captions(self) -> None:
        """Add a caption to each image, also to those that are left out."""
        self.texts += 1
        colour_corpus(self.corpus, self.colours, self.texts)
        embed_colours(self.corpus, self.store)

    def update(self) -> None:
        """Change an image."""
        name = self.random.choice(sorted(self.colours))
        self.colours[name] = self.random.choice(COLOURS)
        Image.new("RGB", (5, 5), self.colours[name]).save(self.corpus / f"{name}.png")
        embed_colours(self.corpus, self.store, update=True)

    def prune(self) -> None:
        """Remove an image with its captions, unless it is the last."""
        if len(self.colours) > 1:
            name = self.random.choice(sorted(self.colours))
            del self.colours[name]
            (self.corpus / f"{name}.png").unlink()
            colour_corpus(self.corpus, self.colours, self.texts)
            embed_colours(self.corpus, self.store, update=True, prune=True)

    def leave_out(self) -> None:
        """Leave out one to three rows."""
        opened = Store.open(self.store)
        keys = [key for name in opened.modalities for key in opened.load(name).keys]
        if keys:
            count = min(len(keys), self.random.randint(1, 3))
            leave_out(self.store, keys=self.random.sample(keys, count), yes=True)

    def undo(self) -> None:
        leave_out(self.store, undo=True)

    def split(self) -> None:
        split_store(self.store, output=self.folder / "new", seed=self.random.randint(0, 3))
        self._replace()

    def merge(self) -> None:
        """Merge with a store of images of which some may have the same keys, in either order."""
        names = [f"i{self.random.randint(0, 20):02d}" for _ in range(3)]
        other = colour_corpus(self.folder / "other", dict.fromkeys(names, "tan"), texts=3)
        embed_colours(other, self.folder / "t")
        if self.random.random() < 0.5:
            leave_out(self.folder / "t", keys=names[:1], yes=True)
        stores = [self.store, self.folder / "t"]
        self.random.shuffle(stores)
        merge_stores(stores, output=self.folder / "new", keep_first=True)
        shutil.rmtree(self.folder / "t")
        shutil.rmtree(other)
        self._replace()

    def _replace(self) -> None:
        shutil.rmtree(self.store)
        (self.folder / "new").rename(self.store)


def require_fold(store: Path) -> None:
    """Require the moments of a store to have the bytes of those that its shards alone give."""
    copy = store.parent / "copy"
    shutil.copytree(store, copy)
    (copy / "moments.safetensors").unlink()
    StoreWriter(copy).finish()
    folded = (copy / "moments.safetensors").read_bytes()
    shutil.rmtree(copy)
    assert (store / "moments.safetensors").read_bytes() == folded


@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6), st.randoms())
@settings(max_examples=len(slice_of(range(18))), suppress_health_check=[HealthCheck.too_slow])
def test_moments_are_those_of_the_rows_whatever_was_done(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], random: Random
) -> None:
    history = History(tmp_path_factory.mktemp("history"), random)
    for step in steps:
        sum_shard = Mock(side_effect=AssertionError("reads a shard to sum it"))
        with patch("c3tools.store.manifest.sum_shard", sum_shard):
            getattr(history, step)()
        require_fold(history.store)


@given(st.lists(st.sampled_from(["leave_out", "undo", "merge"]), max_size=4), st.randoms())
@settings(max_examples=len(slice_of(range(9))), suppress_health_check=[HealthCheck.too_slow])
def test_moments_of_imported_rows_are_those_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], random: Random
) -> None:
    folder = tmp_path_factory.mktemp("imported")
    store = folder / "s"
    rows = unit_rows(60, 8, random.randint(0, 99))
    rows[0] = 0  # cannot be stored
    import_embeddings(image=np.asarray(rows[:20]), text=np.asarray(rows[20:40]), store=store)
    import_embeddings(image=np.asarray(rows[40:]), store=folder / "t")
    for step in steps:
        if step == "merge":
            merge_stores([store, folder / "t"], output=folder / "new", prefix=True, model="m")
            shutil.rmtree(store)
            (folder / "new").rename(store)
        elif step == "undo":
            leave_out(store, undo=True)
        else:
            keys = Store.open(store).load("text").keys
            leave_out(store, keys=random.sample(keys, min(2, len(keys))), yes=True, modality="text")
        require_fold(store)
    require_fold(store)
