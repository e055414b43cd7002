from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import MetricError
from c3tools.metrics import retrieval
from c3tools.metrics.retrieval import pair_ranks, pair_recall, ranks, recall_at
from tests.conftest import unit_rows


def recall_by_sorting(scores: np.ndarray, positive: np.ndarray, k: int) -> float:
    """The plain definition: sort each row, look for a positive among the first k."""
    order = np.argsort(-scores, axis=1)[:, :k]
    return float(np.mean([positive[row, order[row]].any() for row in range(len(scores))]))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 10_000), st.integers(1, 9))
def test_recall_is_that_of_sorting_with_any_number_of_captions(images: int, most: int, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.full(rng.integers(1, most + 1), i) for i in range(images)])
    owner = rng.permutation(owner)
    x, y = rng.normal(size=(images, 6)), rng.normal(size=(len(owner), 6))
    forward, backward = pair_recall(x, y, owner, ks=(k,))
    matching = np.arange(images)[:, None] == owner[None, :]
    assert forward[f"recall@{k}"] == pytest.approx(recall_by_sorting(x @ y.T, matching, k))
    assert backward[f"recall@{k}"] == pytest.approx(recall_by_sorting(y @ x.T, matching.T, k))


def test_blocks_do_not_change_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = unit_rows(37, 8).astype(np.float64), unit_rows(74, 8, seed=1).astype(np.float64)
    owner = np.arange(74) % 37
    whole = pair_ranks(x, y, owner)
    monkeypatch.setattr(retrieval, "_BLOCK_BYTES", 1)
    for one, many in zip(whole, pair_ranks(x, y, owner), strict=True):
        np.testing.assert_array_equal(one.better, many.better)


def test_ties_count_with_their_probability() -> None:
    # every gallery row is the same: the positive is among the first k of n with probability k / n
    forward, backward = pair_recall(np.ones((5, 3)), np.ones((5, 3)), np.arange(5), ks=(1, 2, 5))
    assert forward == pytest.approx({"recall@1": 0.2, "recall@2": 0.4, "recall@5": 1.0})
    assert backward == pytest.approx(forward)


def test_ties_among_several_positives() -> None:
    # 2 positives and 2 negatives tie: the chance that both of the first two are negatives is 1/6
    found = ranks(np.ones((1, 2)), np.ones((4, 2)), np.array([0]), np.array([0, 0, 1, 2]))
    assert recall_at(found, (1, 2, 3)) == pytest.approx({"recall@1": 0.5, "recall@2": 5 / 6, "recall@3": 1.0})


def test_a_k_beyond_the_gallery_finds_everything() -> None:
    forward, _ = pair_recall(unit_rows(4, 3), unit_rows(4, 3, seed=2), np.arange(4), ks=(10,))
    assert forward == {"recall@10": 1.0}


@pytest.mark.parametrize(
    ("queries", "gallery", "items", "gallery_items", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), [0, 1], [0, 1], "have different dimensions"),
        (np.ones((2, 3)), np.ones((2, 3)), [0], [0, 1], "needs an item"),
        (np.ones((2, 3)), np.ones((2, 3)), [0, 7], [0, 1], "1 of 2 queries have no matching row"),
    ],
)
def test_what_does_not_fit_is_refused(
    queries: np.ndarray, gallery: np.ndarray, items: list[int], gallery_items: list[int], message: str
) -> None:
    with pytest.raises(MetricError, match=message):
        ranks(queries, gallery, np.array(items), np.array(gallery_items))


def test_recall_needs_queries_and_a_positive_k() -> None:
    found = ranks(np.ones((1, 2)), np.ones((1, 2)), np.array([0]), np.array([0]))
    with pytest.raises(MetricError, match="at least 1"):
        recall_at(found, (0,))
    with pytest.raises(MetricError, match="at least one query"):
        recall_at(ranks(np.ones((0, 2)), np.ones((1, 2)), np.array([], int), np.array([0])))
