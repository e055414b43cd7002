from __future__ import annotations

import importlib
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from c3tools.geometry.assumptions import along_gap, between_groups, cluster, mixture
from c3tools.geometry.measures import EDGES, orthogonality, residuals
from c3tools.moments import Moments

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BREAKS = {
    "constant": ["halves_in_order", "halves_shuffled", "gap_by_topic"],
    "orthogonal": ["gap_anywhere", "gap_in_span", "gap_along_main_axis"],
    "gaussian": ["laplace_in_some", "heavy_tails"],
    "isotropic": ["noise_in_half", "decaying_noise"],
}


@pytest.mark.parametrize("captions", [1, 5])
def test_draws_of_the_papers_model_get_four_times_yes(captions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    power = importlib.import_module("assumption_power")
    assert power.answers(None, 150, captions, 2) == [dict.fromkeys(BREAKS, "yes")] * 2


@pytest.mark.parametrize(("question", "name"), [(key, name) for key, names in BREAKS.items() for name in names])
def test_each_broken_assumption_gets_its_no(question: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    power = importlib.import_module("assumption_power")
    assert [found[question] for found in power.answers(getattr(power, name), 150, 5, 1)] == ["no"]


@pytest.mark.parametrize(("items", "captions", "dim"), [(2000, 1, 20), (60, 1, 100), (100, 5, 128), (30, 5, 64)])
def test_isotropy_is_that_of_the_population(items: int, captions: int, dim: int) -> None:
    """What the captions of an image share is drawn once for each image, and few items are corrected for."""
    owner, sizes = np.repeat(np.arange(items), captions), np.r_[np.full(dim // 5, 5.0), np.full(dim - dim // 5, 0.5)]
    isotropic, squeezed = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        noise = (rng.normal(size=(items, dim)) * (captions > 1))[owner] + rng.normal(size=(len(owner), dim))
        isotropic.append(residuals(noise, owner).isotropy)
        squeezed.append(residuals(noise * sizes, owner).isotropy)
    assert min(isotropic) > 0.9
    # participation ratio
    assert np.mean(squeezed) == pytest.approx(np.sum(sizes**2) ** 2 / np.sum(sizes**4) / dim, rel=0.15)


def test_the_marginals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    noise = np.random.default_rng(4).standard_t(6, size=(900, 5)) * np.array([1, 2, 3, 4, 5])
    found, standard = residuals(noise, np.arange(900)), (noise - noise.mean(axis=0)) / noise.std(axis=0)
    np.testing.assert_allclose(found.skewness, stats.skew(noise), atol=1e-9)
    np.testing.assert_allclose(found.kurtosis, stats.kurtosis(noise), atol=1e-9)
    # the distance is read at 480 points
    assert found.distance_to_normal == pytest.approx(stats.kstest(standard.ravel(), "norm").statistic, abs=2e-3)
    assert np.sum(found.marginals * np.diff(EDGES)) == pytest.approx(np.mean(np.abs(standard) <= 5))
    assert len(residuals(noise[:10], np.zeros(10, int)).cosines) == 0  # residuals of one item are not compared


def test_orthogonality_of_a_gap_inside_the_span() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 3)) * [1, 0, 0]
    assert np.allclose(np.abs(orthogonality(rows, np.arange(200), np.array([1.0, 0, 0]))), 1)
    assert np.allclose(orthogonality(rows, np.arange(200), np.array([0, 1.0, 0])), 0)
    assert len(orthogonality(rows, np.arange(200), np.zeros(3))) == 0


def test_groups_of_one_gap_do_not_differ_and_groups_of_two_do() -> None:
    labels, found = np.repeat(np.arange(5), 40), []
    for seed in range(60):
        rows = np.random.default_rng(seed).normal(size=(200, 16))
        found.append(between_groups(rows - rows.mean(axis=0), labels, seed=seed))
    assert np.mean(np.array(found) > 0) == pytest.approx(0.05, abs=0.06)
    rows = np.random.default_rng(0).normal(size=(200, 16)) * 0.5
    rows[:, 3] += np.where(np.arange(200) < 80, 1.5, -1.0)  # 0.4 * 1.5^2 + 0.6 = 1.5
    assert between_groups(rows - rows.mean(axis=0), labels) == pytest.approx(np.sqrt(1.5), rel=0.05)


def test_a_mixture_is_told_from_a_large_variance() -> None:
    rng = np.random.default_rng(0)
    wide, two = (rng.normal(size=(400, 32)) * 0.1 for _ in range(2))
    wide[:, 0] *= 3
    two[:, 5] += 0.7 * np.where(rng.permutation(400) % 2, 1.0, -1.0)
    assert mixture(wide - wide.mean(axis=0)) == 0
    assert mixture(two - two.mean(axis=0)) == pytest.approx(0.7, rel=0.05)
    one_in_five = rng.normal(size=(400, 32)) * 0.1
    one_in_five[:80, 3] += 1.4  # distances 1.12 and 0.28 from the mean
    assert mixture(one_in_five - one_in_five.mean(axis=0)) == pytest.approx(
        sqrt(0.2 * 1.12**2 + 0.8 * 0.28**2), rel=0.05
    )
    skewed = rng.exponential(size=(400, 8))
    assert mixture(skewed - skewed.mean(axis=0)) == 0


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(4, size=300)
    labels = cluster(rng.normal(size=(300, 6)) * 0.1 + 5 * np.eye(6)[true], 4)
    assert all(len(np.unique(true[labels == name])) == 1 for name in range(4))
    assert set(cluster(np.ones((10, 3)), 4)) == {0}


def test_variance_along_the_gap_against_random_directions() -> None:
    sizes, none = np.r_[np.full(10, 2.0), np.full(20, 1.0), np.zeros(10)], np.zeros((40, 40))
    moments = Moments.from_rows(np.random.default_rng(0).normal(size=(4000, 40)) * sizes)
    inside, outside = (along_gap(moments, np.eye(40)[axis], none) or {} for axis in (0, 39))
    # the variance of one of ten main axes over the mean variance, (10 * 4 + 20) / 40
    assert inside["variance_ratio"] == pytest.approx(4 / 1.5, rel=0.05)
    assert (outside["variance_ratio"], outside["share_in_span"]) == pytest.approx((0, 0), abs=1e-9)
    assert (inside["share_in_span"], inside["share_by_chance"]) == pytest.approx((1, 0.75), abs=0.01)
    gaps = np.random.default_rng(1).normal(size=(100, 40))
    found = [along_gap(moments, gap, none) or {} for gap in gaps]
    ratios, (low, high) = np.array([one["variance_ratio"] for one in found]), found[0]["random_directions"]
    assert np.mean((ratios > low) & (ratios < high)) == pytest.approx(0.95, abs=0.05)
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)
    assert along_gap(moments, np.zeros(40), none) is None
