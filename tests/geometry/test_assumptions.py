from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.geometry.assumptions import answer_questions
from c3tools.geometry.collect import collect
from c3tools.geometry.measures import EDGES, Residuals, orthogonality, residuals
from tests.conftest import make_store, unit_rows
from tests.geometry.spaces import unit
from tests.golden import recorded

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


def two_gaps(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of 400 pairs whose gap is one of two, told by the ``order`` of the store, the ``content``, or by chance."""
    rng, half = np.random.default_rng(0), np.arange(400) < 160
    other = half if kind == "order" else rng.permutation(half)
    content = rng.normal(size=(400, 32)) * 0.1
    if kind == "content":
        content[:, 4] += np.where(other, 1.0, -1.0)
    gap = np.eye(32)[0] + np.where(other[:, None], 0.25, -0.25) * np.eye(32)[1]
    return unit(content + gap), unit(content - gap + 0.05 * rng.normal(size=(400, 32))), other


def test_a_gap_varies_by_as_much_as_two_gaps_lie_apart(tmp_path: Path) -> None:
    measures = {}
    for kind in ("order", "content", "mixture"):
        x, y, other = two_gaps(kind)
        data = collect(make_store(tmp_path / kind, x, y), "image", "text")
        answers = answer_questions(data, residuals(x - y, np.arange(400)))
        found = measures[kind] = {name: answer.measures for name, answer in answers.items()}
        means = [(x - y)[side].mean(axis=0) for side in (other, ~other)]
        expected = np.linalg.norm(means[0] - means[1]) * np.sqrt(0.4 * 0.6) / np.linalg.norm((x - y).mean(axis=0))
        assert found["constant"][kind] == pytest.approx(expected, rel=0.1)
    # neither the order nor the content tells it
    assert found["constant"]["order"] == 0 and found["constant"]["content"] < 0.3 * expected
    recorded(Path(__file__).parent / "golden" / "assumptions.json", measures)


def some(count: int, value: float) -> Any:
    return np.r_[np.full(count, value), np.zeros(50 - count)]


@pytest.mark.parametrize(
    ("question", "answer", "cases"),  # changes of isotropic Gaussian noise in 50 dimensions, of 2,000 items
    [
        ("gaussian", "yes", [{}, {"kurtosis": some(5, 5.55), "isotropy": 0.25}]),
        ("gaussian", "yes", [{"kurtosis": some(5, 7.5), "isotropy": 0.0}]),  # 3 * sqrt(24 / 2000) is 0.33
        (
            "gaussian",
            "partly",
            [{"kurtosis": some(6, 0.51)}, {"skewness": some(6, -0.31)}, {"distance_to_normal": 0.031}],
        ),
        ("gaussian", "partly", [{"kurtosis": some(5, 5.55)}]),  # 3 * sqrt(24 / 2000 / 50) is 0.046
        # three times sqrt(24 / 100) is 1.47, and this kurtosis without bias 1.48
        ("gaussian", "partly", [{"items": 100, "kurtosis": some(6, 1.35)}, {"items": 100, "skewness": some(6, 0.74)}]),
        ("gaussian", "no", [{"kurtosis": some(13, -0.51)}, {"kurtosis": some(5, 10.6)}, {"distance_to_normal": 0.061}]),
        ("isotropic", "yes", [{}, {"std_largest": 2.15}]),  # twice exp(2 * 2.326 / sqrt(4000)) is 2.153
        ("isotropic", "partly", [{"std_largest": 2.16}, {"isotropy": 0.898}, {"isotropy": 0.862, "items": 100}]),
        ("isotropic", "no", [{"isotropy": 0.598}]),
        ("constant", "unknown", [{}]),  # there is no gap
        ("orthogonal", "unknown", [{}]),
    ],
)
def test_noise_is_judged_by_the_table_of_the_documentation(
    tmp_path: Path, question: str, answer: str, cases: list[dict[str, Any]]
) -> None:
    data = collect(make_store(tmp_path / "s", unit_rows(20, 4), unit_rows(20, 4)), "image", "text")
    noise = Residuals(2000, 2000, 1.0, 1.0, 1.0, None, None, 0.0, *[some(0, 0)] * 5)
    for changes in cases:
        assert answer_questions(data, replace(noise, **changes))[question].answer == answer, changes


def test_variance_along_the_gap_is_compared_with_that_along_random_directions(tmp_path: Path) -> None:
    rng, sizes = np.random.default_rng(0), np.r_[np.full(10, 0.2), np.full(20, 0.1), np.zeros(10)]
    for axis, inside in ((0, 1.0), (39, 0.0)):
        content = rng.normal(size=(3000, 40)) * sizes
        x, y = unit(content + 0.1 * np.eye(40)[axis] + np.eye(40)[38]), unit(content + np.eye(40)[38])
        data = collect(make_store(tmp_path / str(axis), x, y), "image", "text")
        found = answer_questions(data, None)["orthogonal"].measures["image"]
        gap, covariance = x.mean(axis=0) - y.mean(axis=0), np.cov(x.T, bias=True)
        ratio = gap @ covariance @ gap / (gap @ gap) / (np.trace(covariance) / 40)
        assert found["variance_ratio"] == pytest.approx(ratio, rel=0.05, abs=0.02)
        assert found["share_in_span"] == pytest.approx(inside, abs=0.1)
        low, high = found["random_directions"]
        assert low < 1 < high < 4 / 1.5
