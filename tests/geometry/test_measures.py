"""Closed forms and plain loops of the measures; benchmarks/interval_coverage.py measures the
intervals."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import numpy as np
import pytest

from c3tools import clustering, geometry
from c3tools.errors import MetricError
from c3tools.geometry.collect import collect
from c3tools.geometry.measures import measure_gap, measure_modality, measure_pairs, relative_gap
from c3tools.geometry.one_list import measure_one_list
from c3tools.geometry.spaces import modality_bias, separability, uniformity
from c3tools.moments import Moments
from c3tools.paper import theory
from c3tools.seeds import generator
from c3tools.store import Rows
from tests.conftest import build_store, make_store, unit_rows
from tests.geometry.spaces import paper_model, plain_measures, unit
from tests.golden import recorded
from tests.stores import gap_store


def test_dimension_counts_until_more_than_99_percent() -> None:
    for values, dimension in (([99.0, 1.0], 2), ([99.1, 0.9], 1), ([0.0, 0.0], 0)):
        found = measure_modality(Moments.of(50, np.array([1.0, 0]), 50 * np.diag(values)))
        assert found.effective_dimension == dimension
        assert (found.effective_rank > 0) == (found.participation_ratio > 0) == (dimension > 0)
    assert [
        measure_modality(Moments.of(n, np.eye(2)[0], np.eye(2))).limited_by_rows for n in (2, 3)
    ] == [True, False]


def test_the_relative_gap_of_two_pairs() -> None:
    image, text, owner = paper_model(2, 4)
    expected = plain_measures(image, text, owner)
    moments = [Moments.from_rows(unit(rows)) for rows in (image, text)]
    assert relative_gap(expected["paired_cosine"], *moments) == pytest.approx(expected["rmg"])


def test_mean_norm_and_its_errors_agree_with_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(300, 100, 5)) * 0.3 + np.eye(5)[0]
    found, means = measure_modality(Moments.from_rows(draws[0])), draws.mean(axis=1)
    lengths = np.linalg.norm(means, axis=1)
    angle = np.sqrt(np.mean(np.degrees(np.arccos(means[:, 0] / lengths)) ** 2))
    assert found.mean_norm_error == pytest.approx(lengths.std(), rel=0.2)
    assert (error := found.mean_direction_error_degrees) == pytest.approx(angle, rel=0.2)
    assert error and found.rows_for_one_degree == pytest.approx(100 * error**2, rel=0.05)
    together = measure_modality(Moments.from_rows(draws[0]), 10)
    assert together.mean_norm_error == pytest.approx(found.mean_norm_error * np.sqrt(99 / 9))


def test_gap_and_residuals_of_single_pairs_are_debiased_by_the_variance_of_their_differences(
    tmp_path: Path,
) -> None:
    x, y = (unit(rows) for rows in paper_model(30, 8, sigma=0.2)[:2])
    data = collect(make_store(tmp_path / "s", x, y), "image", "text")
    gap, pairs = measure_gap(data, 0), measure_pairs(data, 0)
    chance = np.trace(np.cov((x - y).T)) / 30
    assert gap.length_debiased.value**2 == pytest.approx(gap.length.value**2 - chance)
    assert pairs and pairs.residual_rms_debiased.value == pytest.approx(
        pairs.residual_rms.value * np.sqrt(30 / 29)
    )


def test_uniformity_is_the_definition() -> None:
    rows, owner = unit_rows(40, 5).astype(np.float64), np.repeat(np.arange(10), 4)
    squared = np.sum((rows[:, None] - rows) ** 2, axis=2)
    expected = np.log(np.exp(-2 * squared)[owner[:, None] != owner].mean())
    found = uniformity(rows, owner)
    assert found.value == pytest.approx(expected)
    assert found.rows == 40


def test_separability_is_1_across_a_gap_and_one_half_without() -> None:
    x, y, own, away = unit_rows(400, 12), unit_rows(400, 12, seed=1), np.arange(400), np.eye(12)[0]
    assert separability(x + 3 * away, y - 3 * away, (own, own)).value == 1.0
    assert separability(x, y, (own, own)).value == pytest.approx(0.5, abs=0.07)
    assert separability(unit(x + away), y, (own, own), collapse=True).value == pytest.approx(
        0.5, abs=0.08
    )
    probe = separability(x + 0.3 * away, y, (own, own + 400))
    assert probe.rows == 800
    width = 2 * 1.96 * np.sqrt(probe.value * (1 - probe.value) / 800)
    assert np.ptp(probe.interval or 0) == pytest.approx(width, rel=0.15)


def test_modality_bias_is_the_definition_on_corpora_of_100_items() -> None:
    x, y = unit_rows(30, 5), unit_rows(30, 5, seed=1)
    corpus, own = np.concatenate([x, y]).astype(np.float64), np.arange(60) < 30
    # but for the row itself
    near = np.argsort(-(corpus @ corpus.T) - 9 * np.eye(60), axis=1)[:, 1:11]
    shares = (own[near] == own[:, None]).mean(axis=1)
    assert [side.value for side in modality_bias(x, y)] == pytest.approx(
        [shares[:30].mean(), shares[30:].mean()]
    )
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(600, 16))
    one, other = (
        unit(centres + rng.normal(size=centres.shape) + side * np.eye(16)[0])
        for side in (0.7, -0.7)
    )
    small, large = (
        modality_bias(one[:n], other[:n], items=(np.arange(n), np.arange(n)))[0] for n in (100, 600)
    )
    assert small.rows == large.rows == 100  # it does not grow with the store
    assert small.value == pytest.approx(large.value, abs=np.ptp(small.interval or 0) / 2)


def test_fewer_than_three_rows_have_no_interval() -> None:
    rows = unit_rows(2, 4)
    bias = modality_bias(rows, rows[::-1])[0]
    assert uniformity(rows, np.arange(2)).interval is bias.interval is None
    assert bias.value == pytest.approx(1 / 3)  # of all others


def test_one_list_counts_the_first_ten_of_each_query(tmp_path: Path) -> None:
    """Of 88 items, in an order by seed, 22 have their image in a corpus and 22 a text; the 44
    others give the moments, and are searched in their turn."""
    store = gap_store(tmp_path / "s", dtype="float32")
    found = measure_one_list(collect(store, "image", "text"), seed=3)
    order = generator(3, "one list").permutation(90)[:88]
    all_texts = store.load("text").embeddings
    plain = {"image": unit(store.load("image").embeddings), "text": unit(all_texts[::2])}
    with_image = np.arange(44) < 22
    for asked, kind in (("image", "text"), ("text", "image")):
        has_answer = with_image if kind == "image" else ~with_image
        for name in ("raw", "centred", "calibrated"):
            shares, hits = [], []
            for searched, others in ((order[:44], order[44:]), (order[44:], order[:44])):
                rows = {"image": plain["image"][others]}
                rows["text"] = unit(all_texts.reshape(90, 2, -1)[others].reshape(88, -1))
                means = {m: x.mean(axis=0) * (name != "raw") for m, x in rows.items()}
                q = unit(plain[asked][searched[has_answer]] - means[asked])
                corpus = np.concatenate(
                    [
                        unit(plain["image"][searched[with_image]] - means["image"]),
                        unit(plain["text"][searched[~with_image]] - means["text"]),
                    ]
                )
                scores = q @ corpus.T
                if name == "calibrated":
                    spread = []
                    for m in ("image", "text"):
                        covariance = np.cov(rows[m].T, bias=True)
                        spread.append(np.sum(q @ covariance * q, axis=1) / np.trace(covariance))
                    scores /= np.sqrt(np.repeat(spread, 22, axis=0)).T
                top = np.argsort(-scores)[:, :10]
                shares.append(has_answer[top])
                hits.append((top == np.flatnonzero(has_answer)[:, None]).any(axis=1))
            assert found[asked].other_modality[name].value == pytest.approx(np.mean(shares))
            assert found[asked].recall[name].value == pytest.approx(np.mean(hits))
    assert found["image"].chance == 10 / 44


def test_rows_without_content_are_found_by_chance_in_a_list_without_bias(tmp_path: Path) -> None:
    """Moments of the rows that ask lower the scores of their modality: the share was 0.59."""
    rng = np.random.default_rng(0)
    rows = {name: unit(rng.normal(size=(400, 64))) for name in ("image", "text")}
    keys = [f"{i}" for i in range(400)]
    images = Rows.of("image", keys, rows["image"])
    texts = Rows.of("text", keys, rows["text"], image_key=keys)
    store = build_store(tmp_path / "s", images, texts, dtype="float32")
    for one_list in measure_one_list(collect(store, "image", "text")).values():
        found = one_list.recall["calibrated"]
        assert one_list.other_modality["calibrated"].value == pytest.approx(0.5, abs=0.05)
        assert found.interval and found.interval[0] < one_list.chance < found.interval[1]


def test_thresholds_sample_sizes_and_defaults_are_the_published_ones() -> None:
    """docs/reference/gap-report.md and the docstrings name them; one that changes gives all users
    other results."""
    found: dict[str, Any] = {}
    names = [
        module.name
        for package in (geometry, clustering, theory)
        for module in walk_packages(package.__path__, f"{package.__name__}.")
    ]
    for module_name in names:
        module = import_module(module_name)
        for name, value in sorted(vars(module).items()):
            place = re.sub(r"^c3tools\.(geometry|clustering|paper)\.", "", f"{module_name}.{name}")
            if name.isupper() and isinstance(value, int | float | tuple | dict):
                found |= {place: value} if name not in ("PRESETS", "UNREADABLE") else {}
            elif inspect.isfunction(value) and value.__module__ == module_name:
                defaults = {
                    key: own.default for key, own in inspect.signature(value).parameters.items()
                }
                numbers = {
                    key: own for key, own in defaults.items() if isinstance(own, int | float)
                }
                found |= {place: numbers} if numbers else {}
    recorded(Path(__file__).parent / "golden" / "settings.json", found)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)])
def test_modality_bias_needs_rows_of_both(sizes: tuple[int, int]) -> None:
    rows = unit_rows(5, 4)
    with pytest.raises(MetricError, match=f"got {sizes[0]} and {sizes[1]}"):
        modality_bias(rows[: sizes[0]], rows[: sizes[1]])
