"""A Ray cluster of this machine with two workers, against the same work done here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.embedding import run as run_module
from c3tools.embedding import shards as shards_module
from c3tools.encoders import Encoder
from c3tools.errors import C3Error
from c3tools.executors import Executor
from c3tools.executors import ray as on_ray
from c3tools.executors.ray import RayExecutor, WorkerAllocation, allocate
from c3tools.reporter import Progress, Reporter
from c3tools.store import Store, write_shard
from tests.conftest import copy_photos
from tests.embedding.test_embed import files
from tests.executors.killed import KilledOnce
from tests.executors.works import Squares

OPTIONS: dict[str, Any] = {"shard_size": 3, "workers": 1, "batch_size": 2}


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    folder = copy_photos(tmp_path / "photos", 7)
    (folder / "broken.jpg").write_text("no image")
    return folder


def squares(executor: Executor, work: Squares, count: int = 6) -> tuple[list[int], int, int]:
    told = [0, 0]

    def report(done: int, failed: int) -> None:
        told[0] += done
        told[1] += failed

    return executor.run(work, range(count), report), told[0], told[1]


class TestTasks:
    def test_results_come_in_the_order_of_tasks_from_two_processes(self, cluster: RayExecutor, tmp_path: Path) -> None:
        assert squares(cluster, Squares(tmp_path, "meet", 0)) == ([0, 1, 4, 9, 16, 25], 60, 6)
        assert squares(cluster, Squares(tmp_path), 0) == ([], 0, 0)
        processes = {path.name.split("-")[2] for path in tmp_path.iterdir()}
        assert len(processes) == 2
        assert str(os.getpid()) not in processes

    @pytest.mark.parametrize("trouble", ["crash", "kill"])
    def test_a_task_that_fails_is_tried_again_and_counted_once(
        self, cluster: RayExecutor, tmp_path: Path, trouble: str
    ) -> None:
        assert squares(cluster, Squares(tmp_path, trouble, times=2)) == ([0, 1, 4, 9, 16, 25], 60, 6)
        assert len(list(tmp_path.glob("3-*"))) == 3

    @pytest.mark.parametrize(
        ("trouble", "told"),
        [
            ("crash", r"(?s)square 3 failed 3 times.*ZeroDivisionError: of this number.*Finished work is kept"),
            ("kill", r"(?s)square 3 failed 3 times.*worker was lost.*Finished work is kept.*memory"),
            ("refuse", r"square 3: the disk is full\nMake room\."),
        ],
    )
    def test_a_task_that_always_fails_is_named(
        self, cluster: RayExecutor, tmp_path: Path, trouble: str, told: str
    ) -> None:
        with pytest.raises(C3Error, match=told):
            squares(cluster, Squares(tmp_path, trouble))
        assert len(list(tmp_path.glob("3-*"))) == (1 if trouble == "refuse" else 3)

    def test_a_straggler_is_done_by_an_idle_worker_too(
        self, cluster: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(on_ray, "STRAGGLER_SECONDS", 0.5)
        start = time.monotonic()
        assert squares(cluster, Squares(tmp_path, "sleep", times=1)) == ([0, 1, 4, 9, 16, 25], 60, 6)
        assert time.monotonic() - start < 60


class TestEmbedding:
    def test_the_store_has_the_same_bytes(
        self, cluster: RayExecutor, each_encoder: Encoder, corpus_folder: Path, tmp_path: Path
    ) -> None:
        corpus = read_corpus([corpus_folder])
        here = embed_corpus(corpus, tmp_path / "here", each_encoder, **OPTIONS)
        there = embed_corpus(corpus, tmp_path / "there", each_encoder, **OPTIONS, executor=cluster)
        assert files(tmp_path / "there") == files(tmp_path / "here")
        failures = Store.open(tmp_path / "there").recorded_failures()
        assert [failure.key for failure in failures] == ["broken"]
        for summary in (here, there):
            counts = {name: (m.embedded, m.failed, m.truncated) for name, m in summary.modalities.items()}
            assert counts == {"image": (7, 1, 0), "text": (35, 0, 0)}

    def test_a_killed_worker_loses_nothing(
        self,
        cluster: RayExecutor,
        light_encoder: Encoder,
        corpus_folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        corpus = read_corpus([corpus_folder])
        embed_corpus(corpus, tmp_path / "here", light_encoder, **OPTIONS)
        flags = tmp_path / "flags"
        flags.mkdir()
        monkeypatch.setattr(KilledOnce, "folder", flags)
        monkeypatch.setattr(run_module, "EmbedWork", KilledOnce)
        summary = embed_corpus(corpus, tmp_path / "there", light_encoder, **OPTIONS, executor=cluster)
        assert files(tmp_path / "there") == files(tmp_path / "here")
        assert (summary.modalities["image"].embedded, summary.modalities["text"].embedded) == (7, 35)
        assert (flags / "image-killed").exists()
        assert (flags / "text-killed").exists()
        assert (flags / "image-ran-1").read_text() == "xx"
        assert (flags / "text-ran-1").read_text() == "x"  # its done marker was there already

    def test_ray_goes_on_where_local_was_interrupted(
        self,
        cluster: RayExecutor,
        light_encoder: Encoder,
        corpus_folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        corpus = read_corpus([corpus_folder])
        embed_corpus(corpus, tmp_path / "whole", light_encoder, **OPTIONS)
        calls = 0

        def stopping(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise KeyboardInterrupt
            write_shard(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(shards_module, "write_shard", stopping)
            with pytest.raises(KeyboardInterrupt):
                embed_corpus(corpus, tmp_path / "one", light_encoder, **OPTIONS)
        embed_corpus(corpus, tmp_path / "one", light_encoder, **OPTIONS, executor=cluster)
        assert files(tmp_path / "one") == files(tmp_path / "whole")

    def test_local_goes_on_where_ray_was_interrupted(
        self, cluster: RayExecutor, encoder: Encoder, corpus_folder: Path, tmp_path: Path
    ) -> None:
        class Interrupting(Progress, Reporter):
            def advance(self, count: int = 1, note: str | None = None) -> None:
                raise KeyboardInterrupt

            @contextmanager
            def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
                yield self

        corpus = read_corpus([corpus_folder])
        embed_corpus(corpus, tmp_path / "whole", encoder, **OPTIONS)
        with pytest.raises(KeyboardInterrupt):
            embed_corpus(corpus, tmp_path / "other", encoder, **OPTIONS, executor=cluster, reporter=Interrupting())
        assert 1 <= len(Store.open(tmp_path / "other").parts("image")) < 3
        embed_corpus(corpus, tmp_path / "other", encoder, **OPTIONS)
        assert files(tmp_path / "other") == files(tmp_path / "whole")


def machine(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "processes", "cores", "gpu", "expected"),
    [
        ([machine(8), machine(4)], None, None, False, WorkerAllocation(3, 4)),
        ([machine(8), machine(4)], None, 1, False, WorkerAllocation(12, 1)),
        ([machine(8), machine(4, alive=False)], 2, None, False, WorkerAllocation(2, 4)),
        ([machine(2)], 4, None, False, WorkerAllocation(4, 0.5)),
        ([machine(2)], 5, None, False, WorkerAllocation(5, 0.3333)),
        ([machine(4), machine(4)], 1, None, False, WorkerAllocation(1, 4)),
        ([machine(6), machine(2)], 2, None, False, WorkerAllocation(2, 3)),
        ([machine(1), machine(1), machine(1)], 4, None, False, WorkerAllocation(4, 0.5)),
        ([machine(96, 8), machine(32, 4), machine(64)], None, None, True, WorkerAllocation(12, 8)),
        ([machine(96, 8)], 2, None, True, WorkerAllocation(2, 12)),
    ],
)
def test_workers_that_fit(
    nodes: list[dict[str, Any]], processes: int | None, cores: int | None, gpu: bool, expected: WorkerAllocation
) -> None:
    assert allocate(nodes, processes, cores, gpu=gpu) == expected


def test_no_gpus_to_give() -> None:
    with pytest.raises(C3Error, match="The cluster has no GPUs"):
        allocate([machine(8)], None, None, gpu=True)
