"""The steps for Ray Data and Daft, run as a user does, on bundled photos with c3-mini."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from c3tools import Pipeline, load_encoder, preset
from c3tools.assets.paths import PHOTOS

from .conftest import EXAMPLES

SCRIPTS = {"ray": "ray_data/embed_with_ray.py", "daft": "daft/embed_with_daft.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five photos and a fitted pipeline."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    for photo in sorted((PHOTOS / "images").iterdir())[:5]:
        shutil.copy(photo, folder / "images")
    rows = np.random.default_rng(0).standard_normal((100, 256)) + 1
    preset("c2-collapse").fit({"image": rows, "text": -rows}).save(folder / "pipeline")
    return folder


@pytest.mark.parametrize("package", SCRIPTS)
def test_rows_are_those_of_the_encoder_and_the_pipeline(package: str, folder: Path) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    script = EXAMPLES / SCRIPTS[package]
    assert len(script.read_text("utf-8").splitlines()) <= 60
    pipeline = str(folder / "pipeline")
    command = [sys.executable, str(script), "images", pipeline, package]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    table = ds.dataset(folder / package / "image").to_table().sort_by("key")
    photos = sorted((folder / "images").iterdir())
    assert table["key"].to_pylist() == [photo.stem for photo in photos]
    embeddings = load_encoder("c3-mini").encode_images(photos)
    expected = Pipeline.load(pipeline).transform(embeddings, modality="image")
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-5)
