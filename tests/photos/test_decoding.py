"""Worker processes that decode: the same batches however many there are, and no image that stops
the others."""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import Mock

import numpy as np
import pytest

from c3tools.corpus.items import ImageItem
from c3tools.corpus.reading import read_corpus
from c3tools.encoders import Encoder, ImagePreprocessor
from c3tools.errors import C3Error
from c3tools.io.limits import LARGEST_DECODED
from c3tools.photos import decoding
from c3tools.photos.decoding import decoded_batches
from tests.bombs import slow_jpeg, sparse


class HostilePreprocessor(ImagePreprocessor):
    """Does what the name of a file's content says: ends its process, or takes memory."""

    def load(self, source: str | Path | BinaryIO) -> Any:
        content = source.getvalue()[:20]  # type: ignore[union-attr]
        if content == b"dies":
            os._exit(9)
        # new memory: that which Python has kept from before could be enough
        if content == b"hungry":
            mmap.mmap(-1, LARGEST_DECODED + 2**30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        return super().load(source)


@pytest.mark.parametrize("part", [1, 3, 32])
def test_a_batch_is_decoded_in_parts(
    part: int, encoder: Encoder, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU batches are large: all workers decode parts of one, into little shared memory."""
    monkeypatch.setattr(decoding, "_PART", part)
    good = read_corpus(photos).images
    bad = ImageItem("bad", str(photos / "captions.jsonl"), None, None)
    shards = [(0, [bad, *good[:3], bad]), (1, [*good, *good, bad])]
    memory = Mock(wraps=multiprocessing.RawArray)
    monkeypatch.setattr(BaseContext, "RawArray", memory)
    for preprocess in (encoder.preprocess, replace(encoder.preprocess, fixed=False)):
        expected, batches = (
            list(decoded_batches(shards, preprocess, batch_size=7, workers=workers))
            for workers in (0, 2)
        )
        assert len(batches) == 3
        for (batch, pixels), (one, by_one) in zip(batches, expected, strict=True):
            assert replace(batch, waited=0) == replace(one, waited=0)
            assert len(pixels) == len(batch.rows)
            assert all(np.array_equal(a, b) for a, b in zip(pixels, by_one, strict=True))
    height, width = encoder.preprocess.size
    sizes = [call.args[1] for call in memory.call_args_list]
    assert sizes == [2 * 3 * min(7, part) * height * width * 3, 0]


def test_hostile_images_are_failures_and_stop_nobody(encoder: Encoder, photos: Path) -> None:
    hostile = HostilePreprocessor(encoder.preprocess.geometry, encoder.preprocess.config)
    for name, content in {
        "dies": b"dies",
        "hungry": b"hungry",
        "slow": slow_jpeg(),
        "empty": b"",
    }.items():
        (photos / f"{name}.jpg").write_bytes(content)
    os.mkfifo(photos / "pipe.jpg")
    sparse(photos / "huge.jpg", 2**31)
    names = "dies hungry slow empty pipe huge gone".split()
    good = read_corpus(photos).images[:3]
    bad = [ImageItem(name, str(photos / f"{name}.jpg"), None, None) for name in names]
    shards = [(0, [*good, *bad[:2]]), (1, [bad[2], *good]), (2, bad[3:]), (3, good)]
    batches = list(decoded_batches(shards, hostile, batch_size=2, workers=2, time_limit=3.0))
    found = {failure.key: failure for batch, _ in batches for failure in batch.failures}
    assert [found[name].stage for name in names] == ["decode"] * 4 + ["read"] * 3
    slow = found["slow"]
    assert (found["dies"].error, slow.error) == ("ValueError", "TimeoutError")
    assert "3 s" in slow.message and "--image-timeout" in slow.message
    assert os.strerror(errno.ENOMEM) in found["hungry"].message
    rows = [
        [row["key"] for batch, _ in batches for row in batch.rows if batch.shard == shard]
        for shard in range(4)
    ]
    assert rows[0] == rows[1] == rows[3] == [item.key for item in good]


def test_any_number_of_workers_gives_the_same_batches_in_the_same_order(
    encoder: Encoder, photos: Path
) -> None:
    items = list(read_corpus(photos).images)
    damaged = ImageItem("damaged", __file__, None, 0)
    shards = [(0, [*items, damaged]), (3, []), (7, [damaged]), (8, items[:2])]
    here = list(decoded_batches(shards, encoder.preprocess, batch_size=2, workers=0))
    assert [batch.shard for batch, _ in here] == [0, 0, 0, 7, 8]
    for workers in (1, 3):
        others = list(
            decoded_batches(
                shards, encoder.preprocess, batch_size=2, workers=workers, time_limit=60.0
            )
        )
        for (one, pixels), (other, same) in zip(here, others, strict=True):
            assert (one.shard, one.rows) == (other.shard, other.rows)
            assert one.failures == other.failures
            np.testing.assert_array_equal(pixels, same)


def test_a_killed_worker_is_replaced_and_workers_end_with_the_generator(
    encoder: Encoder, photos: Path
) -> None:
    items = list(read_corpus(photos).images) * 20
    others = set(multiprocessing.active_children())
    batches = decoded_batches([(0, items)], encoder.preprocess, batch_size=1, workers=1)
    keys = [row["key"] for row in next(batches)[0].rows]
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid or 0, signal.SIGKILL)
    for _ in range(len(items) - 2):
        keys += [row["key"] for row in next(batches)[0].rows]
    assert keys == [item.key for item in items[:-1]]
    batches.close()
    assert set(multiprocessing.active_children()) == others


def test_ctrl_c_while_workers_start_leaves_none_that_python_would_wait_for(
    encoder: Encoder, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(read_corpus(photos).images) * 20
    others = set(multiprocessing.active_children())
    start = BaseProcess.start

    def interrupted_start(process: BaseProcess) -> None:
        start(process)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(BaseProcess, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        list(decoded_batches([(0, items)], encoder.preprocess, batch_size=1, workers=1))
    left = set(multiprocessing.active_children()) - others
    for process in left:
        process.kill()
    assert not left


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_workers_end_when_the_process_that_waits_for_them_is_killed(photos: Path) -> None:
    code = f"""
import multiprocessing, operator, os, signal
from c3tools.corpus.reading import read_corpus
from c3tools.photos.decoding import decoded_batches
from c3tools.encoders import ImagePreprocessor
items = list(read_corpus([{str(photos)!r}]).images) * 50
preprocess = ImagePreprocessor((operator.methodcaller("resize", (32, 32)),), {{"size": 32}})
batches = decoded_batches([(0, items)], preprocess, batch_size=1, workers=3)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    pids = killed.stdout.split()
    assert len(pids) == 3
    deadline = time.monotonic() + 20
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_runs, pids))


def _runs(pid: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_no_room_for_the_workers_is_told(
    encoder: Encoder, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    with pytest.raises(C3Error, match="Resource temporarily unavailable"):
        list(
            decoded_batches(
                [(0, read_corpus(photos).images)], encoder.preprocess, batch_size=1, workers=1
            )
        )
