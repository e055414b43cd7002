"""The workflows of DVC and Snakemake embed an edited caption alone, and run nothing twice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import copy_photos

from .conftest import EXAMPLES

QUICK = {
    "--size tiny": "--size tiny --epochs 1",
    "--metrics CIDEr": "--metrics ROUGE-L --split all --resamples 0",
}
STEPS = ["embed", "export", "train-decoder", "evaluate-captions"]


def run(folder: Path, command: Sequence[str]) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("example", "command"),
    [("dvc/dvc.yaml", ["dvc", "repro"]), ("snakemake/Snakefile", ["snakemake", "-pc1"])],
    ids=["dvc", "snakemake"],
)
def test_an_edited_caption_is_embedded_alone(
    example: str, command: list[str], tmp_path: Path
) -> None:
    if not shutil.which(command[0]):
        pytest.skip(f"the program {command[0]} is not there")
    copy_photos(tmp_path / "images", 8)
    workflow = (EXAMPLES / example).read_text("utf-8")
    for words, quick in QUICK.items():
        assert words in workflow
        workflow = workflow.replace(words, quick)
    (tmp_path / Path(example).name).write_text(workflow, "utf-8")
    if command[0] == "dvc":
        run(tmp_path, ["dvc", "init", "--no-scm", "--quiet"])

    def steps() -> tuple[list[str], str]:
        said = run(tmp_path, command)
        return re.findall(r"^(?:> |.*command: | *)c3 ([\w-]+)", said, re.MULTILINE), said

    assert steps()[0] == STEPS
    assert steps()[0] == []
    captions = tmp_path / "images" / "captions.jsonl"
    text = captions.read_text("utf-8")
    first = text.partition('"captions": ["')[2].partition('"')[0]
    captions.write_text(text.replace(first, "another caption"), "utf-8")
    commands, said = steps()
    assert commands == STEPS
    assert re.search(r"^ *text +1 ", said, re.MULTILINE), said  # embedded, the others are there
