"""The example of an encoder, built as a wheel and installed into a folder of its own, is found and used by `c3`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c3tools import Store

PROJECT = Path(__file__).parents[2] / "examples" / "encoder_plugin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which Python finds what was installed from the wheel."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PROJECT, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder), str(folder / "source")], check=True
    )
    wheel = next(folder.glob("*.whl"))
    subprocess.run([*pip, "install", *offline, "--target", str(folder / "installed"), str(wheel)], check=True)
    return {**os.environ, "PYTHONPATH": str(folder / "installed")}


def test_an_installed_encoder_embeds_and_searches(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "squares"
    folder.mkdir()
    for colour, size in (("red", (20, 30)), ("green", (3000, 10)), ("blue", (8, 8))):
        Image.new("RGB", size, colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} square\n", encoding="utf-8")
    (folder / "broken.png").write_text("no", encoding="utf-8")

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
