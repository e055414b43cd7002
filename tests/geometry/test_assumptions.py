from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c3tools.geometry.assumptions import different_items, orthogonality, residuals
from c3tools.geometry.report import gap_report
from tests.conftest import make_store
from tests.geometry.spaces import paper_model, unit

ONLY_TWO = ("raw", "c2-collapse")


def answers(path: Path) -> dict[str, str]:
    return {name: found["answer"] for name, found in gap_report(path, presets=ONLY_TWO).values["assumptions"].items()}


def test_the_papers_model_passes_every_test(tmp_path: Path) -> None:
    image, text, _ = paper_model(3000, 32, sigma=0.05)
    # a common large norm in a further dimension: normalising then hardly bends the model
    image, text = (np.c_[rows, np.full(len(rows), 20.0)] for rows in (image, text))
    make_store(tmp_path / "s", unit(image).astype(np.float32), unit(text).astype(np.float32))
    found = answers(tmp_path / "s")
    assert (found["constant"], found["orthogonal"], found["gaussian"]) == ("yes", "yes", "yes")


def test_noise_in_a_few_dimensions_is_not_isotropic() -> None:
    rng = np.random.default_rng(0)
    isotropic = rng.normal(size=(2000, 20))
    assert residuals(isotropic, np.arange(2000)).isotropy > 0.95
    squeezed = isotropic * np.r_[np.full(4, 5.0), np.full(16, 0.5)]
    # participation ratio (4 * 25 + 16 / 4)^2 / (4 * 625 + 16 / 16) of 20 dimensions
    assert residuals(squeezed, np.arange(2000)).isotropy == pytest.approx(104**2 / 2501 / 20, rel=0.03)


def test_isotropy_is_corrected_for_few_pairs() -> None:
    noise = np.random.default_rng(1).normal(size=(60, 100))
    assert residuals(noise, np.arange(60)).isotropy > 0.9


def test_heavy_tails_are_seen() -> None:
    rng = np.random.default_rng(2)
    normal, heavy = rng.normal(size=(4000, 8)), rng.standard_t(3, size=(4000, 8))
    assert residuals(normal, np.arange(4000)).distance < 0.01
    assert residuals(heavy, np.arange(4000)).distance > 0.05
    assert np.median(residuals(heavy, np.arange(4000)).kurtosis) > 3


def test_residuals_of_one_item_are_not_compared() -> None:
    owner = np.repeat(np.arange(5), 4)
    left, right = different_items(owner, 0, "test")
    assert len(left)
    assert np.all(owner[left] != owner[right])
    assert len(different_items(np.zeros(10, int), 0, "test")[0]) == 0


def test_orthogonality_of_a_gap_inside_the_span() -> None:
    rows = np.zeros((200, 3))
    rows[:, 0] = np.random.default_rng(0).normal(size=200)
    assert np.allclose(np.abs(orthogonality(rows, np.arange(200), np.array([1.0, 0, 0]))), 1)
    assert np.allclose(orthogonality(rows, np.arange(200), np.array([0, 1.0, 0])), 0)
    assert len(orthogonality(rows, np.arange(200), np.zeros(3))) == 0


def test_a_gap_that_turns_is_not_constant(tmp_path: Path) -> None:
    x = np.tile([0.0, 0.0, 1.0, 0.0], (1000, 1)) + np.random.default_rng(0).normal(size=(1000, 4)) * 0.02
    y = x.copy()
    angle = np.linspace(0, np.pi, 1000)
    y[:, 0], y[:, 1] = np.cos(angle), np.sin(angle)
    make_store(tmp_path / "s", unit(x).astype(np.float32), unit(y).astype(np.float32))
    found = gap_report(tmp_path / "s", presets=ONLY_TWO).values["assumptions"]["constant"]
    assert found["answer"] == "no"
    # differences (-cos t, -sin t) / sqrt 2 and 1 - 1 / sqrt 2 further, over a half turn: |mean| / |difference|
    along = (1 - np.sqrt(0.5)) ** 2
    assert found["number"] == pytest.approx(np.sqrt((0.5 * (2 / np.pi) ** 2 + along) / (0.5 + along)), abs=0.02)


def test_the_marginals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    noise = np.random.default_rng(4).standard_t(6, size=(900, 5)) * np.array([1, 2, 3, 4, 5])
    found = residuals(noise, np.arange(900))
    np.testing.assert_allclose(found.skewness, stats.skew(noise), atol=1e-9)
    np.testing.assert_allclose(found.kurtosis, stats.kurtosis(noise), atol=1e-9)
    standard = (noise - noise.mean(axis=0)) / noise.std(axis=0)
    # the distance is read at 480 points
    assert found.distance == pytest.approx(stats.kstest(standard.ravel(), "norm").statistic, abs=2e-3)
    density, edges = found.standardised
    assert np.sum(density * np.diff(edges)) == pytest.approx(np.mean(np.abs(standard) <= 5))
