"""Kill: a command that is killed at any moment ends, when it is repeated, with the files of one that was not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.captioning.conftest import make_captions_store
from tests.conftest import copy_photos
from tests.stores import gap_store, make_vectors

from .conftest import Budget

ROOT = Path(__file__).parents[2]
# `c3 ARGUMENTS` in the current folder, killed before its operation on files of the number given first; all are listed
RUN = """
import json, os, sys
from pathlib import Path
from c3tools.cli import main
from tests.crashes import at_operation
number, listing = int(sys.argv.pop(1)), sys.argv.pop(1)
with at_operation(Path.cwd(), number, lambda path: os.kill(os.getpid(), 9)) as done:
    try:
        main()
    finally:
        Path(listing).write_text(json.dumps(done))
"""
NEVER = 10**9
DATA = {".parquet", ".safetensors", ".npy", ".faiss", ".csv", ".txt", ".png"}
PLAIN = "--workers 0 --backend torch --precision fp32"
QUICK = "--size tiny --epochs 4 --precision fp32 --sigma 0.1"


def photos(folder: Path) -> None:
    copy_photos(folder / "images", 12)
    for number in (3, 7):
        sorted((folder / "images").glob("*.jpg"))[number].write_bytes(b"broken")


def changed(folder: Path) -> None:
    photos(folder)
    run(folder, COMMANDS["embed"][1]).wait()
    first, second, *_, last = sorted((folder / "images").glob("*.jpg"))
    shutil.copyfile(last, first)
    second.unlink()


def vectors(folder: Path) -> None:
    for name, rows in zip("it", make_vectors(20_000, dim=64), strict=True):
        np.save(folder / f"{name}.npy", rows[:20_000])


def stores(folder: Path) -> None:
    gap_store(folder / "c3-store", 3000)
    gap_store(folder / "other", 2000)


def captions(folder: Path) -> None:
    make_captions_store(folder / "c3-store")


def exported(folder: Path) -> None:
    stores(folder)
    run(folder, "export --preset c1").wait()


def embedded(folder: Path) -> None:
    copy_photos(folder / "images", 12)
    run(folder, f"embed images {PLAIN}").wait()


COMMANDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "embed": (photos, f"embed images --shard-size 3 {PLAIN}"),
    "update": (changed, f"embed images --update --prune --shard-size 3 {PLAIN}"),
    "import": (vectors, "import --image i.npy --text t.npy"),
    "merge": (stores, "merge out c3-store other --prefix"),
    "split": (stores, "split out --fractions 0.5,0.25,0.25"),
    "index": (stores, "index --shard-rows 1000"),
    "export": (exported, "export --preset c2-collapse --overwrite"),
    "train-decoder": (captions, f"train-decoder {QUICK}"),
    "train-generator": (embedded, "train-generator --steps 6 --set pixels=8 --sigma 0.05 --precision fp32"),
    "connect": (captions, "connect heads --dim 16 --epochs 60 --precision fp32"),
    "caption": (photos, "caption images --json a.json --txt --precision fp32"),
}


def run(folder: Path, arguments: str, number: int = NEVER) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-c", RUN, str(number), str(folder.with_suffix(".operations")), *arguments.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("C3_STORE", None)
    with folder.with_suffix(".said").open("wb") as said:
        return subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, env=environment)


def results(folder: Path) -> dict[str, str]:
    """Digests of the files that hold data; of the others, which have times in them, that they are whole."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name == "inputs.parquet" or ".lock" in name:
            continue
        if path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in DATA else ""
    return found


def prepared(folder: Path, name: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    COMMANDS[name][0](folder)
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_command_is_continued_to_the_same_files(tmp_path: Path, budget: Budget) -> None:
    whole: dict[str, tuple[float, list[str], dict[str, str]]] = {}
    kills: Counter[str] = Counter()
    names: list[str] = []
    while budget.is_left():
        if not names:
            names = budget.random.sample(list(COMMANDS), len(COMMANDS))  # each in turn
        name = names.pop()
        arguments = COMMANDS[name][1]
        if name not in whole:
            folder = prepared(tmp_path / name, name)
            start = time.monotonic()
            code = run(folder, arguments).wait()
            assert code == (1 if name == "caption" else 0), folder.with_suffix(".said").read_text()  # two are broken
            listing = json.loads(folder.with_suffix(".operations").read_text())
            whole[name] = time.monotonic() - start, listing, results(folder)
        seconds, listing, expected = whole[name]
        folder = prepared(tmp_path / name, name)
        for _ in range(budget.random.randint(1, 3)):
            if not kills[name]:  # when everything but the record is in its place
                process = run(
                    folder, arguments, max(i for i, done in enumerate(listing) if done.startswith("os.rename"))
                )
            elif budget.random.random() < 0.5:
                process = run(folder, arguments, budget.random.randrange(len(listing)))
            else:
                process = run(folder, arguments)
            try:
                process.wait(budget.random.uniform(0.3, 1.0) * seconds if kills[name] else None)
            except subprocess.TimeoutExpired:
                process.kill()
            kills[name] += process.wait() == -9
        run(folder, arguments).wait()
        assert results(folder) == expected, (name, folder.with_suffix(".said").read_text())
        shutil.rmtree(folder)
    done = ", ".join(f"{name} {count}" for name, count in sorted(kills.items()))
    budget.report(f"{kills.total()} kills, all continued to the same files ({done})")
