"""Intervals must be as wide as the numbers scatter over repeated draws of the data."""

from __future__ import annotations

import numpy as np
import pytest

from c3tools.geometry.gap_report import gap_report
from c3tools.geometry.neighbours import modality_bias, separability, uniformity
from tests.conftest import make_store, unit_rows
from tests.geometry.spaces import paper_model, unit

DRAWS = 40


def half_width(interval) -> float:
    return (interval[1] - interval[0]) / 2


def test_intervals_of_the_report_are_as_wide_as_its_numbers_scatter(tmp_path):
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


@pytest.mark.parametrize("captions", [1, 4])
def test_the_interval_of_uniformity_is_as_wide_as_it_scatters(captions):
    values, widths = [], []
    owner = np.repeat(np.arange(120), captions)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(120, 3)) * [2.0, 1.0, 0.3] + [1.0, 0, 0]
        found = uniformity(unit(centres[owner] + rng.normal(size=(len(owner), 3)) * 0.05), owner)
        values.append(found.value)
        widths.append(half_width(found.interval))
    assert np.mean(widths) == pytest.approx(1.96 * np.std(values), rel=0.3)


def test_intervals_of_shares_are_those_of_their_rows():
    x, y = unit_rows(500, 6), unit_rows(500, 6, seed=1)
    probe = separability(x + np.eye(6)[0] * 0.3, y)
    assert probe.rows == 1000
    assert half_width(probe.interval) == pytest.approx(1.96 * np.sqrt(probe.value * (1 - probe.value) / 1000), rel=0.15)
    for side in modality_bias(x, y):
        assert side.interval[0] < side.value < side.interval[1]
        assert half_width(side.interval) < 0.03


def test_captions_of_one_image_widen_the_intervals():
    centres = unit_rows(100, 6)
    owner = np.repeat(np.arange(100), 5)
    images, texts = unit(centres + np.eye(6)[0] * 0.3), unit(centres[owner])
    items = (np.arange(100), owner)
    assert half_width(uniformity(texts, owner).interval) > 1.8 * half_width(uniformity(texts).interval)
    together, alone = modality_bias(images, texts, items=items), modality_bias(images, texts)
    assert [side.value for side in together] == [side.value for side in alone]


def test_fewer_than_three_rows_have_no_interval():
    rows = unit_rows(2, 4)
    assert uniformity(rows).interval is None
    assert modality_bias(rows, rows)[0].interval is None


def test_a_sample_narrows_the_intervals_of_what_rests_on_every_row(tmp_path, monkeypatch):
    from c3tools.geometry import collect

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
