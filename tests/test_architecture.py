"""The house: imports run down its floors, and the checker that says so can fail."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command as run; run(['--no-cache', '--no-logo'])"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for name in ("c3tools", "cli"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    (tmp_path / "c3tools" / "assets").mkdir()
    for file in (ROOT / "c3tools" / "assets").glob("*.py"):
        shutil.copy(file, tmp_path / "c3tools" / "assets")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("store/reader.py", "from ..captioning.captioner import Captioner", "c3tools.store is not allowed to import"),
        ("store/rows.py", "def f():\n    from .reader import Store", "No cycles are allowed in c3tools.store"),
    ],
)
def test_an_import_that_runs_up_or_in_a_circle_is_found(house: Path, file: str, line: str, said: str) -> None:
    clean = lint(house)
    assert clean.returncode == 0, clean.stdout
    path = house / "c3tools" / file
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    result = lint(house)
    assert result.returncode == 1
    assert said in result.stdout


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the first line of each docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text.splitlines()[0]


def sources() -> list[Path]:
    return [file for name in ("c3tools", "cli", "benchmarks", "examples") for file in (ROOT / name).rglob("*.py")]


def test_functions_say_what_they_do_with_a_verb() -> None:
    riddles = [
        f"{place} {line}"
        for file in sources()
        for place, line in docstrings(file)
        if line.split()[0] in {"What", "Where", "Whether", "How", "Which", "Why", "When"}
    ]
    assert riddles == []


def test_the_packages_of_the_distribution_are_those_of_the_tree() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    there = [file.parent.relative_to(ROOT) for file in (ROOT / "c3tools").rglob("__init__.py")]
    assert listed == sorted(["c3tools.cli", *(".".join(folder.parts) for folder in there)])
