"""Imports run down the floors and need no module that Windows lacks; pages and benchmarks name each
other."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from c3tools.assets.paths import PHOTOS
from tests.conftest import unit_rows

ROOT = Path(__file__).parent.parent
SOURCES = [
    file
    for name in ("c3tools", "cli", "benchmarks", "examples")
    for file in (ROOT / name).rglob("*.py")
]


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("store/reader.py", "", "0 broken"),
        (
            "store/reader.py",
            "from ..captioning.captioner import Captioner",
            "c3tools.store is not allowed to import",
        ),
        (
            "store/rows.py",
            "def f():\n    from .reader import Store",
            "No cycles are allowed in c3tools.store",
        ),
    ],
)
def test_an_import_that_runs_up_or_in_a_circle_is_found(
    tmp_path: Path, file: str, line: str, said: str
) -> None:
    for source in SOURCES:
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "c3tools" / file).open("a") as changed:
        changed.write(f"\n\n{line}\n")
    code = (
        "from importlinter.cli import lint_imports_command as run; run(['--no-cache', '--no-logo'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, said in result.stdout) == (line != "", True)


def test_functions_say_what_they_do_with_a_verb() -> None:
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                first = (ast.get_docstring(node) or "-").split()[0]
                questions = {"What", "Where", "Whether", "How", "Which", "Why", "When"}
                place = f"{file}:{getattr(node, 'lineno', 1)}"
                assert first not in questions, f"{place}: a docstring begins with {first}"


def test_the_packages_of_the_distribution_are_those_of_the_tree() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    there = [file.parent.relative_to(ROOT) for file in (ROOT / "c3tools").rglob("__init__.py")]
    assert listed == sorted(["c3tools.cli", *(".".join(folder.parts) for folder in there)])


def test_the_licence_of_the_distribution_names_those_of_what_it_holds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = {name: (ROOT / name).read_text("utf-8") for name in project["license-files"]}
    photos = texts["c3tools/assets/coco-cc/ATTRIBUTION.md"]
    named = set(re.findall(r"CC BY(?:-SA)? \d\.\d", photos))
    expected = {name.replace(" ", "-") for name in named}
    expected |= {"MIT", "Apache-2.0", "LicenseRef-Research-Only-Weights"}
    assert set(project["license"].split(" AND ")) == expected
    for folder in ("c3-mini", "c3-mini-captioner"):
        assert "Apache-2.0" in texts["c3tools/assets/c3-mini/README.md"]
        card = texts[f"c3tools/assets/{folder}/README.md"]
        assert "LicenseRef-Research-Only-Weights" in card


WITHOUT = """
import os, sys
for name in ("fcntl", "resource", "termios", "pwd"):
    sys.modules[name] = None
vars(os).pop("sched_getaffinity", None)
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


def test_modules_that_windows_lacks_are_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(IMPORT_ALL)
    assert "gap-report" in run(RUN, "--help")
    embedded = json.loads(
        run(RUN, "embed", next((PHOTOS / "images").iterdir()), "--workers", "1", "--json")
    )
    assert embedded["modalities"]["image"]["failed"] == 0


LIGHT = """
import sys
for name in ("pyarrow", "PIL", "torch", "typer", "filelock", "huggingface_hub"):
    sys.modules[name] = None
import c3tools
for use in (
    lambda: c3tools.Store,
    lambda: c3tools.Index,
    lambda: c3tools.load_encoder,
    lambda: c3tools.TransformModule,
    lambda: c3tools.preset("c3").fit("c3-store"),
    lambda: c3tools.Pipeline.load("hf-hub:org/name"),
):
    try:
        use()
    except c3tools.C3Error as error:
        assert isinstance(error, ImportError)
        print(error)
import c3tools.cli
"""


def test_without_a_requirement_the_error_says_what_to_install() -> None:
    command = [sys.executable, "-c", LIGHT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    messages = done.stdout.splitlines()[::2]
    assert [message.partition(" needs the package ")[0] for message in messages] == [
        "c3tools.Store",
        "c3tools.Index",
        "c3tools.load_encoder",
        "c3tools.TransformModule",
        "A pipeline that is fitted on a store",
        "The Hugging Face hub",
    ], done.stderr
    assert 'Install it with: pip install "pyarrow>=15".' in done.stdout
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The command c3 needs the package typer")


FOLDER = ROOT / "benchmarks"
OF_DEVELOPERS = {"measuring", "mutants", "same_results", "same_speed"}


def test_pages_and_benchmarks_name_each_other() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "SECURITY.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
    named = {
        name
        for page in pages
        for name in re.findall(r"benchmarks/(\w+)\.py", page.read_text("utf-8"))
    }
    there = {path.stem for path in FOLDER.glob("*.py")}
    assert there - OF_DEVELOPERS <= named <= there


def test_a_benchmark_gives_its_command_and_its_cost() -> None:
    for path in {*FOLDER.glob("*.py")} - {FOLDER / "measuring.py"}:
        words = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        assert f"python benchmarks/{path.name}" in words and re.search(
            r"minute|second|hour", words
        ), path


def test_the_table_of_presets_has_numbers_in_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("preset_table")
    cells_of = benchmark.measured(unit_rows(120, 16, 1), unit_rows(120, 16, 2), 2)
    assert set(cells_of) == set(benchmark.PRESETS) - {"fair"}
    header, _, *rows = benchmark.inference_table(cells_of)
    rows_of_training = benchmark.training_table(cells_of)[2:]
    assert {name.strip() for row in rows for name in row.split("|")[1].split(",")} == set(cells_of)
    assert "| c3 |" in rows_of_training[1] and not any("| c1 |" in row for row in rows_of_training)
    for row in rows:
        cells = row.strip("| ").split(" | ")
        assert len(cells) == header.count("|") - 1
        assert all(re.fullmatch(r"-?\d+\.\d+ ± \d+\.\d+", cell) for cell in cells[1:])
