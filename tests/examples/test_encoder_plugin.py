"""The example of an encoder, installed into a folder of its own, is found and used by `c3`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from c3tools import Store

from .conftest import EXAMPLES

PROJECT = EXAMPLES / "encoder_plugin"


def test_an_installed_encoder_embeds_and_searches(tmp_path: Path) -> None:
    shutil.copytree(PROJECT, tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(tmp_path / "installed")]
    subprocess.run([*pip, *offline, str(tmp_path / "source")], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    folder = tmp_path / "squares"
    folder.mkdir()
    for colour, size in (("red", (20, 30)), ("green", (3000, 10)), ("blue", (8, 8))):
        Image.new("RGB", size, colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} square\n")
    (folder / "broken.png").write_text("no")

    def c3(*arguments: str) -> str:
        command = [sys.executable, "-c", "from c3tools.cli import main; main()", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    c3("embed", str(folder), "--model", "colours:2", "--dtype", "float32")
    store = Store.open(tmp_path / "c3-store")
    assert (store.info.model.name, store.info.model["levels"], store.info.backend) == ("colours:2", 2, "colours")
    rows = store.load("image")
    assert rows.keys == ["blue", "green", "red"]
    assert [failure.key for failure in store.recorded_failures()] == ["broken"]
    np.testing.assert_allclose(np.linalg.norm(rows.embeddings, axis=1), 1, atol=1e-6)
    assert rows.embeddings.argmax(axis=1).tolist() == [1, 2, 4]
    c3("index")
    found = json.loads(c3("search", "something blue", "--in", "image", "-k", "1", "--json"))
    assert found[0]["hits"][0]["key"] == "blue"
    assert "colours:…" in c3("models", "c3-mini")
