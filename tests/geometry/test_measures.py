"""Closed forms of the measures; benchmarks/interval_coverage.py measures the intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.geometry.collect import Collected, collect
from c3tools.geometry.measures import effective_dimension, measure_gap, measure_modality, measure_pairs, relative_gap
from c3tools.moments import Moments
from tests.conftest import make_store
from tests.geometry.spaces import paper_model, plain_measures, unit


def collected(path: Path, image: Any, text: Any, owner: Any) -> Collected:
    return collect(make_store(path, image, text, owners=list(owner)), "image", "text")


@pytest.mark.parametrize(("values", "dimension"), [([99.0, 1.0], 2), ([99.1, 0.9], 1), ([0.0, 0.0], 0)])
def test_dimension_counts_until_more_than_99_percent(values: list[float], dimension: int) -> None:
    assert effective_dimension(np.array(values)) == dimension
    found = measure_modality(Moments(50, np.array([1.0, 0]), 50 * np.diag(values)))
    ratio = sum(values) ** 2 / sum(v**2 for v in values) if dimension else 0
    assert found.effective_dimension == dimension
    assert found.participation_ratio == pytest.approx(ratio)
    assert measure_modality(Moments(2, np.eye(2)[0], np.eye(2))).limited_by_rows
    assert not measure_modality(Moments(3, np.eye(2)[0], np.eye(2))).limited_by_rows


def test_the_relative_gap_of_two_pairs() -> None:
    image, text, owner = paper_model(2, 4)
    expected = plain_measures(image, text, owner)
    found = relative_gap(expected["paired_cosine"], Moments.from_rows(unit(image)), Moments.from_rows(unit(text)))
    assert found == pytest.approx(expected["rmg"])


def test_mean_norm_and_its_errors_agree_with_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=(100, 5)) * 0.3 + np.eye(5)[0] for _ in range(300)]
    found, means = measure_modality(Moments.from_rows(draws[0])), np.array([rows.mean(axis=0) for rows in draws])
    lengths = np.linalg.norm(means, axis=1)
    angles = np.degrees(np.arccos(means[:, 0] / lengths))
    assert found.mean_norm_error == pytest.approx(lengths.std(), rel=0.2)
    assert found.mean_direction_error_degrees == pytest.approx(np.sqrt(np.mean(angles**2)), rel=0.2)
    assert found.rows_for_one_degree == pytest.approx(
        100 * float(found.mean_direction_error_degrees or 0) ** 2, rel=0.05
    )
    together = measure_modality(Moments.from_rows(draws[0]), 10)
    assert together.mean_norm_error == pytest.approx(found.mean_norm_error * np.sqrt(99 / 9))


def rows_with_a_gap(items: int, captions: int, alone: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, of which ``alone`` have no captions, captions of the others, some of them left out, and their images."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(items + alone, 16)) * np.linspace(2, 0.2, 16)
    owner, own = np.repeat(np.arange(items), captions), rng.normal(size=(items, 16))
    if captions > 1:
        owner = np.sort(rng.permutation(owner)[: int(0.8 * len(owner))])
    image = content + rng.normal(size=content.shape) + 0.5 * np.eye(16)[15]
    text = content[owner] + own[owner] + rng.normal(size=(len(owner), 16))
    return unit(image), unit(text), owner


@pytest.mark.parametrize(("captions", "alone"), [(1, 0), (2, 60)])
def test_gap_and_residuals_are_debiased_by_what_chance_adds(tmp_path: Path, captions: int, alone: int) -> None:
    many = rows_with_a_gap(60_000, 1, 0, 1_000)
    true = np.linalg.norm(many[0].mean(axis=0) - many[1].mean(axis=0))
    plain, debiased, held = [], [], []
    for seed in range(60):
        data = collected(tmp_path / str(seed), *rows_with_a_gap(30, captions, alone, seed))
        gap, pairs = measure_gap(data, 0), measure_pairs(data, 0)
        plain.append(gap.length.value**2)
        debiased.append(gap.length_debiased.value**2)
        low, high = gap.length_debiased.interval or (0, 0)
        held.append(low <= true <= high)
        if captions == 1 and pairs:  # the sample variance of n - 1
            assert pairs.residual_rms_debiased.value == pytest.approx(pairs.residual_rms.value * np.sqrt(30 / 29))
    error = float(np.std(debiased)) / np.sqrt(60)
    assert abs(np.mean(debiased) - true**2) < 3 * error
    assert np.mean(plain) - true**2 > 3 * error
    assert np.mean(held) >= 0.9
