"""Every benchmark makes a number that a page gives, and those that write tables do so on small data."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from .conftest import unit_rows

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
OF_DEVELOPERS = {"measuring", "mutants", "same_results", "same_speed"}


def test_pages_and_benchmarks_name_each_other() -> None:
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"benchmarks/(\w+)\.py", page.read_text("utf-8"))}
    there = {path.stem for path in FOLDER.glob("*.py")}
    assert there - OF_DEVELOPERS <= named <= there


def test_a_benchmark_gives_its_command_and_its_cost() -> None:
    for path in {*FOLDER.glob("*.py")} - {FOLDER / "measuring.py"}:
        words = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        assert f"python benchmarks/{path.name}" in words and re.search(r"minute|second|hour", words), path


def test_the_table_of_presets_has_numbers_in_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("preset_table")
    header, _, *rows = benchmark.table(unit_rows(120, 16, 1), unit_rows(120, 16, 2), 2)
    assert len(rows) == len(benchmark.PRESETS) - 1
    for row in rows:
        cells = row.strip("| ").split(" | ")
        assert len(cells) == header.count("|") - 1
        assert all(re.fullmatch(r"-?\d+\.\d+ ± \d+\.\d+", cell) for cell in cells[1:])
