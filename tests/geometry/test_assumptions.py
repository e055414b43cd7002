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


def test_the_papers_model_gets_four_times_yes_and_what_breaks_it_a_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    power = importlib.import_module("assumption_power")
    for captions in (1, 5):
        assert power.answers(None, 150, captions, 2) == [dict.fromkeys(power.BREAKS, "yes")] * 2
    for question, changes in power.BREAKS.items():
        for change in changes:
            assert [found[question] for found in power.answers(change, 150, 5, 1)] == ["no"], change


@pytest.mark.parametrize(
    ("items", "captions", "dim"), [(2000, 1, 20), (60, 1, 100), (100, 5, 128), (30, 5, 64)]
)
def test_isotropy_is_that_of_the_population(items: int, captions: int, dim: int) -> None:
    """What the captions of an image share is drawn once for each image, and few items are corrected
    for."""
    owner, sizes = (
        np.repeat(np.arange(items), captions),
        np.where(np.arange(dim) < dim // 5, 5.0, 0.5),
    )
    found = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        noise = (rng.normal(size=(items, dim)) * (captions > 1))[owner] + rng.normal(
            size=(len(owner), dim)
        )
        found.append([residuals(noise * scale, owner).isotropy for scale in (1, sizes)])
    isotropic, squeezed = np.transpose(found)
    assert min(isotropic) > 0.9
    # participation ratio
    assert np.mean(squeezed) == pytest.approx(
        np.sum(sizes**2) ** 2 / np.sum(sizes**4) / dim, rel=0.15
    )


def test_the_marginals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    noise = np.random.default_rng(4).standard_t(6, size=(900, 5)) * np.arange(1, 6)
    found, standard = (
        residuals(noise, np.arange(900)),
        (noise - noise.mean(axis=0)) / noise.std(axis=0),
    )
    assert found.skewness == pytest.approx(stats.skew(noise), abs=1e-9)
    assert found.kurtosis == pytest.approx(stats.kurtosis(noise), abs=1e-9)
    # the distance is read at 480 points
    assert found.distance_to_normal == pytest.approx(
        stats.kstest(standard.ravel(), "norm").statistic, abs=2e-3
    )
    assert np.sum(found.marginals * np.diff(EDGES)) == pytest.approx(np.mean(np.abs(standard) <= 5))
    # residuals of one item are not compared
    assert len(residuals(noise[:10], np.zeros(10, int)).cosines) == 0


def test_orthogonality_of_a_gap_inside_the_span() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 3)) * [1, 0, 0]
    inside, beside, none = (
        orthogonality(rows, np.arange(200), gap) for gap in (*np.eye(3)[:2], np.zeros(3))
    )
    assert (
        np.allclose(np.abs(inside), 1)
        and np.allclose(beside, 0)
        and len(inside) == len(beside) > len(none) == 0
    )


def test_a_gap_varies_by_as_much_as_two_gaps_lie_apart(tmp_path: Path) -> None:
    """Which of two gaps a pair has is told by the order of the store, by the content, or by
    chance."""
    measures = {}
    for kind in ("order", "content", "mixture"):
        rng, half = np.random.default_rng(0), np.arange(400) < 160
        other = half if kind == "order" else rng.permutation(half)
        content = rng.normal(size=(400, 32)) * 0.1
        sides = np.where(other[:, None], 1.0, -1.0)
        content += (kind == "content") * sides * np.eye(32)[4]
        gap = np.eye(32)[0] + 0.25 * sides * np.eye(32)[1]
        x, y = unit(content + gap), unit(content - gap + 0.05 * rng.normal(size=(400, 32)))
        data = collect(make_store(tmp_path / kind, x, y), "image", "text")
        answers = answer_questions(data, residuals(x - y, np.arange(400)), has_gap=True)
        measures[kind] = {name: answer.measures for name, answer in answers.items()}
        one, two = ((x - y)[side].mean(axis=0) for side in (other, ~other))
        expected = (
            np.linalg.norm(one - two) * np.sqrt(0.4 * 0.6) / np.linalg.norm((x - y).mean(axis=0))
        )
        assert measures[kind]["constant"][kind] == pytest.approx(expected, rel=0.1)
    recorded(Path(__file__).parent / "golden" / "assumptions.json", measures)


def some(count: int, value: float) -> Any:
    return np.r_[np.full(count, value), np.zeros(50 - count)]


