from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from c3tools.transforms import FewPairsWarning, Procrustes

from .conftest import make_pairs


def centred(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows - rows.mean(axis=0))


@given(st.integers(2, 20), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_procrustes_of_few_pairs_is_the_fitted_rotation_nearest_to_the_identity(n: int, seed: int) -> None:
    dim = 24
    pairs = make_pairs(n, dim, seed)
    x, y = centred(pairs.x), centred(pairs.y)
    with pytest.warns(FewPairsWarning, match=f"{n} pairs, which determine only {n - 1} of 24 dimensions"):
        found = Procrustes().matrix(x, y)
    np.testing.assert_allclose(found @ found.T, np.eye(dim), atol=1e-10)
    # the limit of scipy's solution for pairs that also contain a little of every axis, mapped to itself
    little = 1e-5 * np.eye(dim)
    expected, _ = orthogonal_procrustes(np.vstack([x, little]), np.vstack([y, little]))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # what the pairs determine fits as well as any rotation does
    assert np.trace(found.T @ x.T @ y) == pytest.approx(np.linalg.svd(x.T @ y, compute_uv=False).sum())


@pytest.mark.filterwarnings("ignore::c3tools.transforms.FewPairsWarning")
def test_procrustes_of_few_pairs_does_not_depend_on_their_order() -> None:
    pairs = make_pairs(10, 64)
    x, y = centred(pairs.x), centred(pairs.y)
    order = np.random.default_rng(0).permutation(10)
    np.testing.assert_allclose(Procrustes().matrix(x, y), Procrustes().matrix(x[order], y[order]), atol=1e-8)


def test_procrustes_of_enough_pairs_warns_of_nothing() -> None:
    pairs = make_pairs(60, 24)
    found = Procrustes().matrix(centred(pairs.x), centred(pairs.y))
    np.testing.assert_allclose(found, orthogonal_procrustes(centred(pairs.x), centred(pairs.y))[0], atol=1e-8)


@pytest.mark.filterwarnings("ignore::c3tools.transforms.FewPairsWarning")
def test_procrustes_of_rows_that_are_all_the_same_changes_nothing() -> None:
    np.testing.assert_allclose(Procrustes().matrix(np.zeros((3, 5)), np.zeros((3, 5))), np.eye(5), atol=1e-12)
