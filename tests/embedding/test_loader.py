from __future__ import annotations

import errno
import io
import mmap
import multiprocessing
import multiprocessing.context
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import pytest
from PIL import Image

from c3tools.corpus import ImageItem, read_corpus
from c3tools.embedding import embed_corpus
from c3tools.embedding.loader import pixel_batches
from c3tools.encoders import Encoder, ImagePreprocessor
from c3tools.errors import C3Error
from c3tools.io.limits import LARGEST_DECODED
from c3tools.store import Store
from tests.conftest import copy_photos
from tests.embedding.test_embed_containers import OPTIONS, by_key


def slow_jpeg() -> bytes:
    """A photo of 3 MB that takes many minutes to decode: its last scan is said 50,000 times over.

    libjpeg does not come back to Python between the scans of a block of 64 kB, so that a signal or a thread would wait.
    """
    buffer = io.BytesIO()
    Image.new("L", (3000, 3000), 128).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * 50_000 + content[-2:]


def test_an_image_that_takes_too_long_is_a_failure_and_stops_nobody(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 6)
    embed_corpus(read_corpus([folder]), tmp_path / "without", encoder, **OPTIONS)
    (folder / "000000000300.jpg").write_bytes(slow_jpeg())
    options: dict[str, Any] = {"shard_size": 6, "workers": 2, "batch_size": 3, "image_timeout": 2.0}
    summary = embed_corpus(read_corpus([folder]), tmp_path / "s", encoder, **options)
    assert (summary.modalities["image"].embedded, summary.modalities["image"].failed) == (6, 1)
    (failure,) = Store.open(tmp_path / "s").recorded_failures()
    assert (failure.key, failure.stage, failure.error) == ("000000000300", "decode", "DecodingTimeoutError")
    assert "longer than 2 s" in failure.message
    assert "--image-timeout" in failure.message
    for key, embedding in by_key(tmp_path / "without", "image").items():
        np.testing.assert_allclose(by_key(tmp_path / "s", "image")[key], embedding, atol=2e-3)


class DyingPreprocessor(ImagePreprocessor):
    """Ends its process, as one does that runs out of memory."""

    def load(self, source: str | Path | BinaryIO) -> NoReturn:
        os._exit(9)


def test_a_worker_that_dies_for_another_reason_is_told(encoder: Encoder, photos: Path) -> None:
    p = encoder.preprocess
    dying = DyingPreprocessor(p.geometry, p.size, p.mean, p.std, p.config)
    items = read_corpus([photos]).images
    with pytest.raises(C3Error, match="decodes images was killed"):
        list(pixel_batches({0: items}, dying, batch_size=3, workers=1, time_limit=60.0))


def test_any_number_of_workers_gives_the_same_batches_in_the_same_order(encoder: Encoder, photos: Path) -> None:
    items = read_corpus([photos]).images
    damaged = ImageItem("damaged", __file__, None, 0)
    shards = {0: [*items, damaged], 3: [], 7: [damaged], 8: items[:2]}
    here = list(pixel_batches(shards, encoder.preprocess, batch_size=2, workers=0))
    assert [(batch.shard, batch.last) for batch in here][-2:] == [(7, True), (8, True)]
    for workers in (1, 2, 5):
        others = list(pixel_batches(shards, encoder.preprocess, batch_size=2, workers=workers, time_limit=60.0))
        assert len(others) == len(here)
        for one, other in zip(here, others, strict=True):
            assert (one.shard, one.rows, one.failures, one.last) == (
                other.shard,
                other.rows,
                other.failures,
                other.last,
            )
            np.testing.assert_array_equal(one.pixels, other.pixels)  # of batches that were handed over long ago, too


class CountingPreprocessor(ImagePreprocessor):
    """Notes each image that is decoded in a file."""

    def load(self, source: str | Path | BinaryIO) -> tuple[Any, int, int]:
        with Path(os.environ["C3_TEST_LOG"]).open("a", encoding="ascii") as log:
            log.write(".")
        return super().load(source)


