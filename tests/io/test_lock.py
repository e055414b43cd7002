from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from c3tools.errors import OutputError
from c3tools.io.lock import LOCK_FILE, locked

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
    who = rf"Another run is writing to shown \(process {os.getpid()} on .+, since 20\d\d-.+\)"
    with locked(folder):
        for _ in range(2):  # a refused run leaves the lock alone
            with pytest.raises(OutputError, match=who), locked(folder, Path("shown")):
                pass
    assert not folder.exists()
    with locked(folder):
        (folder / "result").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from c3tools.io.lock import locked\n"
    code += "with locked(Path(sys.argv[1])): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    before = json.loads((tmp_path / LOCK_FILE).read_text())
    with locked(tmp_path):
        now = json.loads((tmp_path / LOCK_FILE).read_text())
    assert before["process"] != now["process"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_lock_without_a_name_in_it_is_a_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_bytes(b"")
        with pytest.raises(OutputError, match=r"is writing to \S+\.\n") as refused, locked(tmp_path):
            pass
    assert refused.value.remedy is not None


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="is a file, but a folder is needed"), locked(path):
            pass


def test_processes_that_take_and_leave_the_same_lock_are_never_in_it_together(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITERS, str(tmp_path / "out"), str(tmp_path / "inside")]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    assert not list(tmp_path.glob("out/*"))
