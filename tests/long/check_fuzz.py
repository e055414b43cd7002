"""Fuzz: a file of every format with random changes is read, or refused by a `C3Error`; no reader
crashes or hangs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from c3tools.corpus.reading import read_corpus
from c3tools.errors import C3Error
from c3tools.index import Index, build_index
from c3tools.inputs.import_embeddings import import_embeddings
from c3tools.store import Store
from c3tools.store.verify import verify_store
from c3tools.transforms import Pipeline, preset
from tests.bombs import saved
from tests.conftest import unit_rows
from tests.inputs.test_import_embeddings import write
from tests.stores import gap_store, whole_store

from .conftest import Budget

SECONDS = 60  # of one reader
TOKENS = [
    b"\0",
    b"\xff" * 8,
    b"\n",
    b'"',
    b",",
    b"{",
    b"]",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"[" * 100_000,
    b"\\ud800",
]
ROWS = [
    {"image": "a.png", "captions": ["a dog", "it runs"], "split": "train"},
    {"image": "b.png", "caption": "いぬ"},
]


Use = Callable[[Path], object]


def _corpus(name: str, content: bytes) -> tuple[Use, Use]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content)
        (folder / "a.png").write_bytes(saved(Image.new("RGB", (2, 2)), "PNG"))

    return make, lambda folder: list(read_corpus(folder / name).texts)


def _vectors(name: str) -> tuple[Use, Use]:
    def read(folder: Path) -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        given: dict[str, Any] = {"source" if name.endswith(".pkl") else "image": folder / name}
        import_embeddings(**given, store=folder / "out")

    return lambda folder: write(folder / name, unit_rows(4, 3), {"id": range(4)}), read


def _read_store(folder: Path) -> None:
    verify_store(folder / "s")
    store = Store.open(folder / "s")
    store.pairs()
    store.moments("image")
    store.external_moments()
    store.recorded_failures()


PARQUET = pa.BufferOutputStream()
pq.write_table(pa.table({"file_name": ["a.png", None], "text": ["a dog", "いぬ"]}), PARQUET)

TARGETS: dict[str, tuple[Use, Use]] = {
    "store": (lambda folder: whole_store(folder / "s", images=4, part_rows=2), _read_store),
    "pipeline": (
        lambda folder: (
            preset("c3", sigma=0.1)
            .fit({"image": unit_rows(20, 4), "text": unit_rows(20, 4, 1)})
            .save(folder / "p")
        ),
        lambda folder: Pipeline.load(folder / "p").transform(unit_rows(2, 4), modality="image"),
    ),
    "index": (
        lambda folder: build_index(gap_store(folder / "c3-store", 12), output=folder / "i"),
        lambda folder: Index.open(folder / "i").search(vector=unit_rows(1, 16), k=2),
    ),
    "captions.jsonl": _corpus("captions.jsonl", "\n".join(map(json.dumps, ROWS)).encode()),
    "captions.csv": _corpus("captions.csv", b'file_name,text\na.png,"a ""big"" dog"\n'),
    "captions.parquet": _corpus("captions.parquet", PARQUET.getvalue().to_pybytes()),
    **{
        f"vectors.{kind}": _vectors(f"v.{kind}")
        for kind in "npy npz csv jsonl parquet safetensors pt pkl".split()
    },
}


def changed(content: bytes, draw: random.Random) -> bytes:
    """Return a file with one to four random changes: bytes replaced, left out, repeated, or cut
    off."""
    for _ in range(draw.randrange(1, 5)):
        place, length = draw.randrange(len(content) + 1), draw.randrange(1, 40)
        new = draw.choice(
            [draw.randbytes(1), b"", draw.choice(TOKENS), content[place : place + length] * 2]
        )
        content = content[:place] + new + content[place + draw.choice([0, len(new), length]) :]
        content = content[:place] if draw.random() < 0.05 else content
    return content


def _ends_well(read: Use, folder: Path) -> bool:
    """Read in a forked process, which a crash of a library would end; return whether it was refused
    or read."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(SECONDS)
            with suppress(C3Error):
                read(folder)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore")
def test_changed_files(budget: Budget, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    for name, (make, _) in TARGETS.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    while budget.is_left():
        for name, (_, read) in TARGETS.items():
            folder = tmp_path / name
            files = [
                path
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.suffix != ".png"
            ]
            file = budget.random.choice(
                [path for path in files if "out" not in path.relative_to(folder).parts]
            )
            before = file.read_bytes()
            file.write_bytes(changed(before, budget.random))
            if not _ends_well(read, folder):
                kept = shutil.copyfile(file, tmp_path / f"found-{file.name}")
                raise AssertionError(
                    f"{name} with a changed {file.name} (kept as {kept}) is neither read nor "
                    f"refused"
                )
            file.write_bytes(before)
            found[name] += 1
    budget.report(f"{sum(found.values())} changed files of {len(found)} kinds, all read or refused")
