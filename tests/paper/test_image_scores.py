"""The scores of images, and what each image has to do with them, by their definitions."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from c3tools.errors import MetricError
from c3tools.paper.image_scores import (
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_features,
    nearest_photos,
    photo_values,
)
from tests.stores import unit


def test_a_copy_of_a_training_photo_is_found() -> None:
    made, training, real = np.random.default_rng(3).normal(size=(3, 50, 16))
    made[7] = 2 * training[23] + 1e-3
    rows, cosines, copied = nearest_photos(made, training, real)
    assert (rows[7], copied[7]) == (23, True)
    assert_allclose(cosines, (unit(made) @ unit(training).T).max(axis=1), atol=1e-6)


def derivatives(score: Any, n: int, step: float = 1e-4) -> Any:
    """The derivatives (n,) of a score of weighted images when weight moves from all images to each
    in turn."""
    even = np.full(n, 1 / n)
    moves = np.eye(n) - even
    return np.array(
        [(score(even + step * move) - score(even - step * move)) / (2 * step) for move in moves]
    )


def frechet_of(*sets: Any) -> float:
    """The distance of weighted images by the eigenvalues of the product of the covariances, which
    is not symmetric."""
    means = [weights @ x for x, weights in sets]
    one, two = (
        np.cov(x.T, ddof=0, aweights=weights) * len(x) / (len(x) - 1) for x, weights in sets
    )
    roots = np.sqrt(np.linalg.eigvals(one @ two).real.clip(min=0)).sum()
    return float(np.sum((means[0] - means[1]) ** 2) + np.trace(one + two) - 2 * roots)


@settings(max_examples=20)
@given(
    st.integers(0, 1000),
    st.integers(2, 6),
    st.integers(8, 20),
    st.integers(8, 20),
    st.floats(0.5, 2),
)
def test_the_influence_on_the_frechet_distance_is_its_derivative(
    seed: int, d: int, n: int, m: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), 0.5 + scale * rng.normal(size=(m, d))
    own, other = ((rows, np.full(len(rows), 1 / len(rows))) for rows in (x, y))
    distance, first, second = frechet_distance(x, y)
    assert frechet_of(own, other) == pytest.approx(distance, abs=1e-8)
    by_x = derivatives(lambda weights: frechet_of((x, weights), other), n)
    by_y = derivatives(lambda weights: frechet_of(own, (y, weights)), m)
    assert_allclose(first, by_x, rtol=1e-3, atol=1e-3)
    assert_allclose(second, by_y, rtol=1e-3, atol=1e-3)


def test_the_influence_of_fewer_images_than_dimensions_is_that_within_their_span() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 40)), 0.5 + rng.normal(size=(200, 40))
    _, first, second = frechet_distance(x, y)
    by_x = derivatives(
        lambda weights: frechet_of((x, weights), (y, np.full(200, 1 / 200))), 10, 1e-3
    )
    assert_allclose(first, by_x, rtol=0.01, atol=0.01 * first.std())
    turned = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    assert_allclose(frechet_distance(x @ turned, y @ turned)[2], second, atol=1e-8)


@given(st.integers(0, 1000), st.integers(2, 20), st.integers(2, 20))
def test_the_kernel_distance_and_the_influence_on_it(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = kernel_features(rng.normal(size=(n, 8))), kernel_features(0.5 + rng.normal(size=(m, 8)))
    distance, *influences = kernel_distance(x, y)
    gaps = []
    for own, other, influence in ((x, y, influences[0]), (y, x, influences[1])):
        same, cross = ((own @ rows.T / 8 + 1) ** 3 for rows in (own, other))
        gap = (same.sum(axis=1) - same.diagonal()) / (len(own) - 1) - cross.mean(axis=1)
        gaps.append(gap.mean())
        assert_allclose(influence, 2 * (gap - gaps[-1]), atol=1e-8)
    assert distance == pytest.approx(sum(gaps), abs=1e-8)


def test_two_images_of_each_kind_are_needed() -> None:
    distances: Any = (frechet_distance, kernel_distance)
    for distance, (n, m) in product(distances, ((1, 2), (2, 1))):
        with pytest.raises(MetricError, match=f"{n} and {m}"):
            distance(np.ones((n, 3)), np.ones((m, 3)))


@given(st.integers(0, 1000), st.integers(2, 20))
def test_the_inception_score_and_the_influence_on_it(seed: int, n: int) -> None:
    p = np.random.default_rng(seed).dirichlet(np.full(5, 0.7), size=n) + 1e-6
    p /= p.sum(axis=1, keepdims=True)

    def score(weights: np.ndarray) -> float:
        return float(np.exp(weights @ np.sum(p * np.log(p / (weights @ p)), axis=1)))

    whole, influence = inception_score(p)
    assert score(np.full(n, 1 / n)) == pytest.approx(whole)
    assert_allclose(influence, derivatives(score, n, 1e-5), atol=1e-5)
    assert inception_score(np.eye(7))[0] == pytest.approx(7)  # images of which all is certain


def test_values_per_photo_join_what_belongs_to_a_photo() -> None:
    made, real = np.array([1.0, -2, 1, 0]), np.array([3.0, -3])
    # the first three images are of the two photos, the last one of a photo that is not among the
    # real ones
    values = photo_values(10.0, [(made, [0, 1, 1, 2]), (real, [0, 1])])
    assert_allclose(values, [10 + 3 * (1 / 4 + 3 / 2), 10 + 3 * (-1 / 4 - 3 / 2), 10])
    shares = photo_values(50.0, [(np.array([50.0, -50, 50, -50]), range(4))])
    assert_allclose(shares, [100, 0, 100, 0])  # of a mean they are its own values
    some = photo_values(50.0, [(np.array([50.0, -50]), [7, 3])])
    assert_allclose(some, [0, 100])  # photos without a row have none
