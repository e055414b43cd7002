"""The notebook runs as written in a real kernel."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

from .pages import ROOT


@pytest.mark.timeout(600)
def test_the_notebook_runs_and_results_show_themselves(tmp_path: Path) -> None:
    notebook = jupytext.read(ROOT / "examples" / "notebook.py")
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = (
        output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
    )
    report, found = filter(None, (data.get("text/html") for data in outputs))
    assert "gap length" in report and "recall" in report.lower()
    assert "grass" in found
