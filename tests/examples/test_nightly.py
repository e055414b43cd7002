"""The nightly script brings everything up to date, and tells by its exit code what is wrong."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

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


def log_of(folder: Path) -> str:
    return "".join(log.read_text("utf-8") for log in sorted((folder / "logs").glob("*.log")))


def test_a_night_brings_store_and_export_up_to_date(tmp_path: Path) -> None:
    copy_photos(tmp_path / "images", 24)
    assert run_nightly(tmp_path) == 0
    before = fit_of_export(tmp_path)
    assert before["fitted"] == before["unchanged"] == before["now"]

    # A broken photo and a new one: the new one goes through the fit that is there
    photos = sorted((tmp_path / "images").glob("*.jpg"))
    (tmp_path / "images" / "broken.jpg").write_bytes(b"not a photo")
    shutil.copyfile(photos[0], tmp_path / "images" / "new.jpg")
    assert run_nightly(tmp_path) == 10
    assert "new" in Store.open(tmp_path / "c3-export").load("image").keys
    after = fit_of_export(tmp_path)
    assert after == {**before, "now": before["now"] + 1}

    # The broken photo is no news in the next night. With a share of 0, one new row is too many
    assert run_nightly(tmp_path, "0") == 0
    anew = fit_of_export(tmp_path)
    assert anew["fitted"] == anew["unchanged"] == anew["now"] == after["now"]

    # The new photo is gone, and another with its captions, so that no shard is as it was
    (tmp_path / "images" / "new.jpg").unlink()
    photos[1].unlink()
    assert run_nightly(tmp_path) == 0
    exported = Store.open(tmp_path / "c3-export").load("image")
    assert photos[1].stem not in exported.keys
    assert fit_of_export(tmp_path)["fitted"] == anew["now"] - 7
    assert "Refitting because c3-export contains another export" in log_of(tmp_path)
    fits = [
        tmp_path / "c3-export" / "transform.safetensors",
        tmp_path / "reports" / "fit.safetensors",
    ]
    assert fits[0].read_bytes() == fits[1].read_bytes()
    assert (tmp_path / "reports" / "refitted").exists()

    # Too many photos are gone, so that nothing is removed
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    copy_photos(tmp_path / "images", 12)
    assert run_nightly(tmp_path) == 11
    assert len(Store.open(tmp_path / "c3-store").load("image").keys) == len(exported.keys)
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "elsewhere").rename(tmp_path / "images")

    # A damaged shard
    shard = min((tmp_path / "c3-store" / "image").glob("*.parquet"))
    content = np.fromfile(shard, np.uint8)
    content[len(content) // 2] ^= 1
    content.tofile(shard)
    assert run_nightly(tmp_path) == 3


def test_a_failed_step_ends_the_night_without_the_reports_of_another(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    for name in ("plan", "embed", "export"):
        (reports / f"{name}.json").write_text('{"modalities": {}}', "utf-8")
    assert run_nightly(tmp_path) == 1
    assert not {"embed.json", "export.json"} & {path.name for path in reports.iterdir()}
    assert log_of(tmp_path).endswith("end, exit code 1\n")


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not there")
def test_a_second_run_waits_for_nothing_and_touches_nothing(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "embed.json").write_text("of the first run", "utf-8")
    with (reports / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_nightly(tmp_path) == 75
    assert (reports / "embed.json").read_text("utf-8") == "of the first run"


def test_a_signal_reaches_the_command_that_runs(tmp_path: Path) -> None:
    # A command in place of c3 that says that it has started, and that a signal ended it
    stub = tmp_path / "bin" / "c3"
    stub.parent.mkdir()
    stub.write_text(
        "#!/bin/bash\ntrap 'touch ended; exit 143' TERM\ntouch started\n"
        "while true; do sleep 0.05; done\n",
        "utf-8",
    )
    stub.chmod(0o755)
    script = ["bash", str(EXAMPLES / "nightly" / "nightly.sh"), "images"]
    path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(script, cwd=tmp_path, env={**os.environ, "PATH": path}) as process:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        process.terminate()
    assert process.returncode == 143
    assert (tmp_path / "ended").exists()
    assert log_of(tmp_path).endswith("end, exit code 143\n")
