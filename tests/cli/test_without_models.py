"""Without torch and the other packages of the extra models, embeddings that were made elsewhere are
imported, reported on, exported, indexed and searched; what runs a model says what to install.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from c3tools.assets.paths import PHOTOS
from c3tools.extras import PACKAGES_OF_MODELS
from tests.conftest import unit_rows

RUN = """
import json, sys
for name in ("openvino", "pycocoevalcap", *sys.argv[1].split()):
    sys.modules[name] = None
from c3tools.cli import main
for command in json.loads(sys.argv[2]):
    sys.argv = ["c3", *command]
    try:
        main()
    except SystemExit as ended:
        print("ended", ended.code or 0, *command[:1])
"""


def run(*commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands in one process that finds none of the packages."""
    listed = json.dumps([command.split() for command in commands])
    line = [sys.executable, "-c", RUN, " ".join(PACKAGES_OF_MODELS), listed]
    return subprocess.run(line, capture_output=True, text=True, check=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with vectors of images and texts."""
    monkeypatch.chdir(tmp_path)
    rows = unit_rows(60, 16, 1)
    np.save("image.npy", rows + 2)
    save_file({"embedding": rows - 2}, "text.safetensors")
    np.save("query.npy", rows[:1] - 2)
    return tmp_path


def test_imported_embeddings_need_no_model(folder: Path) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    commands = [
        "import --image image.npy --text text.safetensors --store s",
        "verify --store s",
        "gap-report --store s",
        "clusters --store s",
        "pairs --store s",
        "duplicates --store s --cosine 0.99",
        "export --store s -o e",
        "index --store s -o i",
        "search --index i --vector query.npy -k 3 --json found.json",
        "info --json info.json",
        "info",
    ]
    done = run(*commands)
    ends = [line for line in done.stdout.splitlines() if line.startswith("ended")]
    assert ends == [f"ended 0 {command.split()[0]}" for command in commands], done.stderr
    for page in ("gap-report.html", "pairs.html", "duplicates.html", "c3-clusters/clusters.html"):
        assert (folder / page).stat().st_size > 1000
    assert len(json.loads((folder / "found.json").read_text("utf-8"))[0]["hits"]) == 3
    # What is missing is said of each backend and metric
    described = json.loads((folder / "info.json").read_text("utf-8"))
    assert described["devices"] == []
    assert {backend["name"]: backend["installed"] for backend in described["backends"]} == {
        "openvino": False,
        "torch": False,
    }
    assert "pycocoevalcap" in described["metrics"]["SPICE"]


def test_what_runs_a_model_names_the_extra(folder: Path) -> None:
    (folder / "image.pt").write_bytes(b"")
    photos = PHOTOS / "images"
    needs = {
        f"embed {photos}": "The backend torch needs the package torch",
        f"embed {photos} --device cuda": "The device cuda needs the package torch",
        "models": "The list of models needs the package open_clip_torch",
        "train-decoder": "c3tools.train_captioner needs the package torch",
        "generate rain": "This command needs the package torch",
        "import --image image.pt": "A file of tensors of torch needs the package torch",
        "import --image image{0..3}.npy": "The pattern image{0..3}.npy needs the package bracex",
    }
    done = run(*needs)
    ends = [line for line in done.stdout.splitlines() if line.startswith("ended")]
    assert ends == [f"ended 1 {command.split()[0]}" for command in needs]
    lines = done.stderr.splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    assert [lines[number] for number in errors] == [
        f"Error: {need}, which is not installed." for need in needs.values()
    ]
    remedies = [lines[number + 1].partition(" with: pip install ")[0] for number in errors]
    assert remedies == ["Install the extra models"] * 6 + ["Install the extra url"]
    assert "Traceback" not in done.stderr
