from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.geometry.assumptions import along_gap
from c3tools.geometry.report import gap_report
from c3tools.geometry.residuals import (
    between_groups,
    cluster,
    different_items,
    mixture,
    orthogonality,
    residuals,
)
from c3tools.moments import Moments
from tests.conftest import make_store
from tests.geometry.spaces import paper_model, unit

ONLY_TWO = ("raw", "c2-collapse")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BREAKS = {
    "constant": ["halves_in_order", "halves_shuffled", "gap_by_topic"],
    "orthogonal": ["gap_anywhere", "gap_in_span", "gap_along_main_axis"],
    "gaussian": ["laplace_in_some", "heavy_tails"],
    "isotropic": ["noise_in_half", "decaying_noise"],
}


def answers(path: Path) -> dict[str, str]:
    return {name: found["answer"] for name, found in gap_report(path, presets=ONLY_TWO).values["assumptions"].items()}


def test_the_papers_model_passes_every_test(tmp_path: Path) -> None:
    image, text, _ = paper_model(3000, 32, sigma=0.05)
    # a common large norm in a further dimension: normalising then hardly bends the model
    image, text = (np.c_[rows, np.full(len(rows), 20.0)] for rows in (image, text))
    make_store(tmp_path / "s", unit(image).astype(np.float32), unit(text).astype(np.float32))
    found = answers(tmp_path / "s")
    assert (found["constant"], found["orthogonal"], found["gaussian"]) == ("yes", "yes", "yes")


@pytest.mark.parametrize("captions", [1, 5])
def test_draws_of_the_papers_model_get_four_times_yes(captions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    power = importlib.import_module("assumption_power")
    for found in power.answers(None, 150, captions, 3):
        assert found == dict.fromkeys(BREAKS, "yes")


@pytest.mark.parametrize(("question", "name"), [(key, name) for key, names in BREAKS.items() for name in names])
def test_each_broken_assumption_gets_its_no(question: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    power = importlib.import_module("assumption_power")
    assert {key: [change.__name__ for change in changes] for key, changes in power.BREAKS.items()} == BREAKS
    for captions in (1, 5):
        for found in power.answers(getattr(power, name), 150, captions, 1):
            assert found[question] == "no", captions


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


@pytest.mark.parametrize(("items", "dim"), [(100, 128), (30, 64)])
def test_isotropic_noise_of_several_captions_is_isotropic(items: int, dim: int) -> None:
    """What the captions of an image share is drawn once for each image, not for each caption."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        owner = np.repeat(np.arange(items), 5)
        noise = rng.normal(size=(items, dim))[owner] + rng.normal(size=(5 * items, dim))
        assert residuals(noise, owner).isotropy > 0.9


@given(st.integers(25, 60), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_isotropy_is_that_of_the_population(items: int, captions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.array([3.0] * 8 + [1.0] * 56)
    expected = np.sum(sizes**2) ** 2 / np.sum(sizes**4) / 64
    owner = np.repeat(np.arange(items), captions)
    found = []
    for _ in range(12):
        noise = (rng.normal(size=(items, 64))[owner] + rng.normal(size=(len(owner), 64))) * sizes
        found.append(1 / residuals(noise, owner).isotropy)
    assert np.mean(found) == pytest.approx(1 / expected, rel=0.2)


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
    # differences (-cos t, -sin t) / sqrt 2 and 1 - 1 / sqrt 2 further, over a half turn, averaged over tenths of it
    along, tenth = (1 - np.sqrt(0.5)) ** 2, np.sin(np.pi / 20) / (np.pi / 20)
    mean = 2 / np.pi
    expected = np.sqrt(0.5 * (tenth**2 - mean**2) / (0.5 * mean**2 + along))
    assert found["measures"]["order"] == pytest.approx(expected, rel=0.02)


def test_groups_of_one_gap_do_not_differ_and_groups_of_two_do() -> None:
    labels = np.repeat(np.arange(5), 40)
    found = []
    for seed in range(60):
        rows = np.random.default_rng(seed).normal(size=(200, 16))
        found.append(between_groups(rows - rows.mean(axis=0), labels, seed=seed))
    assert np.mean(np.array(found) > 0) == pytest.approx(0.05, abs=0.06)
    shift = np.zeros((200, 16))
    shift[:80, 3], shift[80:, 3] = 1.5, -1.0  # 0.4 * 1.5^2 + 0.6 = 1.5
    rows = np.random.default_rng(0).normal(size=(200, 16)) * 0.5 + shift
    assert between_groups(rows - rows.mean(axis=0), labels) == pytest.approx(np.sqrt(1.5), rel=0.05)


def test_a_mixture_is_told_from_a_large_variance() -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(400, 32)) * np.r_[3.0, np.ones(31)] * 0.1
    assert mixture(wide - wide.mean(axis=0)) == 0
    signs = np.where(rng.permutation(400) % 2, 1.0, -1.0)
    two = rng.normal(size=(400, 32)) * 0.1
    two[:, 5] += 0.7 * signs
    assert mixture(two - two.mean(axis=0)) == pytest.approx(0.7, rel=0.05)


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(4, size=300)
    labels = cluster(rng.normal(size=(300, 6)) * 0.1 + 5 * np.eye(6)[true], 4)
    for name in range(4):
        assert len(np.unique(true[labels == name])) == 1
    assert set(cluster(np.ones((10, 3)), 4)) == {0}


def test_variance_along_the_gap_against_random_directions() -> None:
    rng = np.random.default_rng(0)
    sizes = np.r_[np.full(10, 2.0), np.full(20, 1.0), np.zeros(10)]
    moments = Moments.from_rows(rng.normal(size=(4000, 40)) * sizes)
    none = np.zeros((40, 40))
    inside, outside = along_gap(moments, np.eye(40)[0], none), along_gap(moments, np.eye(40)[39], none)
    assert inside is not None
    assert outside is not None
    # the variance of one of ten main axes over the mean variance, (10 * 4 + 20) / 40
    assert inside["variance_ratio"] == pytest.approx(4 / 1.5, rel=0.05)
    assert (outside["variance_ratio"], outside["share_in_span"]) == pytest.approx((0, 0), abs=1e-9)
    assert (inside["share_in_span"], inside["share_by_chance"]) == pytest.approx((1, 0.75), abs=0.01)
    ratios = []
    for seed in range(200):
        gap = np.random.default_rng(seed).normal(size=40)
        found = along_gap(moments, gap, none)
        assert found is not None
        ratios.append(found["variance_ratio"])
        low, high = found["random_directions"]
    assert np.mean((np.array(ratios) > low) & (np.array(ratios) < high)) == pytest.approx(0.95, abs=0.04)
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert along_gap(moments, np.zeros(40), none) is None


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
