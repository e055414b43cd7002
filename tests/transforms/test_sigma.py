from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c3tools.errors import TransformError
from c3tools.transforms.sigma import (
    MIN_COSINE,
    MIN_SIBLING_COSINE,
    PUBLISHED_SIGMA,
    SigmaRule,
    caption_spread,
    pair_cosine,
    parse_sigma,
    published,
    recommend,
    residual_rms,
    scaled_spread,
    sigma_for_cosine,
)

Array = npt.NDArray[np.float64]


@given(st.floats(0.05, 0.99), st.floats(0.1, 2.0), st.integers(2, 1024))
def test_noise_of_this_size_gives_this_cosine(cosine: float, norm: float, dim: int) -> None:
    sigma = sigma_for_cosine(cosine, norm, dim)
    assert norm / np.hypot(norm, sigma * np.sqrt(dim)) == pytest.approx(cosine)


def test_no_noise_gives_a_cosine_of_zero_or_less() -> None:
    assert sigma_for_cosine(0.0, 1.0, 8) is None
    assert sigma_for_cosine(-0.3, 1.0, 8) is None


def test_caption_spread_finds_the_noise_that_made_the_captions() -> None:
    """Captions are a centre plus noise of sigma each; two of them meet at the cosine |e|^2 / (|e|^2 + sigma^2 d)."""
    rng = np.random.default_rng(1)
    dim, sigma = 64, 0.04
    centres = rng.normal(size=(800, dim)) * 0.08
    owner = np.repeat(np.arange(800), 5)
    texts = centres[owner] + rng.normal(size=(4000, dim)) * sigma
    cosine = 0.08**2 / (0.08**2 + sigma**2)
    norm = np.sqrt(dim * (0.08**2 + sigma**2))
    expected = norm * np.sqrt((1 / cosine**2 - 1) / dim)
    assert caption_spread(texts, owner, np.zeros(dim)).sigma == pytest.approx(expected, rel=0.02)


def test_pair_cosine_and_residual_are_their_formulas() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 6))
    y = x + rng.normal(size=(50, 6)) * 0.5
    owner = np.arange(50)
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    cosine = np.mean(np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    expected = np.linalg.norm(b, axis=1).mean() * np.sqrt((1 / cosine**2 - 1) / 6)
    assert pair_cosine(x, y, owner, [x.mean(axis=0), y.mean(axis=0)]).sigma == pytest.approx(expected)
    assert residual_rms((x - y).var(axis=0)).sigma == pytest.approx(np.sqrt((x - y).var(axis=0).mean()))


def test_of_one_caption_each_the_cosine_of_pairs_is_recommended() -> None:
    rng = np.random.default_rng(4)
    images = rng.normal(size=(40, 8))
    texts, own, means = images + rng.normal(size=(40, 8)) * 0.5, np.arange(40), [np.zeros(8)] * 2
    pairs = pair_cosine(images, texts, own, means)
    spread = caption_spread(texts, own, means[1])
    rule, why = recommend([spread, scaled_spread(spread), residual_rms(np.ones(8)), pairs, published()])
    assert rule == pairs
    assert "every image has one caption" in why
    assert recommend([])[0].sigma == PUBLISHED_SIGMA


def test_no_sigma_where_pairs_are_no_nearer_than_strangers() -> None:
    rng = np.random.default_rng(5)
    images, texts, own = rng.normal(size=(400, 64)), rng.normal(size=(400, 64)), np.arange(400)
    texts += 0.002 * images  # by the formula alone a sigma of hundreds of times the norm
    found = pair_cosine(images, texts, own, [images.mean(axis=0), texts.mean(axis=0)])
    assert found.sigma is None
    assert "no closer than unrelated rows" in found.missing
    rule, why = recommend([found])
    assert rule.sigma == PUBLISHED_SIGMA
    assert "pairs are no closer" in why


def test_no_sigma_where_noise_would_leave_nothing() -> None:
    rng = np.random.default_rng(6)
    images, own = rng.normal(size=(3000, 64)), np.arange(3000)
    texts = rng.normal(size=(3000, 64)) + 0.07 * images  # nearer than strangers for certain, and hardly
    found = pair_cosine(images, texts, own, [np.zeros(64)] * 2)
    assert found.sigma is None
    assert "below 0.1 the noise hides everything" in found.missing
    siblings = caption_spread(texts[:1000], np.repeat(np.arange(500), 2), np.zeros(64))
    assert siblings.sigma is None
    assert scaled_spread(siblings).sigma is None


@given(st.floats(MIN_SIBLING_COSINE, 0.99), st.floats(0.1, 2.0), st.integers(2, 1024))
def test_the_noise_of_auto_leaves_something(cosine: float, norm: float, dim: int) -> None:
    sigma = scaled_spread(SigmaRule("caption_spread", sigma_for_cosine(cosine, norm, dim), "texts")).sigma
    assert sigma is not None
    assert norm / math.hypot(norm, sigma * dim**0.5) >= MIN_COSINE - 1e-9


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_pairs_that_belong_together_have_a_sigma_even_where_there_are_few(noise: float) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        images = rng.normal(size=(30, 64))
        texts = images + noise * rng.normal(size=(30, 64))
        assert pair_cosine(images, texts, np.arange(30), [images.mean(axis=0), texts.mean(axis=0)]).sigma is not None


def test_pairs_are_not_called_held_out_which_nobody_knows() -> None:
    rows = np.random.default_rng(7).normal(size=(20, 8))
    found = pair_cosine(rows, rows + 0.1, np.arange(20), [np.zeros(8)] * 2)
    assert "held-out" not in found.rests_on
    assert "not seen in training" in found.rests_on


def few_pairs(count: int, seed: int, dim: int = 16) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, dim))
    return images + 3.0, images + 0.5 * rng.normal(size=(count, dim)) - 2.0


