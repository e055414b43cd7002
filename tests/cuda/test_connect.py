"""Heads and whole models on a GPU: what they learn is what they learn on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import c3tools
from tests.connect.photos import save_photos, save_tiny_clip
from tests.connect.worlds import write_files
from tests.fake_cuda import FakeCuda

pytestmark = pytest.mark.cuda

HEADS: dict[str, Any] = {"epochs": 1, "batch_size": 8, "hidden": 8, "precision": "fp32"}


def test_heads_are_trained_as_on_the_cpu(gpu: str, tmp_path: Path) -> None:
    features = c3tools.read_features(**write_files(tmp_path, 40, 1))
    scores = []
    for device in ("cpu", gpu):
        connected = c3tools.connect_heads(
            features, output=tmp_path / device, close_gap=0.1, device=device, **HEADS
        )
        scores.append(connected.record["scores"]["val"]["paired_cosine"])
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


def test_heads_leave_other_gpus_alone(tmp_path: Path) -> None:
    features = c3tools.read_features(**write_files(tmp_path, 40, 1))
    with FakeCuda(gpus=8) as card, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        c3tools.connect_heads(
            features, output=tmp_path / "heads", dropout=0.1, device="cuda:3", **HEADS
        )
    assert card.gpus_whose_rng_was_read() == {3}


@pytest.mark.parametrize("mode", ["lit", "full"])
def test_towers_are_trained_as_on_the_cpu(gpu: str, mode: Any, tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 3)
    model = save_tiny_clip(tmp_path / "m")
    scores = []
    for device in ("cpu", gpu):
        connected = c3tools.connect_towers(
            photos,
            mode=mode,
            output=tmp_path / device,
            model=model,
            epochs=1,
            batch_size=4,
            chunk=3,
            precision="fp32",
            device=device,
        )
        scores.append(connected.record["scores"]["val"]["paired_cosine"])
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
