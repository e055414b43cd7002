"""Kill: a command that is killed at any moment ends, when it is repeated, with the files of one
that was not.

    pytest -n 2 tests/long/check_kills.py --kills 20    # of each command; without --kills, for
    --minutes

Every round kills the command once to three times, at a random moment or before a random operation
on files, then runs it to its end. The first kill of each comes when everything but the record is in
its place. Commands run in forks of this process, which has imported what they need.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c3tools.cli import main

from c3tools.store import Store
from tests.captioning.conftest import make_captions_store
from tests.conftest import copy_photos, write_jsonl
from tests.crashes import at_operation
from tests.stores import gap_store, make_vectors

from .conftest import Budget

NEVER = 10**9
DATA = {".parquet", ".safetensors", ".npy", ".faiss", ".csv", ".txt", ".png"}
PLAIN = "--workers 0 --backend torch --precision fp32"
QUICK = "--size tiny --epochs 2 --precision fp32 --sigma 0.1"


def photos(folder: Path) -> None:
    copy_photos(folder / "images", 12)
    for number in (3, 7):
        sorted((folder / "images").glob("*.jpg"))[number].write_bytes(b"broken")


def changed(folder: Path) -> None:
    photos(folder)
    command(folder, COMMANDS["embed"][1])
    first, second, *_, last = sorted((folder / "images").glob("*.jpg"))
    shutil.copyfile(last, first)
    second.unlink()


def vectors(folder: Path) -> None:
    for name, rows in zip("it", make_vectors(2000, dim=64), strict=True):
        np.save(folder / f"{name}.npy", rows[:2000])


def stores(folder: Path, then: str = "") -> None:
    gap_store(folder / "c3-store", 300)
    gap_store(folder / "other", 200)
    if then:
        command(folder, then)


def marked(folder: Path) -> None:
    gap_store(folder / "c3-store", 300)
    keys = Store.open(folder / "c3-store").load("text").keys[::7]
    write_jsonl(folder / "wrong.jsonl", *({"key": key, "reason": "wrong"} for key in keys))


def without_marked(folder: Path) -> None:
    marked(folder)
    command(folder, "leave-out wrong.jsonl")


def captions(folder: Path) -> None:
    make_captions_store(folder / "c3-store")


def embedded(folder: Path) -> None:
    copy_photos(folder / "images", 12)
    command(folder, f"embed images {PLAIN}")


COMMANDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "embed": (photos, f"embed images --shard-size 3 {PLAIN}"),
    "update": (changed, f"embed images --update --prune --shard-size 3 {PLAIN}"),
    "import": (vectors, "import --image i.npy --text t.npy"),
    "merge": (stores, "merge c3-store other -o out --prefix"),
    "split": (stores, "split -o out --fractions 0.5,0.25,0.25"),
    "leave-out": (marked, "leave-out wrong.jsonl"),
    "undo": (without_marked, "leave-out --undo"),
    "index": (stores, "index"),
    "export": (
        partial(stores, then="export --preset c1"),
        "export --preset c2-collapse --overwrite",
    ),
    "train-decoder": (captions, f"train-decoder {QUICK}"),
    "train-generator": (
        embedded,
        "train-generator --steps 4 --set pixels=8 --sigma 0.05 --precision fp32",
    ),
    "connect": (captions, "connect heads --dim 16 --epochs 20 --precision fp32"),
    "caption": (photos, "caption images --json a.json --txt --precision fp32"),
}


def command(folder: Path, arguments: str, number: int = NEVER) -> None:
    """Run `c3 ARGUMENTS` in a folder, killed before its operation on files of this number, and list
    what it did."""
    warnings.resetwarnings()  # those that the tests turn into errors
    os.chdir(folder)
    os.environ.pop("C3_STORE", None)
    sys.argv = ["c3", *arguments.split()]
    with folder.with_suffix(".said").open("w") as said, at_operation(folder, number, kill) as done:
        sys.stdout = sys.stderr = said
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
    listing = {"code": code, "operations": done, "modules": [*sys.modules]}
    folder.with_suffix(".json").write_text(json.dumps(listing))


def kill(path: Path) -> None:
    os.kill(os.getpid(), 9)


def run(function: Callable[..., None], *arguments: Any, seconds: float | None = None) -> bool:
    """Call a function in a forked process, which is killed after so many seconds; return whether it
    was killed."""
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), process.exitcode
    return process.exitcode == -9


def results(folder: Path) -> dict[str, str]:
    """Digests of the files that hold data; of the others, which have times in them, that they are
    whole."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name == "inputs.parquet" or ".lock" in name:
            continue
        if path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in DATA else ""
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_is_continued_to_the_same_files(
    tmp_path: Path, budget: Budget, name: str
) -> None:
    folder, template = tmp_path / "work", tmp_path / "template"
    prepare, arguments = COMMANDS[name]
    folder.mkdir()
    run(prepare, folder)
    shutil.copytree(folder, template)

    def again() -> None:
        shutil.rmtree(folder)
        shutil.copytree(template, folder)

    for _ in range(2):  # first to learn what the command imports
        again()
        start = time.monotonic()
        run(command, folder, arguments)
        seconds, whole = (
            time.monotonic() - start,
            json.loads(folder.with_suffix(".json").read_text()),
        )

        assert whole["code"] == 0, folder.with_suffix(".said").read_text()
        for module in whole["modules"]:
            with suppress(Exception):
                importlib.import_module(module)
    expected, draw, kills, failed = results(folder), budget.random, 0, []
    operations = whole["operations"]
    record = max(number for number, done in enumerate(operations) if done.startswith("os.rename"))
    while budget.is_left(kills):
        again()
        for _ in range(draw.randint(1, 3)):
            if kills and draw.random() < 0.5:
                kills += run(command, folder, arguments, seconds=draw.uniform(0, seconds))
            else:
                kills += run(
                    command, folder, arguments, draw.randrange(len(operations)) if kills else record
                )
        run(command, folder, arguments)
        if results(folder) != expected:
            failed.append(folder.with_suffix(".said").read_text())
    budget.report(f"{name}: {kills} kills, {len(failed)} of them not continued to the same files")
    assert not failed, failed[0]
