"""The notebook and the pipeline step use public names alone, and the notebook runs as written in a real kernel."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

import c3tools

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCE, NOTEBOOK = EXAMPLES / "notebook.py", EXAMPLES / "notebook.ipynb"


@pytest.mark.parametrize("file", [SOURCE, *(EXAMPLES / "pipeline_step").rglob("*.py")], ids=lambda file: file.name)
def test_examples_use_public_names_alone(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"from c3tools\.|import c3tools\.", text)
    imported = re.findall(r"from c3tools import ([\w, ]+)", text)
    used = {name.strip() for names in imported for name in names.split(",")} | set(re.findall(r"c3tools\.(\w+)", text))
    assert used <= set(c3tools.__all__)


def test_the_notebook_is_its_source() -> None:
    source, notebook = jupytext.read(SOURCE), nbformat.read(NOTEBOOK, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [(c.cell_type, c.source) for c in source.cells]


@pytest.mark.timeout(600)
def test_the_notebook_runs_and_results_show_themselves(tmp_path: Path) -> None:
    notebook = jupytext.read(SOURCE)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    store, report, pipeline, found = shown
    assert "<td>image</td>" in store and "124" in store
    assert "gap length" in report and "recall" in report.lower()
    assert "gaussian-noise" in pipeline
    assert "grass" in found
