"""One writer at a time; a run that is killed at any moment is continued by the same command to the
same bytes."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
from PIL import Image

from c3tools import export_store, import_embeddings, merge_stores, train_captioner, verify_store
from c3tools.errors import C3Error, OutputError, StoreError, UnreachableError
from c3tools.io.artifact import digest_of
from c3tools.io.locations import location, remove, upload
from c3tools.store import Store, StoreInfo, StoreWriter, create_store
from c3tools.store.manifest import Manifest
from tests.captioning.conftest import make_captions_store
from tests.conftest import (
    add_shard,
    contents,
    contents_at_url,
    put_store,
    slice_of,
    unit_rows,
)
from tests.crashes import fail_at, kill_at, operations
from tests.servers import Faults
from tests.stores import DIM, colour_corpus, embed_colours, make_vectors, whole_store

COLOURS = {"a": "red", "b": None, "c": "blue", "d": "lime", "e": "tan", "f": "navy"}


def embed(folder: Path, **options: Any) -> None:
    embed_colours(folder / "c", folder / "s", **options)


def change(folder: Path) -> None:
    """Change one image, remove another with its captions, and add a third."""
    broken = (folder / "c" / "b.png").stat()
    Image.new("RGB", (3, 4), "pink").save(folder / "c" / "a.png")
    (folder / "c" / "d.png").unlink()
    colour_corpus(folder / "c", {**{name: COLOURS[name] for name in "bcef"}, "new": "gold"})
    # it is not tried again
    os.utime(folder / "c" / "b.png", ns=(broken.st_atime_ns, broken.st_mtime_ns))
    with (folder / "c" / "captions.jsonl").open("a") as file:
        file.write('{"image": "a.png", "captions": ["a 0", "another caption"]}\n')


def prepare(folder: Path, command: str) -> Callable[[], object]:
    """Make what a command needs anew, and return the command."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if command == "import":
        for name, rows in zip(("image", "text"), make_vectors(6), strict=True):
            np.save(folder / f"{name}.npy", rows[:6])
        image, text = folder / "image.npy", folder / "text.npy"
        return lambda: import_embeddings(image=image, text=text, store=folder / "s")
    if command == "train-decoder":
        make_captions_store(folder / "s")
        settings: dict[str, Any] = {
            "sigma": 0.1,
            "size": "tiny",
            "epochs": 1,
            "device": "cpu",
            "precision": "fp32",
        }
        return lambda: train_captioner(folder / "s", output=folder / "d", **settings)
    if command == "export":
        whole_store(folder / "s", images=6, part_rows=4)
        return lambda: export_store(
            folder / "s", output=folder / "e", preset="c2-collapse", workers=1
        )
    colour_corpus(folder / "c", COLOURS)
    if command == "embed":
        return partial(embed, folder)
    embed(folder)
    if command == "update":
        change(folder)
        return lambda: embed(folder, update=True, prune=True)
    if command == "merge":
        shutil.copytree(folder / "s", folder / "t")
        return lambda: merge_stores(
            [folder / "s", folder / "t"], output=folder / "m", keep_first=True
        )
    (folder / "s" / "moments.safetensors").unlink()
    return lambda: verify_store(folder / "s", repair=True)


def everything(folder: Path) -> dict[str, bytes]:
    found = {
        f"{name}/{file}": content
        for name in "smed"
        for file, content in contents(folder / name).items()
    }
    return {
        name: content for name, content in found.items() if name[0] != "d" or "safetensors" in name
    }


@pytest.mark.parametrize(
    ("command", "kills"), [("embed", 5), ("update", 7), ("merge", 3), ("repair", 3)]
)
def test_a_killed_run_is_continued_to_the_same_bytes(
    tmp_path: Path, command: str, kills: int
) -> None:
    folder = tmp_path / "work"
    done = operations(folder, prepare(folder, command))
    moved = [
        step.rpartition("/")[0]
        for step in done
        if re.match(r"os.rename .*/.rewriting/\w+/part", step)
    ]
    if command == "update":
        # All texts before the first image
        in_order = ["os.rename s/.rewriting/text", "os.rename s/.rewriting/image"]
        assert [*dict.fromkeys(moved)] == in_order
    else:
        assert moved == []
    assert verify_store(folder / "s").whole
    expected = everything(folder)
    for number in slice_of(random.Random(0).sample(range(len(done)), kills)):
        run = prepare(folder, command)
        assert kill_at(folder, number, run)
        run()
        assert everything(folder) == expected, f"killed at {number}"
        assert {path.suffix for path in folder.rglob(".*")} <= {".lock"}, "something is left"


@pytest.mark.parametrize("command", ["embed", "update", "import", "export", "repair"])
def test_a_fault_is_one_clear_error_and_nothing_is_lost(tmp_path: Path, command: str) -> None:
    folder = tmp_path / "work"
    count = len(operations(folder, prepare(folder, command)))
    expected = everything(folder)
    for number in (errno.ENOSPC, errno.EIO, errno.EACCES):
        run = prepare(folder, command)
        for operation in slice_of(random.Random(number).sample(range(count), 3)):
            with suppress(C3Error, OSError):  # the command says it in a line, or was through before
                fail_at(folder, operation, number, run)
        run()
        assert everything(folder) == expected


