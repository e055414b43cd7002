"""Closed forms of the measures; benchmarks/interval_coverage.py measures the intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c3tools.geometry.collect import collect
from c3tools.geometry.measures import effective_dimension, measure_gap, measure_modality, measure_pairs, relative_gap
from c3tools.moments import Moments
from tests.conftest import make_store
from tests.geometry.spaces import paper_model, plain_measures, unit


@pytest.mark.parametrize(("values", "dimension"), [([99.0, 1.0], 2), ([99.1, 0.9], 1), ([0.0, 0.0], 0)])
def test_dimension_counts_until_more_than_99_percent(values: list[float], dimension: int) -> None:
    assert effective_dimension(np.array(values)) == dimension
    found = measure_modality(Moments(50, np.array([1.0, 0]), 50 * np.diag(values)))
    ratio = sum(values) ** 2 / sum(v**2 for v in values) if dimension else 0
    assert found.effective_dimension == dimension
    assert found.participation_ratio == pytest.approx(ratio)
    assert (found.effective_rank > 0) == (dimension > 0)
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


def test_gap_and_residuals_of_single_pairs_are_debiased_by_the_variance_of_their_differences(tmp_path: Path) -> None:
    image, text, _ = paper_model(30, 8, sigma=0.2)
    x, y = unit(image), unit(text)
    data = collect(make_store(tmp_path / "s", x, y), "image", "text")
    gap, pairs = measure_gap(data, 0), measure_pairs(data, 0)
    chance = np.trace(np.cov((x - y).T)) / 30
    assert gap.length_debiased.value**2 == pytest.approx(gap.length.value**2 - chance)
    assert pairs and pairs.residual_rms_debiased.value == pytest.approx(pairs.residual_rms.value * np.sqrt(30 / 29))