@given(st.integers(2, 40), st.integers(0, 1000))
def test_an_image_mean_of_these_very_images_is_no_bias(count: int, seed: int) -> None:
    """Each image less the mean of all has the direction that it has less the mean of the others."""
    images, texts = few_pairs(count, seed)
    item_index, mean = np.arange(count), texts.mean(axis=0) + 0.1
    others = (images.sum(axis=0) - images) / (count - 1)
    of_all = pair_cosine(images, texts, item_index, [images.mean(axis=0), mean])
    of_others = pair_cosine(images - others, texts, item_index, [np.zeros(16), mean])
    assert of_all.missing.split(":")[0] == of_others.missing.split(":")[0]
    assert of_all.sigma == (None if of_others.sigma is None else pytest.approx(of_others.sigma))


@given(st.integers(10, 40), st.integers(0, 1000))
def test_noise_on_images_is_noise_on_texts_with_the_sides_exchanged(count: int, seed: int) -> None:
    images, texts = few_pairs(count, seed)
    item_index, means = np.arange(count), [images.mean(axis=0), texts.mean(axis=0)]
    on_images = pair_cosine(images, texts, item_index, means, noised="image")
    assert on_images.sigma == pytest.approx(pair_cosine(texts, images, item_index, means[::-1]).sigma)
    # an image with several captions counts once in the norm of what is noised
    several = pair_cosine(images, texts[[0, *item_index]], np.array([0, *item_index]), means, noised="image")
    norm = np.linalg.norm(images - means[0], axis=1).mean()
    assert several.sigma is not None
    assert f"({norm / np.hypot(norm, several.sigma * 4):.3f})" in several.rests_on  # 4, the root of the dimension


def test_sigma_is_a_number_or_one_of_the_words() -> None:
    assert (parse_sigma("0.1"), parse_sigma(0), parse_sigma("auto")) == (0.1, 0.0, "auto")
    assert parse_sigma("pairs") == "pairs"
    assert parse_sigma("best", also=("auto", "best")) == "best"
    for value in ("much", "best", -0.1, float("nan"), "inf", None):
        with pytest.raises(TransformError, match="sigma must be a number of at least 0, 'auto' or 'pairs', not "):
            parse_sigma(value)  # type: ignore[arg-type]
    with pytest.raises(TransformError, match="sigma must be a number of at least 0, not 'auto'"):
        parse_sigma("auto", also=())