def test_a_killed_update_tries_a_mended_input_again(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    update = partial(embed, folder, update=True)

    def mend() -> None:
        prepare(folder, "embed")()
        Image.new("RGB", (3, 3), "red").save(folder / "c" / "b.png")

    mend()
    first = next(
        number for number, name in enumerate(operations(folder, update)) if "part-" in name
    )
    mend()
    assert kill_at(folder, first, update)
    update()
    assert Store.open(folder / "s").count("image") == 6


def add(path: Path, info: StoreInfo, part: int, made_from: str | None = None) -> None:
    columns = {"key": [f"k{part}"], "split": ["train"]}
    add_shard(path, info, "image", part, unit_rows(1, DIM, part), columns, (), made_from)


def test_whole_shards_of_the_same_settings_are_adopted(tmp_path: Path) -> None:
    store = whole_store(tmp_path / "s")
    path, made_from = store.path, digest_of(store.info)
    add(path, store.info, 3)
    add(path, store.info, 4)
    damaged = path / "image" / "part-00004.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    writer = StoreWriter(path)
    writer.adopt(made_from)
    assert writer.finish().shards["image", 3].rows == 1 and not damaged.exists()
    add(path, store.info, 5, "other settings")
    with pytest.raises(StoreError, match="part-00005"):
        StoreWriter(path).adopt(made_from)
    assert Store.open(path).count("image") == 31


def test_history_leaves_no_trace_in_the_bytes(tmp_path: Path) -> None:
    info, found = whole_store(tmp_path / "s").info, []
    for name, order in (("in order", range(4)), ("mixed", [3, 1, 0, 2]), ("one by one", range(4))):
        create_store(tmp_path / name, info)
        writer = StoreWriter(tmp_path / name)
        for part in order:
            add(tmp_path / name, info, part)
            if name == "one by one":
                writer.finish()
        writer.finish()
        found.append(contents(tmp_path / name))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("command", ["embed", "update", "import"])
def test_no_shard_of_a_run_is_read_again_to_sum_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    run = prepare(tmp_path / "work", command)
    with monkeypatch.context() as patch:
        sum_shard = Mock(side_effect=AssertionError("reads a shard"))
        patch.setattr("c3tools.store.manifest.sum_shard", sum_shard)
        run()
    moments = tmp_path / "work" / "s" / "moments.safetensors"
    content = moments.read_bytes()
    moments.unlink()
    StoreWriter(moments.parent).finish()
    assert moments.read_bytes() == content
    assert verify_store(moments.parent).whole


def test_at_a_url_the_last_writer_reports_a_change(tmp_path: Path, s3: Faults) -> None:
    place = put_store(whole_store(tmp_path / "s").path, "s3://bucket/s")
    first, second = StoreWriter(place), StoreWriter(place)
    add(place, first.info, 3)
    first.finish()
    add(place, first.info, 4)
    with pytest.raises(OutputError, match="Another run"):
        second.finish()
    assert ("image", 4) not in Manifest.load(place).shards  # type: ignore[union-attr]
    StoreWriter(place).finish()
    assert verify_store(place).whole


def test_readers_beside_a_writer_never_see_half_a_shard(tmp_path: Path) -> None:
    path, counts = tmp_path / "s", set()
    info = whole_store(path).info
    child = os.fork()
    if child == 0:
        for part in range(3, 40):
            add(path, info, part)
            StoreWriter(path).finish()
        os._exit(0)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        store = Store.open(path)
        rows = store.load("image")
        counts.add(len(rows))
        assert len(rows) == store.count("image") and np.isfinite(rows.embeddings).all()
        time.sleep(0.01)
    assert len(counts) > 2 and Store.open(path).moments("image").n == 30 + 37


def test_an_interrupted_run_continues_to_the_bytes_of_a_store_on_disk(
    tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = colour_corpus(tmp_path / "c", COLOURS)
    embed_colours(folder, tmp_path / "s")
    s3.every = 7
    place = location("s3://bucket/s")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted = Mock(wraps=upload, side_effect=[DEFAULT, DEFAULT, DEFAULT, KeyboardInterrupt])
        patch.setattr("c3tools.io.files.upload", interrupted)
        embed_colours(folder, place)
    embed_colours(folder, place)
    assert contents_at_url(place) == contents(tmp_path / "s")
    (folder / "a.png").unlink()
    for to in (place, tmp_path / "s"):
        embed_colours(folder, to, update=True, prune=True)
    assert verify_store(place).whole and Store.open(place).count("image") == 4
    assert contents_at_url(place) == contents(tmp_path / "s")
    remove(place / "moments.safetensors")
    assert not verify_store(place).whole and verify_store(place, repair=True).whole


def test_what_cannot_be_reached_is_no_damage(
    tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.io.locations.ATTEMPTS", 1)
    place = put_store(whole_store(tmp_path / "s", images=4, part_rows=2).path, "s3://bucket/s")
    before = s3.requests
    assert verify_store(place).whole
    needed = s3.requests - before
    for number, last in enumerate(range(0, needed, max(1, needed // 10))):
        s3.last, s3.answer = (
            s3.requests + last,
            ["500 Internal Server Error", "403 Forbidden"][number % 2],
        )
        with pytest.raises(UnreachableError, match="s3://bucket/s"):
            verify_store(place)
