"""Cross-centroids and the measures of mixed clusters, beside scikit-learn and by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.geometry.collect import Sample
from c3tools.geometry.cross_centroids import centroids_of, cross_centroids, nearest
from c3tools.geometry.mixed_clusters import (
    CLUSTERINGS,
    MixedClusters,
    kappa_of_pairs,
    measure_mixed_clusters,
    modality_information,
)
from c3tools.geometry.verdict import judge_clusters
from c3tools.metrics.significance import Estimate, mean_interval
from c3tools.seeds import generator
from tests.conftest import unit_rows


def narrow_cones(n: int, *, shared: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that share ten topics, in two cones apart; each modality varies in own directions."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(10, 32)).repeat(n // 10, axis=0) * shared
    rows = []
    for place in (32, 48):
        own = np.zeros((n, 65))
        own[:, :32] = topics + 0.2 * rng.normal(size=(n, 32))
        own[:, place : place + 16] = rng.normal(size=(n, 16)) * 0.5
        own[:, 64] = 8 if place == 32 else -8
        rows.append((own / np.linalg.norm(own, axis=1, keepdims=True)).astype(np.float32))
    return rows[0], rows[1]


def test_a_row_goes_to_the_nearest_centroid_and_equal_ones_to_the_first() -> None:
    rows, centroids = unit_rows(500, 8), unit_rows(7, 8, 1)
    exact = rows.astype(np.float64) @ centroids.T.astype(np.float64)
    assert np.array_equal(nearest(rows, centroids), exact.argmax(axis=1))
    assert np.array_equal(nearest(rows, np.repeat(centroids, 2, axis=0)) % 2, np.zeros(500))


def test_a_cluster_without_rows_keeps_its_centroid() -> None:
    rows, former = unit_rows(4, 3), unit_rows(3, 3, 1)
    centroids = centroids_of(rows, np.array([0, 0, 2, 0]), former)
    assert np.array_equal(centroids[1], former[1])
    assert centroids[2] == pytest.approx(rows[2])
    mean = rows[[0, 1, 3]].mean(axis=0)
    assert centroids[0] == pytest.approx(mean / np.linalg.norm(mean))


def test_kappa_is_cohens_and_its_interval_covers_that_of_other_draws() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    first = rng.integers(5, size=(200, 300))
    second = np.where(rng.random(first.shape) < 0.5, first, rng.integers(5, size=first.shape))
    values = kappa_of_pairs(first[0], second[0])
    kappa = metrics.cohen_kappa_score(first[0], second[0])
    assert values.mean() == pytest.approx(kappa)
    draws = [kappa_of_pairs(*each).mean() for each in zip(first, second, strict=True)]
    low, high = mean_interval(values) or (0, 0)
    assert (high - low) / 3.92 == pytest.approx(np.std(draws), rel=0.15)


def test_a_cluster_says_nothing_of_a_shuffled_modality_and_all_of_a_divided_one() -> None:
    labels = np.random.default_rng(0).integers(10, size=2_000)
    assert modality_information(labels[:600], labels[600:]) == pytest.approx(0, abs=0.01)
    assert modality_information(labels[:600], labels[600:] + 10) == pytest.approx(1)


def test_pairs_come_together_where_k_means_divides_the_modalities() -> None:
    first, second = narrow_cones(400)
    mixed = measure_mixed_clusters(Sample(first, second, np.arange(400), complete=True))
    assert mixed is not None
    assert mixed.clusters == 14  # the root of 200, of each half
    assert mixed.kappa["raw"].value < 0.05 and mixed.one_kind["raw"] > 0.9
    assert mixed.kappa["cross"].value > 0.6 and mixed.one_kind["cross"] < 0.05
    assert mixed.kappa["cross"].rows == 400


def test_rows_that_are_taken_as_they_are_are_not_called_collapsed() -> None:
    first, second = narrow_cones(400)
    sample = Sample(first, second, np.arange(400), complete=True)
    mixed = measure_mixed_clusters(sample, collapses=False)
    assert mixed is not None and sorted(mixed.kappa) == ["cross", "raw"]
    assert "after Collapse" not in judge_clusters(mixed, ["image", "text"]).because


def test_unrelated_pairs_do_not_come_together_and_few_are_not_judged() -> None:
    first, second = narrow_cones(400, shared=0.0)
    mixed = measure_mixed_clusters(Sample(first, second, np.arange(400), complete=True))
    assert mixed is not None
    low, high = mixed.kappa["cross"].interval or (1, 1)
    assert low < 0.02 and high < 0.1
    few = Sample(first[:49], second[:49], np.arange(49), complete=True)
    assert measure_mixed_clusters(few) is None
    one_text_for_ten = Sample(first, second[np.arange(400) // 10], np.arange(400), complete=True)
    assert measure_mixed_clusters(one_text_for_ten) is None


def test_cross_centroids_are_those_of_the_guide() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "clusters.md"
    (code,) = re.findall(
        r"^```python\n(import numpy.*?)^```$", guide.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    of_guide: dict[str, Any] = {}
    exec(code, of_guide)
    first, second = (rows - rows.mean(axis=0) for rows in narrow_cones(300))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second))
    starts = y[generator(0, "starts").permutation(300)[:12]]
    expected = of_guide["cross_centroids"](x, y, starts)
    found = cross_centroids(x, y, 12, generator(0, "starts"))
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found[1] == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.parametrize(
    ("low", "one_kind", "word"),
    [
        (0.30, 0.10, "yes"),
        (0.29, 0.0, "partly"),
        (0.9, 0.11, "partly"),
        (0.05, 0.9, "partly"),
        (0.04, 0.0, "no"),
    ],
)
def test_the_verdict_rests_on_the_lower_end_of_kappa_and_on_u(
    low: float, one_kind: float, word: str
) -> None:
    kappa = {name: Estimate(low + 0.05, (low, low + 0.1), 60) for name in CLUSTERINGS}
    mixed = MixedClusters(kappa, dict.fromkeys(CLUSTERINGS, one_kind), 7)
    answer = judge_clusters(mixed, ["image", "text"])
    assert answer.answer == word
    assert answer.question == "Can images and texts be clustered together?"
    assert f"{100 * low + 5:.0f}% ({100 * low:.0f} to" in answer.because


def test_without_pairs_it_is_unknown_whether_kinds_can_be_clustered_together() -> None:
    assert judge_clusters(None, ["image", "text"]).answer == "unknown"
