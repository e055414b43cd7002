"""Two writers, and readers beside a writer: real processes, nothing simulated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.errors import OutputError
from c3tools.io.lock import locked
from c3tools.moments import Moments
from c3tools.store import Store
from c3tools.store.verify import verify_store
from tests.conftest import copy_photos
from tests.embedding.test_embed import files
from tests.stores import whole_store

C3 = [sys.executable, "-c", "from c3tools.cli import main; main()"]
WRITER = """
import sys
from pathlib import Path
from c3tools.io.lock import locked
from c3tools.store import Shard, StoreInfo, create_store, write_shard
from tests.conftest import MODEL, unit_rows
path = Path(sys.argv[1])
info = StoreInfo(dict(MODEL), 64)
with locked(path):
    create_store(path, info)
    print("ready", flush=True)
    for part in range(40):
        keys = [f"{part}-{i}" for i in range(500)]
        write_shard(path, info, Shard("image", part, unit_rows(500, 64, part), {"key": keys, "split": ["train"] * 500}))
"""


@pytest.fixture
def importing() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_two_embedding_processes_on_one_store_do_not_corrupt_it(
    light_encoder: Encoder, tmp_path: Path, importing: dict[str, str]
) -> None:
    folder = copy_photos(tmp_path / "photos", 6)

    def start() -> subprocess.Popen[str]:
        options = ["--shard-size", "2", "--workers", "0", "--precision", "fp32", "--backend", "onnx"]
        command = [*C3, "embed", str(folder), "--store", str(tmp_path / "shared"), *options]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=importing)

    both = [start(), start()]
    messages = [process.communicate(timeout=250)[1] for process in both]
    codes = [process.returncode for process in both]
    # one does the work; the other is refused, or came when all was done
    assert 0 in codes, messages
    for code, message in zip(codes, messages, strict=True):
        assert code == 0 or (code == 1 and "Another run is writing" in message), message
    embed_corpus(read_corpus([folder]), tmp_path / "alone", light_encoder, shard_size=2, workers=0)
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    assert verify_store(tmp_path / "shared").findings == []


def test_readers_never_see_half_a_shard(tmp_path: Path, importing: dict[str, str]) -> None:
    path = tmp_path / "s"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env=importing, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        counts = []
        while writer.poll() is None:
            store = Store.open(path)
            parts = store.parts("image")
            rows = [len(batch) for part in parts for batch in store.batches("image", ["key"], parts=[part])]
            assert rows == [500] * len(parts)
            if parts:
                last = parts[-1]
                embeddings = next(iter(store.batches("image", parts=[last])))
                assert len(embeddings) == 500
                assert store.moments("image").n >= sum(rows)
                assert store.moments("image").n % 500 == 0
            counts.append(sum(rows))
        assert writer.returncode == 0
    assert Store.open(path).count("image") == 20_000
    assert len(set(counts)) > 2, "the reader never ran beside the writer"
    loaded = Store.open(path).load("image").embeddings
    assert Moments.from_rows(loaded).n == 20_000


def test_a_second_writer_does_not_touch_what_the_first_is_writing(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    temporary = path / "image" / ".part-00003.parquet.0123456789abcdef.tmp"
    temporary.write_bytes(b"half a shard")
    code = "from pathlib import Path; from c3tools.io.lock import locked; from c3tools.store import *\n"
    code += f"p = Path({str(path)!r})\nwith locked(p): create_store(p, StoreInfo.load(p))"
    with locked(path):
        refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "Another run is writing" in refused.stderr
        assert temporary.exists()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not temporary.exists()


def test_the_lock_is_not_opened_through_a_link(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    (tmp_path / "precious").write_text("mine")
    (path / ".lock").unlink(missing_ok=True)
    (path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="cannot be opened"), locked(path):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("x")
    with pytest.raises(OutputError, match="is a file, but a folder is needed"), locked(tmp_path / "s"):
        pass


KILLED = """
import os, sys, time
from pathlib import Path
from c3tools.io.lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_has_forked_does_not_keep_its_lock(tmp_path: Path, importing: dict[str, str]) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "s")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=importing)
    assert writer.stdout is not None
    orphan = int(writer.stdout.readline())
    try:
        assert writer.wait() == -signal.SIGKILL
        os.kill(orphan, 0)  # still there
        with locked(tmp_path / "s"):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)
        writer.stdout.close()
