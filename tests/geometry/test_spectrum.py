from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.geometry.spectrum import (
    effective_dimension,
    effective_rank,
    measure_modality,
    participation_ratio,
    variance_along,
    within_cosine,
)
from c3tools.moments import Moments
from tests.conftest import unit_rows


@given(st.integers(1, 200))
def test_k_equal_directions_have_dimension_rank_and_ratio_k(k: int) -> None:
    values = np.r_[np.ones(k), np.zeros(5)]
    # 99 % of k equal values are more than exceeded by floor(0.99 k) + 1 of them
    assert effective_dimension(values) == np.floor(0.99 * k + 1e-9) + 1
    assert effective_rank(values) == pytest.approx(k)
    assert participation_ratio(values) == pytest.approx(k)


def test_dimension_counts_until_more_than_99_percent() -> None:
    assert effective_dimension(np.array([99.0, 1.0])) == 2  # exactly 99 % is not more
    assert effective_dimension(np.array([99.1, 0.9])) == 1


def test_no_variance_has_no_dimension() -> None:
    values = np.zeros(4)
    assert (effective_dimension(values), effective_rank(values), participation_ratio(values)) == (0, 0.0, 0.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 1000))
def test_within_cosine_is_the_mean_over_different_rows(n: int, dim: int, seed: int) -> None:
    rows = unit_rows(n, dim, seed).astype(np.float64)
    cosines = rows @ rows.T
    expected = (cosines.sum() - np.trace(cosines)) / (n * (n - 1))
    assert within_cosine(Moments.from_rows(rows)) == pytest.approx(expected, abs=1e-10)


def test_one_row_has_no_within_cosine() -> None:
    assert within_cosine(Moments.from_rows(np.ones((1, 3)))) is None


def test_mean_norm_and_its_errors_agree_with_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(300):
        rows = rng.normal(size=(100, 5)) * 0.3 + np.array([1.0, 0, 0, 0, 0])
        draws.append(rows.mean(axis=0))
    found = measure_modality(Moments.from_rows(rng.normal(size=(100, 5)) * 0.3 + np.array([1.0, 0, 0, 0, 0])))
    lengths = np.linalg.norm(draws, axis=1)
    angles = np.degrees(np.arccos(np.array(draws)[:, 0] / lengths))
    assert found.mean_norm_error == pytest.approx(lengths.std(), rel=0.2)
    assert found.mean_direction_error_degrees is not None
    assert found.mean_direction_error_degrees == pytest.approx(np.sqrt(np.mean(angles**2)), rel=0.2)
    assert found.rows_for_one_degree == pytest.approx(100 * found.mean_direction_error_degrees**2, rel=0.05)


def test_captions_of_one_image_do_not_count_as_independent() -> None:
    rows = unit_rows(50, 4)
    alone, together = measure_modality(Moments.from_rows(rows)), measure_modality(Moments.from_rows(rows), 10)
    assert together.independent_rows == 10
    assert together.mean_norm_error == pytest.approx(alone.mean_norm_error * np.sqrt(49 / 9))


def test_fewer_rows_than_dimensions_are_said_to_limit() -> None:
    assert measure_modality(Moments.from_rows(unit_rows(5, 8))).limited_by_rows
    assert not measure_modality(Moments.from_rows(unit_rows(9, 8))).limited_by_rows


def test_variance_along_an_axis_is_its_share() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(5000, 3)) * np.array([3.0, 1.0, 1.0])
    moments = Moments.from_rows(rows)
    assert variance_along(moments, np.array([2.0, 0, 0])) == pytest.approx(9 / 11, abs=0.02)
    assert variance_along(moments, np.zeros(3)) == 0.0
