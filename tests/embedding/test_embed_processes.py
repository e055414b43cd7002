"""Whole processes: several devices, SIGKILL, a full disk."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder, load_encoder
from c3tools.errors import C3Error
from c3tools.executors import LocalExecutor, local
from c3tools.reporter import Progress, Reporter
from c3tools.store import Store
from tests.embedding.test_embed import files

COMMAND = [sys.executable, "-c", "from c3tools.cli import main; main()", "embed"]


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 2)


def test_two_processes_write_the_same_bytes_as_one(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_text("no image")
    corpus = read_corpus([photos])
    done: list[int] = []
    embed_corpus(corpus, tmp_path / "one", encoder, shard_size=3, workers=0)

    class Counting(Progress, Reporter):
        def advance(self, count: int = 1, note: str | None = None) -> None:
            done.append(count)

        @contextlib.contextmanager
        def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
            yield self

    executor = LocalExecutor(["cpu", "cpu"])
    summary = embed_corpus(
        corpus, tmp_path / "two", encoder, shard_size=3, workers=0, executor=executor, reporter=Counting()
    )
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert sum(done) == 5 + 20
    assert (summary.modalities["image"].embedded, summary.modalities["image"].failed) == (4, 1)
    assert summary.modalities["text"].embedded == 20


def test_a_process_that_fails_ends_the_run_with_its_reason(
    encoder: Encoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(encoder.identity, "weights_sha256", "0" * 64)
    with pytest.raises(C3Error, match="cpu: The weights of the model c3-mini have changed"):
        executor = LocalExecutor(["cpu", "cpu"])
        embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, shard_size=3, workers=0, executor=executor)
    assert Store.open(tmp_path / "s").modalities == []


@pytest.mark.parametrize("backend", ["torch"])
def test_killed_at_a_random_moment_and_continued_to_the_same_bytes(photos: Path, tmp_path: Path, backend: str) -> None:
    (photos / "broken.jpg").write_text("no image")
    encoder = load_encoder(backend=backend, precision="fp32")
    embed_corpus(read_corpus([photos]), tmp_path / "whole", encoder, shard_size=2, workers=1)
    arguments = [*COMMAND, str(photos), "--shard-size", "2", "--workers", "1", "--store", str(tmp_path / "parts")]
    arguments += ["--backend", backend, "--precision", "fp32"]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None and not (tmp_path / "parts" / "store.json").exists():
            time.sleep(0.01)  # it loads the model
        time.sleep(random.Random(backend).uniform(0, 0.5))
        killed.send_signal(signal.SIGKILL)
    subprocess.run(arguments, check=True, capture_output=True)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert not list((tmp_path / "parts").rglob("*.tmp"))
