"""The example project's own tests, in a process of its own: torch must not be loaded before they block it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "examples" / "pipeline_step"


def test_the_example_project_runs_with_torch_blocked() -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(PROJECT), "-c"]
    done = subprocess.run(
        [*command, str(PROJECT / "pyproject.toml"), str(PROJECT / "tests")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=PROJECT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
