from __future__ import annotations

import numpy as np
import pytest

from c3tools.geometry.spaces import modality_bias, separability, uniformity
from c3tools.metrics.significance import Estimate
from tests.conftest import unit_rows
from tests.geometry.spaces import unit

X, Y = unit_rows(400, 12), unit_rows(400, 12, seed=1)
OWN = np.arange(400), np.arange(400)
AWAY = np.eye(12)[0] * 3


def half_width(found: Estimate) -> float:
    assert found.interval is not None
    return (found.interval[1] - found.interval[0]) / 2


@pytest.mark.parametrize("owner", [np.arange(40), np.repeat(np.arange(10), 4)])
def test_uniformity_is_the_definition(owner: np.ndarray) -> None:
    rows = unit_rows(40, 5).astype(np.float64)
    squared = np.sum((rows[:, None] - rows[None]) ** 2, axis=2)
    expected = np.log(np.exp(-2 * squared)[owner[:, None] != owner[None]].mean())
    found = uniformity(rows, owner)
    assert found.value == pytest.approx(expected)
    assert found.rows == 40


def test_separability_is_1_across_a_gap_and_one_half_without() -> None:
    assert separability(X + AWAY, Y - AWAY, OWN).value == 1.0
    assert separability(X, Y, OWN).value == pytest.approx(0.5, abs=0.07)
    assert separability(unit(X + np.eye(12)[0]), Y, OWN, collapse=True).value == pytest.approx(0.5, abs=0.08)
    probe = separability(X + AWAY * 0.1, Y, (OWN[0], OWN[0] + 400))
    assert probe.rows == 800
    assert half_width(probe) == pytest.approx(1.96 * np.sqrt(probe.value * (1 - probe.value) / 800), rel=0.15)


def test_modality_bias_is_the_definition_on_corpora_of_100_items() -> None:
    x, y = unit_rows(30, 5), unit_rows(30, 5, seed=1)
    corpus, own, shares = np.concatenate([x, y]).astype(np.float64), np.arange(60) < 30, []
    for row in range(60):
        order = np.argsort(-(corpus @ corpus[row]))
        shares.append(np.mean(own[order[order != row][:10]] == own[row]))
    expected = np.mean(shares[:30]), np.mean(shares[30:])
    assert [side.value for side in modality_bias(x, y)] == pytest.approx(expected)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(600, 16))
    one, other = (unit(centres + rng.normal(size=centres.shape) + side * np.eye(16)[0]) for side in (0.7, -0.7))
    small, large = (modality_bias(one[:n], other[:n], items=(np.arange(n), np.arange(n)))[0] for n in (100, 600))
    assert small.rows == large.rows == 100  # it does not grow with the store
    assert small.value == pytest.approx(large.value, abs=half_width(small))


def test_fewer_than_three_rows_have_no_interval() -> None:
    rows = unit_rows(2, 4)
    bias = modality_bias(rows, rows[::-1])[0]
    assert uniformity(rows, np.arange(2)).interval is bias.interval is None
    assert bias.value == pytest.approx(1 / 3)  # of all others
