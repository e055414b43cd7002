"""Cross-centroids and the measures of mixed clusters, beside scikit-learn and by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.clustering.cross_centroids import (
    centroids_of,
    cross_centroids,
    nearest_centroids,
    train_centroids,
)
from c3tools.geometry.collect import Sample
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
from c3tools.transforms.calibration import Calibration
from tests.conftest import unit_rows

NAMES = ("image", "text")


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


def related_rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that share half of what they are, without topics, in two cones."""
    shared = unit_rows(n, 32)
    return shared + unit_rows(n, 32, 3) + 0.1, shared + unit_rows(n, 32, 4) - 0.1


def sample_of(first: np.ndarray, second: np.ndarray) -> Sample:
    return Sample(first, second, np.arange(len(first)), complete=True)


def divided(sample: Sample, items: int) -> tuple[Sample, Sample]:
    """So many items drawn, and the others."""
    drawn = np.random.default_rng(0).permutation(len(sample.first))
    return sample.part(np.sort(drawn[:items]))[0], sample.part(np.sort(drawn[items:]))[0]


def collapsed(sample: Sample) -> Sample:
    raw = {"image": sample.first, "text": sample.second}
    pipeline = Calibration.fit(raw).pipeline
    first, second = (pipeline.transform(rows, modality=name) for name, rows in raw.items())
    return Sample(first, second, sample.item_index, complete=True)


def test_a_row_goes_to_the_nearest_centroid_and_equal_ones_to_the_first() -> None:
    rows, centroids = unit_rows(500, 8), unit_rows(7, 8, 1)
    exact = rows.astype(np.float64) @ centroids.T.astype(np.float64)
    assert np.array_equal(nearest_centroids(rows, centroids), exact.argmax(axis=1))
    twice = np.repeat(centroids, 2, axis=0)
    assert np.array_equal(nearest_centroids(rows, twice) % 2, np.zeros(500))


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
    raw = sample_of(*narrow_cones(400))
    mixed = measure_mixed_clusters(collapsed(raw), NAMES, raw=raw)
    assert mixed is not None
    assert mixed.clusters == 20
    assert mixed.kappa["raw"].value < 0.05 and mixed.one_kind["raw"] > 0.9
    assert mixed.kappa["cross"].value > 0.6 and mixed.one_kind["cross"] < 0.05
    assert mixed.kappa["cross"].rows == 400


def test_without_rows_before_the_pipeline_nothing_is_compared_with_k_means() -> None:
    mixed = measure_mixed_clusters(collapsed(sample_of(*narrow_cones(400))), NAMES)
    assert mixed is not None and [*mixed.kappa] == ["cross"]
    assert "k-means" not in judge_clusters(mixed, NAMES).because


def kappa_in_table(sample: Sample, centroids: Mapping[str, np.ndarray]) -> float:
    first = nearest_centroids(sample.first, centroids["text"])
    second = nearest_centroids(sample.second, centroids["image"])
    return float(kappa_of_pairs(first[sample.item_index], second).mean())


def train(sample: Sample, count: int) -> dict[str, np.ndarray]:
    rows = {"image": sample.first, "text": sample.second}
    return train_centroids(rows, count, generator(0, "clusters"))


def test_pairs_are_not_measured_by_centroids_that_they_were_made_from() -> None:
    seen, unseen = (collapsed(each) for each in divided(sample_of(*related_rows(1_100)), 100))
    mixed = measure_mixed_clusters(seen, NAMES, 20)
    assert mixed is not None
    centroids = train(seen, 20)
    assert kappa_in_table(seen, centroids) > mixed.kappa["cross"].value + 0.2
    assert mixed.kappa["cross"].value == pytest.approx(kappa_in_table(unseen, centroids), abs=0.1)


def test_items_that_share_a_text_are_in_one_fold() -> None:
    images, texts = (rows.repeat(10, axis=0) for rows in related_rows(100))
    images = images + 0.05 * unit_rows(1_000, 32, 1)
    like_texts = texts + 1e-3 * unit_rows(1_000, 32, 2)
    kappas = []
    for second in (texts, like_texts):
        mixed = measure_mixed_clusters(collapsed(sample_of(images, second)), NAMES, 20)
        assert mixed is not None
        kappas.append(mixed.kappa["cross"].value)
    assert kappas[0] < kappas[1] - 0.2  # like texts are divided among the folds


def test_more_clusters_than_four_fifths_of_the_items_are_not_measured() -> None:
    sample = collapsed(sample_of(*narrow_cones(60)))
    assert measure_mixed_clusters(sample, NAMES, 48) is not None
    assert measure_mixed_clusters(sample, NAMES, 49) is None
    assert "four fifths" in judge_clusters(None, NAMES).because


def test_centroids_that_were_made_from_other_rows_are_measured_as_they_are() -> None:
    seen, unseen = divided(collapsed(sample_of(*narrow_cones(400))), 200)
    centroids = train(seen, 15)
    mixed = measure_mixed_clusters(unseen, NAMES, 15, centroids=centroids)
    assert mixed is not None
    assert mixed.kappa["cross"].value == pytest.approx(kappa_in_table(unseen, centroids))


def test_unrelated_pairs_do_not_come_together_and_few_are_not_judged() -> None:
    first, second = narrow_cones(400, shared=0.0)
    mixed = measure_mixed_clusters(collapsed(sample_of(first, second)), NAMES)
    assert mixed is not None
    low, high = mixed.kappa["cross"].interval or (1, 1)
    assert low < 0.02 and high < 0.1
    few = sample_of(first[:49], second[:49])
    assert measure_mixed_clusters(collapsed(few), NAMES) is None
    one_text_for_ten = sample_of(first, second[np.arange(400) // 10])
    assert measure_mixed_clusters(collapsed(one_text_for_ten), NAMES) is None


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


def test_where_more_clusters_divide_more_pairs_a_sentence_says_so() -> None:
    def mixed(value: float, count: int) -> MixedClusters:
        kappa = Estimate(value, (value - 0.05, value + 0.05), 60)
        return MixedClusters({"cross": kappa}, {"cross": 0.0}, count)

    because = judge_clusters(mixed(0.4, 90), NAMES, fewer=mixed(0.6, 20)).because
    assert "with the default of 20, 60% stay together" in because
    because = judge_clusters(mixed(0.58, 90), NAMES, fewer=mixed(0.6, 20)).because
    assert "default" not in because
