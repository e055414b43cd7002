"""The example project: its own tests run in a process that must not have loaded torch before they block it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from c3tools import Pipeline, Store, preset

from .conftest import EXAMPLES

PROJECT = EXAMPLES / "pipeline_step"


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


def test_rows_that_the_example_writes_are_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PROJECT / "src")
    from nearest_caption import write_rows

    texts = np.random.default_rng(0).normal(size=(6, 8)) + 1
    pipeline = preset("c2-collapse").fit({"image": -texts, "text": texts})
    pipeline.save(tmp_path / "recipe")
    write_rows(tmp_path / "rows", tmp_path / "recipe", texts, list("abcdef"), ["train"] * 4 + ["val"] * 2)
    store = Store.open(tmp_path / "rows")
    rows = store.load("text", "val")
    assert (rows.captions, rows.items) == (["e", "f"], ["caption-4", "caption-5"])
    np.testing.assert_allclose(rows.embeddings, pipeline.transform(texts, modality="text")[4:], atol=1e-6)
    found = Pipeline.of_export(store)
    assert found is not None
    assert (found[0].name, found[1]) == ("c2-collapse", len(pipeline.steps))
