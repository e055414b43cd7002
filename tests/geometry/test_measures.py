"""Intervals must be as wide as the numbers scatter over repeated draws of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.geometry import collect, measures
from c3tools.geometry.report import gap_report
from c3tools.store import Rows, Store
from tests.conftest import build_store, make_store
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


def rows_with_a_gap(items: int, captions: int, alone: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, of which ``alone`` have no captions, captions of the others, some of them left out, and their images."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(items + alone, 16)) * np.linspace(2, 0.2, 16)
    owner = np.repeat(np.arange(items), captions)
    own = rng.normal(size=(items, 16))
    if captions > 1:
        owner = np.sort(rng.permutation(owner)[: int(0.8 * len(owner))])
    image = content + rng.normal(size=content.shape) + 0.5 * np.eye(16)[15]
    text = content[owner] + own[owner] + rng.normal(size=(len(owner), 16))
    return unit(image), unit(text), owner


@pytest.mark.parametrize(("captions", "alone"), [(1, 0), (4, 0), (2, 60)])
def test_the_gap_is_debiased_by_what_chance_adds_to_its_square(tmp_path: Path, captions: int, alone: int) -> None:
    many = rows_with_a_gap(60_000, 1, 0, 1_000)
    true = np.linalg.norm(many[0].mean(axis=0) - many[1].mean(axis=0))
    plain, debiased, held = [], [], []
    for seed in range(80):
        image, text, owner = rows_with_a_gap(30, captions, alone, seed)
        make_store(tmp_path / str(seed), image.astype(np.float32), text.astype(np.float32), owners=list(owner))
        found = _measure_gap_of(tmp_path / str(seed))
        plain.append(found["length"] ** 2)
        debiased.append(found["length_debiased"] ** 2)
        held.append(found["length_debiased_interval"][0] <= true <= found["length_debiased_interval"][1])
    error = float(np.std(debiased)) / np.sqrt(80)
    assert abs(np.mean(debiased) - true**2) < 3 * error
    assert np.mean(plain) - true**2 > 3 * error
    assert np.mean(held) >= 0.9


def _measure_gap_of(path: Path) -> dict[str, Any]:
    data = collect.collect(Store.open(path), "image", "text")
    return vars(measures._measure_gap(data, data.moments["image"].mean - data.moments["text"].mean, 0))


def test_residuals_are_debiased_by_the_error_of_their_mean(tmp_path: Path) -> None:
    many = rows_with_a_gap(60_000, 1, 0, 1_000)
    difference = many[0] - many[1]
    true = np.mean(difference.var(axis=0))
    plain, debiased = [], []
    for seed in range(60):
        image, text, owner = rows_with_a_gap(12, 1, 0, seed)
        make_store(tmp_path / str(seed), image.astype(np.float32), text.astype(np.float32), owners=list(owner))
        data = collect.collect(Store.open(tmp_path / str(seed)), "image", "text")
        found = measures._measure_pairs(data, 0)
        assert found is not None
        plain.append(found.residual_rms**2)
        debiased.append(found.residual_rms_debiased**2)
    assert debiased == pytest.approx([value * 12 / 11 for value in plain])  # the sample variance of n - 1
    assert np.mean(debiased) == pytest.approx(true, rel=0.05)


def test_the_gap_left_by_chance_is_what_stores_without_a_gap_have(tmp_path: Path) -> None:
    """Fitted on the train split of 100, measured on the 60 of the test split."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(25):
        rng = np.random.default_rng(seed)
        content = rng.normal(size=(160, 12))
        image, text = (unit(content + rng.normal(size=(160, 12)) + 0.5) for _ in range(2))
        keys = [f"i{number}" for number in range(160)]
        split = ["train"] * 100 + ["test"] * 60
        rows = [
            Rows.of("image", keys, image, split=split),
            Rows.of("text", [f"t{key}" for key in keys], text, image_key=keys, split=split),
        ]
        build_store(tmp_path / str(seed), *rows, dtype="float32")
        values = gap_report(tmp_path / str(seed), split="test", presets=("gap-shift", "standardize")).values
        for name, space in values["spaces"].items():
            found.setdefault(name, []).append((space["gap"], space["gap_by_chance"]))
    for name, pairs in found.items():
        left, chance = np.array(pairs).T
        assert np.sqrt(np.mean(left**2)) == pytest.approx(np.sqrt(np.mean(chance**2)), rel=0.15), name
