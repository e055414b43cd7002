from __future__ import annotations

import numpy as np
import pytest

from c3tools.geometry.spaces import modality_bias, separability, uniformity
from tests.conftest import unit_rows
from tests.geometry.spaces import unit


def half_width(interval: tuple[float, float] | None) -> float:
    assert interval is not None
    return (interval[1] - interval[0]) / 2


def test_uniformity_is_the_definition() -> None:
    rows = unit_rows(40, 5).astype(np.float64)
    squared = np.sum((rows[:, None] - rows[None]) ** 2, axis=2)
    expected = np.log(np.exp(-2 * squared)[~np.eye(40, dtype=bool)].mean())
    found = uniformity(rows)
    assert found.value == pytest.approx(expected)
    assert found.rows == 40


def test_uniformity_does_not_compare_the_captions_of_one_image() -> None:
    owner = np.repeat(np.arange(10), 4)
    rows = unit_rows(40, 5).astype(np.float64)
    squared = np.sum((rows[:, None] - rows[None]) ** 2, axis=2)
    expected = np.log(np.exp(-2 * squared)[owner[:, None] != owner[None]].mean())
    assert uniformity(rows, owner).value == pytest.approx(expected)


def test_separability_is_1_across_a_gap_and_one_half_without() -> None:
    x, y = unit_rows(400, 12), unit_rows(400, 12, seed=1)
    assert separability(x + np.eye(12)[0] * 9, y - np.eye(12)[0] * 9).value == 1.0
    assert separability(x, y).value == pytest.approx(0.5, abs=0.07)
    assert separability(unit(x + np.eye(12)[0]), y, collapse=True).value == pytest.approx(0.5, abs=0.08)


def test_modality_bias_is_1_across_a_gap_and_one_half_without() -> None:
    x, y = unit_rows(400, 12), unit_rows(400, 12, seed=1)
    away = np.eye(12)[0] * 3
    assert [side.value for side in modality_bias(unit(x + away), unit(y - away))] == [1.0, 1.0]
    assert [side.value for side in modality_bias(x, y)] == pytest.approx([0.5, 0.5], abs=0.05)


def test_modality_bias_does_not_grow_with_the_store() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, 16))
    x, y = (unit(centres + rng.normal(size=centres.shape) + side * np.eye(16)[0]) for side in (0.7, -0.7))
    found = {n: modality_bias(x[:n], y[:n], items=(np.arange(n), np.arange(n)))[0] for n in (100, 300, 1000)}
    assert [estimate.rows for estimate in found.values()] == [100, 100, 100]
    for estimate in found.values():
        assert estimate.interval is not None
        assert estimate.interval[0] <= found[1000].value <= estimate.interval[1]
    assert modality_bias(x[:40], y[:40])[0].rows == 40


def test_modality_bias_is_the_definition() -> None:
    x, y = unit_rows(30, 5), unit_rows(30, 5, seed=1)
    corpus, own = np.concatenate([x, y]).astype(np.float64), np.arange(60) < 30
    shares = []
    for row in range(60):
        order = np.argsort(-(corpus @ corpus[row]))
        nearest = order[order != row][:10]
        shares.append(np.mean(own[nearest] == own[row]))
    found = modality_bias(x, y)
    assert [side.value for side in found] == pytest.approx([np.mean(shares[:30]), np.mean(shares[30:])])


@pytest.mark.parametrize("captions", [1, 4])
def test_the_interval_of_uniformity_is_as_wide_as_it_scatters(captions: int) -> None:
    values, widths = [], []
    owner = np.repeat(np.arange(120), captions)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(120, 3)) * [2.0, 1.0, 0.3] + [1.0, 0, 0]
        found = uniformity(unit(centres[owner] + rng.normal(size=(len(owner), 3)) * 0.05), owner)
        values.append(found.value)
        widths.append(half_width(found.interval))
    assert np.mean(widths) == pytest.approx(1.96 * np.std(values), rel=0.3)


def test_intervals_of_shares_are_those_of_their_rows() -> None:
    x, y = unit_rows(500, 6), unit_rows(500, 6, seed=1)
    probe = separability(x + np.eye(6)[0] * 0.3, y)
    assert probe.rows == 1000
    assert half_width(probe.interval) == pytest.approx(1.96 * np.sqrt(probe.value * (1 - probe.value) / 1000), rel=0.15)
    for side in modality_bias(x, y):
        assert side.interval is not None
        assert side.interval[0] < side.value < side.interval[1]
        assert half_width(side.interval) < 0.03


def test_captions_of_one_image_widen_the_intervals() -> None:
    centres = unit_rows(100, 6)
    owner = np.repeat(np.arange(100), 5)
    images, texts = unit(centres + np.eye(6)[0] * 0.3), unit(centres[owner])
    items = (np.arange(100), owner)
    assert half_width(uniformity(texts, owner).interval) > 1.8 * half_width(uniformity(texts).interval)
    found = modality_bias(images, texts, items=items)  # one caption of each image, and its image
    assert [side.rows for side in found] == [100, 100]


def test_fewer_than_three_rows_have_no_interval() -> None:
    rows = unit_rows(2, 4)
    assert uniformity(rows).interval is None
    assert modality_bias(rows, rows)[0].interval is None
