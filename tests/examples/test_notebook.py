"""The notebook and the pipeline step use public names alone."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat
import pytest

import c3tools

from .conftest import EXAMPLES

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
