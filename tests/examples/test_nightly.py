"""The nightly script brings everything up to date, and tells by its exit code what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from c3tools import Store
from tests.conftest import copy_photos

from .conftest import EXAMPLES


def run_nightly(folder: Path, *arguments: str) -> int:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(EXAMPLES / "nightly" / "nightly.sh"), "images", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, check=False
    ).returncode


def fit_of_export(folder: Path) -> dict[str, int]:
    report = json.loads((folder / "reports" / "export.json").read_text("utf-8"))
    fit: dict[str, int] = report["fit"]
    return fit


def test_a_night_brings_store_and_export_up_to_date(tmp_path: Path) -> None:
    copy_photos(tmp_path / "images", 24)
    assert run_nightly(tmp_path) == 0
    before = fit_of_export(tmp_path)
    assert before["fitted"] == before["unchanged"] == before["now"]

    # A broken photo and a new one: the new one goes through the fit that is there
    photos = sorted((tmp_path / "images").glob("*.jpg"))
    (tmp_path / "images" / "broken.jpg").write_bytes(b"not a photo")
    shutil.copyfile(photos[0], tmp_path / "images" / "new.jpg")
    assert run_nightly(tmp_path) == 1
    assert "new" in Store.open(tmp_path / "c3-export").load("image").keys
    after = fit_of_export(tmp_path)
    assert after == {**before, "now": before["now"] + 1}
    (tmp_path / "images" / "broken.jpg").unlink()

    # With a share of 0, one new row is too many
    assert run_nightly(tmp_path, "0") == 0
    anew = fit_of_export(tmp_path)
    assert anew["fitted"] == anew["unchanged"] == anew["now"] == after["now"]

    # A photo is gone with its captions, so that no shard is as it was
    photos[1].unlink()
    assert run_nightly(tmp_path) == 0
    exported = Store.open(tmp_path / "c3-export").load("image")
    assert photos[1].stem not in exported.keys
    assert fit_of_export(tmp_path)["fitted"] == anew["now"] - 6

    # A damaged shard
    shard = next((tmp_path / "c3-store" / "image").glob("*.parquet"))
    content = np.fromfile(shard, np.uint8)
    content[len(content) // 2] ^= 1
    content.tofile(shard)
    assert run_nightly(tmp_path) == 3
