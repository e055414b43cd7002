from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from c3tools import Store
from tests.conftest import copy_photos

from .catalogue import MOST_MEMORY, bombs, run
from .files import broken_tiffs

OUR_LINES = ("Found ", "photos: ", "Using the bundled model", "Images: ", "Texts: ")
# a process that imports torch takes seconds: these do not; benchmarks/bombs.py runs all
QUICK = {
    "meta.jsonl, a column of its own for each of 30,000 rows": "30,000 columns of 30,000 rows",
    "npy of 64 GiB, sparse": "the rest is holes",
    "store.json of 64 GiB, sparse": "more than 536,870,912 bytes",
    "captions.jsonl, 4 GiB in one line, sparse": "line 1 has more than 16,777,216 bytes",
    "captions.csv, 4 GiB in one line, sparse": "line 2 has more than 16,777,216 bytes",
    "COCO .json of 64 GiB, sparse": "more than 536,870,912 bytes",
    "tar, a name of 4 GiB, sparse": "a header of 4,294,967,296 bytes",
}


@pytest.mark.parametrize("name", QUICK)
def test_a_small_file_ends_in_an_error_before_it_fills_the_memory(tmp_path: Path, name: str) -> None:
    (bomb,) = (bomb for bomb in bombs() if bomb.name == name)
    outcome = run(bomb, tmp_path)
    assert QUICK[name] in outcome.said
    assert outcome.code == 1
    assert outcome.size < 2**20
    assert outcome.peak < MOST_MEMORY // 2
    assert outcome.seconds < 10


def test_names_are_unique() -> None:
    names = [bomb.name for bomb in bombs()]
    assert len(set(names)) == len(names) > 30


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_broken_tiffs_prints_only_lines_of_ours(tmp_path: Path, workers: int) -> None:
    folder = copy_photos(tmp_path / "photos", 1)
    broken = broken_tiffs(folder)
    command = f"embed photos --workers {workers} --backend onnx --precision fp32 --device cpu".split()
    code = "from c3tools.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith(OUR_LINES)] == []
    failures = Store.open(tmp_path / "c3-store").recorded_failures()
    assert 0 < len(failures) <= broken
    assert any("ZIPDecode" in failure.message or "TIFF" in failure.message for failure in failures)
