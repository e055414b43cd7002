"""Exports, imports and moments through a Ray cluster, and commands on it, against the same done here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.executors import LocalExecutor, Report
from c3tools.executors.ray import RayExecutor
from c3tools.export import export_store
from c3tools.identity import ModelIdentity
from c3tools.reporter import Progress, Reporter
from c3tools.store import Store, StoreInfo, reader
from c3tools.store.means import compute_means, save_means
from c3tools.transforms import preset
from tests.conftest import copy_photos
from tests.embedding.test_embed import files
from tests.servers import Faults
from tests.stores import gap_store

COMMAND = [sys.executable, "-c", "from c3tools.cli import main; main()"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(gap_store(tmp_path / "store", 90, parts=7))


def exported(folder: Path) -> dict[str, bytes]:
    """All bytes of an export; seconds, which differ from run to run, are left out of the markers."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name, content in found.items():
        if name.endswith(".json") and "/" in name:
            found[name] = json.dumps({**json.loads(content), "seconds": None}).encode()
    return found


@pytest.mark.parametrize("format", ["parquet", "hf", "npy"])
def test_exports(cluster: RayExecutor, store: Store, tmp_path: Path, format: str) -> None:
    pipeline = preset("c3").fit(store)
    told: list[int] = []

    class Counting(Reporter, Progress):
        @contextmanager
        def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
            yield self

        def advance(self, count: int = 1, note: str | None = None) -> None:
            told.append(count)

    options: dict[str, Any] = {"pipeline": pipeline, "format": format}
    here = export_store(store, tmp_path / "here", **options)
    there = export_store(store, tmp_path / "there", **options, executor=cluster, reporter=Counting())
    assert exported(tmp_path / "there") == exported(tmp_path / "here")
    assert (there.rows, there.parts, there.kept, sum(told)) == (here.rows, 14, 0, 270)
    again = export_store(store, tmp_path / "there", **options, executor=cluster)
    assert (again.parts, again.kept) == (0, 14)


def test_moments(cluster: RayExecutor, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = store.moments_by_split("text")
    monkeypatch.setattr(reader, "MIN_GROUP_SHARDS", 2)
    results = [store.moments_by_split("text", where) for where in (None, LocalExecutor(threads=2), cluster)]
    for groups in results:
        assert list(groups) == list(plain)
        for name, moments in groups.items():
            assert moments.n == plain[name].n
            np.testing.assert_array_equal(moments.mean, results[0][name].mean)
            np.testing.assert_array_equal(moments.scatter, results[0][name].scatter)
            np.testing.assert_allclose(moments.scatter, plain[name].scatter, rtol=1e-12, atol=1e-14)
    assert compute_means(store, executor=cluster) == compute_means(store)
    save_means(store, tmp_path / "here")
    save_means(store, tmp_path / "there", executor=cluster)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_many_shards_are_merged_in_groups_of_bounded_number(tmp_path: Path) -> None:
    class Many(Store):
        def parts(self, modality: str) -> list[int]:
            return list(range(10_000))

    class Noting:
        def run(self, work: object, tasks: Any, report: Report) -> list[Any]:
            self.tasks = list(tasks)
            return []

    noting = Noting()
    Many(tmp_path, StoreInfo(ModelIdentity(), 4)).moments_by_split("text", noting)
    assert len(noting.tasks) == 32
    assert [part for _, parts in noting.tasks for part in parts] == list(range(10_000))
    assert max(len(parts) for _, parts in noting.tasks) == 313


def test_the_command_with_a_store_by_url(
    s3: Faults, light_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: workers have the credentials of where the cluster was started."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    import s3fs

    photos = copy_photos(tmp_path / "photos", 4)
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    arguments = ["embed", "photos", "--shard-size", "3", "--workers", "1", "--backend", "onnx", "--json"]
    arguments += ["--precision", "fp32"]
    cluster = ["--executor", "ray", "--processes", "2", "--store", "s3://bucket/store"]
    done = subprocess.run(
        [*COMMAND, *arguments, *cluster], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    summary = json.loads(done.stdout)
    assert (summary["modalities"]["image"]["embedded"], summary["modalities"]["text"]["embedded"]) == (4, 20)
    assert "ray" not in done.stderr.lower().replace("--executor ray", "")
    monkeypatch.chdir(tmp_path)
    embed_corpus(read_corpus(["photos"]), tmp_path / "here", light_encoder, shard_size=3, workers=1)
    s3fs.S3FileSystem(use_listings_cache=False).get("bucket/store", str(tmp_path / "there"), recursive=True)
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert photos.is_dir()


def test_an_interrupted_command_ends_its_workers(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    (tmp_path / "texts.txt").write_text("".join(f"a photo of {n} dogs\n" for n in range(3000)))
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    arguments = ["embed", "texts.txt", "--shard-size", "20", "--executor", "ray", "--processes", "2"]
    running = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("c3-store/text/_part-*.json")) and time.monotonic() < end:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Interrupted. Rows kept in c3-store: text " in stderr
    assert "Traceback" not in stderr
    kept = Store.open(tmp_path / "c3-store").parts("text")
    assert 0 < len(kept) < 150
    time.sleep(1)
    assert Store.open(tmp_path / "c3-store").parts("text") == kept