def test_workers_decode_a_bounded_number_of_batches_ahead_and_end_with_the_generator(
    encoder: Encoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("C3_TEST_LOG", str(log))
    p = encoder.preprocess
    counting = CountingPreprocessor(p.geometry, p.size, p.mean, p.std, p.config)
    items = list(read_corpus([photos]).images) * 10
    batches = pixel_batches({0: items}, counting, batch_size=1, workers=2)
    for _ in range(3):
        next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    assert 3 <= log.stat().st_size <= 3 + 2 * 3
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_workers_end_when_the_process_that_waits_for_them_is_killed(photos: Path) -> None:
    code = f"""
import multiprocessing, os, signal
from c3tools.corpus import read_corpus
from c3tools.embedding.loader import pixel_batches
from c3tools.encoders.bundled import read_description
items = list(read_corpus([{str(photos)!r}]).images) * 50
batches = pixel_batches({{0: items}}, read_description().preprocess, batch_size=1, workers=3)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pids = killed.stdout.split()
    assert len(pids) == 3
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


def test_a_worker_that_is_killed_is_told_with_its_signal(encoder: Encoder, photos: Path) -> None:
    batches = pixel_batches({0: list(read_corpus([photos]).images) * 20}, encoder.preprocess, batch_size=1, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(C3Error, match=r"decodes images was killed \(signal 9\)") as error:
        list(batches)
    assert "fewer --workers" in str(error.value.remedy)


def test_no_room_for_the_workers_is_told(encoder: Encoder, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    with pytest.raises(C3Error, match=r"could not be started \(Resource temporarily unavailable\)"):
        list(pixel_batches({0: read_corpus([photos]).images}, encoder.preprocess, batch_size=1, workers=1))


def test_workers_can_be_spawned(encoder: Encoder, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = read_corpus([photos]).images[:3]
    (expected,) = pixel_batches({0: items}, encoder.preprocess, batch_size=3, workers=0)
    monkeypatch.setattr(multiprocessing, "get_context", multiprocessing.context.SpawnContext)
    (found,) = pixel_batches({0: items}, encoder.preprocess, batch_size=3, workers=1, time_limit=60.0)
    np.testing.assert_array_equal(found.pixels, expected.pixels)


def test_a_file_that_became_a_pipe_or_is_huge_does_not_hang_or_fill_the_memory(
    encoder: Encoder, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    items = [ImageItem(name, str(tmp_path / f"{name}.jpg"), None, 0) for name in ("pipe", "huge")]
    (batch,) = pixel_batches({0: items}, encoder.preprocess, batch_size=4, workers=0)
    assert [failure.message for failure in batch.failures] == [
        "not a regular file",
        "2,147,483,648 bytes are too many for an image",
    ]


def test_a_file_without_read_permission_is_a_failure_of_reading(encoder: Encoder, photos: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        paths = [folder / "open.jpg", folder / "closed.jpg"]
        for path in paths:
            path.write_bytes(next(photos.glob("0*.jpg")).read_bytes())
            path.chmod(0o644)
        paths[1].chmod(0)
        items = [ImageItem(path.stem, str(path), None, 0) for path in paths]
        with _as_nobody():
            (batch,) = pixel_batches({0: items}, encoder.preprocess, batch_size=4, workers=0)
    assert [row["key"] for row in batch.rows] == ["open"]
    assert [(f.key, f.stage, f.error) for f in batch.failures] == [("closed", "read", "PermissionError")]


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may read everything, so a superuser gives its rights up for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_a_decoder_cannot_take_more_memory_than_an_image_may(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_photos(tmp_path / "p", 2)
    items = [ImageItem(path.stem, str(path), None, 0) for path in sorted(folder.glob("*.jpg"))]
    decode = ImagePreprocessor.load

    def hungry(self: ImagePreprocessor, source: Any) -> Any:
        if source.getbuffer().nbytes == Path(items[0].path).stat().st_size:
            # new memory: that which Python has kept from before could be enough
            mmap.mmap(-1, LARGEST_DECODED + 2**28, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        return decode(self, source)

    monkeypatch.setattr(ImagePreprocessor, "load", hungry)
    (batch,) = pixel_batches({0: items}, encoder.preprocess, batch_size=4, workers=1)
    assert [row["key"] for row in batch.rows] == [items[1].key]
    assert [failure.message for failure in batch.failures] == [os.strerror(errno.ENOMEM)]
