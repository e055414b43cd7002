"""Recall by its plain definition."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import MetricError
from c3tools.metrics import retrieval
from c3tools.metrics.retrieval import pair_ranks, pair_recall, ranks, recall_at
from tests.conftest import unit_rows


def by_definition(x: np.ndarray, y: np.ndarray, owner: np.ndarray, k: int) -> list[float]:
    """Recall@k of both directions from one dense matrix."""
    asked = np.unique(owner)
    found = []
    for scores, positive in (
        (x[asked] @ y.T, asked[:, None] == owner[None, :]),
        (y @ x.T, owner[:, None] == np.arange(len(x))[None, :]),
    ):
        near = np.argsort(-scores, axis=1)[:, :k]
        found.append(float(np.mean([positive[row, near[row]].any() for row in range(len(scores))])))
    return found


def measured(x: np.ndarray, y: np.ndarray, owner: np.ndarray, k: int) -> list[float]:
    return [recall[f"recall@{k}"] for recall in pair_recall(x, y, owner, ks=(k,))]


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 15), st.integers(1, 3), st.integers(0, 10_000), st.integers(1, 6))
def test_recall_is_that_of_the_definition(images: int, most: int, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.concatenate([np.full(rng.integers(0, most + 1), i) for i in range(images)] + [[0]]))
    owner = owner.astype(np.int64)
    x, y = unit_rows(images, 6, seed).astype(np.float64), unit_rows(len(owner), 6, seed + 1).astype(np.float64)
    assert measured(x, y, owner, k) == pytest.approx(by_definition(x, y, owner, k), abs=1e-9)


def test_recall_of_real_clip_pairs(shared_data: Path) -> None:
    folder = shared_data / "clip_embeddings" / "coco_val2017_vitb16_500"
    x, y = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("image", "text"))
    for shift in (0, 1):  # before and after Collapse
        rows = [side - shift * side.mean(axis=0) for side in (x, y)]
        rows = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in rows]
        expected = by_definition(rows[0], rows[1], np.arange(500), 10)
        assert measured(rows[0], rows[1], np.arange(500), 10) == pytest.approx(expected, abs=1e-6)


def test_blocks_do_not_change_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, owner = unit_rows(37, 8), unit_rows(74, 8, seed=1), np.arange(74) % 37
    whole = pair_ranks(x.astype(float), y.astype(float), owner)
    monkeypatch.setattr(retrieval, "_BLOCK_BYTES", 1)
    for one, many in zip(whole, pair_ranks(x.astype(float), y.astype(float), owner), strict=True):
        np.testing.assert_array_equal(one.better, many.better)


def test_ties_count_with_their_probability() -> None:
    # every gallery row is the same: the positive is among the first k of n with probability k / n
    for found in pair_recall(np.ones((5, 3)), np.ones((5, 3)), np.arange(5), ks=(1, 2, 5, 10)):
        assert list(found.values()) == pytest.approx([0.2, 0.4, 1.0, 1.0])
    # 2 positives and 2 negatives tie: the chance that both of the first two are negatives is 1/6
    several = ranks(np.ones((1, 2)), np.ones((4, 2)), np.array([0]), np.array([0, 0, 1, 2]))
    assert list(recall_at(several, (1, 2, 3)).values()) == pytest.approx([0.5, 5 / 6, 1.0])


ONE = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ranks(ONE, np.ones((2, 4)), np.arange(2), np.arange(2)), "(2, 3)"),
        (lambda: ranks(ONE, ONE, np.arange(1), np.arange(2)), "item"),
        (lambda: ranks(ONE, ONE, np.array([0, 7]), np.arange(2)), "1 of 2"),
        (lambda: recall_at(ranks(ONE, ONE, np.arange(2), np.arange(2)), (0,)), "0"),
        (lambda: recall_at(ranks(ONE[:0], ONE, np.arange(0), np.arange(2))), "one query"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, named: str) -> None:
    with pytest.raises(MetricError, match=re.escape(named)):
        call()  # type: ignore[operator]
