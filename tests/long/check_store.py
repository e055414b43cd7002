"""Stores: random steps against a dictionary in memory; faults at every operation.

A step changes the corpus (adds, changes, breaks or removes an image), embeds it, kills a run at one of its operations
on files or lets the operation fail, damages and repairs the store, or merges or splits it.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.errors import C3Error
from c3tools.store import Store
from c3tools.store.copies import merge_stores, split_store
from c3tools.store.verify import verify_store
from tests.conftest import store_files
from tests.crashes import fail_at, kill_at, operations
from tests.store.test_writing import everything, prepare
from tests.stores import colour_corpus, colour_encoder, colour_row

from .conftest import Budget

ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES]
COMMANDS = ["embed", "update", "import", "export", "repair", "train-decoder"]
COLOURS = ["red", "lime", "blue", "gold", "navy", "tan", None]
STEPS = ["add", "add", "remove", "embed", "kill", "fault", "damage", "merge", "split"]
RGB = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "gold": (255, 215, 0), "navy": (0, 0, 128)}
RGB |= {"tan": (210, 180, 140)}


class World:
    """A corpus, its store, and what the store is to hold.

    Attributes:
        images: colour by name; None for one that cannot be read.
        held: colour of the image rows by key.
    """

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        self.images: dict[str, str | None] = {"first": "red"}
        self.held: dict[str, str] = {}
        self._write()

    def _write(self) -> None:
        shutil.rmtree(self.folder / "c", ignore_errors=True)
        colour_corpus(self.folder / "c", self.images)

    def embed(self) -> None:
        """Embed the corpus, with changes and removals."""
        corpus = read_corpus(self.folder / "c")
        options: dict[str, Any] = {"shard_size": 3, "workers": 0, "update": True, "prune": True}
        embed_corpus(corpus, self.folder / "s", colour_encoder(), **options)

    def step(self, name: str) -> None:
        """Do one step; afterwards the store is whole again."""
        store, draw = self.folder / "s", self.draw
        if name == "add":
            self.images[f"photo{draw.randrange(8)}"] = draw.choice(COLOURS)
            self._write()
        elif name == "remove" and len(self.images) > 1:
            del self.images[draw.choice(sorted(self.images))]
            self._write()
        elif name == "kill":
            kill_at(self.folder, draw.randrange(90), self.embed)
        elif name == "fault":
            with suppress(C3Error):
                fail_at(self.folder, draw.randrange(90), draw.choice(ERRORS), self.embed)
        elif name == "damage" and store.exists():
            file = draw.choice([file for file in store_files(store) if file.name != "inputs.parquet"])
            content = file.read_bytes()
            place = draw.randrange(len(content))
            file.write_bytes(draw.choice([content[:place], content[:place] + b"?!" + content[place + 2 :]]))
            if file.read_bytes() != content:
                assert not verify_store(store).whole, f"{file.name} at {place}"
            verify_store(store, repair=True)
        elif name in ("merge", "split") and store.exists():
            self.embed()
            if name == "merge":
                merge_stores(self.folder / "new", [store, shutil.copytree(store, self.folder / "copy")], keep="first")
            else:
                split_store(self.folder / "new", store, seed=draw.randrange(3))
            shutil.rmtree(store)
            shutil.rmtree(self.folder / "copy", ignore_errors=True)
            (self.folder / "new").rename(store)
        self.embed()
        self.check()

    def check(self) -> None:
        """Compare the store with what it is to hold: a broken image keeps the row that it had."""
        for name, colour in self.images.items():
            if colour is not None:
                self.held[name] = colour
        store = Store.open(self.folder / "s")
        rows = store.load("image") if store.count("image") else None
        found = {} if rows is None else dict(zip(rows.keys, rows.embeddings, strict=True))
        whole = {name for name, colour in self.images.items() if colour is not None}
        assert whole <= set(found) <= set(self.images)
        for name in whole:
            row = colour_row(bytes(RGB[self.held[name]])).astype(np.float16)
            np.testing.assert_array_equal(found[name], row.astype(np.float32))
        texts = [f"{name}#{n}" for name in self.images for n in range(2)]
        assert sorted(store.load("text").keys) == sorted(texts)
        assert {f.key for f in store.recorded_failures()} == set(self.images) - set(found)
        assert not verify_store(store.path).findings


def test_random_steps(budget: Budget, tmp_path: Path) -> None:
    steps: Counter[str] = Counter()
    while budget.is_left():
        folder = tmp_path / str(sum(steps.values()))
        folder.mkdir()
        world = World(folder, budget.random)
        for name in budget.random.choices(STEPS, k=8):
            world.step(name)
            steps[name] += 1
        shutil.rmtree(folder)
    budget.report(f"{sum(steps.values())} steps on stores ({', '.join(f'{n} {name}' for name, n in steps.items())})")


def test_faults(budget: Budget, tmp_path: Path) -> None:
    """Full disk, errors and refusals at every operation on files: one clear error, and the same command ends well."""
    folder, cases, expected = tmp_path / "work", [], {}
    for command in COMMANDS:
        count = len(operations(folder, prepare(folder, command)))
        expected[command] = everything(folder)
        cases += [(command, operation, error) for operation in range(count) for error in ERRORS]
    budget.random.shuffle(cases)
    done, told = Counter[str](), 0
    while cases and budget.is_left():
        command, operation, error = cases.pop()
        run = prepare(folder, command)
        try:
            fail_at(folder, operation, error, run)
        except (C3Error, OSError):  # which the command prints as one line
            told += 1
        run()
        assert everything(folder) == expected[command], (command, operation, errno.errorcode[error])
        done[command] += 1
    counts = ", ".join(f"{command} {count}" for command, count in sorted(done.items()))
    budget.report(f"{done.total()} faults ({counts}), {told} of them an error, {len(cases)} left")
