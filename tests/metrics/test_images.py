"""The scores of images; torchmetrics is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import MetricError
from c3tools.metrics.images import (
    disjoint_halves,
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_features,
    nearest_photos,
)
from c3tools.moments import Moments, unit_rows


class Pixels(torch.nn.Module):
    """Features that are the pixels themselves, so that torchmetrics is given the features of the tests."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double()


def two_sets(n: int = 60, m: int = 70) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 12)), 0.3 + 1.4 * rng.normal(size=(m, 12))


def as_images(features: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(features).view(-1, 3, 2, 2)


def test_the_frechet_distance_is_that_of_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    metric = fid.FrechetInceptionDistance(feature=Pixels(), normalize=True).set_dtype(torch.float64)
    metric.inception, metric.used_custom_model = Pixels(), True
    first, second = two_sets()
    metric.update(as_images(second), real=True)
    metric.update(as_images(first), real=False)
    own = frechet_distance(Moments.from_rows(first), Moments.from_rows(second))
    assert own == pytest.approx(float(metric.compute()), rel=1e-4)


def test_the_kernel_distance_is_that_of_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    first, second = two_sets(64, 64)
    value = float(kid.poly_mmd(torch.from_numpy(first), torch.from_numpy(second)))
    assert kernel_distance(first, second) == pytest.approx(value, rel=1e-4)


@pytest.mark.filterwarnings("ignore:std")  # of the one split; torch warns once a process
def test_the_inception_score_is_that_of_torchmetrics() -> None:
    inception = pytest.importorskip("torchmetrics.image.inception")

    class Logits(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1).double()

    with pytest.warns(UserWarning, match="memory"):
        metric = inception.InceptionScore(feature=Logits(), splits=1)  # features as they are
    logits = two_sets()[1]
    metric.update(as_images(logits))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert inception_score(probabilities) == pytest.approx(float(metric.compute()[0]), rel=1e-4)


@given(shift=st.floats(0, 3), scale=st.floats(0.2, 3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_frechet_distance_of_shifted_and_scaled_rows_has_a_closed_form(
    shift: float, scale: float, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(size=(50, 6))
    moments = Moments.from_rows(x)
    moved = Moments.from_rows(scale * (x - x.mean(0)) + x.mean(0) + shift)
    expected = 6 * shift**2 + (1 - scale) ** 2 * np.trace(moments.scatter) / 49
    assert frechet_distance(moments, moved) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert frechet_distance(moved, moments) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_moments_of_parts_give_the_same_distance() -> None:
    first, second = two_sets()
    whole = frechet_distance(Moments.from_rows(first), Moments.from_rows(second))
    parts = Moments.from_rows(first[:20]).merge(Moments.from_rows(first[20:]))
    assert frechet_distance(parts, Moments.from_rows(second)) == pytest.approx(whole, rel=1e-10)


def test_the_floor_of_the_frechet_distance_is_that_of_small_samples() -> None:
    """Two samples of one Gaussian are not at distance 0, and the fewer they are the farther."""
    rng = np.random.default_rng(0)
    floors = {}
    for n in (200, 500, 1000):
        samples = (Moments.from_rows(rng.normal(size=(n, 256)) / 16) for _ in range(2))
        floors[n] = frechet_distance(*samples)
    assert floors[200] > floors[500] > floors[1000] > 0


def test_the_kernel_distance_is_unbiased() -> None:
    rng = np.random.default_rng(1)
    values = [kernel_distance(*(kernel_features(rng.normal(size=(20, 8))) for _ in range(2))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_kernel_features_give_a_kernel_of_cosines() -> None:
    x = np.random.default_rng(2).normal(size=(5, 9)).astype(np.float32)
    scaled = kernel_features(x)
    np.testing.assert_allclose(scaled @ scaled.T / 9, unit_rows(x) @ unit_rows(x).T, atol=1e-6)


def test_the_inception_score_of_certain_and_of_undecided_images() -> None:
    assert inception_score(np.eye(7)) == pytest.approx(7)
    assert inception_score(np.full((5, 4), 0.25)) == pytest.approx(1)
    with pytest.raises(MetricError):
        inception_score(np.empty((0, 4)))


def test_a_copy_of_a_training_photo_is_found() -> None:
    rng = np.random.default_rng(3)
    training, real, made = rng.normal(size=(300, 16)), rng.normal(size=(200, 16)), rng.normal(size=(50, 16))
    made[7] = training[123] + 1e-3
    near = nearest_photos(made, training, real)
    assert near.rows[7] == 123
    assert near.copied[7]
    assert near.copied.mean() < 0.1
    cosines = unit_rows(made) @ unit_rows(training).T
    np.testing.assert_allclose(near.cosines, cosines.max(axis=1), atol=1e-6)
    alone = nearest_photos(made, training)
    assert alone.threshold is None
    assert not alone.copied.any()


def test_halves_are_disjoint_and_too_few_rows_are_an_error() -> None:
    first, second = disjoint_halves(11)
    assert len(first) == len(second) == 5
    assert not set(first) & set(second)
    one = Moments.from_rows(np.ones((1, 3)))
    with pytest.raises(MetricError, match="at least two images of each kind, but there are 1 and 1"):
        frechet_distance(one, one)
    with pytest.raises(MetricError, match="3 and 2 dimensions"):
        frechet_distance(one, Moments.from_rows(np.ones((2, 2))))
    with pytest.raises(MetricError, match="at least two images"):
        kernel_distance(np.ones((1, 3)), np.ones((5, 3)))
