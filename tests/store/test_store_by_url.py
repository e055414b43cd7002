"""A store in an object store, on a server whose every seventh request fails, against the same on disk."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.embedding import shards as shards_module
from c3tools.encoders import Encoder
from c3tools.errors import C3Error, OutputError, UnreachableError
from c3tools.io import locations, lock
from c3tools.io.lock import locked
from c3tools.store import Shard, Store, StoreInfo, create_store, write_shard
from c3tools.store import verify as verify_module
from c3tools.store.verify import repair_store, verify_store
from tests.conftest import C3, MODEL, copy_photos, put_store, unit_rows
from tests.corpus.packing import photos_of, webdataset, write_tar
from tests.embedding.test_embed import files
from tests.servers import Faults
from tests.stores import whole_store

OPTIONS: dict[str, Any] = {"shard_size": 3, "workers": 2, "batch_size": 2}
URL = "s3://bucket/runs/store"


def fetched(folder: Path, faults: Faults) -> dict[str, bytes]:
    """All bytes of the store at `URL`, as of one on disk."""
    s3fs = pytest.importorskip("s3fs")
    faults.every = 0
    s3fs.S3FileSystem(use_listings_cache=False).get(URL.removeprefix("s3://"), str(folder), recursive=True)
    return files(folder)


def test_the_store_has_the_bytes_of_one_on_disk(encoder: Encoder, tmp_path: Path, s3: Faults) -> None:
    folder = copy_photos(tmp_path / "p", 7)
    (folder / "broken.jpg").write_text("no image")
    s3.every = 7
    for store in (tmp_path / "disk", URL):
        summary = embed_corpus(read_corpus([folder]), store, encoder, **OPTIONS)
        assert (summary.modalities["image"].embedded, summary.modalities["text"].embedded) == (7, 35)
        assert (summary.store, summary.failures_in_store) == (str(store), 1)
    assert fetched(tmp_path / "copy", s3) == files(tmp_path / "disk")
    s3.every = 7
    again = embed_corpus(read_corpus([folder]), URL, encoder, **OPTIONS)
    assert (again.modalities["image"].already, again.modalities["image"].embedded) == (7, 0)
    assert fetched(tmp_path / "copy2", s3) == files(tmp_path / "disk")
    disk, remote = Store.open(tmp_path / "disk"), Store.open(URL)
    assert remote.modalities == disk.modalities
    np.testing.assert_array_equal(remote.load("text").embeddings, disk.load("text").embeddings)
    np.testing.assert_array_equal(remote.moments("image").scatter, disk.moments("image").scatter)
    assert remote.recorded_failures() == disk.recorded_failures()
    assert s3.failed > 10


@pytest.mark.parametrize("stop_at", [1, 3])
def test_an_interrupted_run_continues_to_the_same_bytes(
    encoder: Encoder, tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    corpus = read_corpus([copy_photos(tmp_path / "p", 4)])
    embed_corpus(corpus, tmp_path / "disk", encoder, **OPTIONS)
    s3.every = 7
    calls = 0

    def stopping(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        write_shard(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "write_shard", stopping)
        with pytest.raises(KeyboardInterrupt):
            embed_corpus(corpus, URL, encoder, **OPTIONS)
    embed_corpus(corpus, URL, encoder, **OPTIONS)
    assert fetched(tmp_path / "copy", s3) == files(tmp_path / "disk")


@pytest.mark.parametrize("name", ["part-00000.parquet", "_part-00000.moments.safetensors"])
def test_a_shard_that_is_damaged_on_the_way_is_no_shard(s3: Faults, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def upload(source: Path, target: Path) -> None:
        if target.name == name:
            source.write_bytes(source.read_bytes()[:-1] + b"\n")
        uploaded(source, target)

    uploaded, path, info = locations.upload, locations.location(URL), StoreInfo(MODEL, 4)
    create_store(path, info)
    shard = Shard("image", 0, unit_rows(3, 4), {"key": list("abc")})
    with monkeypatch.context() as patch:
        patch.setattr(locations, "upload", upload)
        with pytest.raises(UnreachableError, match=rf"(?s){name} was changed on the way.*Run the same command again"):
            write_shard(path, info, shard)
    assert Store.open(URL).modalities == []
    write_shard(path, info, shard)
    assert {finding.check for finding in verify_store(URL).findings} == {"manifest"}


KILLED = """
from c3tools.cli import main
from c3tools.io import locations
from c3tools.io import lock
locations.FIRST_PAUSE = 0.001
lock.HEARTBEAT, lock.SETTLING = 0.2, 0.05
main()
"""


def test_a_run_that_is_killed_continues_to_the_same_bytes(
    light_encoder: Encoder, tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_photos(tmp_path / "p", 4)
    corpus = read_corpus([folder])
    embed_corpus(corpus, tmp_path / "disk", light_encoder, shard_size=2, workers=0)
    s3.every = 7
    options = ["--workers", "0", "--shard-size", "2", "--precision", "fp32", "--backend", "onnx"]
    command = [sys.executable, "-c", KILLED, "embed", str(folder), "--store", URL, *options]
    limit = random.Random().randrange(5, 90)
    s3.hold_after(limit)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        # the run waits for the server when it is killed, so that it is killed at this request however fast it is
        while not s3.held.wait(0.05):
            assert run.poll() is None, f"the run ended within {limit} requests"
        run.kill()
    s3.release()
    assert run.returncode == -signal.SIGKILL, limit
    if locations.kind_of(locations.location(f"{URL}/store.json")) is not None:
        assert {finding.check for finding in verify_store(URL).defects} <= {"manifest"}, limit
    monkeypatch.setattr(lock, "PATIENCE", 1.0)  # the lease of the killed run is still there
    embed_corpus(corpus, URL, light_encoder, shard_size=2, workers=0)
    assert fetched(tmp_path / "copy", s3) == files(tmp_path / "disk"), limit


def test_commands_on_a_store_by_url_from_tars_by_url(
    c3: C3, tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs = pytest.importorskip("s3fs")
    folder = copy_photos(tmp_path / "p", 4)
    chosen = photos_of(folder)
    for number in (0, 1):
        path = write_tar(tmp_path / f"{number}.tar", webdataset(chosen[number * 2 : number * 2 + 2]))
        s3fs.S3FileSystem().put(str(path), f"bucket/{number}.tar")
    s3.every = 7

    def run(*arguments: object) -> str:
        result = c3(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    run("embed", folder, "--store", "disk", "--workers", 1)
    run("embed", "s3://bucket/{0..1}.tar", "--store", URL, "--workers", 1)
    for command in (["means"], ["gap-report", "--split", "all", "--presets", "raw"]):
        one, other = (json.loads(run(*command, "--store", store, "--json")) for store in ("disk", URL))
        assert without_store(one) == without_store(other)
    run("export", "--store", "disk", "--output", "e1")
    monkeypatch.setenv("C3_STORE", URL)
    run("export", "--output", "e2")
    tables = sorted(path.relative_to(tmp_path / "e1") for path in (tmp_path / "e1").rglob("*.parquet"))
    assert len(tables) >= 2
    for name in tables:
        one, other = (pq.read_table(tmp_path / folder / name) for folder in ("e1", "e2"))
        if "path" in one.column_names:  # where the images were: in the folder, in the tars
            one, other = one.drop_columns(["path"]), other.drop_columns(["path"])
        assert one.num_rows > 0
        assert one.equals(other)
    assert s3.failed > 10


def without_store(value: dict[str, Any]) -> dict[str, Any]:
    """A report without the name of its store."""
    return {
        name: without_store(inner) if isinstance(inner, dict) else inner
        for name, inner in value.items()
        if name != "store"
    }


@pytest.mark.parametrize("answer", ["500 Internal Server Error", "403 Forbidden"])
def test_what_cannot_be_reached_is_no_damage(
    tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(locations, "ATTEMPTS", 1)
    place = put_store(whole_store(tmp_path / "s", images=4, part_rows=2).path, URL)
    s3.answer = answer
    before = s3.requests
    assert verify_store(URL).whole
    needed = s3.requests - before
    assert needed > 50
    for last in range(0, needed, 11):
        s3.last = s3.requests + last
        with pytest.raises(UnreachableError, match="s3://bucket/runs/store"):
            verify_store(place)


def test_a_repair_that_is_cut_off_leaves_no_half_shard_and_is_continued(
    tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "ATTEMPTS", 1)
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    path = whole_store(tmp_path / "s", images=4, part_rows=2).path
    (path / "image" / "_part-00001.moments.safetensors").write_bytes(b"x")
    (path / "text" / "part-00001.parquet").write_bytes(b"x")
    cut = 0
    for last in range(6, 40, 15):
        put_store(path, URL)
        result = verify_store(URL)
        s3.last = s3.requests + last
        try:
            repair_store(result)
        except UnreachableError:
            cut += 1
        s3.last = None
        left = {(finding.check, finding.where) for finding in verify_store(URL).defects}
        assert left <= {
            ("checksum", "image/_part-00001.moments.safetensors"),
            ("checksum", "text/part-00001.parquet"),
            ("files", "text/part-00001.parquet"),
        }
        repair_store(verify_store(URL))
        # what was dropped stays recorded until it is made again
        assert [(f.check, f.where) for f in verify_store(URL).defects] == [("files", "text/part-00001.parquet")]
        assert Store.open(URL, incomplete=True).parts("text") == [0]
    assert cut >= 2


def test_a_defect_is_told_and_dropped_marker_first(
    c3: C3, tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = whole_store(tmp_path / "s").path
    content = (path / "text" / "part-00001.parquet").read_bytes()
    (path / "text" / "part-00001.parquet").write_bytes(content[:60] + b"\0" + content[61:])
    place = put_store(path, URL)
    monkeypatch.setenv("C3_STORE", URL)
    s3.every = 7
    result = c3("verify", "--json")
    assert result.exit_code == 3
    value = json.loads(result.stdout)
    assert value["store"] == URL
    assert [(f["check"], f["where"]) for f in value["findings"]] == [("checksum", "text/part-00001.parquet")]
    assert c3("verify", URL, "--sample", "0.1", "--seed", "2").exit_code == 0  # reads another shard
    removed: list[str] = []

    def noting(path: Path) -> None:
        removed.append(path.name)
        locations.remove(path)

    monkeypatch.setattr(verify_module, "remove", noting)
    result = c3("verify", "--store", URL, "--repair")
    assert result.exit_code == 3
    assert f"{URL}/text/part-00001.parquet: its sha256" in result.stderr
    assert "text shard 1 was removed" in result.stdout
    assert removed == [
        "_part-00001.json",
        "_part-00001.faiss.json",
        "_part-00001.faiss",
        "_part-00001.moments.safetensors",
        "part-00001.parquet",
    ]
    assert len(locations.names_in(place / "text")[1]) == 6
    again = c3("verify", URL)
    assert again.exit_code == 3
    assert "1 of 3 recorded shards are missing (20 rows): 1" in again.stderr


def test_two_writers(encoder: Encoder, tmp_path: Path, s3: Faults) -> None:
    corpus = read_corpus([copy_photos(tmp_path / "p", 1)])
    place = locations.location(URL)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(place):
            entered.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(30)
    with pytest.raises(OutputError, match="Another run is writing to s3://"):
        embed_corpus(corpus, URL, encoder, **OPTIONS)
    leave.set()
    holder.join()
    embed_corpus(corpus, URL, encoder, **OPTIONS)


class Clock:
    """A clock that goes on only where somebody sleeps; others act meanwhile."""

    def __init__(self, *meanwhile: Callable[[], object]) -> None:
        self.seconds = 0.0
        self._meanwhile = list(meanwhile)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self._meanwhile:
            self._meanwhile.pop(0)()

    def __call__(self) -> float:
        return self.seconds


def test_the_lease_of_a_dead_writer_is_taken_over_and_a_lost_one_is_told(
    tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 3.0)
    monkeypatch.setattr(lock, "PATIENCE", 15.0)
    s3.every = 7
    place = locations.location(URL)

    def write(content: bytes) -> None:
        locations.write_all(place / lock.LOCK_FILE, content)

    write(b'{"token": "of somebody who is gone"}')
    clock = Clock()
    lease = lock.Lease(place, sleep=clock.sleep, clock=clock)
    lease.take()
    assert 15 <= clock.seconds < 18
    lease.beat()
    assert not lease.end()
    assert locations.kind_of(place / lock.LOCK_FILE) is None

    write(b'{"token": "of somebody who is alive", "beat": 1}')
    alive = Clock(lambda: None, lambda: write(b'{"token": "of somebody who is alive", "beat": 2}'))
    with pytest.raises(OutputError, match="Another run is writing to s3://"):
        lock.Lease(place, sleep=alive.sleep, clock=alive).take()
    assert alive.seconds < 3
    locations.remove(place / lock.LOCK_FILE)

    later = Clock(lambda: write(b'{"token": "of one that began at the same time"}'))
    with pytest.raises(OutputError, match="Another run is writing to s3://"):
        lock.Lease(place, sleep=later.sleep, clock=later).take()
    locations.remove(place / lock.LOCK_FILE)

    lost = lock.Lease(place, sleep=clock.sleep, clock=clock)
    lost.take()
    write(b'{"token": "another"}')
    lost.beat()
    assert lost.end()
    assert locations.read_all(place / lock.LOCK_FILE) == b'{"token": "another"}'  # is left to the other


def test_a_run_that_lost_its_lease_ends_with_an_error(s3: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    place = locations.location(URL)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with pytest.raises(OutputError, match="took over"), locked(place):
        locations.write_all(place / lock.LOCK_FILE, b'{"token": "another"}')
        for thread in threading.enumerate():
            if thread.name == lock.HEARTBEAT_THREAD:
                thread.join(30)  # it ends when it finds the other's token


def test_a_missing_package_is_named(c3: C3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    result = c3("means", "--store", "s3://bucket/x")
    assert result.exit_code == 1
    assert 'pip install "c3tools[s3]"' in result.output


def test_a_server_that_stays_down_is_named_with_what_to_do(
    c3: C3, photos: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "ATTEMPTS", 2)
    with pytest.raises(C3Error, match="There is no store at s3://bucket/nothing"):
        Store.open("s3://bucket/nothing")
    result = c3("embed", photos, "--store", "s3://no-such-bucket/store")
    assert result.exit_code == 1
    assert "NoSuchBucket" in result.output
    assert "check the disk" not in result.output  # there is none
    s3.every = 1
    result = c3("embed", photos, "--store", URL)
    assert result.exit_code == 1
    assert URL in result.output.replace("\n", "")
    assert "credentials in the environment" in result.output.replace("\n", " ")
