"""A fitted pipeline is applied with numpy and safetensors alone; and this test can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from c3tools.transforms import preset

from .conftest import Pairs

HEAVY = ("torch", "pyarrow", "open_clip", "rich", "matplotlib", "PIL", "faiss", "sklearn", "yaml", "tokenizers")
PROGRAM = """
import sys
{extra}
import numpy as np
from c3tools.transforms import Pipeline
pipeline = Pipeline.load({folder!r})
x = np.random.default_rng(0).normal(size=(5, 24))
pipeline.transform(x, modality="text", training=True, keys=list("abcde"))
pipeline.transform(x, modality="image")
print(" ".join(name for name in {heavy!r} if name in sys.modules))
"""


def loaded_modules(folder: Path, extra: str = "") -> list[str]:
    program = PROGRAM.format(extra=extra, folder=str(folder), heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture
def saved(pairs: Pairs, tmp_path: Path) -> Path:
    return preset("c3").fit(pairs.moments).save(tmp_path)


def test_applying_a_pipeline_loads_nothing_heavy(saved: Path) -> None:
    assert loaded_modules(saved) == []


def test_the_test_above_can_fail(saved: Path) -> None:
    assert loaded_modules(saved, extra="import pyarrow") == ["pyarrow"]
