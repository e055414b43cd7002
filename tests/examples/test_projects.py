"""The example projects, an encoder and a pipeline step, and the notebook; all use public names
alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from PIL import Image

import c3tools
from c3tools import Store, build_index, preset
from c3tools.transforms.space import Space
from tests.conftest import copy_photos

from .conftest import EXAMPLES

PROJECT = EXAMPLES / "pipeline_step"
CLIENT = EXAMPLES / "typed_client.py"
EXPORT_CLIENT = EXAMPLES / "export_client.py"
SOURCE, NOTEBOOK = EXAMPLES / "notebook.py", EXAMPLES / "notebook.ipynb"


@pytest.mark.parametrize(
    "file", [SOURCE, CLIENT, *PROJECT.rglob("*.py")], ids=lambda file: file.name
)
def test_examples_use_public_names_alone(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"from c3tools\.|import c3tools\.", text)
    imported = re.findall(r"from c3tools import ([\w, ]+)", text)
    used = {name.strip() for names in imported for name in names.split(",")} | set(
        re.findall(r"c3tools\.(\w+)", text)
    )
    assert used <= set(c3tools.__all__)


def test_the_notebook_is_its_source() -> None:
    source, notebook = jupytext.read(SOURCE), nbformat.read(NOTEBOOK, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (c.cell_type, c.source) for c in source.cells
    ]


def run(folder: Path, path: Path, *arguments: str) -> str:
    """What Python with these arguments prints in a folder, with the packages of a path."""
    command, environment = [sys.executable, *arguments], os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_project_runs_with_torch_blocked() -> None:
    """Its own tests need a process that has not loaded torch before they block it."""
    options = "-m pytest -q -p no:cacheprovider --rootdir . -c pyproject.toml tests".split()
    assert "2 passed" in run(PROJECT, PROJECT / "src", *options)


def test_rows_that_the_example_writes_are_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PROJECT / "src")
    from nearest_caption import write_rows

    fitted_on = np.random.default_rng(0).normal(size=(20, 8)) + 1
    pipeline = preset("c2-collapse").fit({"image": -fitted_on, "text": fitted_on})
    texts = fitted_on[:6]
    pipeline.save(tmp_path / "recipe")
    write_rows(
        tmp_path / "rows", tmp_path / "recipe", texts, [*"abcdef"], ["train"] * 4 + ["val"] * 2
    )
    store = Store.open(tmp_path / "rows")
    rows = store.load("text", "val")
    assert (rows.captions, rows.items) == (["e", "f"], ["caption-4", "caption-5"])
    np.testing.assert_allclose(
        rows.embeddings, pipeline.transform(texts, modality="text")[4:], atol=1e-6
    )
    space = Space.of(store)
    assert space.pipeline and space.pipeline.name == "c2-collapse"
    assert space.applied == len(pipeline.steps)


def install(example: str, folder: Path) -> None:
    """Install an example package in ``folder/installed``."""
    shutil.copytree(EXAMPLES / example, folder / "source")
    options = (
        "--disable-pip-version-check --quiet --no-deps --no-index --no-build-isolation "
        "--target installed"
    ).split()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "./source"], check=True, cwd=folder
    )


def test_an_installed_step_is_part_of_an_export(tmp_path: Path) -> None:
    install("step_plugin", tmp_path)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(60, 8)) + rng.normal(size=8) for name in ("image", "text")}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    commands = (
        "import --image image.npy --text text.npy",
        "export --preset source/mine.json --role inference --dtype float32",
    )
    for command in commands:
        main = "from c3tools.cli import main; main()"
        run(tmp_path, tmp_path / "installed", "-c", main, *command.split())

    store = Store.open(tmp_path / "c3-store")
    for name in arrays:
        train = store.load(name, "train").embeddings.astype(np.float64)
        centred = train - train.mean(0)
        top = np.linalg.svd(centred, full_matrices=False)[2][:2]
        rows = store.load(name).embeddings - train.mean(0)
        wanted = rows - rows @ top.T @ top
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        exported = Store.open(tmp_path / "c3-export").load(name).embeddings
        np.testing.assert_allclose(exported, wanted, atol=1e-3)  # stored in float16


def test_an_installed_encoder_embeds_and_searches(tmp_path: Path) -> None:
    install("encoder_plugin", tmp_path)
    folder = tmp_path / "squares"
    folder.mkdir()
    for colour, size in {"red": (20, 30), "green": (3000, 10), "blue": (8, 8)}.items():
        Image.new("RGB", size, colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} square\n")
    (folder / "broken.png").touch()

    def c3(*arguments: str) -> str:
        return run(
            tmp_path,
            tmp_path / "installed",
            "-c",
            "from c3tools.cli import main; main()",
            *arguments,
        )

    c3("embed", "squares", "--model", "colours:2", "--dtype", "float32")
    store = Store.open(tmp_path / "c3-store")
    assert (store.info.model.name, store.info.model["levels"], store.info.backend) == (
        "colours:2",
        2,
        "colours",
    )
    rows = store.load("image")
    assert (rows.keys, [failure.key for failure in store.recorded_failures()]) == (
        ["blue", "green", "red"],
        ["broken"],
    )
    np.testing.assert_allclose(np.linalg.norm(rows.embeddings, axis=1), 1, atol=1e-6)
    assert rows.embeddings.argmax(axis=1).tolist() == [1, 2, 4]
    c3("index")
    found = json.loads(c3("search", "something blue", "--only", "image", "-k", "1", "--json"))
    assert found[0]["hits"][0]["key"] == "blue"
    assert "colours:…" in c3("models", "c3-mini")


def test_the_typed_client_runs(tmp_path: Path) -> None:
    copy_photos(tmp_path / "images", 8)
    run = subprocess.run(
        [sys.executable, CLIENT, "images", "client", "a dog"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert len(re.findall(r"^ *-?[\d.]+ (?:image|text ) \d+", run.stdout, re.MULTILINE)) == 3


def test_a_client_of_an_export_finds_what_c3_search_does(tmp_path: Path) -> None:
    for package in ("lancedb", "duckdb", "faiss"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    c3tools.copy_photos(tmp_path / "images")
    run = subprocess.run(
        [sys.executable, EXPORT_CLIENT, "images", "client", "a dog on the beach"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    accuracy, *lists = run.stdout.splitlines()
    assert accuracy.startswith("accuracy on photos: 0.")
    index = build_index(tmp_path / "client" / "store", output=tmp_path / "index")
    (result,) = index.search("a dog on the beach", by="row")
    expected = [f"{hit.modality}/{hit.key}" for hit in result.hits]
    assert len(expected) == 10 and [line.split() for line in lists] == [expected, expected]
