"""Intervals must be as wide as the numbers scatter over repeated draws of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c3tools.geometry import collect
from c3tools.geometry.report import gap_report
from tests.conftest import make_store
from tests.geometry.spaces import paper_model, unit

DRAWS = 40


def half_width(interval: tuple[float, float]) -> float:
    return (interval[1] - interval[0]) / 2


def test_intervals_of_the_report_are_as_wide_as_its_numbers_scatter(tmp_path: Path) -> None:
    found: dict[tuple[str, str], list[float]] = {}
    widths: dict[tuple[str, str], list[float]] = {}
    for seed in range(DRAWS):
        image, text, owner = paper_model(150, 8, captions=2, sigma=0.15, seed=seed)
        path = tmp_path / str(seed)
        make_store(path, unit(image + 0.1).astype(np.float32), unit(text).astype(np.float32), owners=list(owner))
        values = gap_report(path, presets=("raw",)).values
        for part, name in (
            ("gap", "length"),
            ("gap", "instance_distance"),
            ("gap", "rmg"),
            ("pairs", "paired_cosine"),
            ("pairs", "unpaired_cosine"),
            ("pairs", "residual_rms"),
            ("pairs", "alignment"),
        ):
            low, high = values[part][f"{name}_interval"]
            assert low < values[part][name] < high
            found.setdefault((part, name), []).append(values[part][name])
            widths.setdefault((part, name), []).append((high - low) / 2)
    for key, numbers in found.items():
        assert np.mean(widths[key]) == pytest.approx(1.96 * np.std(numbers), rel=0.35), key


def test_a_sample_narrows_the_intervals_of_what_rests_on_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, text, owner = paper_model(900, 8, captions=2, sigma=0.1)
    make_store(tmp_path / "s", unit(image).astype(np.float32), unit(text).astype(np.float32), owners=list(owner))
    whole = gap_report(tmp_path / "s", presets=("raw",)).values
    monkeypatch.setattr(collect, "EXACT_SCORES", 1000)
    monkeypatch.setattr(collect, "SAMPLE_ITEMS", 225)
    sample = gap_report(tmp_path / "s", presets=("raw",)).values
    for part, name in (("gap", "rmg"), ("pairs", "unpaired_cosine"), ("pairs", "residual_rms")):
        widths = [half_width(values[part][f"{name}_interval"]) for values in (whole, sample)]
        assert widths[1] == pytest.approx(widths[0], rel=0.2), name
    widths = [half_width(values["spaces"]["raw"]["uniformity_interval"]["image"]) for values in (whole, sample)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.25)
