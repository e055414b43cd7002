"""Bombs: small files that would fill the memory end in an error, or are listed, in bounded memory
and time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import chain, count
from pathlib import Path
from typing import Any

import pytest

from c3tools import Store
from tests.bombs import GIB, write_bombs

_MOST = GIB + GIB // 2
_C3 = [sys.executable, "-P", "-c", "from c3tools.cli import main; main()"]
# a process of its own, since the peak of a child begins with the memory of the process that starts
# it
_MEASURE = """
import json, os, resource, subprocess, sys
with open("said", "wb") as said:
    child = subprocess.Popen(sys.argv[1:], stdout=said, stderr=said)
resource.prlimit(child.pid, resource.RLIMIT_DATA, (1 << 32, 1 << 32))
resource.prlimit(child.pid, resource.RLIMIT_CPU, (60, 60))
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")
def test_bombs(tmp_path: Path, budget: Any) -> None:
    done, folder = 0, tmp_path / "bomb"
    folder.mkdir()
    bombs = chain.from_iterable(write_bombs(folder) for _ in count())
    while budget.is_left():
        arguments, name = next(bombs)
        done += 1
        if arguments[0] == "embed":
            arguments += ["--workers", "1", "--backend", "torch", "--precision", "fp32"]
        command = [sys.executable, "-S", "-c", _MEASURE, *_C3, *arguments]
        code, peak = json.loads(subprocess.check_output(command, cwd=folder))
        said = (folder / "said").read_text(encoding="utf-8")
        store = Store.open(folder / "c3-store") if code == 0 else None
        listed = store is not None and (store.count("image") <= 1 or store.recorded_failures())
        # a run of which every input failed says so, and ends with 1 too
        refused = "Error:" in said or "could be embedded" in said
        assert listed or (code == 1 and refused), (name, code, said)
        assert peak < _MOST, (name, peak)
        shutil.rmtree(folder)
        folder.mkdir()
    budget.report(f"{done} bombs, each an error or a failure")
