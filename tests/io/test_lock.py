from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from c3tools.errors import OutputError
from c3tools.io.lock import locked

WRITERS = """
import os, sys
from pathlib import Path
from c3tools.errors import OutputError
from c3tools.io.lock import locked
folder, inside = Path(sys.argv[1]), Path(sys.argv[2])
taken = 0
while taken < 100:
    try:
        with locked(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another process is in here
            os.unlink(inside)
            taken += 1
    except OutputError:
        pass
"""


def test_the_second_writer_is_told_who_the_first_is_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    who = rf"Another run is writing to {folder} \(process {os.getpid()} on .+, since 20\d\d-.+\)"
    with locked(folder):
        for _ in range(2):  # a refused run leaves the lock alone
            with pytest.raises(OutputError, match=who), locked(folder):
                pass
        (tmp_path / "new" / ".out.lock").write_bytes(b"")  # without a name in it, it is a lock
        with pytest.raises(OutputError, match=str(folder)), locked(folder):
            pass
    assert not folder.exists()
    with locked(folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


FORKED = """
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.write(tell, b".")  # by now it has closed the lock of its parent
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("then", ["os._exit(9)", FORKED])
def test_the_lock_of_a_dead_process_is_free_at_once(tmp_path: Path, then: str) -> None:
    """Also if a process that it has forked lives on."""
    code = "import os, sys, time; from pathlib import Path; from c3tools.io.lock import locked\n"
    code += f"with locked(Path(sys.argv[1])): {then}"
    folder, record = tmp_path / "out", tmp_path / ".out.lock"
    folder.mkdir()
    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode != 0
    before = json.loads(record.read_text())["process"]
    with locked(folder):
        assert before != json.loads(record.read_text())["process"] == os.getpid()
    assert not record.exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="is a file, but a folder is needed"), locked(path):
            pass
    (tmp_path / ".out.lock").symlink_to(tmp_path / "file")
    with pytest.raises(OutputError, match=r"\.out\.lock"), locked(tmp_path / "out"):
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_processes_that_take_and_leave_the_same_lock_are_never_in_it_together(
    tmp_path: Path,
) -> None:
    command = sys.executable, "-c", WRITERS, tmp_path / "out", tmp_path / "inside"
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_inside_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").touch()
    inside = tmp_path / "new" / "out"
    with pytest.raises(OutputError, match=f"inside the store {tmp_path}"), locked(inside):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]
