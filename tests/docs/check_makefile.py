"""The Makefile of the examples runs the steps whose inputs have other content, and no others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import copy_photos
from tests.docs.pages import ROOT

QUICK = {
    "EMBED": "--shard-size 16 --workers 0",
    "TRAIN": "--size tiny --epochs 1",
    "EVALUATE": "--metrics ROUGE-L --split all --resamples 0",
}


def make(folder: Path, **variables: str) -> list[str]:
    """Return the commands of c3 that make runs, without their options."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = [f"{name}={value}" for name, value in {**QUICK, **variables}.items()]
    done = subprocess.run(
        ["make", "-f", ROOT / "examples" / "make" / "Makefile", *settings],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"^c3 ([\w-]+)", done.stdout, re.MULTILINE)


def shard_times(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns
        for file in (folder / "c3-store").rglob("part-*.parquet")
    }


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.timeout(900)
def test_make_runs_the_steps_whose_inputs_have_other_content(tmp_path: Path) -> None:
    copy_photos(tmp_path / "images", 8)
    captions = tmp_path / "images" / "captions.jsonl"
    photo = next((tmp_path / "images").glob("*.jpg"))
    assert make(tmp_path) == ["embed", "export", "train-decoder", "evaluate-captions"]
    assert make(tmp_path) == []

    photo.touch()
    assert make(tmp_path) == []

    # One of the three shards of 40 captions has another one
    before = shard_times(tmp_path)
    text = captions.read_text(encoding="utf-8")
    first = text.partition('"captions": ["')[2].partition('"')[0]
    captions.write_text(text.replace(first, "another caption"), encoding="utf-8")
    assert make(tmp_path) == ["embed", "export", "train-decoder", "evaluate-captions"]
    changed = [name for name, time in shard_times(tmp_path).items() if before[name] != time]
    assert len(changed) == 1 and changed[0].startswith("c3-store/text")

    assert make(tmp_path, SEED="1") == ["train-decoder", "evaluate-captions"]
    assert make(tmp_path, SEED="1") == []

    photo.unlink()
    assert make(tmp_path, SEED="1") == ["embed", "export", "train-decoder", "evaluate-captions"]
