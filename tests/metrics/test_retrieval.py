"""Recall by its plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.metrics import retrieval
from c3tools.metrics.retrieval import NearestRows, nearest, pair_hits
from tests.conftest import unit_rows

COUNTS = [st.integers(3, 15), st.integers(1, 3), st.integers(0, 10_000), st.integers(1, 6)]


@settings(max_examples=60)
@given(st.sampled_from([retrieval._BLOCK_BYTES, 1]), *COUNTS)
def test_recall_is_that_of_the_definition_in_blocks_of_any_size(
    block_bytes: int, images: int, most: int, seed: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.permutation(
        np.concatenate([np.full(rng.integers(0, most + 1), i) for i in range(images)] + [[0]])
    )
    owner = owner.astype(np.int64)
    x, y = (
        unit_rows(images, 6, seed).astype(np.float64),
        unit_rows(len(owner), 6, seed + 1).astype(np.float64),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_BLOCK_BYTES", block_bytes)
        found = [hits[f"recall@{k}"].mean() for hits in pair_hits(x, y, owner, ks=(k,))]
    asked, expected = np.unique(owner), []
    sides = (
        (x[asked] @ y.T, asked[:, None] == owner),
        (y @ x.T, owner[:, None] == np.arange(images)),
    )
    for scores, positive in sides:
        near = np.take_along_axis(positive, np.argsort(-scores)[:, :k], 1)
        expected.append(near.any(axis=1).mean())
    assert found == pytest.approx(expected, abs=1e-9)


def test_ties_count_with_their_probability() -> None:
    # every gallery row is the same: the positive is among the first k of n with probability k / n
    for n in (2, 8):
        for found in pair_hits(np.ones((n, 3)), np.ones((n, 3)), np.arange(n)):
            expected = {f"recall@{k}": min(k / n, 1) for k in (1, 5, 10)}
            assert {name: own.mean() for name, own in found.items()} == pytest.approx(expected)
    # 2 positives and 2 negatives tie: the chance that both of the first two are negatives is 1/6
    several, _ = pair_hits(np.ones((3, 2)), np.ones((4, 2)), np.array([0, 0, 1, 2]), (1, 2, 3))
    assert [float(own[0]) for own in several.values()] == pytest.approx([0.5, 5 / 6, 1.0])


def test_the_nearest_rows_come_best_first_and_of_equal_ones_the_first() -> None:
    queries, gallery = np.array([[0.9, 0.8], [0.1, 0.2]]), np.array([[1.0, 0], [0, 1], [1, 0]])
    for k in (1, 2, 9):
        rows, products = nearest(queries, gallery, k)
        assert rows.tolist() == [found[:k] for found in ([0, 2, 1], [1, 0, 2])]
        np.testing.assert_array_equal(products, np.take_along_axis(queries @ gallery.T, rows, 1))


@pytest.mark.parametrize("sizes", [[3], [700, 1, 0, 900], [1] * 30])
def test_nearest_rows_of_batches_are_those_of_all_rows_at_once(sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (40, 4)).astype(np.float32)  # with many equal products
    gallery = rng.integers(-2, 3, (sum(sizes), 4)).astype(np.float32)
    found = NearestRows(40, 10)
    for batch in np.split(gallery, np.cumsum(sizes)[:-1]):
        found.add(queries @ batch.T)
    rows, products = nearest(queries, gallery, 10)
    assert found.row_count == len(gallery)
    np.testing.assert_array_equal(found.numbers[:, : len(gallery)], rows)
    np.testing.assert_array_equal(found.products[:, : len(gallery)], products)
    assert (found.numbers[:, len(gallery) :] == -1).all()


def test_a_product_of_minus_infinity_is_no_nearest_row() -> None:
    found = NearestRows(1, 2)
    found.add(np.array([[-np.inf, 1.0, -np.inf]]))
    assert found.numbers.tolist() == [[1, -1]]
