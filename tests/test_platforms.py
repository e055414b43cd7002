"""The package without the modules that Windows lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from c3tools.assets.paths import PHOTOS

WITHOUT = """
import os, sys
for name in ("fcntl", "resource", "termios", "pwd"):
    sys.modules[name] = None
del os.sched_getaffinity
"""
IMPORT_ALL = """
import importlib, pkgutil, c3tools
for module in pkgutil.walk_packages(c3tools.__path__, "c3tools."):
    importlib.import_module(module.name)
"""
RUN = "import sys; sys.argv[0] = 'c3'\nfrom c3tools.cli import main; main()"


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", WITHOUT + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="nothing has to be taken away")
def test_modules_that_windows_lacks_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(IMPORT_ALL)
    assert "gap-report" in run(RUN, "--help")
    embedded = json.loads(run(RUN, "embed", next((PHOTOS / "images").iterdir()), "--workers", "1", "--json"))
    assert embedded["modalities"]["image"]["failed"] == 0