def test_noise_is_judged_by_the_table_of_the_documentation(tmp_path: Path) -> None:
    """Of changes of isotropic Gaussian noise in 50 dimensions, of 2,000 items."""
    data = collect(make_store(tmp_path / "s", unit_rows(20, 4), unit_rows(20, 4)), "image", "text")
    noise = Residuals(2000, 2000, 1.0, 1.0, 1.0, None, None, 0.0, *[some(0, 0)] * 5)
    table: dict[str, list[dict[str, Any]]] = {
        "gaussian yes": [
            {"kurtosis": some(5, 5.55), "isotropy": 0.25},
            {"kurtosis": some(5, 7.5), "isotropy": 0.0},  # 3 * sqrt(24 / 2000) is 0.33
        ],
        "gaussian partly": [
            {"kurtosis": some(6, 0.51)},
            {"skewness": some(6, -0.31)},
            {"distance_to_normal": 0.031},
            {"kurtosis": some(5, 5.55)},  # 3 * sqrt(24 / 2000 / 50) is 0.046
            # 3 * sqrt(24 / 100) is 1.47, this one without bias 1.48
            {"items": 100, "kurtosis": some(6, 1.35)},
            {"items": 100, "skewness": some(6, 0.74)},
        ],
        "gaussian no": [
            {"kurtosis": some(13, -0.51)},
            {"kurtosis": some(5, 10.6)},
            {"distance_to_normal": 0.061},
        ],
        "isotropic yes": [{"std_largest": 2.15}],  # twice exp(2 * 2.326 / sqrt(4000)) is 2.153
        "isotropic partly": [
            {"std_largest": 2.16},
            {"isotropy": 0.898},
            {"isotropy": 0.862, "items": 100},
        ],
        "isotropic no": [{"isotropy": 0.598}],
        "gaussian unknown": [{"items": 11, "kurtosis": some(50, 9.0)}, {"std_largest": 1e-7}],
        "isotropic unknown": [{"items": 11, "isotropy": 0.1}, {"std_largest": 1e-7}],
        "constant unknown": [{}],  # there is no gap
        "orthogonal unknown": [{}],
    }
    for judged, cases in table.items():
        question, answer = judged.split()
        for changes in cases:
            assert (
                answer_questions(data, replace(noise, **changes), has_gap=False)[question].answer
                == answer
            ), changes


def test_variance_along_the_gap_is_compared_with_that_along_random_directions(
    tmp_path: Path,
) -> None:
    rng, sizes = np.random.default_rng(0), np.r_[np.full(10, 0.2), np.full(20, 0.1), np.zeros(10)]
    for axis, inside in ((0, 1.0), (39, 0.0)):
        content, gap = rng.normal(size=(3000, 40)) * sizes + np.eye(40)[38], 0.1 * np.eye(40)[axis]
        x, y = unit(content + gap), unit(content)
        data = collect(make_store(tmp_path / str(axis), x, y), "image", "text")
        found = answer_questions(data, None, has_gap=True)["orthogonal"].measures["image"]
        gap, covariance = x.mean(axis=0) - y.mean(axis=0), np.cov(x.T, bias=True)
        ratio = gap @ covariance @ gap / (gap @ gap) / (np.trace(covariance) / 40)
        assert found["variance_ratio"] == pytest.approx(ratio, rel=0.05, abs=0.02)
        assert found["share_in_span"] == pytest.approx(inside, abs=0.1)
        low, high = found["random_directions"]
        assert low < 1 < high < 4 / 1.5


@pytest.mark.parametrize("items", [60, 1000])
@pytest.mark.parametrize("dim", [16, 96])
def test_orthogonality_is_unknown_where_the_gap_lies_along_the_means(
    tmp_path: Path, items: int, dim: int
) -> None:
    """Unit rows hardly vary along their mean, whatever the content is."""
    rng = np.random.default_rng(0)
    content = rng.normal(size=(items, dim))
    axis = 8 * np.eye(dim)[0]
    store = make_store(tmp_path / "s", unit(content + axis), unit(content - axis))
    data = collect(store, "image", "text")
    answer = answer_questions(data, None, has_gap=True)["orthogonal"]
    assert (answer.answer, answer.because[:42]) == (
        "unknown",
        "The gap lies along the mean of the image r",
    )


def test_directions_of_a_handful_of_items_are_not_judged(tmp_path: Path) -> None:
    x = unit_rows(11, 8)
    store = make_store(tmp_path / "s", x, unit(x + 0.5 * np.eye(8)[0]))
    answer = answer_questions(collect(store, "image", "text"), None, has_gap=True)["orthogonal"]
    assert answer.because == "11 items are too few to judge directions; 12 are needed."


@pytest.mark.parametrize(
    ("shape", "answer"), [("ten_gaps", "partly"), ("flat_noise", "yes"), ("heavy_tails", "yes")]
)
def test_only_noise_with_several_peaks_makes_the_gap_vary(
    monkeypatch: pytest.MonkeyPatch, shape: str, answer: str
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    power = importlib.import_module("assumption_power")
    found = power.answers(getattr(power, shape), 200, 1, 2)
    assert [words["constant"] for words in found] == [answer] * 2
