"""Kill: a command that is killed at a random moment ends, when it is repeated, with the files of one that was not."""

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

C3 = [sys.executable, "-P", "-c", "from c3tools.cli import main; main()"]
DATA = {".parquet", ".safetensors", ".npy", ".faiss", ".csv", ".txt", ".png"}
PLAIN = ("--workers", "0", "--backend", "torch", "--precision", "fp32")
QUICK = ("--size", "tiny", "--epochs", "4", "--precision", "fp32", "--sigma", "0.1")


def photos(folder: Path) -> None:
    copy_photos(folder / "images", 12)
    for number in (3, 7):
        sorted((folder / "images").glob("*.jpg"))[number].write_bytes(b"broken")


def changed(folder: Path) -> None:
    photos(folder)
    run(folder, ["embed", "images", "--shard-size", "3", *PLAIN]).wait()
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
    run(folder, ["export", "--preset", "c1"]).wait()


COMMANDS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "embed": (photos, ["embed", "images", "--shard-size", "3", *PLAIN]),
    "update": (changed, ["embed", "images", "--update", "--prune", "--shard-size", "3", *PLAIN]),
    "import": (vectors, ["import", "--image", "i.npy", "--text", "t.npy"]),
    "merge": (stores, ["merge", "out", "c3-store", "other", "--prefix"]),
    "split": (stores, ["split", "out", "--fractions", "0.5,0.25,0.25"]),
    "index": (stores, ["index", "--shard-rows", "1000"]),
    "export": (exported, ["export", "--preset", "c2-collapse", "--overwrite"]),
    "train-decoder": (captions, ["train-decoder", *QUICK]),
    "connect": (captions, ["connect", "heads", "--dim", "16", "--epochs", "60", "--precision", "fp32"]),
    "caption": (photos, ["caption", "images", "--csv", "a.csv", "--txt", "--precision", "fp32"]),
}


def run(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (folder / ".said").open("wb") as said:
        return subprocess.Popen([*C3, *arguments], cwd=folder, stdout=said, stderr=said)


def results(folder: Path) -> dict[str, str]:
    """Digests of the files that hold data; of the others, which have times in them, that they are whole."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name == "inputs.parquet" or ".lock" in name or name == ".said":
            continue
        if path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in DATA else ""
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_command_is_continued_to_the_same_files(tmp_path: Path, budget: Budget) -> None:
    os.environ.pop("C3_STORE", None)
    whole: dict[str, tuple[float, dict[str, str]]] = {}
    kills: Counter[str] = Counter()
    while budget.is_left():
        name = budget.random.choice(list(COMMANDS))
        prepare, arguments = COMMANDS[name]
        if name not in whole:
            folder = tmp_path / f"{name}-whole"
            folder.mkdir()
            prepare(folder)
            start = time.monotonic()
            code = run(folder, arguments).wait()
            assert code == (1 if name == "caption" else 0), (folder / ".said").read_text()  # two photos are broken
            whole[name] = time.monotonic() - start, results(folder)
        seconds, expected = whole[name]
        folder = tmp_path / f"{name}-killed"
        folder.mkdir()
        prepare(folder)
        for _ in range(budget.random.randint(1, 3)):
            process = run(folder, arguments)
            try:
                process.wait(budget.random.uniform(0.3, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills[name] += 1
        run(folder, arguments).wait()
        assert results(folder) == expected, (name, (folder / ".said").read_text())
        shutil.rmtree(folder)
    done = ", ".join(f"{name} {count}" for name, count in sorted(kills.items()))
    budget.report(f"{kills.total()} kills, all continued to the same files ({done})")
